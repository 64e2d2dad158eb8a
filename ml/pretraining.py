"""The pretraining that a recipe asks for: a backbone with its objective, on every row outside the test and the official validation part."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ml.contracts import UNLABELLED, DataSpec, InputError
from ml.feed import Feed, rows_of, stream
from ml.groups import parameter_groups
from ml.probe import nearest_neighbours
from ml.recipe import Recipe, augmentation
from ml.training import Training

if TYPE_CHECKING:
    from ml.plan import Plan

SEEN = ("train", "unlabelled")


@dataclass
class Pretraining(Training):
    """`held` are the blocks of a stream of tokens that are not trained on."""

    held: np.ndarray | None = None

    @property
    def shown(self) -> np.ndarray:
        """A few rows, or blocks, to show what was learnt."""
        return (self.feed.rows if self.held is None else self.held)[:16]


def bare(recipe: Recipe, spec: DataSpec) -> nn.Module:
    """The backbone with random weights."""
    return recipe.backbone.make(spec)


def build(plan: Plan, backbone: nn.Module, device: torch.device) -> Pretraining:
    """The training of `backbone`, in place."""
    recipe, store = plan.recipe, plan.store
    part = recipe.pretraining
    settings, modality = part.fit, recipe.data.modality.make()
    objective = part.objective.make(backbone, store.spec)
    rows = rows_of(store, *SEEN)
    if objective.labels:
        rows = rows[store.labels[rows] != UNLABELLED]
    augment = augmentation(recipe, part, store.spec)
    trained, held = (store, None)
    if objective.packed:
        trained, rows, held = stream(store, rows, recipe.seed)
    if len(rows) < 2:
        unit = f"blocks of {store.spec.shape[0]} tokens" if objective.packed else "rows"
        raise InputError(f"pretraining needs at least 2 {unit} outside the test, found {len(rows)}. Give more data or set pretraining.enabled=false.")
    batch = min(settings.batch_size, len(rows))
    feed = Feed(trained, modality, rows, batch, recipe.seed, device, augment, objective.views, settings.accumulate)
    probe = nearest_neighbours(store, modality, device, recipe.seed) if part.probe else None

    def validate(module: nn.Module) -> dict[str, float]:
        found = {"probe/knn_accuracy": probe(module.backbone)} if probe else {}
        return found | ({f"validation/{name}": value for name, value in held_out(module, feed, held).items()} if held is not None else {})

    return Pretraining(
        stage=plan.stage,
        module=objective,
        feed=feed,
        settings=settings,
        groups=parameter_groups(objective, settings.learning_rate, settings.weight_decay),
        validate=validate if probe or held is not None else None,
        held=held,
    )


def held_out(module: nn.Module, feed: Feed, held: np.ndarray) -> dict[str, float]:
    """Means of the loss and its extras on blocks that are not trained on, under the same draws each time."""
    sums: dict[str, float] = {}
    torch.manual_seed(0)
    for start in range(0, len(held), feed.batch_size):
        rows = held[start : start + feed.batch_size]
        result = module.step(feed.batch(rows, 0, start))
        for name, value in {"loss": result.loss, **result.extras}.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(rows) / len(held)
    return sums | {"perplexity": math.exp(min(sums["loss"], 50.0))}
