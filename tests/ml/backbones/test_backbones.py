"""Every backbone for images keeps the contract, gray and colour, small and large."""

import builtins

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ml.backbones import BACKBONES
from ml.choice import choice
from ml.contracts import DataSpec, InputError

BackboneChoice = choice("backbone", BACKBONES)
LARGE = {"resnet34", "resnet50", "vgg16", "vit-b16"}  # share their code with smaller siblings: one size is enough
IMAGES = [name for name, one in BACKBONES.items() if "image" in one.modalities]
SIZES = [(name, channels, side) for name in IMAGES for channels, side in ((1, 28), (3, 32), (3, 64)) if name not in LARGE or side == 32]


def spec(side: int, channels: int = 3) -> DataSpec:
    return DataSpec("image", {}, (channels, side, side), ("a", "b"), {"mean": [0.5] * channels, "std": [0.25] * channels})


def make(name: str, side: int = 32, channels: int = 3, **options):
    torch.manual_seed(0)
    return BackboneChoice(name=name, options=options).make(spec(side, channels))


def flops(backbone, side: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.eval().encode({"image": torch.zeros(1, 3, side, side)})
    return counter.get_total_flops()


@pytest.mark.parametrize(("name", "channels", "side"), SIZES)
def test_encodes_with_the_declared_traits(name, channels, side):
    backbone = make(name, side, channels)
    with torch.no_grad():
        features = backbone.encode({"image": torch.rand(2, channels, side, side)})
    assert features.pooled_BD.shape == (2, backbone.width)
    assert features.pooled_BD.isfinite().all()
    assert "image" in backbone.modalities
    assert ("map" in backbone.traits) == (features.map_BDHW is not None)
    assert ("tokens" in backbone.traits) == (features.tokens_BTD is not None)
    if features.map_BDHW is not None:
        assert features.map_BDHW.shape[0] == 2 and features.map_BDHW.ndim == 4


@pytest.mark.parametrize("name", IMAGES)
def test_layers_hold_every_parameter_once(name):
    backbone = make(name)
    listed = [id(parameter) for layer in backbone.layers() for parameter in layer.parameters()]
    assert sorted(listed) == sorted(id(parameter) for parameter in backbone.parameters())
    assert len(backbone.layers()) >= 3


@pytest.mark.parametrize("name", IMAGES)
def test_layers_come_in_depth_order(name):
    """In a forward pass no module of a layer runs before one of a layer below."""
    backbone = make(name).eval()
    seen: list[int] = []
    hooks = []
    for index, layer in enumerate(backbone.layers()):
        for module in layer.modules():
            if not any(True for _ in module.children()) and any(True for _ in module.parameters(recurse=False)):
                hooks.append(module.register_forward_pre_hook(lambda *_, index=index: seen.append(index)))
    with torch.no_grad():
        backbone.encode({"image": torch.rand(1, 3, 32, 32)})
    for hook in hooks:
        hook.remove()
    assert seen == sorted(seen)


@pytest.mark.parametrize("side", [8, 11, 16, 28, 37, 96, 224])
@pytest.mark.parametrize("name", ["small-cnn", "resnet18", "vgg11", "vit-tiny"])
def test_any_size_from_8_to_224_pixels(name, side):
    backbone = make(name, side, 1).eval()
    with torch.no_grad():
        features = backbone.encode({"image": torch.rand(1, 1, side, side)})
    assert features.map_BDHW.shape[1] == backbone.width
    assert 1 <= features.map_BDHW.shape[2] <= 28


def test_small_cnn_keeps_its_budget():
    assert flops(make("small-cnn"), 32) <= 20e6  # 10 million multiply-adds


@pytest.mark.parametrize("side", [48, 64, 96, 128, 224])
def test_small_cnn_grows_slowly_with_the_image(side):
    assert flops(make("small-cnn", side), side) <= 64e6


def test_width_option_widens():
    assert make("small-cnn", width=2.0).width == 2 * make("small-cnn").width


@pytest.mark.parametrize(("name", "stem", "map_side"), [("resnet18", "small", 4), ("resnet18", "standard", 1), ("vgg11", "small", 2), ("vgg11", "standard", 1)])
def test_stem(name, stem, map_side):
    backbone = make(name, 32, stem=stem).eval()
    with torch.no_grad():
        assert backbone.encode({"image": torch.rand(1, 3, 32, 32)}).map_BDHW.shape[2] == map_side


def test_stem_is_small_up_to_64_pixels():
    kernels = [make("resnet18", side).net.conv1.kernel_size for side in (64, 65)]
    assert kernels == [(3, 3), (7, 7)]


def test_vgg_refuses_images_that_vanish():
    with pytest.raises(InputError, match="stem=small"):
        make("vgg11", 28, stem="standard")


def test_vit_refuses_a_patch_larger_than_the_image():
    with pytest.raises(InputError, match="patch=64"):
        make("vit-tiny", 32, patch=64)


@pytest.mark.parametrize("side", [32, 37])
def test_vit_keeps_only_the_asked_patches(side):
    """Encoding all patches by index is encoding the image; a hidden patch has no influence."""
    backbone = make("vit-tiny", side).eval()
    image = torch.rand(2, 3, side, side)
    all_BT = torch.arange(backbone.grid**2).expand(2, -1)
    with torch.no_grad():
        whole, indexed = backbone.encode({"image": image}), backbone.encode({"image": image}, all_BT)
        torch.testing.assert_close(whole.tokens_BTD, indexed.tokens_BTD)
        changed = image.clone()
        changed[:, :, : backbone.patch, : backbone.patch] = 0  # patch 0
        seen = [backbone.encode({"image": one}, all_BT[:, 1:]).tokens_BTD for one in (image, changed)]
    torch.testing.assert_close(*seen)


@pytest.mark.parametrize("model", ["resnet10t", "convnext_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_timm_gives_a_map_whatever_its_layout(model):
    pytest.importorskip("timm")
    backbone = BackboneChoice.model_validate(f"timm:{model}").make(spec(64, 1))
    with torch.no_grad():
        features = backbone.eval().encode({"image": torch.rand(2, 1, 64, 64)})
    assert features.pooled_BD.shape == (2, backbone.width)
    assert features.map_BDHW.shape[:2] == (2, backbone.width)
    listed = [id(parameter) for layer in backbone.layers() for parameter in layer.parameters()]
    assert sorted(listed) == sorted(id(parameter) for parameter in backbone.parameters())


def test_timm_unknown_name_lists_near_ones():
    pytest.importorskip("timm")
    with pytest.raises(InputError, match="no model 'resnet18x'"):
        make("timm", model="resnet18x")


def test_timm_absent_says_how_to_install(monkeypatch):
    found = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "timm":
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match=r"warmstart\[timm\]"):
        make("timm")
