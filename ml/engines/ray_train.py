"""Trains in several processes of a Ray cluster, which Ray Train starts, watches and restarts: of one of this machine alone, or of `compute.address`.

What connects to it is a process of its own, ml/engines/ray_driver.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import nn

from ml.contracts import Report
from ml.fit import Fitted
from ml.launch import GRACE, LOOK, check_device, launch
from ml.plan import Plan
from ml.ray_cluster import variables
from ml.recipe import Compute
from ml.training import Training

START = 300
"""Seconds that Ray may take to start the processes: each imports torch, which a busy machine does slowly."""


def train(plan: Plan, given: nn.Module, workdir: Path, report: Report) -> tuple[Training, Fitted]:
    """See ml.engines."""
    check_device(plan.recipe.compute)
    return launch(plan, given, workdir, report, _command, _variables(plan.recipe.compute))


def _command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "ml.engines.ray_driver", str(folder)]


def _variables(compute: Compute) -> dict[str, str]:
    times = {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": START,
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": compute.timeout,
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": LOOK,
        "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": GRACE,
    }
    return {name: str(value) for name, value in times.items()} | variables(compute)
