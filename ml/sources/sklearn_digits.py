"""scikit-learn's handwritten digits, which come with the library."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ml import contracts
from ml.contracts import Raw
from ml.files import digest


class SklearnDigits:
    """1,797 handwritten digits of 8 × 8 pixels, bundled with scikit-learn: no download."""

    class Options(contracts.Options):
        pass

    def __init__(self, options: SklearnDigits.Options) -> None:
        self.options = options

    @cached_property
    def _digits(self) -> Any:
        from sklearn.datasets import load_digits  # imported where it is used: it costs seconds

        return load_digits()

    def scan(self) -> pd.DataFrame:
        labels = [str(target) for target in self._digits.target]
        return pd.DataFrame(
            {"key": [str(index) for index in range(len(labels))], "label": labels, "split": None, "group": None, "slice": None}, dtype=object
        )

    def read(self, keys: Sequence[str]) -> Iterator[Raw]:
        for key in keys:
            pixels = np.round(self._digits.images[int(key)] * (255 / 16)).astype(np.uint8)  # the set counts from 0 to 16
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            yield Raw(png.getvalue())

    def fingerprint(self) -> str:
        return digest("sklearn-digits", version("scikit-learn"))
