"""Every method of the table: its groups hold what it trains, and what it freezes stays as it is."""

import pytest
import torch

from ml.backbones import BACKBONES
from ml.choice import choice
from ml.contracts import Batch, DataSpec
from ml.heads import HEADS
from ml.methods import METHODS
from ml.model import Model

SPEC = DataSpec("image", {}, (1, 16, 16), ("a", "b", "c"), {"mean": [0.5], "std": [0.25]})
PLAIN = [name for name, one in METHODS.items() if hasattr(one, "groups")]  # a ladder trains nothing itself
MOMENTS = (0.0, 0.05, 0.2, 0.35, 0.5, 0.75, 0.999)


def build(name: str = "small-cnn") -> Model:
    torch.manual_seed(0)
    return Model.build(choice("backbone", BACKBONES)(name=name), choice("head", HEADS)(name="classification"), SPEC)


def method(name: str, **options):
    return METHODS[name](METHODS[name].Options(**options))


def groups(one, model: Model, rate: float = 0.1, decay: float = 0.05) -> list[dict]:
    if hasattr(one, "begin"):
        one.begin(model)
    return one.groups(model, rate, decay)


def trained(model: Model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def step(model: Model, optimizer) -> None:
    torch.manual_seed(0)
    loss = model.step(Batch({"image": torch.rand(6, 1, 16, 16)}, torch.tensor([0, 1, 2, 0, 1, 2]))).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("backbone", ["small-cnn", "vit-tiny", "vgg11"])
@pytest.mark.parametrize("name", PLAIN)
def test_groups_hold_all_that_is_ever_trained_once(name, backbone):
    model, one = build(backbone), method(name)
    listed = [id(parameter) for group in groups(one, model) for parameter in group["params"]]
    assert len(listed) == len(set(listed))
    ever = set()
    for progress in MOMENTS:
        model.train()
        one.prepare(model, progress)
        ever |= {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert set(listed) == ever


@pytest.mark.parametrize("name", PLAIN)
def test_vectors_do_not_decay(name):
    model = build("vit-tiny")
    decays = {id(parameter): group["weight_decay"] for group in groups(method(name), model) for parameter in group["params"]}
    for key, parameter in model.named_parameters():
        if id(parameter) in decays:
            vector = key.endswith(".bias") or ".ln" in key or parameter.ndim <= 1 or "class_token" in key or "pos_embedding" in key
            assert decays[id(parameter)] == (0.0 if vector else 0.05), key


@pytest.mark.parametrize("name", PLAIN)
def test_something_learns_from_the_first_step_even_where_the_head_has_no_weights(name):
    """A method that trains the head alone has nothing to train then, and lists nothing."""
    model, one = build("vit-tiny"), method(name)
    model.head = torch.nn.Identity()
    listed = groups(one, model)
    model.train()
    one.prepare(model, 0.0)
    assert bool(trained(model)) == bool(listed)
    assert bool(listed) != getattr(one, "frozen", False)


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_frozen_stays_to_the_bit(name):
    """Parameters and normalisation statistics alike, in the first step, when the least learns."""
    model, one = build(), method(name)
    optimizer = torch.optim.AdamW(groups(one, model))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    one.prepare(model, 0.0)
    learning = trained(model)
    step(model, optimizer)
    after = model.state_dict()
    assert not torch.equal(after["head.linear.weight"], before["head.linear.weight"])
    frozen = set(dict(model.named_parameters())) - learning
    assert all(torch.equal(after[key], before[key]) for key in frozen)
    if name in ("linear-probe", "gradual-unfreezing"):
        assert frozen
        assert all(torch.equal(after[key], before[key]) for key in before if key.startswith("backbone."))


@pytest.mark.parametrize("name", PLAIN)
def test_prepare_is_a_function_of_progress_alone(name):
    """A resumed run, which begins in the middle, freezes what an unbroken one does."""
    unbroken, one = build(), method(name)
    for progress in MOMENTS:
        resumed = build()
        for model in (unbroken, resumed):
            model.train()
            one.prepare(model, progress)
        assert trained(unbroken) == trained(resumed)
        assert [module.training for module in unbroken.modules()] == [module.training for module in resumed.modules()]


def test_gradual_unfreezing_goes_from_the_top_down():
    model, one = build(), method("gradual-unfreezing", until=0.5)
    layers = model.backbone.layers()
    learning = []
    for progress in (0.0, 0.124, 0.126, 0.26, 0.4, 0.5, 0.9):
        model.train()
        one.prepare(model, progress)
        learning.append([all(p.requires_grad for p in layer.parameters()) for layer in layers])
    counts = [sum(flags) for flags in learning]
    assert counts[0] == 0 and counts[-1] == counts[-2] == len(layers) and counts == sorted(counts)
    assert all(flags == sorted(flags) for flags in learning)  # the top ones first


def test_layer_decay_lowers_the_rate_downwards():
    model = build()
    rates = {id(p): group["lr"] for group in method("layer-decay", decay=0.5).groups(model, 1.0, 0.0) for p in group["params"]}
    by_layer = [{rates[id(p)] for p in layer.parameters()} for layer in [*model.backbone.layers(), model.head]]
    assert by_layer == [{0.5**depth} for depth in reversed(range(len(by_layer)))]


@pytest.mark.parametrize("name", ["full", "gradual-unfreezing"])
def test_backbone_rate(name):
    model = build()
    rates = {id(p): group["lr"] for group in method(name, backbone_rate=0.1).groups(model, 1.0, 0.0) for p in group["params"]}
    assert {rates[id(p)] for p in model.backbone.parameters()} == {0.1}
    assert {rates[id(p)] for p in model.head.parameters()} == {1.0}
