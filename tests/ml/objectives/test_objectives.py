"""Every objective for images with every kind of backbone it can work with: it learns, and repeats itself from a seed."""

import pytest
import torch

from ml.backbones import BACKBONES
from ml.choice import choice
from ml.contracts import Batch, DataSpec, InputError
from ml.objectives import OBJECTIVES
from ml.objectives.masked import _kept

BackboneChoice = choice("backbone", BACKBONES)
KINDS = {"small-cnn": {}, "resnet18": {}, "vgg11": {}, "vit-tiny": {"depth": 2}, "timm": {"model": "resnet10t"}}  # one of each file
FOR_IMAGES = {name: one for name, one in OBJECTIVES.items() if "image" in (getattr(one, "reads", None) or {"image"})}
IMAGES = [name for name, one in FOR_IMAGES.items() if one.needs <= BACKBONES["small-cnn"].traits]
PAIRS = [(name, backbone) for name, one in FOR_IMAGES.items() for backbone in KINDS if one.needs <= BACKBONES[backbone].traits]


def spec(channels: int = 3, side: int = 16) -> DataSpec:
    return DataSpec("image", {}, (channels, side, side), ("a", "b", "c"), {"mean": [0.5] * channels, "std": [0.25] * channels})


def make(objective: str, backbone: str = "small-cnn", channels: int = 3, side: int = 16, **options):
    torch.manual_seed(0)
    made = BackboneChoice(name=backbone, options=KINDS[backbone]).make(spec(channels, side))
    return OBJECTIVES[objective](OBJECTIVES[objective].Options(**options), made, spec(channels, side))


def batch(views: int = 1, channels: int = 3, side: int = 16, rows: int = 9) -> Batch:
    """Each item is a plane with its own slope; its views differ by noise."""
    random = torch.Generator().manual_seed(0)
    line = torch.linspace(-1, 1, side)
    slopes = torch.randn(rows, channels, 2, generator=random)
    image = slopes[:, :, :1, None] * line[:, None] + slopes[:, :, 1:, None] * line
    shown = [{"image": image + 0.05 * torch.randn(image.shape, generator=random)} for _ in range(views)]
    return Batch(shown[0], torch.arange(rows) % 3, views=tuple(shown) if views > 1 else ())


def losses(objective, data: Batch, steps: int, rate: float = 2e-3) -> list[float]:
    optimizer = torch.optim.AdamW(objective.parameters(), rate)
    objective.train()
    found = []
    for _ in range(steps):
        torch.manual_seed(7)  # the same masks and noise each time, so that the loss must fall
        result = objective.step(data)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        found.append(float(result.loss.detach()))
    return found


@pytest.mark.parametrize(("objective", "backbone"), PAIRS)
def test_the_loss_falls(objective, backbone):
    made = make(objective, backbone, side=8)
    found = losses(made, batch(made.views, side=8, rows=6), 6)
    assert found[-1] < found[0]


@pytest.mark.parametrize(("objective", "backbone"), PAIRS)
def test_every_weight_of_the_backbone_that_can_learn_does(objective, backbone):
    made = make(objective, backbone, side=8)
    torch.manual_seed(0)
    made.step(batch(made.views, side=8, rows=6)).loss.backward()
    without = {name for name, parameter in made.named_parameters() if parameter.grad is None}
    assert not without


@pytest.mark.parametrize("objective", IMAGES)
def test_a_seed_repeats_a_step(objective):
    made = make(objective)
    made.train()
    found = []
    for seed in (1, 1):
        torch.manual_seed(seed)
        found.append(float(made.step(batch(made.views)).loss.detach()))
    assert found[0] == found[1]


@pytest.mark.parametrize(("objective", "backbone"), [(o, b) for o, b in PAIRS if b in ("small-cnn", "vit-tiny")])
def test_bfloat16_gives_nearly_the_same_loss(objective, backbone):
    made = make(objective, backbone)
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = made.step(batch(made.views)).loss
        loss.backward()
        assert loss.dtype == torch.float32
        found.append(float(loss.detach()))
    assert found[1] == pytest.approx(found[0], rel=0.1)


