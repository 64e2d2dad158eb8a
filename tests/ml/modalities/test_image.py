"""Decoding pictures as they come, and what the model is given of them."""

import base64
import hashlib
import io
import struct
import warnings
import zlib

import imagehash
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from sklearn.datasets import load_sample_image

from ml.contracts import InputError, Modality, Raw
from ml.modalities import MODALITIES
from ml.modalities.image import Image


def modality(size=16, channels=3, **options):
    return Image(Image.Options(size=size, channels=channels, **options))


def encoded(picture, format="PNG", **options):
    out = io.BytesIO()
    picture.save(out, format, **options)
    return Raw(out.getvalue())


@pytest.fixture(scope="module")
def photo():
    """A real photo of 640 x 427 pixels, which comes with scikit-learn."""
    return Pillow.fromarray(load_sample_image("china.jpg"))


def _header_only_png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


def test_the_table_holds_modalities():
    for chosen in MODALITIES.values():
        assert isinstance(chosen(chosen.Options()), Modality)
        assert chosen.__doc__
        assert all(field.description for field in chosen.Options.model_fields.values())


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "MPO"])
def test_formats(photo, format):
    decoded = modality().decode(encoded(photo, format))
    assert decoded.reason == ""
    assert decoded.array.shape == (16, 16, 3)
    assert decoded.array.dtype == np.uint8
    assert decoded.facts == {"width": 640, "height": 427}
    expected = np.asarray(photo.resize((16, 16), Pillow.Resampling.BILINEAR), dtype=int)
    assert np.abs(decoded.array - expected).mean() < 4


@pytest.mark.parametrize("format", ["GIF", "PPM", "ICO", "PDF"])
def test_other_formats_are_refused(photo, format):
    decoded = modality().decode(encoded(photo.resize((16, 16)), format))
    assert decoded.array is None
    assert "not a PNG" in decoded.reason


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Pillow.new("1", (8, 8), 1), 255),
        (Pillow.new("L", (8, 8), 77), 77),
        (Pillow.new("LA", (8, 8), (0, 0)), 255),
        (Pillow.new("LA", (8, 8), (100, 255)), 100),
        (Pillow.new("RGBA", (8, 8), (255, 0, 0, 0)), 255),
        (Pillow.new("RGBA", (8, 8), (0, 0, 0, 128)), 127),
        (Pillow.fromarray(np.full((8, 8), 65535, np.uint16)), 255),
        (Pillow.fromarray(np.full((8, 8), 257 * 60, np.uint16)), 60),
        (Pillow.new("P", (8, 8), 0), 0),
    ],
)
def test_modes_become_eight_bit(picture, expected):
    for channels in (1, 3):
        array = modality(size=8, channels=channels).decode(encoded(picture)).array
        assert array.shape == (8, 8, channels)
        assert set(np.unique(array)) == {expected}


def test_a_palette_with_transparency_lies_on_white(recwarn):
    picture = Pillow.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    opaque = modality(size=8).decode(encoded(picture)).array
    assert opaque[0, 0].tolist() == [10, 20, 30]
    clear = modality(size=8).decode(encoded(picture, transparency=bytes([255, 0]))).array
    assert clear[0, 0].tolist() == [255, 255, 255]
    assert not recwarn.list


def test_cmyk_and_floats():
    cmyk = modality(size=8).decode(encoded(Pillow.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)).array
    assert np.abs(cmyk[0, 0].astype(int) - [255, 0, 0]).max() < 8
    ramp = np.linspace(-3, 5, 64, dtype=np.float32).reshape(8, 8)
    assert modality(size=8, channels=1).decode(encoded(Pillow.fromarray(ramp), "TIFF")).array[..., 0].ravel()[[0, -1]].tolist() == [0, 255]
    ramp[0, 0], ramp[1, 1] = np.nan, np.inf
    assert modality(size=8, channels=1).decode(encoded(Pillow.fromarray(ramp), "TIFF")).array is not None
    integers = Pillow.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8) * 1_000_000)
    assert modality(size=8, channels=1).decode(encoded(integers, "TIFF")).array.max() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_upright(photo, format, orientation):
    from ml.pixels import UPRIGHT

    small = photo.resize((32, 24))
    undo = {Pillow.Transpose.ROTATE_90: Pillow.Transpose.ROTATE_270, Pillow.Transpose.ROTATE_270: Pillow.Transpose.ROTATE_90}
    turn = UPRIGHT.get(orientation)
    stored = small if turn is None else small.transpose(undo.get(turn, turn))
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    decoded = modality().decode(encoded(stored, format, exif=exif))
    assert decoded.facts == {"width": 32, "height": 24}
    plain = modality().decode(encoded(small))
    assert np.abs(decoded.array.astype(int) - plain.array).mean() < 6


