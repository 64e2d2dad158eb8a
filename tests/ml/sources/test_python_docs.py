"""Docstrings of installed packages."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from ml.files import digest
from ml.sources.python_docs import PACKAGES, PythonDocs


@pytest.fixture(scope="module")
def docs():
    return PythonDocs(PythonDocs.Options(per_class=30))


def test_each_package_is_a_class(docs):
    frame = docs.scan()
    assert frame["label"].value_counts().to_dict() == dict.fromkeys([*PACKAGES, "python"], 30)
    assert (frame["key"].str.split("/").str[0] == frame["label"])[frame["label"].notna()].all()
    texts = [raw.data.decode() for raw in docs.read(frame["key"].tolist())]
    assert len(set(texts)) == len(texts)
    assert all(80 <= len(text) <= 2000 for text in texts)
    assert frame["key"].is_unique


def test_the_language_reference_is_unlabelled(docs):
    frame = docs.scan()
    rest = frame[frame["label"].isna()]
    assert set(rest["split"]) == {"unlabelled"}
    assert set(frame["split"][frame["label"].notna()]) == {None}
    assert any(b"keyword argument" in raw.data for raw in docs.read(rest["key"].tolist()))


def test_a_docstring_is_that_of_its_key(docs):
    installed = Path(pd.__file__).parents[1]
    keys = [key for key in docs.scan()["key"] if key.startswith(("pandas/", "numpy/")) and not key.endswith("__doc__")]
    assert keys
    for key, raw in zip(keys, docs.read(keys), strict=True):
        path, _, name = key.partition(":")
        first = re.escape(raw.data.decode().splitlines()[0]).replace(r"\\", r"\\+")  # a backslash may be written as two
        assert re.search(rf"(def|class) {name.split('.')[-1]}\b.*?{first}", (installed / path).read_text(), re.DOTALL), key
    assert "no docstring 'numpy/none.py:none'" in next(docs.read(["numpy/none.py:none"])).reason


def test_the_rows_are_the_same_each_time_and_nothing_is_imported(docs):
    script = """
import sys, ml.sources.python_docs as docs
source = docs.PythonDocs(docs.PythonDocs.Options(per_class=30))
print(docs.digest(*source.scan()["key"]), source.fingerprint(), not {"torch", "scipy", "sqlalchemy", "matplotlib"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert done.stdout.split() == [digest(*docs.scan()["key"]), docs.fingerprint(), "True"]


def test_the_fingerprint_knows_the_options(docs):
    assert PythonDocs(PythonDocs.Options(per_class=31)).fingerprint() != docs.fingerprint()
