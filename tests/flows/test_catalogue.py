"""The command's help and its lists: what there is, with options."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.catalogue import recipes, show
from ml.backbones import BACKBONES
from ml.heads import HEADS
from ml.methods import METHODS
from ml.modalities import MODALITIES
from ml.objectives import OBJECTIVES
from ml.sources import SOURCES

ROOT = Path(__file__).resolve().parents[2]
TABLES = {
    "sources": SOURCES,
    "modalities": MODALITIES,
    "backbones": BACKBONES,
    "objectives": OBJECTIVES,
    "heads": HEADS,
    "methods": METHODS,
}
HELP = """
import sys
sys.argv = ["warmstart", *sys.argv[1:]]
from flows.cli import main
try:
    main()
finally:
    print(sorted({"torch", "mlflow", "prefect", "pandas"} & sys.modules.keys()), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["predict", "--help"], []], ids=" ".join)
def test_help_imports_no_heavy_library(arguments, tmp_path):
    done = subprocess.run([sys.executable, "-c", HELP, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Usage: warmstart" in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("kind", TABLES)
def test_each_table_lists_its_entries(kind):
    lines = show(kind).splitlines()
    assert [line.split()[0] for line in lines] == list(TABLES[kind])
    assert all(len(line.split()) > 3 for line in lines), "each says what it is"


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in TABLES.items() for name in table])
def test_each_entry_shows_its_options(kind, name):
    text = show(kind, name)
    assert text.startswith(f"{name}: ")
    for option, field in TABLES[kind][name].Options.model_fields.items():
        assert f"  {option} (" in text
        assert field.description and field.description in text


def test_recipes_name_what_they_are():
    found = dict(recipes())
    assert any(path.endswith("conf/image/digits.yaml") for path in found)
    assert all(len(words) > 20 and not words.startswith("#") for words in found.values())


def test_recipes_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [Path(path) for path, _ in recipes()] == sorted((ROOT / "conf").rglob("*.yaml"))


def test_the_commands(warmstart, tmp_path):
    listed = warmstart(tmp_path, "recipes")
    assert listed.code == 0 and "digits.yaml" in listed.out
    shown = warmstart(tmp_path, "show", "backbones", "vit-tiny")
    assert shown.code == 0 and shown.out.startswith("vit-tiny: ")
    assert list(tmp_path.iterdir()) == []