def test_an_image_bomb_is_refused_unread(recwarn):
    decoded = modality().decode(Raw(_header_only_png(30_000, 30_000)))
    assert decoded.array is None
    assert "30,000 x 30,000 pixels, above the limit of 64,000,000" in decoded.reason
    between = modality().decode(Raw(_header_only_png(10_000, 10_000)))  # here Pillow itself would only warn
    assert "above the limit" in between.reason
    assert not recwarn.list


def test_limits_can_be_set(photo):
    data = encoded(photo)
    assert "above the limit of 1,000" in modality(max_bytes=1000).decode(data).reason
    assert "above the limit of 1,000 pixels" in modality(max_pixels=1000).decode(data).reason


@pytest.mark.parametrize(
    ("raw", "reason"),
    [(Raw(None, "a broken pipe"), "a broken pipe"), (Raw(None), "no data"), (Raw(b""), "empty file"), (Raw(b"hello" * 100), "not a PNG")],
)
def test_what_is_no_picture_has_a_reason(raw, reason):
    decoded = modality().decode(raw)
    assert decoded.array is None
    assert reason in decoded.reason


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_truncated_files_are_corrupt(photo, format):
    data = encoded(photo.resize((64, 64)), format).data
    for share in (0.05, 0.5, 0.9):
        decoded = modality().decode(Raw(data[: int(len(data) * share)]))
        assert decoded.array is None
        assert decoded.reason


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "TIFF"]), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=30))
def test_damaged_bytes_never_raise(format, changes):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    data = bytearray(encoded(Pillow.fromarray(pixels), format).data)
    for where, byte in changes:
        data[int(where * (len(data) - 1))] = byte
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as preprocessing does around many of these
        decoded = modality().decode(Raw(bytes(data)))
    assert (decoded.array is None) == bool(decoded.reason)


def test_content_is_that_of_the_pixels_whatever_the_file_and_the_options(photo):
    small = photo.resize((40, 30))
    expected = hashlib.sha256(b"RGB 40 30 " + small.tobytes()).hexdigest()
    for format in ("PNG", "BMP", "TIFF"):
        for one in (modality(), modality(size=32, channels=1, fit="crop")):
            assert one.decode(encoded(small, format)).content == expected
    exif = Pillow.Exif()
    exif[0x0112] = 3
    assert modality().decode(encoded(small.rotate(180), exif=exif)).content == expected
    assert modality().decode(encoded(small.rotate(90, expand=True))).content != expected


def test_large_jpegs_are_read_smaller_and_alike():
    ramp = np.indices((1600, 2000)).sum(axis=0) % 256
    raw = encoded(Pillow.fromarray(ramp.astype(np.uint8)), "JPEG")
    one, two = modality(size=16).decode(raw), modality(size=96).decode(raw)
    assert one.content == two.content != ""
    assert one.signature == two.signature


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_the_signature_is_the_usual_difference_hash(photo, format):
    raw = encoded(photo, format)
    theirs = imagehash.dhash(Pillow.open(io.BytesIO(raw.data)))
    assert modality().decode(raw).signature == int(str(theirs), 16)


def test_the_three_fits(photo):
    wide = Pillow.new("RGB", (40, 20), (200, 200, 200))
    wide.paste((0, 0, 0), (0, 0, 10, 20))
    squash, crop, pad = (modality(size=20, fit=fit).decode(encoded(wide)).array for fit in ("squash", "crop", "pad"))
    assert squash[10, 1].max() == 0
    assert squash[10, 10].min() == 200
    assert crop[10, 2:].min() == 200
    assert pad[:5].max() == pad[-5:].max() == 0
    assert pad[10, 12].min() == 200


@pytest.mark.parametrize(
    ("sides", "rows", "size"),
    [([8], 1797, 16), ([28], 900, 32), ([32], 60_000, 32), ([33], 100, 32), ([64], 100, 64), ([90], 4000, 80), ([500], 200, 96), ([500], 20_000, 64)],
)
def test_the_size_follows_the_data(sides, rows, size):
    sample = [encoded(Pillow.new("L", (side, side + 10), 9)) for side in sides] + [Raw(b"broken")]
    assert Image(Image.Options()).plan(sample, rows) == Image.Options(size=size, channels=1)


