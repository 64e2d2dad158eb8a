"""What one training is made of, wherever it runs: the module, its data, and what `ml.fit.fit` asks of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from ml.feed import Feed
from ml.recipe import Fit


@dataclass
class Training:
    """A module with `step`, and how it is trained; the arguments of `ml.fit.fit` that do not depend on the process."""

    stage: str
    module: nn.Module
    feed: Feed
    settings: Fit
    groups: list[dict[str, Any]]
    prepare: Callable[[float], None] | None = None
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None
    metric: str = ""
    higher_is_better: bool = True

    def arguments(self) -> dict[str, Any]:
        """For `ml.fit.fit`, by name."""
        return {field.name: getattr(self, field.name) for field in fields(Training)}
