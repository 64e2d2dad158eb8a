"""LoRA: adapters around every kind of backbone learn, and are plain weights in the end."""

import copy

import pytest
import torch

from ml.backbones import BACKBONES
from ml.backbones.bert import Bert
from ml.backbones.gpt import Gpt
from ml.backbones.text_cnn import TextCnn
from ml.choice import choice
from ml.contracts import Batch, DataSpec, InputError
from ml.heads import HEADS
from ml.methods.lora import Lora
from ml.model import Model

IMAGES = DataSpec("image", {}, (3, 16, 16), ("a", "b", "c"), {"mean": [0.5] * 3, "std": [0.25] * 3})
TEXTS = DataSpec("text", {"vocabulary": 50}, (12,), ("a", "b", "c"), {"tokens": {"pad": 0, "unknown": 1, "begin": 2, "end": 3, "mask": 4}})
IMAGE_BACKBONES = {"small-cnn": {}, "resnet18": {}, "vgg11": {}, "vit-tiny": {"depth": 2}, "timm": {"model": "resnet10t"}}
TEXT_BACKBONES = {Bert: {"size": "tiny"}, Gpt: {"size": "nano"}, TextCnn: {"width": 16}}
ALL = [*IMAGE_BACKBONES, *TEXT_BACKBONES]


def build(kind) -> Model:
    if kind == "timm":
        pytest.importorskip("timm")
    torch.manual_seed(0)
    if isinstance(kind, str):
        backbone, spec = choice("backbone", BACKBONES)(name=kind, options=IMAGE_BACKBONES[kind]).make(IMAGES), IMAGES
    else:
        backbone, spec = kind(kind.Options(**TEXT_BACKBONES[kind]), TEXTS), TEXTS
    return Model(backbone, choice("head", HEADS)(name="classification").make(backbone.width, spec))


def batch(kind) -> Batch:
    generator = torch.Generator().manual_seed(0)
    if isinstance(kind, str):
        inputs = {"image": torch.rand(6, 3, 16, 16, generator=generator)}
    else:
        inputs = {"tokens": torch.randint(5, 50, (6, 12), generator=generator), "mask": torch.ones(6, 12, dtype=torch.bool)}
    return Batch(inputs, torch.tensor([0, 1, 2, 0, 1, 2]))


def lora(**options) -> Lora:
    return Lora(Lora.Options(**{"rank": 4, **options}))


def train(model: Model, method: Lora, data: Batch, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(method.groups(model, 0.02, 0.05))
    for step in range(steps):
        torch.manual_seed(step)
        model.train()
        method.prepare(model, step / steps)
        model.step(data).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("kind", ALL)
def test_begins_without_effect(kind):
    model, data = build(kind).eval(), batch(kind)
    with torch.no_grad():
        before = model(data.inputs)
        lora().begin(model)
        torch.testing.assert_close(model.eval()(data.inputs), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ALL)
def test_what_was_learnt_is_plain_weights_in_the_end(kind):
    model, data, method = build(kind), batch(kind), lora()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = [(name, type(module)) for name, module in model.named_modules()]
    method.begin(model)
    train(model, method, data)
    with torch.no_grad():
        adapted = model.eval()(data.inputs)
        method.finish(model)
        merged = model.eval()(data.inputs)
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=1e-5)
    assert [(name, type(module)) for name, module in model.named_modules()] == modules
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert dict(model.named_parameters()).keys() == dict(build(kind).named_parameters()).keys()
    again = build(kind).eval()
    again.load_state_dict(after)
    with torch.no_grad():
        torch.testing.assert_close(again(data.inputs), merged)
    changed = {name for name in before if not torch.equal(before[name], after[name]) and name.startswith("backbone.")}
    assert changed and all(name.endswith("weight") for name in changed)
    for name in changed:
        change = (after[name] - before[name]).flatten(1)
        assert torch.linalg.matrix_rank(change, rtol=1e-3) <= 4, name


@pytest.mark.parametrize("kind", ALL)
def test_groups_hold_all_that_is_ever_trained_once(kind):
    model, method = build(kind), lora()
    method.begin(model)
    listed = [id(parameter) for group in method.groups(model, 0.1, 0.05) for parameter in group["params"]]
    model.train()
    method.prepare(model, 0.0)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sorted(listed) == sorted(map(id, trained.values()))
    assert sum(parameter.numel() for name, parameter in trained.items() if name.startswith("backbone.")) < 0.5 * sum(
        parameter.numel() for parameter in model.backbone.parameters()
    )
    model.step(batch(kind)).loss.backward()
    assert not [name for name, parameter in trained.items() if parameter.grad is None]


@pytest.mark.parametrize("kind", ALL)
def test_the_rest_of_the_backbone_stays_to_the_bit(kind):
    model, method = build(kind), lora()
    method.begin(model)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    train(model, method, batch(kind))
    after = model.backbone.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.endswith((".up", ".down")) for name in changed)


@pytest.mark.parametrize("kind", ["vit-tiny", Bert])
def test_a_resumed_run_and_a_copy_are_the_same(kind):
    """What `fit` does: states are saved and loaded between steps, and the module is copied to time it."""
    model, data, method = build(kind), batch(kind), lora()
    torch.manual_seed(1)
    method.begin(model)
    copy.deepcopy(model).step(data).loss.backward()
    train(model, method, data)
    resumed = build(kind)
    method.begin(resumed)
    resumed.load_state_dict(model.state_dict())
    for one in (model, resumed):
        train(one, method, data)
        method.finish(one)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)


@pytest.mark.parametrize("kind", [Bert, "vit-tiny"])
def test_dropout_is_of_the_adapters_alone(kind):
    outputs = []
    for dropout in (0.0, 0.5):
        model, data, method = build(kind), batch(kind), lora(dropout=dropout)
        method.begin(model)
        train(model, method, data)
        model.train()
        method.prepare(model, 0.5)
        with torch.no_grad():
            outputs.append((model(data.inputs) - model(data.inputs)).abs().max().item())
    assert outputs[0] == 0 < outputs[1]


def test_a_backbone_without_layers_to_adapt():
    model = Model(TextCnn(TextCnn.Options(depth=0), TEXTS), torch.nn.Identity())
    with pytest.raises(InputError, match="no linear layer"):
        lora().begin(model)
