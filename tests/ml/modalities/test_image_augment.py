"""Augmentation: in range, repeatable, different for each sample, and exact where it can be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.contracts import DataSpec
from ml.modalities.image_augment import PRESETS, Augmentation, augment

SINGLE = {
    "crop": 0.25,
    "resized_crop": 0.3,
    "flip": 0.5,
    "vertical_flip": 0.5,
    "rotation": 30,
    "brightness": 0.5,
    "contrast": 0.5,
    "saturation": 0.5,
    "hue": 0.3,
    "gray": 0.5,
    "blur": 0.5,
    "erasing": 0.5,
    "noise": 0.2,
    "mixup": 1.0,
    "cutmix": 1.0,
}
COLOUR_ONLY = {"saturation", "hue", "gray"}


def spec(side: int, channels: int) -> DataSpec:
    return DataSpec("image", {}, (channels, side, side), ("a", "b"), {"mean": [0.5] * channels, "std": [0.25] * channels})


def images(batch: int = 16, channels: int = 3, side: int = 24, seed: int = 0):
    """Smooth random images, which differ from sample to sample."""
    x = torch.rand(batch, channels, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(x, (side, side), mode="bilinear", align_corners=False)


def run(x, seed: int = 0, **fields):
    return augment(x, Augmentation(**fields), torch.Generator().manual_seed(seed))


def test_off_is_the_identity():
    x = images()
    out, mix = run(x)
    assert torch.equal(out, x) and mix is None


@pytest.mark.parametrize("field", SINGLE)
def test_the_generator_decides(field):
    x, before = images(), torch.random.get_rng_state()
    first, again, other = (run(x, seed, **{field: SINGLE[field]})[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator was used"


@pytest.mark.parametrize("field", SINGLE)
def test_input_is_left_as_it_was(field):
    x = images()
    kept = x.clone()
    run(x, **{field: SINGLE[field]})
    assert torch.equal(x, kept)


@pytest.mark.parametrize("field", [name for name in SINGLE if name not in ("mixup", "cutmix")])
def test_each_sample_has_its_own_parameters(field):
    x = images(1).expand(32, -1, -1, -1)
    out, _ = run(x, **{field: SINGLE[field]})
    assert len({tuple(one.flatten().tolist()) for one in out}) >= 2


@pytest.mark.parametrize("field", [name for name in SINGLE if name not in ("mixup", "cutmix")])
def test_a_sample_does_not_depend_on_its_neighbours(field):
    x, others = images(), images(seed=1)
    others[5] = x[5]
    first, second = (run(batch, **{field: SINGLE[field]})[0][5] for batch in (x, others))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("field", [name for name in SINGLE if name not in COLOUR_ONLY])
def test_gray_images_work(field):
    out, _ = run(images(channels=1), **{field: SINGLE[field]})
    assert out.shape == (16, 1, 24, 24)


@pytest.mark.parametrize("field", sorted(COLOUR_ONLY))
def test_colour_operations_leave_gray_images(field):
    x = images(channels=1)
    assert torch.equal(run(x, **{field: SINGLE[field]})[0], x)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("side", "channels"), [(8, 1), (28, 1), (32, 3), (96, 3)])
def test_presets_keep_shape_and_range(name, side, channels):
    x = images(8, channels, side)
    out, mix = augment(x, PRESETS[name](spec(side, channels)), torch.Generator().manual_seed(0))
    assert out.shape == x.shape and out.dtype == torch.float32
    assert out.min() >= 0 and out.max() <= 1
    assert mix is None


@pytest.mark.parametrize("name", PRESETS)
def test_presets_never_flip_gray_images(name):
    chosen = PRESETS[name](spec(28, 1))
    assert chosen.flip == chosen.vertical_flip == 0
    assert chosen.saturation == chosen.hue == chosen.gray == 0
    assert PRESETS[name](spec(28, 3)).vertical_flip == 0


@settings(max_examples=40, deadline=None)
@given(
    crop=st.floats(0, 0.5),
    resized_crop=st.floats(0, 1),
    rotation=st.floats(0, 180),
    brightness=st.floats(0, 1),
    contrast=st.floats(0, 1),
    saturation=st.floats(0, 1),
    hue=st.floats(0, 0.5),
    gray=st.floats(0, 1),
    blur=st.floats(0, 1),
    erasing=st.floats(0, 1),
    noise=st.floats(0, 1),
    mixup=st.floats(0, 10),
    cutmix=st.floats(0, 10),
    channels=st.sampled_from([1, 2, 3]),
    size=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    seed=st.integers(0, 2**31),
)
def test_range_holds_for_any_setting(channels, size, seed, **fields):
    x = torch.rand(3, channels, *size, generator=torch.Generator().manual_seed(seed))
    out, mix = run(x, seed, **fields)
    assert out.shape == x.shape and out.isfinite().all()
    assert out.min() >= -1e-6 and out.max() <= 1 + 1e-6
    if mix is not None:
        assert ((mix.weight_B >= 0) & (mix.weight_B <= 1)).all()
        assert sorted(mix.partner_B.tolist()) == [0, 1, 2]


@pytest.mark.parametrize(("field", "axis"), [("flip", 3), ("vertical_flip", 2)])
def test_a_flip_is_exact(field, axis):
    x = images()
    torch.testing.assert_close(run(x, **{field: 1.0})[0], x.flip(axis), atol=1e-5, rtol=0)


def test_a_shift_moves_whole_pixels_and_reflects():
    x = images(64, side=16)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")  # a reflection by one pixel about the edge repeats it
    out, _ = run(x, crop=1 / 16)
    for one, wide in zip(out, padded, strict=True):
        shifts = [wide[:, 2 + dy : 18 + dy, 2 + dx : 18 + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        assert min(float((one - shift).abs().max()) for shift in shifts) < 1e-5


@given(height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 99), **dict.fromkeys(("crop", "flip", "vertical_flip"), st.floats(0, 0.5)))
@settings(deadline=None, max_examples=60)
def test_moved_pixels_are_those_that_resampling_finds(height, width, seed, **fields):
    x = torch.rand(8, 2, height, width, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(run(x, seed, **fields)[0], run(x, seed, rotation=1e-7, **fields)[0], atol=1e-4, rtol=0)


def test_rotation_by_a_quarter_turn_is_exact():
    """Drawn angles are continuous, so the nearest to 90 degrees of many is compared with the exact turn."""
    x = images(1).expand(4096, -1, -1, -1)
    out, _ = run(x, rotation=180)
    turned = [torch.rot90(x[:1], times, (2, 3)) for times in (1, 2, 3)]
    assert all(float((out - one).abs().amax((1, 2, 3)).min()) < 0.02 for one in turned)


@pytest.mark.parametrize("size", [(12, 24), (24, 12)])
def test_rotation_keeps_shapes_of_oblong_images(size):
    """A disc turned about its centre stays the same disc; only within the inner circle, as reflections appear further out."""
    y, x = (torch.arange(n) - (n - 1) / 2 for n in size)
    radius = (y[:, None] ** 2 + x[None] ** 2).sqrt()
    disc = torch.sigmoid(3 - radius).expand(8, 1, *size)
    assert ((run(disc, rotation=180)[0] - disc) * (radius < 5)).abs().max() < 0.08


def test_full_gray_makes_channels_equal():
    out, _ = run(images(), gray=1.0)
    torch.testing.assert_close(out[:, 0], out[:, 1])
    torch.testing.assert_close(out[:, 0], out[:, 2])


def test_hue_keeps_gray_pixels():
    x = images(channels=1).expand(-1, 3, -1, -1).contiguous()
    torch.testing.assert_close(run(x, hue=0.5)[0], x, atol=1e-5, rtol=0)


def test_blur_keeps_the_mean_of_a_constant_and_lowers_variance():
    flat = torch.full((4, 3, 16, 16), 0.3)
    torch.testing.assert_close(run(flat, blur=1.0)[0], flat)
    rough = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert (run(rough, blur=1.0)[0].var((1, 2, 3)) <= rough.var((1, 2, 3)) + 1e-6).all()


def test_mixup_is_the_weighted_sum():
    x = images()
    out, mix = run(x, mixup=1.0)
    weight = mix.weight_B[:, None, None, None]
    torch.testing.assert_close(out, weight * x + (1 - weight) * x[mix.partner_B])


def test_cutmix_weight_is_the_share_of_own_pixels():
    x = torch.arange(8.0).view(-1, 1, 1, 1).expand(-1, 1, 20, 20) / 8  # each sample its own level
    for seed in range(20):
        out, mix = run(x, seed, cutmix=1.0)
        own = (out == x).float().mean((1, 2, 3))
        apart = mix.partner_B != torch.arange(8)
        torch.testing.assert_close(own[apart], mix.weight_B[apart])


@pytest.mark.parametrize("alpha", [5e-324, 1e-3, 0.4, 10.0])
def test_beta_draws_have_the_right_moments(alpha):
    weights = torch.tensor([float(run(torch.zeros(1, 1, 3, 3), seed, mixup=alpha)[1].weight_B) for seed in range(2000)])
    assert abs(float(weights.mean()) - 0.5) < 0.04
    assert abs(float(weights.var()) - 1 / (4 * (2 * alpha + 1))) < 0.02


def test_jitter_probability_leaves_the_rest():
    x = images(256)
    same = (run(x, brightness=0.9, contrast=0.9, jitter=0.25)[0] - x).abs().amax((1, 2, 3)) < 1e-6
    assert 0.6 < same.float().mean() < 0.9


def test_a_batch_of_one_works():
    out, mix = run(images(1), **SINGLE)
    assert out.shape == (1, 3, 24, 24) and mix is not None
