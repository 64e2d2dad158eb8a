"""Every recipe in conf/ says what it is, and runs to its end at a tiny size."""

import re
from pathlib import Path

import pandas as pd
import pytest

from ml.recipe import load

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "conf").rglob("*.yaml"))
# Where small data for a recipe lie, in the shared data; others take pictures that are drawn and texts that are made up.
SHARED = {"cifar10": "cifar10", "clothing": "clothing_small", "pneumonia": "pneumonia_mnist", "imdb": "imdb", "newsgroups": "newsgroups20", "clinc150": "clinc150"}
TINY = [
    "pretraining.fit.epochs=1",
    "pretraining.fit.batch_size=64",
    "finetuning.fit.epochs=2",
    "evaluation.bootstrap=100",
    "evaluation.mistakes=4",
    "compute.threads=1",
    "compute.precision=float32",
    "data.quarantine_limit=0.2",
]


def header(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(
        line.removeprefix("#").strip() for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_header_states_command_time_and_score(path):
    recipe, words = load(path), header(path)
    assert f"warmstart run {path.relative_to(ROOT)}" in words
    assert re.search(r"\b(second|minute|hour)s?\b", words), "how long does it take?"
    assert re.search(r"\d+(\.\d+)? ?%|\baccuracy\b", words), "what score is to be expected?"
    assert recipe.name == path.stem


@pytest.fixture
def data(request, pictures, tmp_path):
    """The override that names small data for a recipe."""

    def find(recipe) -> list[str]:
        source = recipe.data.source.name.value
        if recipe.name in SHARED:
            return [f"data.source.options.path={request.getfixturevalue('shared_data') / 'small' / SHARED[recipe.name]}"]
        if source == "image-folder":
            return [f"data.source.options.path={pictures}"]
        if source == "parquet":
            files = sorted(pictures.rglob("*.png"))
            pd.DataFrame({"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}).to_parquet(
                tmp_path / "rows.parquet"
            )
            return [f"data.source.options.path={tmp_path / 'rows.parquet'}"]
        if source == "text-table":
            kinds = {"weather": "rain wind sun cloud storm", "kitchen": "salt bread soup onion pan"}
            rows = [{"text": f"{one} and {other} again, day {day}", "label": kind} for kind, words in kinds.items() for one in words.split() for other in words.split() for day in range(2)]
            pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
            return [f"data.source.options.path={tmp_path / 'rows.csv'}"]
        return ["data.source.options.per_class=30"] if source == "python-docs" else []

    return find


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_runs_to_its_end(path, data, warmstart, finished):
    recipe = load(path)
    few = ["splitting.labels_per_class=4"] if recipe.splitting.labels_per_class else []
    result = warmstart(finished.folder, "run", path, "--json", *TINY, *few, *data(recipe)).result
    assert result["experiment"] == recipe.name
    assert result["metrics"]["accuracy"]["n"] > 0 and result["model"]["version"]
    assert (result["baseline"] is not None, result["classical"] is not None) == (recipe.finetuning.baseline, recipe.finetuning.classical)
