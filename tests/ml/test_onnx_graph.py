"""An exported graph says what torch says, of batches of any size and length."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ml.backbones import BACKBONES
from ml.choice import choice
from ml.contracts import Features, InputError
from ml.heads import HEADS
from ml.modalities import MODALITIES
from ml.model import Model, load_model, save_model
from ml.onnx_graph import FILE, Graph, check_exports, export, quantise
from ml.predictor import Predictor
from ml.ragged import Ragged
from tasks.register import ParityError, _exported

pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

TEXTS = ["gold rises", "a ship sails over the sea and is not seen again for many years", "tea", "gold and silver and tea"] * 5


def image_spec():
    modality = MODALITIES["image"](MODALITIES["image"].Options(size=16, channels=3))
    return modality.spec(("cat", "dog"), {"mean": [0.5] * 3, "std": [0.25] * 3})


def text_spec():
    modality = MODALITIES["text"](MODALITIES["text"].Options(max_length=12, vocabulary=100))
    rows = Ragged.of([np.frombuffer(text.encode(), np.uint8) for text in TEXTS], np.uint8)
    return modality.spec(("cat", "dog"), modality.statistics([rows]))


CASES = {"image": (image_spec, "small-cnn", "classification"), "text": (text_spec, "text-cnn", "multi-label")}


@pytest.fixture(scope="module", params=CASES)
def exported(request, tmp_path_factory):
    """A folder with a model of random weights and its graph, and rows as the store holds them."""
    make, backbone, head = CASES[request.param]
    spec = make()
    torch.manual_seed(0)
    backbone, head = choice("backbone", BACKBONES)(name=backbone), choice("head", HEADS)(name=head)
    model = Model.build(backbone, head, spec)
    torch.nn.init.normal_(model.head.linear.weight)
    folder = tmp_path_factory.mktemp("exported")
    save_model(model, folder, backbone, head, spec, temperature=2.0)
    export(folder)
    random = np.random.default_rng(0)
    if request.param == "image":
        rows = random.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    else:
        rows = Ragged.of([random.integers(0, spec.statistics["vocabulary"], 1 + number) for number in range(20)], np.int32)
    return SimpleNamespace(folder=folder, rows={"rows": rows}, chosen=(backbone, head), spec=spec)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_graph_agrees_with_torch(exported, batch_size):
    predictor = Predictor.load(exported.folder)
    with Graph(exported.folder, 1) as graph:
        found = Predictor.load(exported.folder, graph=graph).answers(exported.rows, batch_size)
    expected = predictor.answers(exported.rows)
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weights_of_8_bits_are_smaller_and_say_nearly_the_same(exported):
    small = quantise(exported.folder)
    assert small.stat().st_size < (exported.folder / FILE).stat().st_size
    with Graph(exported.folder, 1, "int8") as graph:
        found = Predictor.load(exported.folder, graph=graph).answers(exported.rows)
    expected = Predictor.load(exported.folder).answers(exported.rows)
    assert 0 < np.abs(found - expected).max() < 0.1


def test_a_graph_that_cannot_be_quantised(tmp_path):
    (tmp_path / FILE).write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"cannot be quantised: .*Error.*registration\.int8=false"):
        quantise(tmp_path)


def test_a_graph_of_another_model_is_not_registered(exported, tmp_path, monkeypatch):
    stage = SimpleNamespace(workdir=tmp_path / "work", log_metrics=lambda metrics: None)
    model, _ = load_model(exported.folder)
    torch.nn.init.normal_(model.head.linear.weight, std=2)
    save_model(model, tmp_path / "other", *exported.chosen, exported.spec)
    monkeypatch.setattr("ml.onnx_graph.export", lambda folder: shutil.copy(exported.folder / FILE, folder / FILE))
    with pytest.raises(ParityError, match="20 test rows"):
        _exported(stage, tmp_path / "other", exported.rows, int8=False)
    assert (_exported(stage, exported.folder, exported.rows, int8=False) / FILE).is_file()


def test_what_cannot_be_exported_is_refused():
    class Odd(torch.nn.Module):
        width = 3

        def encode(self, inputs):
            pooled_BD = inputs["image"].mean((2, 3))
            return Features(pooled_BD + 1 if pooled_BD.sum() > 0 else pooled_BD)

    with pytest.raises(InputError, match=r"cannot be exported to ONNX.*another backbone"):
        check_exports(SimpleNamespace(make=lambda spec: Odd()), choice("head", HEADS)(name="classification"), image_spec())


def test_graphs_that_are_not_there_or_damaged(tmp_path):
    with pytest.raises(InputError, match=r"registration\.onnx=true"):
        Graph(tmp_path, 1)
    with pytest.raises(InputError, match=r"registration\.int8=true"):
        Graph(tmp_path, 1, "int8")
    with pytest.raises(InputError, match=r"unknown engine 'tpu'\. Valid: torch, onnx, int8"):
        Graph(tmp_path, 1, "tpu")
    (tmp_path / FILE).write_bytes(b"no graph")
    with pytest.raises(RuntimeError, match="ended with 1"):
        Graph(tmp_path, 1)
