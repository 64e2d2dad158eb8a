"""What the parts of Warmstart promise one another.

Shapes in names: B batch, C channels, H and W height and width in pixels, T tokens, D features, K classes, N rows.

A *source* says which rows there are and reads one. A *modality* turns what was read into fixed-size arrays for the store,
and batches of those into what a backbone takes. A *backbone* encodes a batch; an *objective* pretrains it, a *head* with
a *method* fine-tunes it. Each is a class with a pydantic `Options` model beside it, listed in its folder's table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor, nn

UNLABELLED = -1
"""The class id of a row without a label."""


class InputError(ValueError):
    """What the user gave cannot be used. The message says what was found, what was expected and what to do."""


class Options(BaseModel):
    """Base of every option model: unknown keys are errors, values do not change once checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


@dataclass(frozen=True)
class DataSpec:
    """What a model must know of a data set to be built for it; JSON-able, kept beside the weights.

    `shape` is that of one encoded item without the batch axis: (C, H, W) for images, (most tokens,) for text. `statistics` come
    from the training part alone: mean and deviation, a tokenizer. `modality` and `options` name the modality and its resolved options.
    """

    modality: str
    options: Mapping[str, Any]
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    statistics: Mapping[str, Any]


@dataclass(frozen=True)
class Mix:
    """Partners and weights of a mixed batch (mixup, cutmix): target = weight·own + (1 − weight)·partner's."""

    partner_B: Tensor
    weight_B: Tensor


@dataclass(frozen=True)
class Part:
    """Which rows of a batch that several processes share one of them has: those from `start`, of `rows`. `targets_B` are those of the whole batch."""

    start: int
    rows: int
    targets_B: Tensor


ALL = slice(None)
"""A part that is the whole."""


@dataclass(frozen=True)
class Batch:
    """One batch on the device: what the backbone reads, by name, and the targets (UNLABELLED where there is none).

    A target is a class id, or where rows have several labels (B, K) int8, 1 for those that apply and UNLABELLED throughout where there is none.
    Where the batch is a `part` of one, partners of its `mix` are rows of the whole.
    """

    inputs: Mapping[str, Tensor]
    targets_B: Tensor
    views: tuple[Mapping[str, Tensor], ...] = ()
    mix: Mix | None = None
    part: Part | None = None

    @property
    def rows(self) -> int:
        """Of the whole batch."""
        return len(self.targets_B) if self.part is None else self.part.rows

    @property
    def partners_B(self) -> Tensor:
        """Targets of the rows that these are mixed with."""
        return (self.targets_B if self.part is None else self.part.targets_B)[self.mix.partner_B]


@dataclass(frozen=True)
class Features:
    """What a backbone makes of a batch. `map_BDHW` or `tokens_BTD` where its traits say "map" or "tokens".

    `wide_BW` is what heads see beside the pooled features and pretraining does not: W columns that are counted and not learnt.
    """

    pooled_BD: Tensor
    map_BDHW: Tensor | None = None
    tokens_BTD: Tensor | None = None
    wide_BW: Tensor | None = None

    @property
    def whole(self) -> Tensor:
        """What a head reads of an item as a whole: (B, D + W)."""
        return self.pooled_BD if self.wide_BW is None else self._joined()

    def _joined(self) -> Tensor:
        import torch  # not at the top: recipes are looked at without it

        return torch.cat([self.pooled_BD, self.wide_BW], 1)


@dataclass(frozen=True)
class StepResult:
    """The loss to step on (a scalar with its graph) and detached scalars worth a curve. A step never logs.

    `weight` is what the loss is a mean over, such as tokens, where that is not the rows: several processes that share a batch weigh by it.
    """

    loss: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    weight: Tensor | None = None


@dataclass(frozen=True)
class Raw:
    """One item as a source reads it, undecoded, or the reason why it could not be read."""

    data: bytes | None
    reason: str = ""


