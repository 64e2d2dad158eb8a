"""What models without classes tell: the same alone and among others, with a bad item's reason in its own row, over tables and files."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from ml import scoring
from ml.backbones import BACKBONES
from ml.choice import choice
from ml.contracts import InputError
from ml.heads import HEADS
from ml.modalities import MODALITIES
from ml.model import Model, save_model
from ml.predictor import Predictor, frame_of, is_text, values_of
from ml.ragged import Ragged

CONTEXT = "The old mill stands at the river. A miller named Anna has run it since 1987, and her sons will not."
KINDS = {
    "language-model": ("text", "gpt", {"written": 8}, ["The sun and", "A quiet film about two brothers", "gold"], "\u200b"),
    "tagging": ("tagged", "bert", {}, ["Ann Lee lives in St. Ives.", " ".join(f"word{number}" for number in range(90)), "gold"], "\u200b"),
    "translation": ("text-pair", "bart", {}, ["A dog runs.", "Two men stand at a bus stop.", "Snow."], ""),
    "embedding": ("text-pair", "text-cnn", {"width": 8}, ["A dog runs.", "Two men stand at a bus stop.", "Snow."], ""),
    "answering": (
        "question",
        "bert",
        {},
        [{"question": "Who runs the mill?", "context": CONTEXT}, {"question": "Since when?", "context": CONTEXT * 3}, {"question": "Where?", "context": "Here."}],
        {"question": "Who?", "context": ""},
    ),
}
LEARNT = {
    "text-pair": lambda value: json.dumps({"source": value, "target": value[::-1]}),
    "tagged": lambda value: json.dumps({"words": value.split(), "tags": [("O", "B-X", "I-X")[place % 3] for place in range(len(value.split()))]}),
}
"""What a model learns from, where that is more than what its users send."""


def test_every_head_without_classes_is_here():
    assert set(KINDS) == {name for name, head in HEADS.items() if not head.labels}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    """A model with random weights and what its users may send."""
    modality_name, backbone_name, options, values, bad = KINDS[request.param]
    made = MODALITIES[modality_name]
    modality = made(made.Options(max_length=32, vocabulary=300))
    learnt = [LEARNT.get(modality_name, lambda value: value)(value) for value in values]
    decoded = [modality.decode(modality.serve(value)) for value in learnt]
    rows = Ragged.of([one.array for one in decoded], np.uint8)
    spec = modality.spec((), modality.statistics([rows]))
    backbone, head = choice("backbone", BACKBONES)(name=backbone_name), choice("head", HEADS)(name=request.param, options=options)
    torch.manual_seed(0)
    model = Model.build(backbone, head, spec)
    folder = tmp_path_factory.mktemp(request.param)
    save_model(model, folder, backbone, head, spec)
    return Predictor.load(folder), values, bad


def test_alone_and_among_others_it_tells_the_same(kind):
    predictor, values, _ = kind
    together = predictor.predict(values)
    assert together["error"].isna().all() and len(together) == len(values)
    for batch_size in (1, 2):
        again = predictor.predict(values, batch_size)
        pd.testing.assert_frame_equal(again, together, rtol=1e-4, atol=1e-5)


def test_a_bad_item_has_a_reason_and_costs_its_own_row_only(kind):
    predictor, values, bad = kind
    frame = predictor.predict([values[0], bad, values[1], None])
    assert frame["error"].notna().tolist() == [False, True, False, True]
    alone = predictor.predict([values[0], values[1]])
    pd.testing.assert_frame_equal(frame.iloc[[0, 2]].reset_index(drop=True), alone, rtol=1e-4, atol=1e-5)
    assert frame.iloc[[1, 3]].drop(columns="error").isna().all(axis=None)
    assert list(predictor.predict([bad])) == list(frame)


def test_a_request_holds_the_modalitys_fields(kind):
    predictor, values, _ = kind
    frame = frame_of(values, predictor.modality)
    assert list(frame) == list(predictor.modality.fields) and values_of(frame, predictor.modality) == values


def test_tables_are_scored_by_the_same_names(kind, tmp_path):
    predictor, values, _ = kind
    frame = frame_of(values, predictor.modality)
    frame.assign(other=1).to_csv(tmp_path / "in.csv", index=False)
    frame.to_parquet(tmp_path / "in.parquet")
    found = scoring.score(predictor, "m", [str(tmp_path / "in.csv"), str(tmp_path / "in.parquet")], tmp_path / "out.parquet", 256, part_rows=2)
    assert (found["rows"], found["failed"]) == (6, 0)
    scored, expected = pd.read_parquet(tmp_path / "out.parquet"), predictor.predict(values * 2)
    for name in expected.columns.drop("error"):
        assert_same(scored[name], expected[name])


def test_what_is_missing_in_a_table_is_named(kind, tmp_path):
    predictor, _, _ = kind
    (tmp_path / "in.csv").write_text("nothing\n1\n")
    with pytest.raises(InputError, match=f"has no column .*{predictor.modality.fields[-1]}"):
        scoring.score(predictor, "m", [str(tmp_path / "in.csv")], tmp_path / "out.parquet", 256)


def test_answers_to_stored_rows_are_those_to_the_values(kind):
    predictor, values, _ = kind
    modality = predictor.modality
    rows = modality.pack(Ragged.of([modality.decode(modality.serve(value)).array for value in values], np.uint8), predictor.spec)
    told, served = predictor.model.head.frame(predictor.answers(rows)), predictor.predict(values)
    for name in told:
        if name == "continuation":  # written for users alone
            continue
        assert_same(told[name], served[name])


def assert_same(found, expected):
    """Texts are equal; numbers, and lists of them, nearly so."""
    if is_text(expected.dtype):
        assert found.tolist() == expected.tolist()
    else:
        np.testing.assert_allclose(*(np.array(one.tolist(), float) for one in (found, expected)), rtol=1e-4, atol=1e-5)
