"""Engines: what processes a training runs in.

An engine is a module with `train(plan, given, workdir, report) -> (training, how it went)`, which leaves the best weights in `given`. It is imported
when a training begins: recipes are looked at without it, and a stage's key does not depend on it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from ml.contracts import Report
    from ml.fit import Fitted
    from ml.plan import Plan
    from ml.training import Training


@dataclass(frozen=True)
class Engine:
    """Where an engine is, and whether it can train in `several` processes."""

    module: str
    several: bool


ENGINES: dict[str, Engine] = {
    "local": Engine("ml.engines.local", several=False),
    "torchrun": Engine("ml.engines.torchrun", several=True),
    "ray": Engine("ml.engines.ray_train", several=True),
}


def train(plan: Plan, given: nn.Module, workdir: Path, report: Report) -> tuple[Training, Fitted]:
    """Trains `given` as planned, by the engine of the plan's recipe; goes on from the newest checkpoint in `workdir`, whatever engine made it."""
    engine = importlib.import_module(ENGINES[plan.recipe.compute.engine.value].module)
    return engine.train(plan, given, workdir, report)
