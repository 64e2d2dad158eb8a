"""A fused network answers as the one it was made of, whatever is in it; where it cannot, nothing is fused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ml.backbones import BACKBONES
from ml.choice import choice
from ml.contracts import DataSpec
from ml.fused import fused
from ml.heads import HEADS
from ml.model import Model, save_model
from ml.predictor import Embedder, Predictor

IMAGES = [name for name, one in BACKBONES.items() if "image" in one.modalities and name not in ("vgg16", "resnet34", "vit-b16")]
"""Those left out are larger siblings of others."""
SIDE = 24


class Residual(nn.Module):
    """As in ResNets: one ReLU called several times, and in place of what an addition in place has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        made = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        made += x
        return self.relu(made)


class Twice(nn.Module):
    """What the convolution gives is read by two; and by its weight it is called once more."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv, self.norm = how, nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        made = self.conv(x)
        if self.how == "output":
            return self.norm(made) + made
        if self.how == "layer":
            return self.norm(made) + self.conv(x + 1)
        return self.norm(made) + F.conv2d(x, self.conv.weight, padding=1)


def learnt(module: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, with normalisations that do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for tensor, low in ((layer.running_mean, -0.5), (layer.running_var, 0.5), (layer.weight, -1.0), (layer.bias, -0.5)):
                    tensor.copy_(torch.rand(len(tensor), generator=generator) + low)
    return module.eval()


def made_of(module: nn.Module, x: torch.Tensor) -> nn.Module:
    return fused(module, lambda one: one(x), len(x))


def parts(module: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in module.modules()]


@settings(max_examples=150, deadline=None)
@given(
    channels=st.sampled_from([(1, 8), (3, 16), (16, 4), (32, 32)]),
    groups=st.booleans(),
    kernel=st.sampled_from([(1, 1), (3, 3), (5, 5), (3, 1)]),
    stride=st.sampled_from([1, 2]),
    padding=st.sampled_from([0, 1, 2, "same"]),
    dilation=st.sampled_from([1, 2]),
    side=st.sampled_from([(1, 1), (2, 2), (3, 2), (5, 5), (9, 8)]),
    bias=st.booleans(),
    norm=st.booleans(),
    relu=st.booleans(),
    last=st.booleans(),
    seed=st.integers(0, 100),
)
def test_any_convolution(channels, groups, kernel, stride, padding, dilation, side, bias, norm, relu, last, seed):
    read, made = channels
    torch.manual_seed(seed)
    try:
        conv = nn.Conv2d(read, made, kernel, stride, padding, dilation, groups=min(read, made) if groups else 1, bias=bias)
        conv(torch.zeros(1, read, *side))
    except (RuntimeError, ValueError):
        return  # no such layer, or no map is left
    module = learnt(nn.Sequential(conv, *([nn.BatchNorm2d(made)] if norm else []), *([nn.ReLU(inplace=last)] if relu else [])), seed)
    x = torch.randn(5, read, *side)
    for given_ in (x, x.contiguous(memory_format=torch.channels_last)):
        found = made_of(module, given_)
        assert (found is module) == (padding == "same")
        for rows in (given_, given_[:1], given_.repeat(3, 1, 1, 1)):
            with torch.inference_mode():
                torch.testing.assert_close(found(rows.clone()), module(rows.clone()), rtol=1e-4, atol=1e-5)


def test_small_maps_are_matrices_and_large_ones_are_not():
    module = learnt(nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=2)))
    assert parts(made_of(module, torch.randn(2, 4, 4, 4))) == ["Sequential", "_Convolution", "_Matrix", "_Convolution"]


def test_a_relu_that_is_used_again_stays():
    x = torch.randn(4, 3, 6, 6)
    module = learnt(nn.Sequential(Residual(), Residual()))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = made_of(module, x)
    assert parts(found).count("_Convolution") == 4 and parts(found).count("Identity") == 4 and parts(found).count("ReLU") == 2
    with torch.inference_mode():
        torch.testing.assert_close(found(x.clone()), module(x.clone()), rtol=1e-4, atol=1e-5)
    assert parts(module).count("Conv2d") == 4 and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("how", ["output", "layer", "weight"])
def test_what_would_answer_otherwise_stays_as_it_is(how):
    module, x = learnt(Twice(how)), torch.randn(4, 3, 6, 6)
    assert parts(made_of(module, x)).count("_Convolution") == 0
    with torch.inference_mode():
        assert torch.equal(made_of(module, x)(x), module(x))


def test_weights_that_are_not_numbers_are_left_alone():
    module = learnt(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    module[0].weight.data[0] = float("nan")
    assert made_of(module, torch.randn(2, 3, 6, 6)) is module


@pytest.mark.parametrize("name", IMAGES)
def test_every_backbone(name, tmp_path):
    """A predictor's answers are those of the plain model, and of its embedder those of the plain backbone."""
    torch.manual_seed(0)
    options = {"size": SIDE, "channels": 3, "fit": "squash", "max_pixels": 10**6, "max_bytes": 10**6}
    spec = DataSpec("image", options, (3, SIDE, SIDE), ("a", "b"), {"mean": [0.5] * 3, "std": [0.25] * 3})
    chosen = choice("backbone", BACKBONES)(name=name), choice("head", HEADS)(name="classification")
    model = learnt(Model.build(*chosen, spec))
    save_model(model, tmp_path, *chosen, spec)
    predictor = Predictor.load(tmp_path)
    rows = torch.randint(0, 256, (9, SIDE, SIDE, 3), dtype=torch.uint8)
    inputs = predictor.modality.encode(rows, spec)
    with torch.inference_mode():
        expected, pooled = model(inputs), model.backbone.encode(inputs).pooled_BD
    torch.testing.assert_close(torch.from_numpy(predictor.outputs(rows.numpy())), expected, rtol=1e-3, atol=float(1e-4 * expected.abs().max()))
    embedded = Embedder(predictor.model.backbone, spec).embed_arrays(rows.numpy())
    torch.testing.assert_close(torch.from_numpy(embedded), pooled, rtol=1e-3, atol=float(1e-4 * pooled.abs().max()))
    convolutions = [layer for layer in model.modules() if type(layer) is nn.Conv2d]
    assert bool(convolutions) == any(kind in ("_Convolution", "_Matrix") for kind in parts(predictor.model))
