"""What tasks hand to one another: small frozen references, never tensors, which Prefect would hash and pickle."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class StageSummary:
    """How one stage came about, as `warmstart run --json` shows it."""

    name: str
    run_id: str
    cached: bool
    why: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class DatasetRef:
    """A train-ready store on this machine, by the digest of its content."""

    stage: StageSummary
    digest: str
    path: str


@dataclass(frozen=True)
class BackboneRef:
    """A backbone's weights: an artifact folder of a stage run, by the digest of the weights."""

    stage: StageSummary
    digest: str
    seen: tuple[str, ...]
    """Parts of the data set that were trained on."""
    seconds: float
    """What its training took when it was done."""


@dataclass(frozen=True)
class SplitsRef:
    """Which rows are trained, validated and tested on, by the digest of the ids."""

    stage: StageSummary
    digest: str


@dataclass(frozen=True)
class ModelRef:
    """A fine-tuned model: an artifact folder of a stage run, by the digest of its weights."""

    stage: StageSummary
    digest: str
    seconds: float
    """What its training took when it was done."""
    score: float
    """On the validation rows, by the metric that chose its best epoch."""
    tried: tuple[StageSummary, ...] = ()
    """The rungs of a ladder, of which it is the best."""


@dataclass(frozen=True)
class ClassicalRef:
    """Predictions of the simple alternative, by the digest of the file."""

    stage: StageSummary
    digest: str
    description: str


@dataclass(frozen=True)
class ReportRef:
    """The evaluation, by its digest: metrics of each arm, with intervals."""

    stage: StageSummary
    digest: str
    metrics: dict[str, Any]
    baseline: dict[str, Any] | None
    classical: dict[str, Any] | None


@dataclass(frozen=True)
class RegisteredModel:
    """A model version, its aliases now, and the verdict that gave or refused them."""

    stage: StageSummary
    name: str
    version: str
    uri: str
    aliases: tuple[str, ...]
    passed: bool
    reasons: tuple[str, ...] = field(default_factory=tuple)
