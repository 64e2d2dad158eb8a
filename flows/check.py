"""What `warmstart check` does: the recipe and its data looked at as a run would, and nothing trained."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ml.cost import kept, training_bytes
from ml.device import device_of
from ml.feed import Blocks, Feed, rows_of, stream
from ml.model import Model
from ml.preprocess import preprocess, summary
from ml.pretraining import SEEN
from ml.recipe import Finetuning, Pretraining, Recipe, augmentation
from ml.recompute import recompute
from ml.schedule import epochs_of
from ml.splitting import split
from ml.store import Store
from tasks.stage import home

STEPS = 4  # timed updates, the first of which warms up
IMBALANCE = 10


def check(recipe: Recipe) -> dict[str, Any]:
    """Facts about the data, warnings, and the cost to expect; InputError for what cannot be used."""
    place = home()
    with _empty_again(place), tempfile.TemporaryDirectory(dir=place, prefix="check-") as folder:
        source, head = recipe.data.source.make(), recipe.finetuning.head.chosen
        store = preprocess(source, recipe.data.modality.make(), recipe.data, Path(folder) / "work", Path(folder) / "stores", head.labels, head.several)
        facts = summary(store)
        parts = split(store.table, store.strata, recipe.splitting, recipe.seed)
        rows = {
            "pretraining": len(rows_of(store, *SEEN)),
            "training": len(parts.train),
            "validation": len(parts.validation),
            "test": len(parts.test),
        }
        expected = _expected(recipe, store, parts.train, rows)
    data = {
        "rows": rows,
        "classes": {name: sum(counts.values()) for name, counts in facts["classes"].items()},
        **({"rows of no class": facts["of_no_class"], "labels a row": round(facts["labels_per_row"], 2)} if "of_no_class" in facts else {}),
        "stored as": facts["shape"],
        "quarantined": facts["quarantined"],
        "reasons": facts["reasons"],
        "duplicates": facts["duplicates"],
        "leakage into the test": facts["leakage"],
        "one item, two labels": facts["conflicts"]["items"],
        "imbalance": round(float(facts["imbalance"]), 2),
    }
    return {"recipe": recipe.name, "data": data, "expected": expected, "warnings": _warnings(facts, rows, recipe)}


@contextmanager
def _empty_again(folder: Path) -> Iterator[None]:
    """Removes the folder after the block if nothing is in it."""
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()


def _warnings(facts: dict[str, Any], rows: dict[str, int], recipe: Recipe) -> list[str]:
    found = []
    if facts["quarantined"]:
        found.append(f"{facts['quarantined']} items cannot be used and are left out")
    if facts["conflicts"]["items"]:
        found.append(
            f"{facts['conflicts']['items']} items stand there with two labels and are left out: {facts['conflicts']['examples'][:3]}"
        )
    if sum(facts["leakage"].values()):
        found.append(f"{sum(facts['leakage'].values())} copies of test rows were found outside the test and are left out")
    if facts["imbalance"] > IMBALANCE:
        found.append(
            f"the largest class is {facts['imbalance']:.0f} times the smallest: consider finetuning.balance=weights and the metric macro_f1"
        )
    if rows["test"] < 100:
        found.append(f"only {rows['test']} test rows: intervals will be wide")
    if facts["untested_classes"]:
        found.append(f"no test row for {', '.join(facts['untested_classes'][:5])}")
    if recipe.pretraining.enabled and rows["pretraining"] < 5 * rows["training"]:
        found.append(
            "there is little raw data beside the labels: pretraining gains most where there is much; weights that are published may serve better"
        )
    return found


def _expected(recipe: Recipe, store: Store, train: np.ndarray, rows: dict[str, int]) -> dict[str, Any]:
    """Seconds of training from a few timed updates, bytes on disk, and parameters."""
    device = device_of(recipe.compute)
    torch.manual_seed(0)
    backbone = recipe.backbone.make(store.spec)
    seconds, memory = 0.0, 0
    if recipe.pretraining.enabled:
        objective = recipe.pretraining.objective.make(copy.deepcopy(backbone), store.spec)
        trained, seen = store, rows_of(store, *SEEN)
        if objective.packed:
            trained, seen, _ = stream(store, seen, recipe.seed)
        seconds, memory = _cost(objective, recipe, recipe.pretraining, trained, seen, device, recipe.pretraining.probe, objective.views)
    model = Model.build(recipe.backbone, recipe.finetuning.head, store.spec)
    once, more = _cost(model, recipe, recipe.finetuning, store, train, device, True)
    return {
        "pretraining seconds": round(seconds, 1),
        "fine-tuning seconds": round(once * (2 if recipe.finetuning.baseline else 1), 1),
        "store bytes": sum(file["bytes"] for file in store.manifest["files"].values()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "training bytes": max(memory, more),
    }


def _cost(
    module: torch.nn.Module,
    recipe: Recipe,
    part: Pretraining | Finetuning,
    store: Store | Blocks,
    rows: np.ndarray,
    device: torch.device,
    validates: bool,
    views: int = 1,
) -> tuple[float, int]:
    """Seconds and bytes of a training."""
    modality = recipe.data.modality.make()
    augment = augmentation(recipe, part, store.spec)
    feed = Feed(store, modality, rows, min(part.fit.batch_size, len(rows)), recipe.seed, device, augment, views)
    module.to(device, memory_format=torch.channels_last).train()
    if recipe.compute.recompute:
        recompute(module.backbone)
    taken, activations = [], 0
    for number in range(STEPS):
        began = time.perf_counter()
        batch = feed.batch(feed.order(number)[: -(-feed.batch_size // part.fit.accumulate)], number, 0)
        with kept() if number == 0 else nullcontext() as counted:
            loss = module.step(batch).loss
            activations = counted() if counted else activations
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    seconds = float(np.median(taken[1:])) * part.fit.accumulate * feed.steps * epochs_of(part.fit, len(rows))
    return seconds, training_bytes(module, part.fit, validates, activations)