def test_channels_follow_the_data_and_options_stand():
    gray, colour = (encoded(Pillow.new("RGB", (20, 20), value)) for value in ((7, 7, 7), (7, 8, 9)))
    assert Image(Image.Options()).plan([gray], 10).channels == 1
    assert Image(Image.Options()).plan([gray, colour], 10).channels == 3
    assert Image(Image.Options()).plan([], 10) == Image.Options(size=32, channels=3)
    assert Image(Image.Options(size=24, channels=1)).plan([colour], 10) == Image.Options(size=24, channels=1)
    with pytest.raises(ValueError, match="must be 1"):
        Image.Options(channels=2)


def test_near_identical_is_told_from_alike(photo):
    one = modality(size=32)

    def array(picture, format="PNG", **options):
        return one.decode(encoded(picture, format, **options)).array

    original = array(photo)
    darker = Pillow.fromarray((np.asarray(photo) * 0.8).astype(np.uint8))
    for copy in (array(photo, "JPEG", quality=40), array(photo.resize((200, 133))), array(darker), array(photo.convert("L"))):
        assert one.same(original, copy)
    flower = array(Pillow.fromarray(load_sample_image("flower.jpg")))
    shifted = array(photo.crop((60, 40, 640, 427)))
    assert not one.same(original, flower)
    assert not one.same(original, shifted)
    batch = one.same(np.stack([original, original]), np.stack([original, flower]))
    assert batch.tolist() == [True, False]


def test_plain_pictures_are_the_same_only_when_they_are_as_bright():
    one = modality(size=8, channels=1)
    black, gray, white = (np.full((8, 8, 1), level, np.uint8) for level in (0, 128, 255))
    assert one.same(black, black)
    assert not one.same(black, gray)
    assert not one.same(gray, white)


def test_statistics_do_not_depend_on_the_chunks():
    array = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    one = modality(size=8)
    whole = one.statistics([array])
    assert whole == one.statistics([array[:7], array[7:8], array[8:]])
    assert np.allclose(whole["mean"], (array / 255).mean(axis=(0, 1, 2)))
    assert np.allclose(whole["std"], (array / 255).std(axis=(0, 1, 2)))
    assert min(one.statistics([np.zeros((2, 8, 8, 3), np.uint8)])["std"]) > 0


def test_encoding_normalises():
    one = modality(size=8)
    array = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    spec = one.spec(("a", "b"), one.statistics([array]))
    assert spec.shape == (3, 8, 8)
    image = one.encode(torch.from_numpy(array), spec)["image"]
    assert image.shape == (50, 3, 8, 8)
    assert image.dtype == torch.float32
    assert torch.allclose(image.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(image.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3)


@pytest.mark.parametrize("preset", Image.presets)
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_is_its_generators_alone(preset, channels):
    one = modality(size=16, channels=channels)
    array = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 16, 16, channels), dtype=np.uint8))
    before = array.clone()
    spec = one.spec(("a", "b"), {"mean": [0.5] * channels, "std": [0.25] * channels})
    augmentation = one.presets[preset](spec)
    first, second = (one.augment(array, spec, augmentation, torch.Generator().manual_seed(3))[0]["image"] for _ in range(2))
    assert first.shape == (6, channels, 16, 16)
    assert torch.equal(first, second)
    assert torch.equal(array, before)
    if preset == "none":
        assert torch.allclose(first, one.encode(array, spec)["image"])


def test_serving_takes_bytes_base64_and_paths(photo, tmp_path):
    one = modality()
    data = encoded(photo).data
    (tmp_path / "x.png").write_bytes(data)
    text = base64.b64encode(data).decode()
    wrapped = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    for value in (data, bytearray(data), memoryview(data), text, wrapped, str(tmp_path / "x.png"), tmp_path / "x.png"):
        assert one.serve(value) == Raw(data)
    assert one.serve(tmp_path / "none.png").data is None


@pytest.mark.parametrize(
    "value", ["data:image/png;base64,AAAA", "http://169.254.169.254/latest", "file:///etc/passwd", "no such file.png", "ab\0c", "../../x", 3, None, ["a"]]
)
def test_serving_refuses_the_rest(value):
    with pytest.raises(InputError):
        modality().serve(value)


def test_serving_bounds_sizes_and_can_refuse_paths(photo, tmp_path):
    one = modality(max_bytes=100)
    data = encoded(photo).data
    (tmp_path / "x.png").write_bytes(data)
    assert one.serve(base64.b64encode(data).decode()).data is None
    assert len(one.serve(tmp_path / "x.png").data) == 101  # enough to be refused by decode
    assert one.decode(one.serve(tmp_path / "x.png")).array is None
    with pytest.raises(InputError):
        one.serve(str(tmp_path / "x.png"), files=False)
    assert one.serve(tmp_path / "x.png", files=False).data is None
