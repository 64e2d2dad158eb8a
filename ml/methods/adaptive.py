"""Several methods tried, and the one kept that validation favours: what suits few labels is not known beforehand."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ml.contracts import Options


class Rung(Options):
    name: str = Field(description="A method.")
    options: dict[str, Any] = Field(default_factory=dict, description="Its options.")
    rate: float = Field(1.0, gt=0, le=1000, description="Its learning rate, in multiples of fit.learning_rate.")


class AdaptiveOptions(Options):
    rungs: tuple[Rung, ...] = Field(
        (
            Rung(name="linear-probe", rate=3.0),
            Rung(name="lora"),
            Rung(name="layer-decay"),
            Rung(name="gradual-unfreezing", options={"backbone_rate": 0.3}),
        ),
        min_length=1,
        description="The methods that are tried, each as a run of its own; those that do not suit the backbone are left out.",
    )
    budget: float = Field(2.0, gt=0, le=100, description="All trials together, in multiples of one fine-tuning's length.")


class Adaptive:
    """Tries a ladder of methods under a budget and keeps the best on the validation rows; each rung is a run to compare."""

    Options = AdaptiveOptions

    def __init__(self, options: AdaptiveOptions):
        self.rungs = options.rungs
        self.share = options.budget / len(options.rungs)
