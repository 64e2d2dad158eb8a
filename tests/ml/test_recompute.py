"""Recomputed activations change nothing but the memory and the time: gradients and what batch normalisation counts stay the same."""

import copy

import pytest
import torch

from ml.backbones import BACKBONES
from ml.choice import choice
from ml.contracts import DataSpec
from ml.recompute import recompute

LARGE = {"resnet34", "resnet50", "vgg16", "vit-b16"}
IMAGES = [name for name, one in BACKBONES.items() if "image" in one.modalities and name not in LARGE]
TEXTS = [name for name, one in BACKBONES.items() if "text" in one.modalities]


def image(name: str):
    spec = DataSpec("image", {}, (3, 32, 32), ("a", "b"), {"mean": [0.5] * 3, "std": [0.25] * 3})
    return choice("backbone", BACKBONES)(name=name).make(spec), {"image": torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


def text(name: str):
    spec = DataSpec("text", {"vocabulary": 50}, (16,), ("a", "b"), {"vocabulary": 50, "tokens": {"pad": 0, "unknown": 1, "begin": 2, "end": 3, "mask": 4}})
    backbone = choice("backbone", BACKBONES)(name=name).make(spec)
    tokens_BT = torch.randint(5, 50, (4, 16), generator=torch.Generator().manual_seed(0))
    return backbone, {"tokens": tokens_BT, "mask": torch.ones_like(tokens_BT, dtype=torch.bool)}


def trained(backbone, inputs):
    """Gradients, buffers, and the bytes of activations kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    torch.manual_seed(1)  # of dropout
    backbone.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = backbone.encode(inputs).pooled_BD.square().sum()
    loss.backward()
    return {name: one.grad for name, one in backbone.named_parameters()}, dict(backbone.named_buffers()), sum(kept.values())


@pytest.mark.parametrize("name", [*IMAGES, *TEXTS])
def test_gradients_and_counts_stay_and_less_is_kept(name):
    torch.manual_seed(0)
    backbone, inputs = (image if name in IMAGES else text)(name)
    again = copy.deepcopy(backbone)
    recompute(again)
    expected, counts, before = trained(backbone, inputs)
    found, recounts, after = trained(copy.deepcopy(again), inputs)  # a copy recomputes its own layers
    assert found.keys() == expected.keys()
    for one in expected:
        torch.testing.assert_close(found[one], expected[one])
    for one in counts:
        torch.testing.assert_close(recounts[one], counts[one])
    assert after < before
    assert all(one.grad is None for one in again.parameters())
    assert again.state_dict().keys() == backbone.state_dict().keys()
