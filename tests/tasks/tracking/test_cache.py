"""Equal keys mean equal work: options, inputs and the source of what runs decide, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.tracking.cache import closure, stage_key

ROOT = Path(__file__).resolve().parents[3]
values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
options = st.dictionaries(st.text(), values, max_size=5)


def key(given_options, stage="s", inputs=None):
    return stage_key(stage, given_options, inputs or {}, [])


@given(options)
def test_order_does_not_matter(content):
    assert key(content) == key(dict(reversed(content.items())))


@given(options, options)
def test_other_options_give_another_key(one, two):
    # repr tells 1, 1.0 and True apart, as JSON does, where == does not.
    assert (key(one) == key(two)) == (repr(sorted(one.items())) == repr(sorted(two.items())) or (one == two and key(one) == key(two)))


@given(st.text(), st.text())
def test_stage_and_inputs_are_part_of_the_key(one, two):
    assert (key({}, stage=one) == key({}, stage=two)) == (one == two)
    assert (key({}, inputs={"data": one}) == key({}, inputs={"data": two})) == (one == two)


def test_not_a_number_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        key({"a": float("nan")})


@pytest.fixture
def project(tmp_path):
    files = {
        "ml/__init__.py": "",
        "ml/fit.py": "import os\nfrom ml import deep\nfrom ml.table import TABLE\n",
        "ml/deep.py": "def late():\n    import ml.later\n",
        "ml/later.py": "from .relative import x\n",
        "ml/relative.py": "x = 1\n",
        "ml/other.py": "y = 1\n",
        "ml/table/__init__.py": "from ml.table.one import One\nTABLE = {'one': One}\n",
        "ml/table/one.py": "class One: ...\n",
        "tasks/__init__.py": "",
        "tasks/work.py": "from ml.fit import x\nfrom tasks.tracking.runs import y\n",
        "tasks/tracking/__init__.py": "",
        "tasks/tracking/runs.py": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_closure_follows_imports_but_neither_tables_nor_records(project):
    assert closure(["tasks.work"], project) == {"tasks.work", "ml.fit", "ml.deep", "ml.later", "ml.relative"}
    assert closure(["tasks.work", "ml.table.one"], project) - closure(["tasks.work"], project) == {"ml.table.one"}
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        closure(["ml.nowhere"], project)


@pytest.mark.parametrize(
    ("changed", "matters"),
    [("ml/relative.py", True), ("tasks/work.py", True), ("ml/table/one.py", True), ("ml/other.py", False), ("ml/table/__init__.py", False), ("tasks/tracking/runs.py", False)],
)
def test_a_changed_source_changes_the_key_of_what_runs_it(changed, matters, project):
    def now():
        return stage_key("s", {}, {}, ["tasks.work", "ml.table.one"], project)

    before = now()
    with (project / changed).open("a") as file:
        file.write("# changed\n")
    assert (now() != before) == matters


def test_the_same_in_another_process():
    code = "from tasks.tracking.cache import stage_key; print(stage_key('s', {'a': [1, 2.5, None]}, {'d': 'x'}, ['ml.progress', 'ml.recipe']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == stage_key("s", {"a": [1, 2.5, None]}, {"d": "x"}, ["ml.progress", "ml.recipe"])
