"""The pretrained backbone fitted to the labels; and, as the baseline, the same from random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE

from ml.adapter import Adapter
from ml.contracts import InputError
from ml.engines import train
from ml.feed import seed_of
from ml.finetuning import outputs
from ml.fit import Fitted
from ml.metrics import LOWER_IS_BETTER
from ml.model import Model, save_model
from ml.plan import Plan
from ml.recipe import Recipe, ladder
from ml.splitting import Split
from ml.store import Store
from ml.weights import load_weights
from tasks.references import BackboneRef, DatasetRef, ModelRef, SplitsRef
from tasks.split import read_split
from tasks.stage import TASK, Run, arithmetic, dump, log_fitted, sha256
from tasks.tracking.artifacts import fetch
from tasks.tracking.stages import StageRun


@task(name="finetune", cache_policy=NO_CACHE, **TASK)
def finetune(dataset: DatasetRef, backbone: BackboneRef, splits: SplitsRef, recipe: Recipe, run: Run) -> ModelRef:
    """Fits the model that starts from the pretrained backbone."""
    return _finetune("finetune", dataset, backbone, splits, recipe, run)


@task(name="baseline", cache_policy=NO_CACHE, **TASK)
def baseline(dataset: DatasetRef, splits: SplitsRef, recipe: Recipe, run: Run) -> ModelRef:
    """Fits the same model from random weights, with the same rows, order and budget."""
    return _finetune("baseline", dataset, None, splits, recipe, run)


def _finetune(name: str, dataset: DatasetRef, backbone: BackboneRef | None, splits: SplitsRef, recipe: Recipe, run: Run) -> ModelRef:
    """One fine-tuning, or where the method is a ladder the best of its rungs."""
    rungs = ladder(recipe)
    if not rungs:
        return _one(name, dataset, backbone, splits, recipe, run)
    bare = recipe.backbone.make(Store.open(Path(dataset.path)).spec)
    methods = [rung.finetuning.method for rung in rungs]
    suited = [getattr(method.make(), "suits", lambda _: True)(bare) for method in methods]
    tried = [_one(f"{name}-{method.name.value}", dataset, backbone, splits, rung, run) for rung, method, fits in zip(rungs, methods, suited, strict=True) if fits]
    if not tried:
        raise InputError(f"none of the rungs ({', '.join(method.name.value for method in methods)}) suits the backbone {recipe.backbone.name.value!r}")
    metric = recipe.finetuning.metric or recipe.finetuning.head.chosen.primary
    best = (min if metric in LOWER_IS_BETTER else max)(tried, key=lambda one: one.score)
    scores = ", ".join(f"{one.stage.name.removeprefix(name + '-')} {one.score:.3f}" for one in tried)
    why = f"the best of {len(tried)} rungs by {metric} on the validation rows: {scores}"
    summary = replace(best.stage, name=name, why=why, cached=all(one.stage.cached for one in tried), seconds=0.0)  # the rungs are listed with theirs
    return replace(best, stage=summary, seconds=sum(one.seconds for one in tried), tried=tuple(one.stage for one in tried))


def _one(name: str, dataset: DatasetRef, backbone: BackboneRef | None, splits: SplitsRef, recipe: Recipe, run: Run) -> ModelRef:
    section = dump(recipe.finetuning)
    section.pop("baseline"), section.pop("classical")  # other stages
    options = {"seed": recipe.seed, "backbone": dump(recipe)["backbone"], "finetuning": section, **arithmetic(recipe)}
    inputs = {"dataset": dataset.digest, "split": splits.digest, "backbone": backbone.digest if backbone else "random"}
    modules = ["ml.fit", "ml.finetuning", "ml.weights", "ml.calibration", "ml.model", "tasks.finetune"]
    modules += [part.chosen.__module__ for part in (recipe.backbone, recipe.data.modality, recipe.finetuning.head, recipe.finetuning.method)]

    def body(stage: StageRun) -> dict:
        store, rows = Store.open(Path(dataset.path)), read_split(splits)
        stage.log_input(recipe.name, store.digest, "training", len(rows.train))
        torch.manual_seed(seed_of(recipe.seed, "model"))
        model = Model.build(recipe.backbone, recipe.finetuning.head, store.spec)
        if backbone is not None:
            load_weights(model.backbone, fetch(backbone.stage.run_id, "backbone"), recipe.backbone)
        temperature, fitted, adapter = _train(name, model, store, rows, recipe, stage)
        folder = stage.workdir / "model"
        save_model(model.cpu(), folder, recipe.backbone, recipe.finetuning.head, store.spec, temperature, adapter)
        if adapter is not None:
            adapter.save(stage.workdir / "adapter")
        for file in sorted(one for part in ("model", "adapter") for one in (stage.workdir / part).rglob("*") if one.is_file()):
            stage.log_artifact(file, file.parent.relative_to(stage.workdir).as_posix())
        return {"digest": f"{sha256(folder / 'model.safetensors')[:32]}{sha256(folder / 'model.json')[:32]}", "seconds": fitted.seconds, "score": fitted.best_score}

    summary, output = run.stage(name, body, options=options, inputs=inputs, modules=modules)
    return ModelRef(summary, output["digest"], output["seconds"], output["score"])


def _train(name: str, model: Model, store: Store, rows: Split, recipe: Recipe, stage: StageRun) -> tuple[float, Fitted, Adapter | None]:
    """Trains in place; gives the temperature that calibrates the result on the validation rows, how it went, and what the method took off."""
    training, fitted = train(Plan(name, recipe, store, rows), model, stage.workdir, stage.report)
    adapter = training.method.finish(model) if hasattr(training.method, "finish") else None
    log_fitted(stage, fitted, len(training.feed.rows), training.metric.removeprefix("validation/"))
    stage.log_metrics({"best/score": fitted.best_score, "best/epoch": float(fitted.best_epoch + 1)})
    trained = training.module
    if not hasattr(trained.head, "calibrate"):
        return 1.0, fitted, adapter
    outputs_NS = outputs(trained, training.seen, training.modality, rows.validation, training.feed.device)
    temperature = trained.head.calibrate(outputs_NS, store.rows(rows.validation))
    stage.log_metrics({"temperature": temperature})
    return temperature, fitted, adapter
