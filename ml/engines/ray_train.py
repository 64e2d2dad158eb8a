"""Trains in several processes of a Ray cluster, which Ray Train starts, watches and restarts: of one of this machine alone, or of `compute.address`.

The driver, ml/engines/ray_driver.py, is a process of its own: Ray takes over signals and the standard streams of whoever connects to it.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

from torch import nn

from ml.contracts import Report
from ml.fit import Fitted
from ml.launch import GRACE, LOOK, check_device, launch
from ml.plan import Plan
from ml.recipe import Compute
from ml.training import Training

START = 300
"""Seconds that Ray may take to start the processes: each imports torch, which a busy machine does slowly."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_METRICS_ENABLED": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
ALONE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on any system: a cluster of one machine, which listens on the loopback address
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # or it kills processes where others fill the memory
}


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
    own = {} if compute.address else ALONE | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {name: str(value) for name, value in times.items()} | QUIET | own
