"""Small pictures and folders of them."""

import io

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def png():
    """png(seed, side=8): the bytes of a random gray picture."""

    def make(seed: int, side: int = 8) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        return out.getvalue()

    return make


@pytest.fixture
def tree(tmp_path, png):
    """tree("a/1.png", ...) makes those files, pictures where the name says so, and gives the folder."""

    def make(*names: str):
        root = tmp_path / "root"
        for number, name in enumerate(names):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(number) if path.suffix else b"")
        return root

    return make
