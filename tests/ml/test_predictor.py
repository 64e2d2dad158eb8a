"""What a user hands over comes back as a label with probabilities, whoever else is in the batch."""

import base64
import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from ml.backbones import BACKBONES
from ml.choice import choice
from ml.contracts import InputError
from ml.heads import HEADS
from ml.modalities import MODALITIES
from ml.model import Model, save_backbone, save_model
from ml.predictor import Embedder, Predictor, load
from ml.probe import embed
from ml.ragged import Ragged

CLASSES = ("cat", "dog", "it's <b>")
LONG = " ".join(f"word{number % 50}" for number in range(900))


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(array).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def arrays():
    return np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model with random weights and a temperature, saved."""
    torch.manual_seed(0)
    modality = MODALITIES["image"](MODALITIES["image"].Options(size=16, channels=3))
    spec = modality.spec(CLASSES, {"mean": [0.5] * 3, "std": [0.25] * 3})
    backbone, head = choice("backbone", BACKBONES)(name="small-cnn"), choice("head", HEADS)(name="classification")
    model = Model.build(backbone, head, spec)
    torch.nn.init.normal_(model.head.linear.weight)
    folder = tmp_path_factory.mktemp("model")
    save_model(model, folder / "model", backbone, head, spec, temperature=2.0)
    save_backbone(model.backbone, folder / "backbone", backbone, spec)
    return folder


def test_predict_agrees_with_arrays(folder, arrays, tmp_path):
    predictor = Predictor.load(folder / "model")
    expected = predictor.answers({"array": arrays})
    path = tmp_path / "one.png"
    path.write_bytes(png(arrays[2]))
    values = [png(arrays[0]), base64.b64encode(png(arrays[1])).decode(), path, str(path)]
    frame = predictor.predict(values)
    assert list(frame.columns) == ["label", "probability", *(f"p_{name}" for name in CLASSES), "error"]
    np.testing.assert_allclose(frame.filter(like="p_").to_numpy(), expected[[0, 1, 2, 2]], atol=1e-6)
    assert frame["label"].tolist() == [CLASSES[k] for k in expected[[0, 1, 2, 2]].argmax(1)]
    np.testing.assert_allclose(frame["probability"], expected[[0, 1, 2, 2]].max(1), atol=1e-6)


def test_temperature_divides_the_outputs(folder, arrays):
    predictor = Predictor.load(folder / "model")
    outputs = predictor.outputs(arrays)
    expected = torch.softmax(torch.from_numpy(outputs) / 2.0, dim=1).numpy()
    np.testing.assert_allclose(predictor.answers({"array": arrays}), expected, atol=1e-6)


def test_bad_items_cost_their_own_row_only(folder, arrays):
    predictor = Predictor.load(folder / "model")
    good = [png(array) for array in arrays[:5]]
    mixed = [good[0], b"not a picture", good[1], "neither base64 nor a file!", None, good[2], good[3][:60], good[4]]
    frame = predictor.predict(mixed, batch_size=3)
    assert frame["error"].notna().tolist() == [False, True, False, True, True, False, True, False]
    bad = frame[frame["error"].notna()]
    assert bad["label"].isna().all() and bad.filter(like="p_").isna().all(axis=None) and bad["error"].str.len().gt(5).all()
    alone = predictor.predict([*good[:3], good[4]])
    np.testing.assert_allclose(frame[frame["error"].isna()].filter(like="p_"), alone.filter(like="p_"), atol=1e-6)


def test_no_good_item_and_no_item_at_all(folder):
    predictor = Predictor.load(folder / "model")
    assert predictor.predict([b"", b"x"])["error"].notna().all()
    assert len(predictor.predict([])) == 0


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_the_batch_makes_no_difference(folder, arrays, batch_size):
    predictor = Predictor.load(folder / "model")
    order = np.random.default_rng(1).permutation(len(arrays))
    np.testing.assert_allclose(predictor.answers({"array": arrays[order]}, batch_size), predictor.answers({"array": arrays})[order], atol=1e-6)


def test_paths_are_refused_where_files_are_not_allowed(folder, arrays, tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(png(arrays[0]))
    frame = Predictor.load(folder / "model").predict([str(path), path, png(arrays[0])], files=False)
    assert frame["error"].notna().tolist() == [True, True, False]


def test_a_backbone_embeds(folder, arrays):
    embedder = load(folder / "backbone")
    assert isinstance(embedder, Embedder)
    frame = embedder.predict([png(arrays[0]), b"x"])
    assert list(frame.columns) == [*(f"e_{d}" for d in range(embedder.backbone.width)), "error"]
    np.testing.assert_allclose(frame.iloc[0, :-1].astype(float), embedder.embed_arrays(arrays[:1])[0], atol=1e-5)
    assert frame.iloc[1, :-1].isna().all() and frame["error"].notna().tolist() == [False, True]


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(InputError, match="no backbone"):
        load(tmp_path)


def test_texts_score_as_their_stored_rows(text_model, tmp_path):
    predictor = Predictor.load(text_model.folder / "model")
    lines = text_model.lines
    expected = predictor.answers({"array": text_model.tokens})
    assert np.ptp(expected[:, 0]) > 0.01
    path = tmp_path / "one.txt"
    path.write_text(lines[2], encoding="utf-8")
    frame = predictor.predict([*lines, lines[2].encode("utf-16"), path])
    assert list(frame.columns) == ["label", "probability", "p_cat", "p_dog", "error"]
    np.testing.assert_allclose(frame[["p_cat", "p_dog"]], expected[[0, 1, 2, 3, 2, 2]], atol=1e-6)
    assert frame["label"].tolist() == [("cat", "dog")[k] for k in expected[[0, 1, 2, 3, 2, 2]].argmax(1)]
    for batch_size in (1, 3):
        np.testing.assert_allclose(predictor.answers({"array": text_model.tokens[[3, 0, 2, 1]]}, batch_size), expected[[3, 0, 2, 1]], atol=1e-6)


def test_bad_texts_cost_their_own_row_only(text_model, tmp_path):
    predictor = Predictor.load(text_model.folder / "model")
    lines = text_model.lines
    mixed = [lines[0], "", b"\0\1\2", None, 3, lines[1], "x" * 300_000, tmp_path / "none.txt", "\u200b", lines[3]]
    frame = predictor.predict(mixed, batch_size=3)
    bad = frame[frame["error"].notna()]
    assert bad.index.tolist() == [1, 2, 3, 4, 6, 7, 8]
    assert bad["label"].isna().all() and bad.filter(like="p_").isna().all(axis=None)
    for error, words in zip(
        bad["error"], ["empty", "binary", "found NoneType", "found int", "300,000 characters", "not a file", "empty"], strict=True
    ):
        assert words in error
    np.testing.assert_allclose(frame.loc[[0, 5, 9], ["p_cat", "p_dog"]], predictor.answers({"array": text_model.tokens[[0, 1, 3]]}), atol=1e-6)
    assert predictor.predict(["", "\0"])["error"].notna().all() and len(predictor.predict([])) == 0
    assert predictor.predict([tmp_path], files=False)["error"].item() == "paths are not accepted here"


def test_a_backbone_embeds_texts(text_model):
    embedder = load(text_model.folder / "backbone")
    frame = embedder.predict([text_model.lines[1], ""])
    np.testing.assert_allclose(frame.iloc[0, :-1].astype(float), embedder.embed_arrays(text_model.tokens[1:2])[0], atol=1e-5)
    assert frame.iloc[1, :-1].isna().all() and frame["error"].tolist() == [None, "empty"]


def test_which_stored_rows_a_model_reads(text_model, folder):
    predictor, picture = Predictor.load(text_model.folder / "model"), Predictor.load(folder / "model")
    own = predictor.spec
    assert predictor.reads(own) and picture.reads(picture.spec) and not picture.reads(own)
    assert not predictor.reads(replace(own, options=own.options | {"lowercase": False}))
    # The tokens of another tokenizer are other words, however many there are.
    assert not predictor.reads(replace(own, statistics=own.statistics | {"tokenizer": own.statistics["tokenizer"].replace("gold", "dlog")}))
    assert picture.reads(replace(picture.spec, statistics={"mean": [0.4] * 3, "std": [0.3] * 3}))


@pytest.mark.parametrize(
    ("modality", "name", "value"),
    [
        ("text", "bert", LONG),
        ("text", "gpt", LONG),
        ("text-pair", "bart", LONG),
        ("question", "bert", {"question": "which word is it?", "context": LONG}),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)
def test_of_what_is_longer_than_a_model_reads_at_once_features_are_of_a_part(tmp_path, modality, name, value):
    """More than any positions that the backbone has; the probe reads the same."""
    made = MODALITIES[modality]
    rules = made(made.Options(max_length=64, vocabulary=200, tokenizer="wordpiece"))
    rows = Ragged.of([rules.decode(rules.serve(value)).array], np.uint8)
    spec = rules.spec((), rules.statistics([rows]))
    tokens = rules.pack(rows, spec)["tokens"]
    assert modality == "text-pair" or tokens.lengths[0] > 512  # pairs are stored cut
    chosen = choice("backbone", BACKBONES)(name=name)
    torch.manual_seed(0)
    save_backbone(chosen.make(spec), tmp_path, chosen, spec)
    embedder = Embedder.load(tmp_path)
    frame = embedder.predict([value])
    features = frame.drop(columns="error").to_numpy(np.float32)
    assert frame["error"].isna().all() and np.isfinite(features).all()
    store = SimpleNamespace(array=tokens, spec=spec)
    probed = embed(embedder.backbone, store, rules, np.array([0]), torch.device("cpu")).numpy()
    np.testing.assert_allclose(probed, features / np.linalg.norm(features), atol=1e-5)


def test_texts_of_all_lengths_keep_their_places(text_model):
    """Batches hold texts of like length, whatever the order in which they come."""
    predictor = Predictor.load(text_model.folder / "model")
    texts = [" ".join(text_model.lines[number % 3].split()[: 1 + number * 7 % 11]) for number in range(40)]
    texts[5], texts[30] = "", LONG
    together, alone = predictor.predict(texts, batch_size=2), [predictor.predict([text]) for text in texts]
    assert together["error"].notna().tolist() == [number == 5 for number in range(40)]
    for number, one in enumerate(alone):
        np.testing.assert_allclose(together.filter(like="p_").iloc[number].astype(float), one.filter(like="p_").iloc[0].astype(float), atol=1e-6)
