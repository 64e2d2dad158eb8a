"""Trains in several processes of a Ray cluster, which Ray Train starts, watches and restarts: of one of this machine alone, or of `compute.address`.

The driver, ml/engines/ray_driver.py, is a process of its own: Ray takes over signals and the standard streams of whoever connects to it.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from torch import nn

from ml.contracts import InputError, Report
from ml.fit import Fitted
from ml.launch import check_device, launch
from ml.plan import Plan
from ml.training import Training


def train(plan: Plan, given: nn.Module, workdir: Path, report: Report) -> tuple[Training, Fitted]:
    """See ml.engines."""
    if importlib.util.find_spec("ray") is None:
        raise InputError("compute.engine=ray needs the package ray: install the extra with `pip install 'warmstart[ray]'`, or take another engine")
    check_device(plan.recipe.compute)
    return launch(plan, given, workdir, report, _command)


def _command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "ml.engines.ray_driver", str(folder)]
