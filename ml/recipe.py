"""The recipe: one YAML file that describes a whole run, and the model that checks it.

`load(path, overrides)` reads one, applies `a.b.c=value` overrides (values are YAML) and gives a `Recipe`; every problem is
an InputError that names the key. The same model is the flow's parameter, so Prefect's UI shows it as a form.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ml.backbones import BACKBONES
from ml.choice import choice, problems, unknown
from ml.contracts import DataSpec, InputError, Options
from ml.engines import ENGINES
from ml.heads import HEADS
from ml.methods import METHODS
from ml.modalities import MODALITIES
from ml.objectives import OBJECTIVES
from ml.recipe_file import read
from ml.sources import SOURCES

SourceChoice = choice("source", SOURCES)
ModalityChoice = choice("modality", MODALITIES)
BackboneChoice = choice("backbone", BACKBONES)
ObjectiveChoice = choice("objective", OBJECTIVES)
HeadChoice = choice("head", HEADS)
MethodChoice = choice("method", METHODS)


class Section(BaseModel):
    """Base of the recipe's sections: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Optimizer(enum.StrEnum):
    adamw = "adamw"
    sgd = "sgd"


class Schedule(enum.StrEnum):
    cosine = "cosine"
    one_cycle = "one-cycle"
    constant = "constant"


class Precision(enum.StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Strategy(enum.StrEnum):
    ddp = "ddp"
    fsdp = "fsdp"


class Compilation(enum.StrEnum):
    auto = "auto"
    always = "always"
    never = "never"


class Balance(enum.StrEnum):
    none = "none"
    weights = "weights"
    sampling = "sampling"


EngineName = enum.StrEnum("EngineName", {name: name for name in ENGINES})


class Fit(Section):
    """How one training runs: length, optimizer, schedule."""

    epochs: int | None = Field(None, ge=1, le=100_000, description="Passes over the training rows; unset, as many as `samples` asks for.")
    samples: int = Field(100_000, ge=1, description="With `epochs` unset: rows to train on in all, rounded to whole epochs.")
    max_epochs: int = Field(200, ge=1, description="With `epochs` unset: never more passes than this.")
    batch_size: int = Field(64, ge=2, le=65_536, description="Rows for one update of the weights; made smaller on a smaller data set.")
    accumulate: int = Field(1, ge=1, le=1024, description="Micro-batches that one update is gathered from.")
    optimizer: Optimizer = Field(Optimizer.adamw, description="adamw, or sgd with Nesterov momentum 0.9.")
    learning_rate: float = Field(1e-3, gt=0, le=100, description="Peak learning rate.")
    weight_decay: float = Field(0.05, ge=0, le=10, description="Decoupled decay (adamw) or L2 (sgd) on matrices; never on biases and norms.")
    schedule: Schedule = Field(Schedule.cosine, description="Shape of the learning rate after its warm-up.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the updates spent warming up.")
    clip: float = Field(1.0, ge=0, description="Largest gradient norm; 0 clips nothing.")
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of the moving average of the weights that is kept; 0 keeps the weights themselves.")
    patience: int = Field(0, ge=0, description="Stop after this many validations without gain; 0 never stops early.")
    checkpoint_seconds: float = Field(20.0, ge=0, description="Least time between two checkpoints, in seconds; 0 makes one after each step.")


class Data(Section):
    """Where the rows come from and how they are cleaned."""

    source: SourceChoice = Field(description="Where the rows come from.")
    modality: ModalityChoice = Field(default_factory=lambda: ModalityChoice(name="image"), description="What kind of data they are.")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="Share of the labelled rows kept for the test, where the data has no split of its own.")
    quarantine_limit: float = Field(0.05, ge=0, le=1, description="Largest share of unusable items; above it the run stops.")
    near_duplicates: bool = Field(True, description="Keep near-identical items on one side of the split.")
    workers: int = Field(0, ge=0, le=256, description="Threads that decode; 0 takes all cores.")


class Splitting(Section):
    """How the labelled rows outside the test are divided."""

    validation_fraction: float = Field(0.2, gt=0, lt=1, description="Share of the rows outside the test kept for validation, where the data has none of its own.")
    labels_per_class: int | None = Field(None, ge=1, description="Train on this many labelled rows of each class, to study few labels.")
    label_fraction: float | None = Field(None, gt=0, le=1, description="Train on this share of the labelled rows of each class.")

    @model_validator(mode="after")
    def _one_limit(self) -> Splitting:
        if self.labels_per_class is not None and self.label_fraction is not None:
            raise ValueError("labels_per_class and label_fraction exclude each other: set one of them")
        return self


