"""A model's files: what is loaded equals what was saved, and what is damaged is refused."""

import json
import shutil

import pytest
import torch

from ml.backbones import BACKBONES
from ml.choice import choice
from ml.contracts import Batch, DataSpec, InputError
from ml.heads import HEADS
from ml.model import Model, load_model, save_backbone, save_model

BackboneChoice, HeadChoice = choice("backbone", BACKBONES), choice("head", HEADS)
SPEC = DataSpec("image", {"size": 16, "channels": 1}, (1, 16, 16), ("zero", "één", 'q"'), {"mean": [0.1], "std": [0.2]})
HEAD = HeadChoice(name="classification")
LIGHT = ["small-cnn", "resnet18", "vgg11", "vit-tiny", "timm"]


def build(name: str = "small-cnn", seed: int = 0, head=HEAD) -> tuple[Model, object]:
    torch.manual_seed(seed)
    chosen = BackboneChoice(name=name, options={"model": "resnet10t"} if name == "timm" else {})
    return Model.build(chosen, head, SPEC), chosen


@pytest.fixture
def folder(tmp_path):
    model, chosen = build()
    save_model(model, tmp_path / "saved", chosen, HEAD, SPEC, temperature=1.7)
    return tmp_path / "saved"


@pytest.mark.parametrize("name", LIGHT)
def test_a_saved_model_gives_equal_outputs(name, tmp_path):
    model, chosen = build(name)
    model.step(Batch({"image": torch.rand(4, 1, 16, 16)}, torch.tensor([0, 1, 2, -1])))  # moves the normalisation statistics
    save_model(model, tmp_path, chosen, HEAD, SPEC, temperature=1.7)
    loaded, info = load_model(tmp_path)
    inputs = {"image": torch.rand(2, 1, 16, 16)}
    with torch.no_grad():
        assert torch.equal(model.eval()(inputs), loaded(inputs))
    assert not loaded.training
    assert info.spec == SPEC and info.temperature == 1.7
    assert info.backbone.name.value == name


def test_equal_weights_give_equal_bytes(tmp_path):
    for number in range(2):
        model, chosen = build()
        if number:
            model.to(memory_format=torch.channels_last)
        save_model(model, tmp_path / str(number), chosen, HEAD, SPEC)
        save_backbone(model.backbone, tmp_path / str(number), chosen, SPEC)
    for file in ("model.safetensors", "model.json", "backbone.safetensors", "backbone.json"):
        assert (tmp_path / "0" / file).read_bytes() == (tmp_path / "1" / file).read_bytes()


def test_shared_tensors_are_written(tmp_path):
    model, chosen = build()
    model.head.linear.bias = torch.nn.Parameter(model.head.class_weights)  # one storage under two names
    model.head.class_weights = model.head.linear.bias.detach()
    save_model(model, tmp_path, chosen, HEAD, SPEC)
    assert torch.equal(load_model(tmp_path)[0].head.linear.bias, torch.ones(3))


def test_options_are_written_out(folder):
    described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert described["backbone"] == {"name": "small-cnn", "options": {"width": 1.0}}
    assert described["spec"]["classes"] == ["zero", "één", 'q"']


def _rewrite(folder, **changes):
    path = folder / "model.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in {**described, **changes}.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "format 99"),
        ({"format": None}, "no `format`"),
        ({"backbone": {"name": "alexnet"}}, "unknown backbone 'alexnet'"),
        ({"backbone": None}, "does not describe a model"),
        ({"backbone": "resnet18"}, "does not describe a model"),
        ({"spec": {"shape": [1, 16, 16]}}, "does not describe a model"),
        ({"temperature": "warm"}, "does not describe a model"),
        ({"temperature": -1.0}, "does not describe a model"),
        ({"head": {"name": "classification", "options": {"hidden": 8}}}, "does not fit its description"),
    ],
)
def test_a_foreign_description_is_refused(folder, changes, message):
    _rewrite(folder, **changes)
    with pytest.raises(InputError, match=message):
        load_model(folder)


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b"\xff\xfe", b'"text"'])
def test_a_damaged_description_is_refused(folder, content):
    (folder / "model.json").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.json"):
        load_model(folder)


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_damaged_weights_are_refused(folder, cut):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match="damaged"):
        load_model(folder)


def test_absent_files_are_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_model(folder)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="no model in"):
        load_model(folder)


def test_step_counts_only_labelled_rows():
    model, _ = build()
    images = torch.rand(6, 1, 16, 16)
    model.eval()
    with torch.no_grad():
        some = model.step(Batch({"image": images}, torch.tensor([0, 1, 2, -1, -1, -1])))
        first = model.step(Batch({"image": images[:3]}, torch.tensor([0, 1, 2])))
        none = model.step(Batch({"image": images}, torch.full((6,), -1)))
    torch.testing.assert_close(some.loss, first.loss)
    torch.testing.assert_close(some.extras["accuracy"], first.extras["accuracy"])
    assert float(none.loss) == 0
