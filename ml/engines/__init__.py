"""Engines: what processes a training runs in, and for some also decoding and scoring.

An engine is a module with `train(plan, given, workdir, report) -> (training, how it went)`, which leaves the best weights in `given`. Its module for `data`,
where there is one, has `fill`, an ml.decoding.Fill, and `score`, as ml.scoring's. Both are imported when they have to work: recipes are looked at without them, and
a stage's key does not depend on them.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ml.contracts import InputError

if TYPE_CHECKING:
    from torch import nn

    from ml.contracts import Report
    from ml.fit import Fitted
    from ml.plan import Plan
    from ml.recipe import Compute
    from ml.training import Training


@dataclass(frozen=True)
class Engine:
    """Where an engine is, and what decodes and scores by it; whether it trains in `several` processes; the form of an `address` at which it finds other machines; the package that it `needs`, which is the extra's name too."""

    module: str
    data: str = ""
    several: bool = False
    address: str = ""
    needs: str = ""


ENGINES: dict[str, Engine] = {
    "local": Engine("ml.engines.local"),
    "torchrun": Engine("ml.engines.torchrun", several=True, address=r"[^\s:/]+:\d{1,5}"),
    "ray": Engine("ml.engines.ray_train", "ml.engines.ray_data", several=True, address=r"\S+", needs="ray"),
}


def train(plan: Plan, given: nn.Module, workdir: Path, report: Report) -> tuple[Training, Fitted]:
    """Trains `given` as planned, by the engine of the plan's recipe; goes on from the newest checkpoint in `workdir`, whatever engine made it."""
    return _module(plan.recipe.compute, "module").train(plan, given, workdir, report)


def data(compute: Compute) -> ModuleType | None:
    """What decodes and scores in the engine's processes; None where this process does."""
    return _module(compute, "data") if ENGINES[compute.engine.value].data else None


def _module(compute: Compute, which: str) -> ModuleType:
    name = compute.engine.value
    engine = ENGINES[name]
    if engine.needs and importlib.util.find_spec(engine.needs) is None:
        raise InputError(f"compute.engine={name} needs {engine.needs}: install the extra with `pip install 'warmstart[{engine.needs}]'`, or take another engine")
    return importlib.import_module(getattr(engine, which))
