"""The fine-tuning that a recipe asks for: a backbone with its head, on the labelled rows of a split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ml.contracts import DataSpec, InputError
from ml.feed import Blocks, Feed, plain_batches, seed_of
from ml.frozen import Recalled, Remembered, Vectors, remember
from ml.metrics import LOWER_IS_BETTER
from ml.model import Model
from ml.ragged import joined, row_bytes
from ml.recipe import Balance, Recipe, augmentation
from ml.shuffling import shuffled
from ml.splitting import Split
from ml.store import Store
from ml.training import Training

if TYPE_CHECKING:
    from ml.plan import Plan


@dataclass
class Finetuning(Training):
    """`seen` is what the module reads of each row, `modality` how; `method` takes off in the end what it put on."""

    seen: Store | Remembered | None = None
    modality: Any = None
    method: Any = None


def bare(recipe: Recipe, spec: DataSpec) -> Model:
    """The model with random weights."""
    return Model.build(recipe.backbone, recipe.finetuning.head, spec)


def build(plan: Plan, model: Model, device: torch.device) -> Finetuning:
    """The training of `model`, in place; of what a frozen backbone makes of the rows, where that is enough."""
    recipe, store, rows = plan.recipe, plan.store, plan.rows
    part, modality = recipe.finetuning, recipe.data.modality.make()
    settings, method = part.fit, part.method.make()
    if hasattr(method, "begin"):
        method.begin(model)
    augment, seen = augmentation(recipe, part, store.spec), store
    if getattr(method, "frozen", False) and model.head.labels and augment == modality.presets["none"](store.spec):
        features = remember(plan.stage, model.backbone, store, modality, np.concatenate([rows.train, rows.validation]), device)
        model, seen, modality = (Model(Recalled(), model.head), features, Vectors()) if features is not None else (model, store, modality)
    draw = _balance(model, store, rows, part.balance) if model.head.labels else None
    trained, chosen = _stream(store, rows.train, recipe.seed) if model.head.packed else (seen, rows.train)
    batch = min(settings.batch_size, len(chosen))
    feed = Feed(trained, modality, chosen, batch, recipe.seed, device, augment, accumulate=settings.accumulate, weights=draw)
    metric = part.metric or model.head.primary
    truth = store.rows(rows.validation)

    def validate(module: Model) -> dict[str, float]:
        head = module.head
        scores_NS = head.scores(head.answers(outputs(module, seen, modality, rows.validation, device), truth, 1.0), truth)
        return {f"validation/{name}": measure(truth["label"], scores_NS) for name, measure in head.metrics.items()}

    groups = method.groups(model, settings.learning_rate, settings.weight_decay)
    if not groups:
        name = recipe.finetuning.head.name.value
        raise InputError(f"the method {part.method.name.value!r} trains the head alone, and the head {name!r} has no weights of its own: set finetuning.method to full, lora or gradual-unfreezing")
    return Finetuning(
        stage=plan.stage,
        module=model,
        feed=feed,
        settings=settings,
        groups=groups,
        prepare=lambda progress: method.prepare(model, progress),
        validate=validate,
        metric=f"validation/{metric}",
        higher_is_better=metric not in LOWER_IS_BETTER,
        seen=seen,
        modality=modality,
        method=method,
    )


def outputs(model: Model, store: Store | Remembered, modality: Any, rows: np.ndarray, device: torch.device) -> np.ndarray:
    """Outputs (N, S) of the model in evaluation mode."""
    with torch.no_grad():
        return joined([model(inputs).float().cpu().numpy() for inputs in plain_batches(store, modality, rows, device, whole=model.head.whole)])


def _stream(store: Store, rows: np.ndarray, seed: int) -> tuple[Blocks, np.ndarray]:
    """The rows as one stream of tokens, and the numbers of its blocks."""
    blocks = Blocks.of(store, shuffled(rows, row_bytes(store.array), np.random.Generator(np.random.Philox(seed_of(seed, "blocks")))))
    if len(blocks.array) < 2:
        raise InputError(f"fine-tuning needs at least 2 blocks of {store.spec.shape[0]} tokens, found {len(blocks.array)}. Give more texts, or a smaller max_length.")
    return blocks, np.arange(len(blocks.array))


def _balance(model: Model, store: Store, rows: Split, balance: Balance) -> np.ndarray | None:
    """What is done against unbalanced classes: weights of the loss, or the weight with which each row is drawn."""
    if balance is Balance.weights:
        model.head.balance(store.targets(rows.train))
    labels = store.labels[rows.train]
    return 1 / np.bincount(labels)[labels] if balance is Balance.sampling else None
