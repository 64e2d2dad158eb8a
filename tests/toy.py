"""A small real training on two classes that a few steps can tell apart; the programs of tests import it by its name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ml.contracts import DataSpec
from ml.feed import Feed, rows_of
from ml.fit import fit
from ml.groups import parameter_groups
from ml.modalities import MODALITIES
from ml.model import Model
from ml.recipe import BackboneChoice, Compute, Fit, HeadChoice

ROWS = 48


class ToyStore:
    """Bright left or bright right halves."""

    def __init__(self, rows: int = ROWS):
        random = np.random.default_rng(0)
        self.labels = np.arange(rows) % 2
        self.array = random.integers(0, 100, (rows, 16, 16, 1), dtype=np.uint8)
        for row, label in enumerate(self.labels):
            self.array[row, :, 8 * label : 8 * label + 8] += 120
        self.table = pd.DataFrame({"part": ["train"] * rows})
        self.spec = DataSpec("image", {"size": 16, "channels": 1}, (1, 16, 16), ("left", "right"), {"mean": [0.4], "std": [0.2]})

    def targets(self, numbers):
        return self.labels[numbers]


def train(workdir: Path, lines: list | None = None, watch=None, seed: int = 0, compute: dict | None = None, dropout: float = 0.2, **changes):
    """One small training; returns the model and how it went."""
    store, modality = ToyStore(), MODALITIES["image"]
    settings = Fit(**{"epochs": 4, "batch_size": 16, "learning_rate": 0.005, "checkpoint_seconds": 0, "ema": 0.9, **changes})
    torch.manual_seed(seed)
    model = Model.build(BackboneChoice(name="small-cnn", options={"width": 0.25}), HeadChoice(name="classification", options={"dropout": dropout}), store.spec)
    augment = modality.presets["standard"](store.spec)
    feed = Feed(store, modality(modality.Options(**store.spec.options)), rows_of(store, "train"), settings.batch_size, seed, torch.device("cpu"), augment, accumulate=settings.accumulate)
    inputs = feed.modality.encode(torch.from_numpy(store.array), store.spec)

    def validate(module):
        return {"validation/accuracy": float((module(inputs).argmax(1).numpy() == store.labels).mean())}

    fitted = fit(
        watch(model) if watch else model,
        feed,
        settings,
        Compute(**{"threads": 1, **(compute or {})}),
        stage="toy",
        groups=parameter_groups(model, settings.learning_rate, settings.weight_decay),
        workdir=workdir,
        report=lambda metrics, step: lines.append((step, dict(metrics))) if lines is not None else None,
        validate=validate,
        metric="validation/accuracy",
    )
    return model, fitted


def digest(model) -> str:
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()


def losses(lines) -> dict[int, float]:
    return {step: metrics["train/loss"] for step, metrics in lines if "train/loss" in metrics}
