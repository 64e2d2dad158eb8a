"""A backbone pretrained on every row outside the test and the official validation part."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import nn

from ml.contracts import UNLABELLED, InputError
from ml.feed import Feed, rows_of, seed_of, stream
from ml.fit import fit
from ml.groups import parameter_groups
from ml.model import save_backbone
from ml.pictures import picture
from ml.probe import nearest_neighbours
from ml.recipe import Recipe, augmentation
from ml.store import Store
from ml.weights import load_weights, weights_digest
from tasks.references import BackboneRef, DatasetRef
from tasks.stage import TASK, Run, arithmetic, device_of, dump, log_fitted, sha256
from tasks.tracking.artifacts import resolve_weights
from tasks.tracking.stages import StageRun

SEEN = ("train", "unlabelled")


@task(name="pretrain", cache_policy=NO_CACHE, **TASK)
def pretrain(dataset: DatasetRef, recipe: Recipe, run: Run) -> BackboneRef:
    """Precedence of the weights: 1. an unfinished run of this very stage, 2. `recipe.weights`, 3. random."""
    start = _start(recipe.weights)
    options = {
        "seed": recipe.seed,
        "backbone": dump(recipe)["backbone"],
        "weights": "random" if start is None else "given",
        "pretraining": dump(recipe.pretraining) if recipe.pretraining.enabled else {"enabled": False},
        **arithmetic(recipe),
    }
    inputs = {"dataset": dataset.digest} | ({"weights": weights_digest(start)} if start is not None else {})
    modules = ["ml.fit", "ml.weights", "ml.probe", "tasks.pretrain", recipe.backbone.chosen.__module__, recipe.data.modality.chosen.__module__]
    modules += [recipe.pretraining.objective.chosen.__module__]

    def body(stage: StageRun) -> dict:
        store = Store.open(Path(dataset.path))
        stage.log_input(recipe.name, store.digest, "pretraining", len(rows_of(store, *SEEN)))
        torch.manual_seed(seed_of(recipe.seed, "backbone"))
        device = device_of(recipe.compute)
        backbone = recipe.backbone.make(store.spec)
        if start is not None:
            stage.log_json(load_weights(backbone, start, recipe.backbone, store.spec), "weights.json")
        seconds = _train(backbone, store, recipe, stage, device) if recipe.pretraining.enabled else 0.0
        save_backbone(backbone.cpu(), stage.workdir / "backbone", recipe.backbone, store.spec)
        stage.log_artifact(stage.workdir / "backbone" / "backbone.safetensors", "backbone")
        stage.log_artifact(stage.workdir / "backbone" / "backbone.json", "backbone")
        return {"digest": sha256(stage.workdir / "backbone" / "backbone.safetensors"), "seconds": seconds}

    summary, output = run.stage("pretrain", body, options=options, inputs=inputs, modules=modules)
    return BackboneRef(summary, output["digest"], SEEN if recipe.pretraining.enabled else (), output["seconds"])


def _train(backbone: nn.Module, store: Store, recipe: Recipe, stage: StageRun, device: torch.device) -> float:
    """Trains in place; gives the seconds that it took."""
    settings, modality = recipe.pretraining.fit, recipe.data.modality.make()
    objective = recipe.pretraining.objective.make(backbone, store.spec)
    rows = rows_of(store, *SEEN)
    if objective.labels:
        rows = rows[store.labels[rows] != UNLABELLED]
    augment = augmentation(recipe, recipe.pretraining, store.spec)
    trained, held = (store, None)
    if objective.packed:
        trained, rows, held = stream(store, rows, recipe.seed)
    if len(rows) < 2:
        unit = f"blocks of {store.spec.shape[0]} tokens" if objective.packed else "rows"
        raise InputError(f"pretraining needs at least 2 {unit} outside the test, found {len(rows)}. Give more data or set pretraining.enabled=false.")
    batch = min(settings.batch_size, len(rows))
    feed = Feed(trained, modality, rows, batch, recipe.seed, device, augment, objective.views, settings.accumulate)
    probe = nearest_neighbours(store, modality, device, recipe.seed) if recipe.pretraining.probe else None

    def validate(module: nn.Module) -> dict[str, float]:
        found = {"probe/knn_accuracy": probe(module.backbone)} if probe else {}
        return found | ({f"validation/{name}": value for name, value in held_out(module, feed, held).items()} if held is not None else {})

    fitted = fit(
        objective,
        feed,
        settings,
        recipe.compute,
        stage="pretrain",
        groups=parameter_groups(objective, settings.learning_rate, settings.weight_decay),
        workdir=stage.workdir,
        report=stage.report,
        validate=validate if probe or held is not None else None,
    )
    log_fitted(stage, fitted, len(rows))
    _show(objective.eval(), feed, rows[:16] if held is None else held[:16], stage)
    return fitted.seconds


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


def _show(objective: nn.Module, feed: Feed, rows: np.ndarray, stage: StageRun) -> None:
    """What the objective makes of a few rows: pictures, or examples as text."""
    with torch.no_grad():
        batch = feed.batch(rows, 0, 0)
        for name, grid_CHW in (objective.pictures(batch) if hasattr(objective, "pictures") else {}).items():
            stage.log_figure(picture(grid_CHW.cpu().numpy()), f"pictures/{name}.png")
        if hasattr(objective, "examples"):
            stage.log_text("\n\n".join(objective.examples(batch, feed.modality.reader(feed.store.spec))), "examples.txt")


def _start(weights: str) -> str | Path | None:
    """What to load: a registered backbone's or a run's folder, a file, or a published name; None for random weights."""
    if weights == "random":
        return None
    return resolve_weights(weights) if weights.startswith(("models:/", "runs:/")) else weights