class Pretraining(Section):
    """How the backbone is pretrained on all rows outside the test."""

    enabled: bool = Field(True, description="Pretrain; false starts from `backbone` weights alone.")
    objective: ObjectiveChoice = Field(default_factory=lambda: ObjectiveChoice(name="simclr"), description="The loss to pretrain with.")
    augmentation: dict[str, Any] = Field(default_factory=dict, description="The modality's augmentation: a `preset` and fields that differ from it.")
    fit: Fit = Field(default_factory=Fit, description="How the pretraining runs.")
    probe: bool = Field(True, description="After each epoch, score the features with nearest neighbours on labelled training rows.")


class Finetuning(Section):
    """How the model is fitted to the labels."""

    head: HeadChoice = Field(default_factory=lambda: HeadChoice(name="classification"), description="What the model is fine-tuned for.")
    method: MethodChoice = Field(default_factory=lambda: MethodChoice(name="full"), description="How the model is fine-tuned.")
    augmentation: dict[str, Any] = Field(default_factory=dict, description="The modality's augmentation: a `preset` and fields that differ from it.")
    fit: Fit = Field(default_factory=Fit, description="How the fine-tuning runs.")
    balance: Balance = Field(Balance.none, description="Against unbalanced classes: weigh the loss, sample evenly, or neither.")
    metric: str = Field("", description="Validation metric that chooses the best epoch; empty takes the head's own.")
    baseline: bool = Field(True, description="Also fine-tune from random weights with the same data and budget.")
    classical: bool = Field(True, description="Also fit the simple alternative on the same labels.")

    @property
    def alternative(self) -> bool:
        """Whether the simple alternative is fitted: to labels it is the modality's, without them the head's, where that has one."""
        return self.classical and (self.head.chosen.labels or hasattr(self.head.chosen, "alternative"))


