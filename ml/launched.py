"""What a process does that an engine started to train beside others: it builds what ml.plan wrote, trains its part, and leaves how it ended.

ml/launch.py is the other side, and names the files.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ml import beats, progress, ranks
from ml.checkpoint import write_atomically
from ml.contracts import InputError
from ml.fit import fit
from ml.interruption import Interrupted, ask
from ml.plan import Plan, read_weights, save_weights
from ml.recipe import Compute

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_TORCH_DEVICE")
LOOK = 0.2  # seconds between two looks whether to stop


def work(folder: Path, join: Callable[[Compute], torch.device]) -> None:
    """Trains as planned in `folder`, on the device that `join` gives once it has joined the other ranks."""
    outcome = folder / "outcome.json"
    if outcome.exists():
        return  # restarted after all was done, as another process died at its end
    threading.Thread(target=_watch, args=(folder / "stop",), name="stop", daemon=True).start()
    try:
        found = {"fitted": _train(folder, join)}
    except Interrupted as error:
        found = {"interrupted": str(error)}
    except InputError as error:
        write_atomically(outcome, json.dumps({"error": str(error)}))
        raise
    if ranks.rank() == 0:
        write_atomically(outcome, json.dumps(found))
    ranks.end()


def _watch(stop: Path) -> None:
    while not (stop.exists() and ask()):
        time.sleep(LOOK)


def _train(folder: Path, join: Callable[[Compute], torch.device]) -> dict[str, Any]:
    plan = Plan.read(folder)
    device = join(plan.recipe.compute)
    with beats.watched(folder / "beats", ranks.rank(), ranks.count(), plan.recipe.compute.timeout):
        return _fit(folder, plan, device)


def _fit(folder: Path, plan: Plan, device: torch.device) -> dict[str, Any]:
    torch.set_num_threads(plan.recipe.compute.threads or max(1, len(os.sched_getaffinity(0)) // int(os.environ["LOCAL_WORLD_SIZE"])))
    for name in LAUNCHED:  # accelerate, which knows precision here, would set up processes of its own
        os.environ.pop(name, None)
    given = plan.bare()
    read_weights(given, folder / "given.safetensors")
    training = plan.build(given, device)
    read_weights(training.module, folder / "module.safetensors")
    reports = Reports(folder / "reports.jsonl") if ranks.rank() == 0 else None
    progress.listen(reports)
    fitted = fit(**training.arguments(), compute=plan.recipe.compute, workdir=folder.parent, report=reports or (lambda metrics, step: None))
    save_weights(training.module, folder / "trained.safetensors")
    return asdict(fitted)


class Reports:
    """Writes what is reported and how far it is, for the process that launched this one."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._file.write("\n")  # a rank that was killed may have left half a line

    def __call__(self, metrics: Mapping[str, float], step: int) -> None:
        self._write({"metrics": {name: float(value) for name, value in metrics.items()}, "step": step})

    def update(self, stage: str, done: int, total: int, facts: dict[str, float]) -> None:
        self._write({"progress": [done, total, facts]})

    def finish(self, stage: str, words: str) -> None:
        """The launching process tells it."""

    def warn(self, stage: str, words: str) -> None:
        self._write({"warning": words})

    def _write(self, told: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(told) + "\n")
        self._file.flush()
