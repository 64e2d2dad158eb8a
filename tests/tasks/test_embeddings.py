"""A registered model that tells lists of numbers: packed, loaded as a server loads it, sent as JSON; and a champion with another tokenizer."""

import io
import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

from ml.model import Model, save_model
from ml.predictor import Predictor, frame_of
from ml.preprocess import preprocess
from ml.recipe import parse
from ml.store import Store
from tasks import register
from tasks.tracking.versions import signature

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]
ROOT = Path(__file__).resolve().parents[2]
WORDS = "one two three four five six seven eight nine ten".split()  # noqa: SIM905


class Made:
    """A recipe over pairs, their store, and a model with random weights for it."""

    def __init__(self, folder: Path, vocabulary: int):
        rows = [{"source": f"{a} and {b}", "target": f"{b} {a} {len(a)}"} for a in WORDS for b in WORDS if a < b]
        pd.DataFrame(rows).to_csv(folder / "pairs.csv", index=False)
        modality = {"name": "text-pair", "options": {"max_length": 16, "vocabulary": vocabulary}}
        source = {"name": "text-pairs", "options": {"path": str(folder / "pairs.csv")}}
        data = {"source": source, "modality": modality, "near_duplicates": False, "workers": 1}
        backbone = {"name": "text-cnn", "options": {"width": 16, "depth": 0}}
        self.recipe = parse({"name": "pairs", "data": data, "backbone": backbone, "pretraining": {"enabled": False}, "finetuning": {"head": "embedding"}})
        self.store: Store = preprocess(self.recipe.data.source.make(), self.recipe.data.modality.make(), self.recipe.data, folder / "work", folder / "stores", False)
        self.test = np.flatnonzero(self.store.table["part"] == "test")
        torch.manual_seed(0)
        head = self.recipe.finetuning.head
        self.folder = folder / f"model-{vocabulary}"
        save_model(Model.build(self.recipe.backbone, head, self.store.spec), self.folder, self.recipe.backbone, head, self.store.spec)
        self.predictor = Predictor.load(self.folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="module")
def made(folder):
    return Made(folder, 340)


def test_a_champion_with_another_tokenizer_is_measured_on_both_sides(folder, made):
    """What it answers to the raw items is what it answers to a store of its own."""
    champion = Made(folder, 300)
    own = champion.store.rows(champion.test)
    assert not champion.predictor.reads(made.store.spec) and champion.store.table["key"].equals(made.store.table["key"])
    told = register._answers(champion.predictor, made.predictor, "pairs", made.store, made.test, made.recipe)
    np.testing.assert_allclose(told, champion.predictor.answers(own), atol=1e-6)
    head, truth = made.predictor.model.head, made.store.rows(made.test)
    np.testing.assert_array_equal(head.scores(told, truth), champion.predictor.model.head.scores(champion.predictor.answers(own), own))


def test_lists_of_numbers_are_served(folder, made):
    values = ["one and two", "eight"]
    expected = made.predictor.predict(values)
    columns = made.recipe.data.modality.chosen.fields
    mlflow.pyfunc.save_model(
        folder / "packed",
        python_model=str(ROOT / "tasks" / "pyfunc_model.py"),
        artifacts={"model": str(made.folder)},
        code_paths=[str(ROOT / "ml")],
        pip_requirements=["mlflow"],
        signature=signature(columns, "string", expected),
        input_example=frame_of(values, made.recipe.data.modality.chosen),
    )
    loaded = mlflow.pyfunc.load_model(str(folder / "packed"))
    told = {one["name"]: one["type"] for one in loaded.metadata.signature.outputs.to_dict()}
    assert told == {"embedding": "array", "error": "string"}
    frame = frame_of([*values, ""], made.recipe.data.modality.chosen)
    rows = json.loads(as_json(loaded.predict(frame)))["predictions"]
    assert [len(row["embedding"] or ()) for row in rows] == [16, 16, 0] and rows[0]["error"] is None and rows[2]["error"]
    np.testing.assert_allclose([row["embedding"] for row in rows[:2]], np.array(expected["embedding"].tolist()), atol=1e-5)
    good = json.loads(as_json(loaded.predict(frame[:2])))["predictions"]
    np.testing.assert_allclose([row["embedding"] for row in good], [row["embedding"] for row in rows[:2]], atol=1e-5)


def as_json(frame: pd.DataFrame) -> str:
    """As the server sends it."""
    from mlflow.pyfunc.scoring_server import predictions_to_json

    text = io.StringIO()
    predictions_to_json(frame, text)
    return text.getvalue()


def test_parity_is_a_matter_of_numbers_in_lists_too(made, monkeypatch):
    expected = made.predictor.predict(["one and two", "eight"])
    monkeypatch.setattr(register, "scored", lambda uri, frame: frame)
    register._check_parity("models:/m/1", expected, expected)
    found = expected.copy()
    found["embedding"] = pd.Series([(np.array(one) + 0.01).tolist() for one in expected["embedding"]], dtype=expected["embedding"].dtype)
    with pytest.raises(register.ParityError, match=r"differs by 0\.01"):
        register._check_parity("models:/m/1", found, expected)