@runtime_checkable
class Source(Protocol):
    """Where rows come from.

    `scan()` gives a frame with the columns key (str, unique, stable across machines), label (str or None, or where rows may have
    several labels a tuple of distinct str, empty where no class applies), split ("train",
    "validation", "test", "unlabelled" or None), group (str or None), slice (str or None). It reads no pixels.
    `read(keys)` yields one Raw a key, in order, never raising for a bad item.
    `fingerprint()` is a digest that changes when the data do (paths, sizes, times; contents where those are small).
    """

    Options: ClassVar[type[Options]]
    options: Options
    """Those given, of which another process makes the source again."""

    def __init__(self, options: Options) -> None: ...
    def scan(self) -> pd.DataFrame: ...
    def read(self, keys: Sequence[str]) -> Iterator[Raw]: ...
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Decoded:
    """One item ready for the store, with what cleaning needs to know of it, or the reason why it cannot be used.

    `content` is a digest of the decoded content (equal means exact duplicate); `signature` is a 64-bit hash of four bands, of
    which near duplicates share one; `facts` are columns of whole numbers for the table (width and height in pixels, say).
    """

    array: np.ndarray | None
    content: str = ""
    signature: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


@runtime_checkable
class Modality(Protocol):
    """How one kind of data is decoded, stored, encoded and augmented.

    From source to store: `plan(sample, rows)` resolves options left to be decided by the data (image size, channels) from a few raw
    items, and is not asked where `planned`. `decode(raw)` gives one item, (item_shape) uint8 or, where `item_shape` is None, of
    any length; it never raises for bad data, and leaves out all but the array where it is `served`, as nothing is cleaned then. `same(a, b)` confirms near duplicates among decoded rows whose signatures share a band and
    differ in at most `signature_bits`. `statistics(chunks)` is fed chunks of decoded training rows alone; `spec(classes, statistics)`
    describes the result to models; `pack(rows, spec)` makes of decoded rows the arrays to be stored, by name, first the one that
    models read.

    From store to model: `collate(rows, spec)` makes one array of stored rows, each cut to what a model reads at once unless it is to be `whole`;
    `encode(array_B..., spec)` makes inputs of it without randomness, `augment(array_B..., spec, augmentation, generator, part)` with per-sample parameters, on the array's device, of
    the rows of `part` just as they are in the whole. `presets` maps an augmentation's name to its defaults, given the spec.

    From a user: `serve(value, files)` makes raw bytes of what a request holds, or files with one of `suffixes`. A request's columns are `fields`,
    of type `column_type`: of one field the value is what it holds, of more a mapping, as `request(raw)` makes it of a source's item. Tables
    may have them under their own names, or a whole value in one of `columns`. `alternative` fits the simple classifier that a user would pick instead; `overview` and `mistakes` draw.
    """

    Options: ClassVar[type[Options]]
    Augmentation: ClassVar[type[Options]]
    options: Options
    """Those given, of which another process makes the modality again."""

    def __init__(self, options: Options) -> None: ...


class Backbone(Protocol):
    """An nn.Module: `encode(inputs) -> Features`, width D, traits, and its layers from input to output.

    `traits` is a subset of {"map", "tokens", "maskable"}; an objective names those it needs. `layers()` lists groups of
    modules in depth order, for layer-wise decay and gradual unfreezing. `wide`, where there is one, is the W of `Features.wide_BW`.
    """

    Options: ClassVar[type[Options]]
    modalities: ClassVar[frozenset[str]]
    traits: ClassVar[frozenset[str]]
    width: int

    def encode(self, inputs: Mapping[str, Tensor]) -> Features: ...
    def layers(self) -> list[nn.Module]: ...


class Objective(Protocol):
    """An nn.Module around a backbone (`self.backbone`): `step(batch) -> StepResult` on `views` augmented views.

    `needs` are the backbone traits without which it cannot work; `reads`, where there is one, names the modalities whose rows hold what it
    learns from; `labels` says that it trains on labelled rows only;
    `augmentation` names the modality's preset that suits it. `packed` says that it trains on a stream of tokens in blocks instead of
    rows. `pictures(batch)` may give named (C, H, W) images in [0, 1], `examples(batch, read)` lines of text, where `read` makes text
    of token ids.
    """

    Options: ClassVar[type[Options]]
    needs: ClassVar[frozenset[str]]
    labels: ClassVar[bool]
    views: ClassVar[int]
    augmentation: ClassVar[str]
    packed: ClassVar[bool]

    def step(self, batch: Batch) -> StepResult: ...


