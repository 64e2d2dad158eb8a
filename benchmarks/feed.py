"""How fast pictures reach the network: `python -m benchmarks.feed`.

Pictures a second, shifted, flipped and normalised at 64 pixels, in batches of 128: out of the store (A), beside torchvision's ImageFolder with a
DataLoader of 0, 1 and 2 workers (B) over the same JPEGs of 256 pixels; and the first pass, which decodes each picture once into the store, beside plain decoding
and resizing by PIL. In turns, each in a fresh process. Also the store with 16 times the rows, of which each epoch draws all in a new order.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.harness import ROOT, arguments, control, finish, run, turns

PICTURES, SIDE, SIZE, BATCH = 1_500, 256, 64, 128
WORKERS = (0, 1, 2)
GOALS = {"store / best DataLoader": "≥ 10", "first pass / plain decoding": "≤ 1.2"}


def main() -> None:
    parser = arguments("feed", __doc__, pairs=3)
    parser.add_argument("--one", nargs=2, help="an arm alone, in a folder")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(ARMS[given.one[0]](Path(given.one[1]))))
        return
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    with tempfile.TemporaryDirectory(prefix="feed-") as scratch:
        draw(Path(scratch) / "data")
        arms = {name: lambda name=name: json.loads(run([sys.executable, "-m", "benchmarks.feed", "--one", name, scratch], ROOT)[1]) for name in ARMS}
        arms["first pass"]()  # fills the file cache
        rounds = turns(arms, given.pairs)
    best = [max(one[f"{workers} workers"] for workers in WORKERS) for one in rounds]
    figures = {
        "store / best DataLoader": [one["store"] / other for one, other in zip(rounds, best, strict=True)],
        "store, pictures/s": [one["store"] for one in rounds],
        **{f"DataLoader, {workers} workers, pictures/s": [one[f"{workers} workers"] for one in rounds] for workers in WORKERS},
        "first pass / plain decoding": [one["plain decoding"] / one["first pass"] for one in rounds],
        "first pass, pictures/s": [one["first pass"] for one in rounds],
        "control: store / store": control(rounds, "store"),
    }
    finish(given, figures, GOALS, rounds=rounds)


def draw(folder: Path) -> None:
    """JPEGs of smooth noise, in folders of two classes."""
    random = np.random.default_rng(0)
    for number in range(PICTURES):
        small = Image.fromarray(random.integers(0, 256, (24, 24, 3), np.uint8))
        path = folder / f"c{number % 2}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=90)


def first_pass(scratch: Path) -> float:
    """Preprocessing as a run does it, duplicates and statistics included."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        return _preprocess(scratch, Path(folder))[1]


def _preprocess(scratch: Path, folder: Path):
    from ml.preprocess import preprocess
    from ml.recipe import parse

    data = {"source": {"name": "image-folder", "options": {"path": str(scratch / "data")}}, "modality": {"name": "image", "options": {"size": SIZE}}}
    recipe = parse({"name": "feed", "data": data, "backbone": "small-cnn"})
    source, modality = recipe.data.source.make(), recipe.data.modality.make()
    began = time.perf_counter()
    store = preprocess(source, modality, recipe.data, folder / "work", folder / "stores", True, False)
    return store, PICTURES / (time.perf_counter() - began)


def plain_decoding(scratch: Path) -> float:
    files = sorted((scratch / "data").rglob("*.jpg"))
    began = time.perf_counter()
    for file in files:
        with Image.open(file) as picture:
            np.asarray(picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    return PICTURES / (time.perf_counter() - began)


def store(scratch: Path) -> float:
    import torch

    from ml.feed import Feed
    from ml.modalities.image import Image as Modality

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        made, _ = _preprocess(scratch, Path(folder))
        rows = np.flatnonzero(made.table["part"] == "train")
        feed = Feed(made, Modality(Modality.Options()), rows, BATCH, 0, torch.device("cpu"), Modality.presets["light"](made.spec))
        count, began = 0, time.perf_counter()
        for epoch in range(10):
            count += sum(len(batches[0].targets_B) for _, batches in feed.batches(epoch))
        return count / (time.perf_counter() - began)


def loader(workers: int):
    def measure(scratch: Path) -> float:
        from torch.utils.data import DataLoader
        from torchvision import datasets, transforms

        steps = [transforms.Resize(SIZE), transforms.RandomCrop(SIZE, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        data = datasets.ImageFolder(scratch / "data", transforms.Compose([*steps, transforms.Normalize([0.5] * 3, [0.25] * 3)]))
        batches = DataLoader(data, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        sum(1 for _ in batches)  # workers start
        began = time.perf_counter()
        count = sum(len(labels) for _, labels in batches)
        return count / (time.perf_counter() - began)

    return measure


ARMS = {"store": store, "first pass": first_pass, "plain decoding": plain_decoding} | {f"{workers} workers": loader(workers) for workers in WORKERS}


if __name__ == "__main__":
    main()
