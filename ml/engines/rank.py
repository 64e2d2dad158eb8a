"""One of the processes that ml/engines/torchrun.py trains in: `python -m ml.engines.rank FOLDER`, with the variables that torchrun sets."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ml import progress, ranks
from ml.checkpoint import write_atomically
from ml.contracts import InputError
from ml.device import device_of
from ml.fit import fit
from ml.interruption import Interrupted
from ml.plan import Plan, read_weights, save_weights

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def main(folder: Path) -> None:
    """Trains as planned in `folder`, and leaves there how it ended."""
    watch(os.getppid())
    outcome = folder / "outcome.json"
    if outcome.exists():
        return  # restarted after one of us found an error that will not go away
    try:
        found = {"fitted": _train(folder)}
    except Interrupted as error:
        found = {"interrupted": str(error)}
    except InputError as error:
        write_atomically(outcome, json.dumps({"error": str(error)}))
        raise
    if ranks.rank() == 0:
        write_atomically(outcome, json.dumps(found))
    ranks.end()


def _train(folder: Path) -> dict[str, Any]:
    plan = Plan.read(folder)
    device = device_of(plan.recipe.compute)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    ranks.begin(device, plan.recipe.compute.timeout)
    for name in LAUNCHED:  # accelerate, which knows precision here, would set up processes of its own
        os.environ.pop(name, None)
    given = plan.bare()
    read_weights(given, folder / "given.safetensors")
    training = plan.build(given, device)
    read_weights(training.module, folder / "module.safetensors")
    reports = Reports(folder / "reports.jsonl") if ranks.rank() == 0 else None
    progress.listen(reports)
    fitted = fit(**training.arguments(), compute=plan.recipe.compute, workdir=folder.parent, report=reports or (lambda metrics, step: None))
    if ranks.rank() == 0:
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


def watch(launcher: int) -> None:
    """Reads standard input from now on: at a byte this process is asked to stop, at the end it ends at once and takes the launcher along."""

    def read() -> None:
        asked = False
        while os.read(0, 1):
            if not asked and callable(signal.getsignal(signal.SIGTERM)):  # not before the loop listens: it would die of it
                asked = True
                os.kill(os.getpid(), signal.SIGTERM)
        if os.getppid() == launcher:
            os.kill(launcher, signal.SIGKILL)  # or it would start us again
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=read, name="watch", daemon=True).start()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