class Head(Protocol):
    """What a model is fine-tuned for: an nn.Module over a backbone, given its width D (of `Features.whole`) and the DataSpec.

    `step(backbone, batch)` gives the loss. What is learnt is told in three forms: `outputs(backbone, inputs)` are the numbers (B, S) of
    each row, those of batches with a smaller S filled up with NaN; `answers(outputs_NS, rows, temperature)` is what a user is told of each row (probabilities (N, K), or
    a list); `scores(answers, rows)` (N, S') is what `metrics` read: functions of (targets_N, scores_NS) that give a float, of which `primary`
    chooses. Heads whose `labels` is false learn from what the modality stores beside a row, and their metrics ignore the targets: their
    scores are statistics of each row, from which the metric of any set of rows is made. Those with `labels` read `Features.whole` alone; those that are `packed` train on a stream of tokens;
    those that are `whole` get rows of any length for `outputs`, and read them in windows.

    Of heads that tell `several` classes of a row the targets are (N, K), 0 or 1.

    `rows` holds arrays of the rows in question by name: those that the modality packs and, where there are labels, "label", the targets.
    `trivial` says in words what `trivial_answers(train_rows, rows)` does; `frame(answers)` makes columns for users, of numbers, texts or a type of Arrow's;
    `details(...)` gives what only this kind of head has to show, `pictures(...)` draws it. `needs` are backbone traits; `reads` names the
    modalities whose rows hold what it learns from, none meaning any. `calibrate(outputs_NS, rows)` may give a temperature.
    `serve(backbone, inputs)` may give outputs with more in them than a measurement needs. Where there are no labels,
    `alternative(train_rows, validation_rows, rows, spec, seed)` may give what a simple method's outputs would be.
    """

    Options: ClassVar[type[Options]]
    needs: ClassVar[frozenset[str]]
    reads: ClassVar[frozenset[str]]
    labels: ClassVar[bool]
    several: ClassVar[bool]
    packed: ClassVar[bool]
    whole: ClassVar[bool]
    trivial: ClassVar[str]
    primary: ClassVar[str]
    metrics: ClassVar[Mapping[str, Callable[[np.ndarray, np.ndarray], float]]]

    def step(self, backbone: nn.Module, batch: Batch) -> StepResult: ...
    def outputs(self, backbone: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor: ...
    def answers(self, outputs_NS: np.ndarray, rows: Mapping[str, Any], temperature: float) -> Any: ...
    def scores(self, answers: Any, rows: Mapping[str, Any]) -> np.ndarray: ...
    def trivial_answers(self, train_rows: Mapping[str, Any], rows: Mapping[str, Any]) -> Any: ...
    def frame(self, answers: Any) -> pd.DataFrame: ...


class Method(Protocol):
    """How a model is fine-tuned: parameter groups with their rates, and what is frozen at which moment.

    Both are pure functions of their arguments, so that a resumed run repeats them. Every parameter that is ever trained is
    in a group from the start; `prepare` sets `requires_grad` and train/eval modes for the part of the training
    that has passed (0 ≤ progress < 1). `begin(model)` may add modules before the groups are asked for, and `finish(model)` takes them
    out again, so that what is kept is the model as it was built, and may give them as an `ml.adapter.Adapter`; `suits(backbone)` may refuse a backbone. One
    that is `frozen` trains the head alone: without augmentation what the backbone makes of each row is then computed once. A method with `rungs` and a
    `share` of the length for each is tried rung by rung instead, and trains nothing itself.
    """

    Options: ClassVar[type[Options]]

    def __init__(self, options: Options) -> None: ...
    def groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]: ...
    def prepare(self, model: nn.Module, progress: float) -> None: ...


Report = Callable[[Mapping[str, float], int], None]
"""report(metrics, step): how ml/ tells the tracking of numbers, knowing nothing of it."""
