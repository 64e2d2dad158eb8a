"""Trains in this process."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ml.contracts import Report
from ml.device import device_of
from ml.fit import Fitted, fit
from ml.plan import Plan
from ml.training import Training


def train(plan: Plan, given: nn.Module, workdir: Path, report: Report) -> tuple[Training, Fitted]:
    """See ml.engines."""
    training = plan.build(given, device_of(plan.recipe.compute))
    return training, fit(**training.arguments(), compute=plan.recipe.compute, workdir=workdir, report=report)
