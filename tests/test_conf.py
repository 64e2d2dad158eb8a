"""Every recipe in conf/ says what it is, and runs to its end at a tiny size."""

import re
from pathlib import Path

import pandas as pd
import pytest

from ml.recipe import load

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "conf").rglob("*.yaml"))
# Where small data for a recipe lie, in the shared data; others take pictures that are drawn and texts that are made up.
SHARED = {"cifar10": "cifar10", "clothing": "clothing_small", "pneumonia": "pneumonia_mnist", "imdb": "imdb", "newsgroups": "newsgroups20", "newsgroups-masked": "newsgroups20", "clinc150": "clinc150", "squad": "squad_v2_dev_half", "answer": "squad_v2_dev_half", "translate-multi30k": "multi30k_en_de_fr", "embed-multi30k": "multi30k_en_de_fr"}
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
    assert re.search(r"\d+(\.\d+)? ?%|\b(accuracy|nats|BLEU|F1)\b", words), "what score is to be expected?"
    assert recipe.name == path.stem


@pytest.fixture
def data(request, pictures, tmp_path):
    """The override that names small data for a recipe."""

    def find(recipe) -> list[str]:
        source = recipe.data.source.name.value
        if recipe.name in SHARED:
            small = ["backbone.options.size=tiny", "data.modality.options.max_length=96"] if source == "squad" else []
            return [*small, f"data.source.options.path={request.getfixturevalue('shared_data') / 'small' / SHARED[recipe.name]}"]
        if source == "image-folder":
            return [f"data.source.options.path={pictures}"]
        if source == "parquet":
            files = sorted(pictures.rglob("*.png"))
            pd.DataFrame({"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}).to_parquet(
                tmp_path / "rows.parquet"
            )
            return [f"data.source.options.path={tmp_path / 'rows.parquet'}"]
        if source == "text-folder":
            lines = [f"ACTOR {number}:\nThe {one} goes to the {other}, and the {other} to the {one}." for number, one in enumerate(["sun", "moon", "king", "queen", "fool"]) for other in ["hill", "mill", "sea", "town", "inn", "wood", "road"]]
            (tmp_path / "play.txt").write_text("\n\n".join(lines))
            return [f"data.source.options.path={tmp_path / 'play.txt'}", "data.near_duplicates=false"]
        if source == "text-pairs":
            numbers = dict(zip(["one", "two", "three", "four", "five", "six", "seven"], ["eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben"], strict=True))
            rows = [{"source": f"{a} and {b} or {c}", "target": f"{x} und {y} oder {z}"} for a, x in numbers.items() for b, y in numbers.items() for c, z in list(numbers.items())[:2]]
            pd.DataFrame(rows).to_csv(tmp_path / "pairs.csv", index=False)
            return [f"data.source.options.path={tmp_path / 'pairs.csv'}"]
        if source == "text-table":
            kinds = {"weather": "rain wind sun cloud storm", "kitchen": "salt bread soup onion pan"}
            rows = [{"text": f"{one} and {other} again, day {day}", "label": kind} for kind, words in kinds.items() for one in words.split() for other in words.split() for day in range(2)]
            pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
            return [f"data.source.options.path={tmp_path / 'rows.csv'}"]
        if source == "tagged-text":
            names, verbs = ["Ann B-PER", "Bob B-PER\nLee I-PER", "Rome B-LOC"], ["sees", "likes", "leaves", "calls"]
            rows = [f"{one}\n{verb} O\nthe O\n{verb[:-1]}er O\nof O\n{other}\n{number} O" for one in names for other in names for verb in verbs for number in ("twice", "again")]
            (tmp_path / "rows.conll").write_text("\n\n".join(rows))
            return [f"data.source.options.path={tmp_path / 'rows.conll'}", "data.near_duplicates=false"]
        few = {"python-docs": "per_class=30", "python-tokens": "statements=150"}
        return [f"data.source.options.{few[source]}"] if source in few else []

    return find


SOON = ("digits", "classify")  # run in every test, one of pictures and one of texts; the others take minutes together
RUNS = [pytest.param(path, id=path.stem, marks=[] if path.stem in SOON else pytest.mark.e2e) for path in RECIPES]


@pytest.mark.parametrize("path", RUNS)
def test_it_runs_to_its_end(path, data, warmstart, finished):
    recipe = load(path)
    few = ["splitting.labels_per_class=4"] if recipe.splitting.labels_per_class else []
    result = warmstart(finished.folder, "run", path, "--json", *TINY, *few, *data(recipe)).result
    assert result["experiment"] == recipe.name
    head = recipe.finetuning.head.chosen
    assert result["metrics"][head.primary]["n"] > 0 and result["model"]["version"]
    wanted = (recipe.finetuning.baseline, recipe.finetuning.alternative)
    assert (result["baseline"] is not None, result["classical"] is not None) == wanted
