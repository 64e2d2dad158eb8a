"""Trains in several processes of this machine, which torch's elastic launcher (`torchrun`) starts, watches and restarts.

Each is ml/engines/rank.py. All have the reading end of a pipe as standard input, whose end says that the stage's process is gone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from ml.contracts import InputError, Report
from ml.device import device_of
from ml.fit import Fitted
from ml.launch import GRACE, LOOK, check_device, launch
from ml.plan import Plan
from ml.recipe import Compute
from ml.training import Training


def train(plan: Plan, given: nn.Module, workdir: Path, report: Report) -> tuple[Training, Fitted]:
    """See ml.engines."""
    compute = plan.recipe.compute
    check_device(compute)
    if device_of(compute).type == "cuda" and compute.workers > torch.cuda.device_count():
        raise InputError(f"compute.workers is {compute.workers}, but there are {torch.cuda.device_count()} CUDA devices: a process needs one of its own")
    return launch(plan, given, workdir, report, lambda folder: _command(folder, compute), {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE)})


def _command(folder: Path, compute: Compute) -> list[str]:
    options = {"nproc-per-node": compute.workers, "max-restarts": compute.max_restarts, "monitor-interval": LOOK, "log-dir": folder / "logs", "redirects": 3}
    words = [f"--{name}={value}" for name, value in options.items()]
    # On this machine alone, whatever its name and its networks are.
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", *words, "-m", "ml.engines.rank", str(folder)]
