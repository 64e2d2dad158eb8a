"""The directions between the parts: flows → mlflow_server → tasks → ml, and within ml engines → fit → recipe → parts → contracts."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TABLES = ("sources", "modalities", "backbones", "objectives", "heads", "methods")
FILES = [path for package in ("ml", "tasks", "flows", "mlflow_server") for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def reaches(path: Path, *packages: str) -> set[str]:
    return {name for name in imported(path) if name.split(".")[0] in packages}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path):
    part = path.relative_to(ROOT).parts
    if part[0] == "ml":
        assert not reaches(path, "tasks", "flows", "mlflow_server", "prefect", "mlflow")
    if part[0] == "tasks":
        assert not reaches(path, "flows", "mlflow_server")
    if part[0] == "mlflow_server":
        assert not reaches(path, "flows")
    if part[0] in ("tasks", "flows", "mlflow_server") and part[:2] != ("tasks", "tracking") and not path.name.startswith("pyfunc_"):
        assert not reaches(path, "mlflow"), "only tasks/tracking and a model's own pyfunc file import mlflow"


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name in TABLES], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_parts_know_neither_siblings_nor_what_is_above(path: Path):
    own = f"ml.{path.parent.name}"
    names = imported(path)
    above = {"ml.recipe", "ml.fit", "ml.feed", "ml.preprocess", "ml.model", "ml.predictor"}
    assert not {name for name in names if any(name == one or name.startswith(f"{one}.") for one in above)}
    if path.name != "__init__.py":
        others = {f"ml.{table}" for table in TABLES} - {own}
        assert not {name for name in names if any(name == one or name.startswith(f"{one}.") for one in others)}
        siblings = {f"{own}.{one.stem}" for one in path.parent.glob("*.py")} - {f"{own}.image_augment", f"{own}.image_features"}
        assert not names & siblings, "an entry does not import its siblings"


@pytest.mark.parametrize("path", sorted((ROOT / "ml" / "engines").glob("*.py")), ids=lambda path: path.name)
def test_engines_know_no_other(path: Path):
    siblings = {f"ml.engines.{one.stem}" for one in path.parent.glob("*.py") if one != path}
    assert not imported(path) & siblings


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_small(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