class Evaluation(Section):
    """How the model is measured."""

    bootstrap: int = Field(1000, ge=100, le=100_000, description="Resamples behind an interval.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    mistakes: int = Field(24, ge=0, le=200, description="How many confident mistakes to show.")


class Gate(Section):
    """What a new version must show before it becomes the champion."""

    margin: float = Field(0.0, ge=-1, le=1, description="The lower bound of (challenger − champion) on the primary metric must reach this.")
    slice_drop: float = Field(0.05, ge=0, le=1, description="No slice of at least 30 rows may surely lose more than this.")
    calibration: float = Field(0.15, ge=0, le=1, description="Largest expected calibration error; a version that surely exceeds it does not pass.")
    latency_ratio: float = Field(3.0, gt=0, description="Largest time per row, as a multiple of the champion's.")


class Registration(Section):
    """How the model is registered."""

    model: str = Field("", pattern=r"^[A-Za-z0-9._ -]*$", description="Registered model name; empty takes the recipe's name.")
    gate: Gate = Field(default_factory=Gate, description="What a new version must show.")
    onnx: bool = Field(False, description="Also export the model as model.onnx, for `warmstart predict --engine onnx` and for other programs.")
    int8: bool = Field(False, description="Beside it also model.int8.onnx, with weights of 8 bits, for `--engine int8`; what that costs stands in the report.")

    @model_validator(mode="after")
    def _exported(self) -> Registration:
        if self.int8 and not self.onnx:
            raise ValueError("int8 is made of the exported graph: set registration.onnx=true too")
        return self


class Compute(Section):
    """What the run computes on, and how."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="auto, cpu, cuda, cuda:N or mps.")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads for torch in each process; 0 takes OMP_NUM_THREADS or all cores, in several processes their share of all cores.")
    precision: Precision = Field(Precision.auto, description="auto: what a short probe finds fastest; float32 where the run must be deterministic.")
    deterministic: bool | None = Field(None, description="Bit-for-bit repeatable; unset, true on a CPU and false elsewhere.")
    compile: Compilation = Field(Compilation.auto, description="Compile the steps: always, never, or auto: where a short probe finds that it saves more time than it takes; not where the run must be deterministic.")
    recompute: bool = Field(False, description="Compute activations anew in the backward pass: a fraction of their memory, for a third more time.")
    engine: EngineName = Field(EngineName.local, description=f"What a training runs in: {', '.join(ENGINES)}. local is this process, torchrun starts `workers` of them, ray has a Ray cluster do so.")
    workers: int = Field(1, ge=1, le=1024, description="Workers that share each batch of a training: processes of this machine or of the Ray cluster; of torchrun with an `address`, machines.")
    devices_per_worker: int = Field(1, ge=1, le=128, description="Processes of each worker, on a GPU each where there are any.")
    strategy: Strategy = Field(Strategy.ddp, description="What each process holds: ddp all weights, gradients and the optimizer's state, fsdp a part of them, for networks that do not fit beside one another.")
    address: str = Field("", max_length=300, description="Where other machines are. ray: the cluster, ray://HOST:PORT, or HOST:PORT or auto on one of its machines; empty starts one on this machine alone. torchrun: HOST:PORT of this machine, where those meet that `warmstart join`.")
    max_restarts: int = Field(3, ge=0, le=1000, description="How often a training whose processes died or hung is started again from its last checkpoint.")
    timeout: float = Field(600.0, gt=0, description="Seconds after which a process that is silent counts as hung.")
    time_limit: float | None = Field(None, gt=0, description="Seconds after which a training is stopped with a checkpoint, and its run fails; the next one goes on from there. Unset, it may take as long as it takes.")

    @model_validator(mode="after")
    def _enough(self) -> Compute:
        name, engine = self.engine.value, ENGINES[self.engine.value]
        several = [name for name, one in ENGINES.items() if one.several]
        if self.processes > 1 and not engine.several:
            raise ValueError(f"engine {name!r} trains in one process, found workers={self.workers} with devices_per_worker={self.devices_per_worker}. Engines for more: {', '.join(several)}.")
        if self.strategy is Strategy.fsdp and self.processes == 1:
            raise ValueError(f"strategy 'fsdp' divides a training over several processes, found workers=1. Set workers to 2 or more and engine to {' or '.join(several)}, or strategy to ddp.")
        if self.strategy is Strategy.fsdp and self.compile is Compilation.always:
            raise ValueError("strategy 'fsdp' gathers weights between layers, which was not tried with compiled steps. Set compile to auto or never, or strategy to ddp.")
        if self.address and not re.fullmatch(engine.address, self.address):
            elsewhere = [name for name, one in ENGINES.items() if one.address]
            takes = "takes an address of the form HOST:PORT" if engine.address else f"trains on this machine; engines for several: {', '.join(elsewhere)}"
            raise ValueError(f"engine {name!r} {takes}. Found address={self.address}.")
        return self

    @property
    def processes(self) -> int:
        """How many train together."""
        return self.workers * self.devices_per_worker


class Recipe(Section):
    """One whole run."""

    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$", description="Name of the experiment and, by default, of the registered model.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of everything random.")
    data: Data = Field(description="Where the rows come from and how they are cleaned.")
    backbone: BackboneChoice = Field(description="The network that is pretrained and fine-tuned.")
    weights: str = Field("random", description="Where the backbone starts: random, a torchvision weights name, a safetensors or weights-only file, models:/NAME@ALIAS, or runs:/ID.")
    pretraining: Pretraining = Field(default_factory=Pretraining, description="How the backbone is pretrained.")
    splitting: Splitting = Field(default_factory=Splitting, description="How the labelled rows are divided.")
    finetuning: Finetuning = Field(default_factory=Finetuning, description="How the model is fitted to the labels.")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="How the model is measured.")
    registration: Registration = Field(default_factory=Registration, description="How the model is registered.")
    compute: Compute = Field(default_factory=Compute, description="What the run computes on.")

    @model_validator(mode="after")
    def _pairs(self) -> Recipe:
        backbone, modality = self.backbone.chosen, self.data.modality.name.value
        if modality not in backbone.modalities:
            fit = [name for name, one in BACKBONES.items() if modality in one.modalities]
            raise ValueError(f"backbone {self.backbone.name.value!r} does not read {modality} data. Those that do: {', '.join(fit)}.")
        if self.pretraining.enabled:
            objective, chosen = self.pretraining.objective.chosen, self.pretraining.objective.name.value
            fit = [name for name, one in OBJECTIVES.items() if one.needs <= backbone.traits and _learns_from(one, modality)]
            lacking = objective.needs - backbone.traits
            if lacking:
                raise ValueError(
                    f"objective {chosen!r} needs {', '.join(sorted(lacking))} of the backbone, which "
                    f"{self.backbone.name.value!r} does not give. Objectives that work with it: {', '.join(fit)}."
                )
            if not _learns_from(objective, modality):
                raise ValueError(
                    f"objective {chosen!r} learns from {' or '.join(sorted(objective.reads))} data, not from {modality} data. "
                    f"Objectives that work here: {', '.join(fit)}."
                )
        head = self.finetuning.head.chosen
        if not _learns_from(head, modality):
            raise ValueError(f"head {self.finetuning.head.name.value!r} learns from {' or '.join(sorted(head.reads))} data, not from {modality} data.")
        lacking = head.needs - backbone.traits
        if lacking:
            fit = [name for name, one in BACKBONES.items() if head.needs <= one.traits and modality in one.modalities]
            raise ValueError(
                f"head {self.finetuning.head.name.value!r} needs {', '.join(sorted(lacking))} of the backbone, which {self.backbone.name.value!r} does not "
                f"give. Backbones that work with it: {', '.join(fit)}."
            )
        if self.registration.onnx and not head.labels:  # outputs of the others are more than one run through the network
            fit = [name for name, one in HEADS.items() if one.labels]
            raise ValueError(f"registration.onnx does not export head {self.finetuning.head.name.value!r}. Heads that it exports: {', '.join(fit)}.")
        for part in (self.pretraining, self.finetuning):
            _augmentation(self, part)
        for rung in getattr(self.finetuning.method.make(), "rungs", ()):
            if hasattr(MethodChoice(name=rung.name, options=rung.options).make(), "rungs"):
                raise ValueError(f"a rung of {self.finetuning.method.name.value!r} cannot be {rung.name!r}, which is a ladder itself")
        metrics = self.finetuning.head.chosen.metrics
        if self.finetuning.metric and self.finetuning.metric not in metrics:
            raise ValueError(unknown("metric", self.finetuning.metric, metrics))
        return self


def _learns_from(part: Any, modality: str) -> bool:
    """Whether the rows of the modality hold what an objective or a head learns from."""
    reads = getattr(part, "reads", frozenset())
    return not reads or modality in reads


def ladder(recipe: Recipe) -> list[Recipe]:
    """A recipe for each rung of the fine-tuning's method, each with its share of the length; none for a plain method."""
    part, method = recipe.finetuning, recipe.finetuning.method.make()
    found = []
    for rung in getattr(method, "rungs", ()):
        epochs = None if part.fit.epochs is None else max(1, round(part.fit.epochs * method.share))
        changes = {"epochs": epochs, "samples": max(1, round(part.fit.samples * method.share)), "learning_rate": part.fit.learning_rate * rung.rate}
        fit = part.fit.model_copy(update=changes)
        chosen = MethodChoice(name=rung.name, options=rung.options)
        found.append(recipe.model_copy(update={"finetuning": part.model_copy(update={"fit": fit, "method": chosen})}))
    return found


def augmentation(recipe: Recipe, part: Pretraining | Finetuning, spec: DataSpec) -> Options:
    """The part's augmentation for data as `spec` describes: the preset's, with the fields that the recipe sets."""
    preset, fields = _augmentation(recipe, part)
    return recipe.data.modality.chosen.presets[preset](spec).model_copy(update=fields)


def _augmentation(recipe: Recipe, part: Pretraining | Finetuning) -> tuple[str, dict[str, Any]]:
    """The preset's name and the fields that differ from it, checked against the modality's own model."""
    modality = recipe.data.modality.chosen
    given = dict(part.augmentation)
    owner = part.objective if isinstance(part, Pretraining) else part.head
    preset = str(given.pop("preset", owner.chosen.augmentation))
    if preset not in modality.presets:
        raise ValueError(unknown("augmentation preset", preset, modality.presets))
    try:
        fields = modality.Augmentation.model_validate(given)
    except ValidationError as error:
        raise ValueError("; ".join(problems(error, modality.Augmentation, prefix="augmentation."))) from None
    return preset, fields.model_dump(mode="json", exclude_unset=True)


def load(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Reads the YAML recipe at `path` with `a.b.c=value` overrides applied; raises InputError."""
    return parse(read(path, overrides))


def parse(content: Mapping[str, Any]) -> Recipe:
    """A checked Recipe from plain data; raises one InputError that lists every problem."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise InputError("the recipe does not hold:\n" + "\n".join(f"  {line}" for line in problems(error, Recipe))) from None
