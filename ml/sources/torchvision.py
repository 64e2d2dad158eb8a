"""Published image sets that torchvision knows how to fetch."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from ml import contracts
from ml.choice import unknown
from ml.contracts import InputError, Raw
from ml.files import digest

TRAIN_TEST = (("train", {"train": True}), ("test", {"train": False}))
BY_SPLIT = (("train", {"split": "train"}), ("test", {"split": "test"}))
WITH_VALIDATION = (("train", {"split": "train"}), ("validation", {"split": "val"}), ("test", {"split": "test"}))
DATASETS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "CIFAR10": TRAIN_TEST,
    "CIFAR100": TRAIN_TEST,
    "MNIST": TRAIN_TEST,
    "FashionMNIST": TRAIN_TEST,
    "KMNIST": TRAIN_TEST,
    "USPS": TRAIN_TEST,
    "SVHN": BY_SPLIT,
    "Food101": BY_SPLIT,
    "GTSRB": BY_SPLIT,
    "STL10": (*BY_SPLIT, ("unlabelled", {"split": "unlabeled"})),
    "DTD": WITH_VALIDATION,
    "FGVCAircraft": WITH_VALIDATION,
    "Flowers102": WITH_VALIDATION,
    "OxfordIIITPet": (("train", {"split": "trainval"}), ("test", {"split": "test"})),
}
"""The sets, with their official parts and what torchvision calls them."""


class Torchvision:
    """CIFAR-10 and the like, fetched by torchvision where there is a network, with their official test."""

    class Options(contracts.Options):
        dataset: str = Field("CIFAR10", description=f"Which set: {', '.join(DATASETS)}.")
        path: str = Field("data", description="Folder that holds the set, or takes the download.")
        download: bool = Field(True, description="Fetch what is not there yet.")

    argument = "dataset"

    def __init__(self, options: Torchvision.Options) -> None:
        if options.dataset not in DATASETS:
            raise InputError(unknown("torchvision data set", options.dataset, DATASETS))
        self.options = options
        self._part = cache(self._load)

    def scan(self) -> pd.DataFrame:
        frames = []
        for split, _ in DATASETS[self.options.dataset]:
            part = self._part(split)
            names = getattr(part, "classes", None)
            targets = _targets(part)
            labels = [None if split == "unlabelled" or one < 0 else str(names[one]) if names else str(one) for one in targets]
            keys = [f"{split}/{index}" for index in range(len(labels))]
            frames.append(pd.DataFrame({"key": keys, "label": labels, "split": split, "group": None, "slice": None}, dtype=object))
        return pd.concat(frames, ignore_index=True)

    def read(self, keys: Sequence[str]) -> Iterator[Raw]:
        for key in keys:
            split, _, index = key.partition("/")
            try:
                picture = self._part(split)[int(index)][0]
            except (OSError, ValueError, SyntaxError) as error:
                yield Raw(None, f"cannot be read: {' '.join(str(error).split())[:160]}")
                continue
            png = io.BytesIO()
            picture.save(png, "PNG", compress_level=1)
            yield Raw(png.getvalue())

    def fingerprint(self) -> str:
        frame = self.scan()
        root = Path(self.options.path)
        files = [(str(file.relative_to(root)), file.stat().st_size) for file in sorted(root.rglob("*")) if file.is_file()]
        return digest("torchvision", version("torchvision"), self.options.dataset, len(frame), files)

    def _load(self, split: str) -> Any:
        kwargs = dict(DATASETS[self.options.dataset])[split]
        import torchvision  # imported where it is used: it costs seconds

        try:
            return getattr(torchvision.datasets, self.options.dataset)(self.options.path, **kwargs, download=self.options.download)
        except (OSError, RuntimeError, ImportError) as error:
            remedy = "Without a network, put its files there first" if self.options.download else "Set data.source.options.download=true to fetch it"
            found = " ".join(str(error).split())[:300]
            raise InputError(f"torchvision's {self.options.dataset} is not to be had from {self.options.path!r}: {found}. {remedy}") from None


def _targets(part: Any) -> list[int]:
    """The class ids without decoding a picture; the sets keep them under different names."""
    for name in ("targets", "labels", "_labels"):
        if hasattr(part, name):
            return [int(one) for one in getattr(part, name)]
    return [int(target) for _, target in getattr(part, "_samples", None) or part]
