"""Engines: what processes a training runs in.

An engine is a module with `train(plan, given, workdir, report) -> (training, how it went)`, which leaves the best weights in `given`. It is imported
when a training begins: recipes are looked at without it, and a stage's key does not depend on it.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ml.contracts import InputError

if TYPE_CHECKING:
    from torch import nn

    from ml.contracts import Report
    from ml.fit import Fitted
    from ml.plan import Plan
    from ml.training import Training


@dataclass(frozen=True)
class Engine:
    """Where an engine is; whether it trains in `several` processes; the form of an `address` at which it finds other machines; the package that it `needs`, which is the extra's name too."""

    module: str
    several: bool = False
    address: str = ""
    needs: str = ""


ENGINES: dict[str, Engine] = {
    "local": Engine("ml.engines.local"),
    "torchrun": Engine("ml.engines.torchrun", several=True, address=r"[^\s:/]+:\d{1,5}"),
    "ray": Engine("ml.engines.ray_train", several=True, address=r"\S+", needs="ray"),
}


def train(plan: Plan, given: nn.Module, workdir: Path, report: Report) -> tuple[Training, Fitted]:
    """Trains `given` as planned, by the engine of the plan's recipe; goes on from the newest checkpoint in `workdir`, whatever engine made it."""
    name = plan.recipe.compute.engine.value
    engine = ENGINES[name]
    if engine.needs and importlib.util.find_spec(engine.needs) is None:
        raise InputError(f"compute.engine={name} needs {engine.needs}: install the extra with `pip install 'warmstart[{engine.needs}]'`, or take another engine")
    return importlib.import_module(engine.module).train(plan, given, workdir, report)