@pytest.mark.parametrize("objective", IMAGES)
def test_extras_are_detached_scalars(objective):
    made = make(objective)
    result = made.step(batch(made.views))
    assert result.loss.ndim == 0 and result.loss.requires_grad
    assert all(value.ndim == 0 and not value.requires_grad for value in result.extras.values())


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 30)])
@pytest.mark.parametrize(("objective", "backbone"), [(o, b) for o, b in PAIRS if b in ("small-cnn", "vit-tiny")])
def test_sizes_and_channels(objective, backbone, channels, side):
    made = make(objective, backbone, channels, side)
    assert made.step(batch(made.views, channels, side)).loss.isfinite()


@pytest.mark.parametrize(("objective", "backbone"), [(o, b) for o, b in PAIRS if hasattr(OBJECTIVES[o], "pictures") and b in ("small-cnn", "vit-tiny")])
def test_pictures_are_images(objective, backbone):
    made = make(objective, backbone).eval()
    with torch.no_grad():
        pictures = made.pictures(batch())
    assert pictures
    for picture in pictures.values():
        assert picture.shape == (3, 3 * 16, 8 * 16)
        assert picture.min() >= 0 and picture.max() <= 1


@pytest.mark.parametrize("backbone", ["small-cnn", "vit-tiny"])
def test_masked_loss_ignores_what_was_visible(backbone):
    """With a decoder that gives zeros, the loss is the mean square of the hidden pixels alone."""
    made = make("masked", backbone).eval()
    data = batch()
    with torch.no_grad():
        torch.manual_seed(3)
        restored, hidden = made.task(made.backbone, data.inputs["image"])
        torch.manual_seed(3)
        loss = made.step(data).loss
    mask = hidden.expand_as(restored) > 0
    assert 0 < mask.float().mean() < 1
    torch.testing.assert_close(loss, (restored - data.inputs["image"])[mask].square().mean())


@pytest.mark.parametrize("backbone", ["small-cnn", "vit-tiny"])
def test_masked_sees_what_is_visible_and_nothing_else(backbone):
    made = make("masked", backbone).eval()
    image, noise = batch().inputs["image"], torch.randn(9, 3, 16, 16)
    restored = []
    with torch.no_grad():
        torch.manual_seed(3)
        _, hidden = made.task(made.backbone, image)
        for changed in (image, image + noise * hidden, image + noise * (1 - hidden)):
            torch.manual_seed(3)
            restored.append(made.task(made.backbone, changed)[0])
    torch.testing.assert_close(restored[1], restored[0])
    assert (restored[2] - restored[0]).abs().max() > 1e-3


def test_kept_patches_are_different_ones_in_order():
    torch.manual_seed(0)
    kept = _kept(32, 64, 0.75, torch.device("cpu"))
    assert kept.shape == (32, 16)
    assert (kept.diff(dim=1) > 0).all()
    assert len(set(map(tuple, kept.tolist()))) == 32


def test_simclr_knows_partners():
    """Views that are equal within a pair and far apart between pairs give accuracy 1, all equal ones chance."""
    made = make("simclr").eval()
    data = batch(2)
    same = Batch(data.inputs, data.targets_B, views=(data.views[0], data.views[0]))
    with torch.no_grad():
        assert made.step(same).extras["contrastive_accuracy"] == 1
        flat = {"image": torch.zeros_like(data.inputs["image"])}
        collapsed = made.step(Batch(flat, data.targets_B, views=(flat, flat)))
    assert collapsed.extras["feature_spread"] < 1e-3
    assert float(collapsed.loss) == pytest.approx(torch.tensor(17.0).log().item(), abs=1e-3)


def test_vicreg_punishes_collapse():
    made = make("vicreg").eval()
    flat = {"image": torch.zeros_like(batch().inputs["image"])}
    with torch.no_grad():
        collapsed = made.step(Batch(flat, torch.zeros(9, dtype=torch.long), views=(flat, flat)))
    assert float(collapsed.extras["variance"]) == pytest.approx(0.99, abs=0.02)
    assert float(collapsed.extras["invariance"]) == 0


def test_supervised_needs_classes():
    made = BackboneChoice(name="small-cnn").make(spec())
    with pytest.raises(InputError, match="two classes"):
        OBJECTIVES["supervised"](OBJECTIVES["supervised"].Options(), made, DataSpec("image", {}, (3, 16, 16), (), {}))
