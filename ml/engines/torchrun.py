"""Trains in several processes, which torch's elastic launcher (`torchrun`) starts, watches and restarts: of this machine, or with `compute.address` of several.

Each is ml/engines/rank.py. All have the reading end of a pipe as standard input, whose end says that the stage's process is gone. The launchers of other
machines are started by `warmstart join` there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from ml.contracts import InputError, Report
from ml.device import device_of
from ml.fit import Fitted
from ml.joining import APART, offer
from ml.launch import LOOK, check_device, launch
from ml.plan import Plan
from ml.recipe import Compute
from ml.training import Training

# On this machine alone, whatever its name and its networks are.
ALONE = ("--standalone", "--local-addr=127.0.0.1")


def train(plan: Plan, given: nn.Module, workdir: Path, report: Report) -> tuple[Training, Fitted]:
    """See ml.engines."""
    compute = plan.recipe.compute
    check_device(compute)
    here = compute.devices_per_worker if compute.address else compute.processes
    if device_of(compute).type == "cuda" and here > torch.cuda.device_count():
        raise InputError(f"{here} processes are to train on this machine, which has {torch.cuda.device_count()} CUDA devices: each needs one of its own. Lower compute.workers or compute.devices_per_worker.")
    return launch(plan, given, workdir, report, lambda folder: _command(folder, compute), APART if compute.address else {})


def _command(folder: Path, compute: Compute) -> list[str]:
    options = {"max-restarts": compute.max_restarts, "monitor-interval": LOOK, "log-dir": folder / "logs", "redirects": 3}
    words = [*(f"--{name}={value}" for name, value in options.items()), "-m", "ml.engines.rank", str(folder)]
    words = offer(folder, words, compute) if compute.address else [*ALONE, f"--nproc-per-node={compute.processes}", *words]
    return [sys.executable, "-m", "torch.distributed.run", *words]
