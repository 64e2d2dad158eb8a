"""LoRA: adapters around every kind of backbone learn, are plain weights in the end or stay apart, and are written as PEFT reads them."""

import copy
import json

import pytest
import safetensors.torch
import torch

from ml import adapter as adapters
from ml.backbones import BACKBONES
from ml.backbones.bart import Bart
from ml.backbones.bert import Bert
from ml.backbones.gpt import Gpt
from ml.backbones.text_cnn import TextCnn
from ml.choice import choice
from ml.contracts import Batch, DataSpec, InputError
from ml.heads import HEADS
from ml.methods.lora import Lora
from ml.model import Model, load_model, save_model
from ml.weights import load_weights, weights_digest

IMAGES = DataSpec("image", {}, (3, 16, 16), ("a", "b", "c"), {"mean": [0.5] * 3, "std": [0.25] * 3})
TEXTS = DataSpec("text", {"vocabulary": 50}, (12,), ("a", "b", "c"), {"tokens": {"pad": 0, "unknown": 1, "begin": 2, "end": 3, "mask": 4}})
IMAGE_BACKBONES = {"small-cnn": {}, "resnet18": {}, "vgg11": {}, "vit-tiny": {"depth": 2}, "timm": {"model": "resnet10t"}}
TEXT_BACKBONES = {Bert: {"size": "tiny"}, Gpt: {"size": "nano"}, TextCnn: {"width": 16}, Bart: {"size": "nano"}}
ALL = [*IMAGE_BACKBONES, *(kind for kind in TEXT_BACKBONES if kind is not Bart)]  # of BART, classification reads the encoder alone


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


def network(model: Model) -> torch.nn.Module:
    """What a backbone wraps, and PEFT calls the base model."""
    return getattr(model.backbone, "net", model.backbone)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # of transformers, whom peft asks
@pytest.mark.parametrize("kind", ["small-cnn", "vit-tiny", "timm", *TEXT_BACKBONES])
def test_peft_reads_the_files(kind, tmp_path):
    """It takes every tensor, and gives the features of the merged backbone."""
    peft = pytest.importorskip("peft")
    before, method, data = build(kind), lora(), batch(kind)
    after = copy.deepcopy(before)
    method.begin(after)
    train(after, method, data)
    method.finish(after).save(tmp_path)
    with torch.no_grad():
        plain, expected = (one.eval().backbone.encode(data.inputs).pooled_BD for one in (before, after))
        read = peft.PeftModel.from_pretrained(network(before), str(tmp_path))  # which puts its own layers into the network
        found = before.eval().backbone.encode(data.inputs).pooled_BD
    written, held = safetensors.torch.load_file(tmp_path / adapters.WEIGHTS), peft.get_peft_model_state_dict(read)
    assert held.keys() == written.keys()
    assert all(torch.equal(held[name], written[name]) for name in written)
    assert (plain - expected).abs().max() > 1e-3
    if kind != "vit-tiny":  # PEFT 0.21 adds the change of torch's out_proj twice (its pull request 3774)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_weights_that_layers_share_are_left_alone():
    """BART's output layer is its embedding: changed in one place, it would change in the other."""
    spec = DataSpec("text-pair", dict(TEXTS.options), TEXTS.shape, (), dict(TEXTS.statistics))
    torch.manual_seed(0)
    model, method = Model(Bart(Bart.Options(size="nano"), spec), torch.nn.Identity()), lora()
    shared = model.backbone.embedding.weight.clone()
    method.begin(model)
    for name, parameter in model.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter, std=0.1)
    inputs = {**batch(Bert).inputs, "target": torch.randint(5, 50, (6, 12))}
    with torch.no_grad():
        adapted = model.eval().backbone.logits(inputs)
        method.finish(model)
        torch.testing.assert_close(model.backbone.logits(inputs), adapted, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.backbone.embedding.weight, shared)


APART = {
    "small-cnn": {},
    "vit-tiny": {"depth": 2},
    "timm": {"model": "mobilenetv3_small_050"},  # has grouped convolutions
    "text-cnn": {"width": 16},
    "bert": {"size": "tiny"},
    "gpt": {"size": "nano"},
    "bart": {"size": "nano"},
}


def parts(name: str) -> tuple:
    """The choices of a backbone and a head, what data they are for, and a batch of those."""
    if name == "timm":
        pytest.importorskip("timm")
    chosen, head = choice("backbone", BACKBONES)(name=name, options=APART[name]), choice("head", HEADS)(name="classification")
    return (chosen, head, IMAGES, batch(name)) if "image" in chosen.chosen.modalities else (chosen, head, TEXTS, batch(Bert))


def save_apart(name: str, folder) -> Model:
    """A model whose adapter stays apart, in `folder`; given is the model as it was trained."""
    chosen, head, spec, data = parts(name)
    torch.manual_seed(0)
    model, method = Model.build(chosen, head, spec), lora(merge=False)
    method.begin(model)
    train(model, method, data)
    save_model(model, folder, chosen, head, spec, adapter=method.finish(model))
    return model.eval()


@pytest.mark.parametrize("name", APART)
def test_an_adapter_that_stays_apart_is_added_when_the_model_is_loaded(name, tmp_path):
    chosen, head, spec, data = parts(name)
    model = save_apart(name, tmp_path)
    loaded, _ = load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(data.inputs), model(data.inputs))
    torch.manual_seed(0)
    first, written = Model.build(chosen, head, spec).backbone.state_dict(), safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(written[f"backbone.{key}"], value) for key, value in first.items())  # the weights as they were
    backbone = chosen.make(spec)
    load_weights(backbone, tmp_path, chosen)
    trained = model.backbone.state_dict()
    assert all(torch.equal(trained[key], value) for key, value in backbone.state_dict().items())
    assert any(not torch.equal(trained[key], value) for key, value in first.items())


def test_an_adapter_that_is_missing_or_another_is_refused(tmp_path):
    save_apart("small-cnn", tmp_path)
    digest = weights_digest(tmp_path)
    path = tmp_path / "adapter" / adapters.WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"\0\0\0\1")
    with pytest.raises(InputError, match="not the adapter of the model"):
        load_model(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"needs its adapter.*adapter_model\.safetensors"):
        load_model(tmp_path)
    described = json.loads((tmp_path / "model.json").read_text())
    strange = {"base_model.model.other.lora_A.weight": torch.ones(4, 2), "base_model.model.other.lora_B.weight": torch.ones(2, 4)}
    files = {adapters.CONFIG: (tmp_path / "adapter" / adapters.CONFIG).read_bytes(), adapters.WEIGHTS: safetensors.torch.save(strange)}
    path.write_bytes(files[adapters.WEIGHTS])
    (tmp_path / "model.json").write_text(json.dumps({**described, "adapter": adapters.digest(files)}))
    assert weights_digest(tmp_path) != digest
    with pytest.raises(InputError, match=r"does not fit the weights.*backbone\.net\.other\.weight"):
        load_model(tmp_path)


def test_equal_adapters_give_equal_bytes(tmp_path):
    for number in ("1", "2"):
        save_apart("small-cnn", tmp_path / number)
    for name in ("model.safetensors", "model.json", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
