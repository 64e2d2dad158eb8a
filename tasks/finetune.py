"""The pretrained backbone fitted to the labels; and, as the baseline, the same from random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE

from ml.adapter import Adapter
from ml.contracts import InputError
from ml.feed import Blocks, Feed, plain_batches, seed_of
from ml.fit import Fitted, fit
from ml.frozen import Recalled, Remembered, Vectors, remember
from ml.metrics import LOWER_IS_BETTER
from ml.model import Model, save_model
from ml.ragged import joined
from ml.recipe import Balance, Recipe, augmentation, ladder
from ml.splitting import Split
from ml.store import Store
from ml.weights import load_weights
from tasks.references import BackboneRef, DatasetRef, ModelRef, SplitsRef
from tasks.split import read_split
from tasks.stage import TASK, Run, arithmetic, device_of, dump, log_fitted, sha256
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
    modules = ["ml.fit", "ml.weights", "ml.calibration", "ml.model", "tasks.finetune"]
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
    part, device, modality = recipe.finetuning, device_of(recipe.compute), recipe.data.modality.make()
    settings, method = part.fit, part.method.make()
    if hasattr(method, "begin"):
        method.begin(model)
    augment, seen = augmentation(recipe, part, store.spec), store
    if getattr(method, "frozen", False) and model.head.labels and augment == modality.presets["none"](store.spec):
        features = remember(name, model.backbone, store, modality, np.concatenate([rows.train, rows.validation]), device)
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

    fitted = fit(
        model,
        feed,
        settings,
        recipe.compute,
        stage=name,
        groups=method.groups(model, settings.learning_rate, settings.weight_decay),
        workdir=stage.workdir,
        report=stage.report,
        prepare=lambda progress: method.prepare(model, progress),
        validate=validate,
        metric=f"validation/{metric}",
        higher_is_better=metric not in LOWER_IS_BETTER,
    )
    adapter = method.finish(model) if hasattr(method, "finish") else None
    log_fitted(stage, fitted, len(chosen), metric)
    stage.log_metrics({"best/score": fitted.best_score, "best/epoch": float(fitted.best_epoch + 1)})
    if not hasattr(model.head, "calibrate"):
        return 1.0, fitted, adapter
    temperature = model.head.calibrate(outputs(model, seen, modality, rows.validation, device), truth)
    stage.log_metrics({"temperature": temperature})
    return temperature, fitted, adapter


def outputs(model: Model, store: Store | Remembered, modality, rows: np.ndarray, device: torch.device) -> np.ndarray:
    """Outputs (N, S) of the model in evaluation mode."""
    with torch.no_grad():
        return joined([model(inputs).float().cpu().numpy() for inputs in plain_batches(store, modality, rows, device, whole=model.head.whole)])


def _stream(store: Store, rows: np.ndarray, seed: int) -> tuple[Blocks, np.ndarray]:
    """The rows as one stream of tokens, and the numbers of its blocks."""
    blocks = Blocks.of(store, np.random.Generator(np.random.Philox(seed_of(seed, "blocks"))).permutation(rows))
    if len(blocks.array) < 2:
        raise InputError(f"fine-tuning needs at least 2 blocks of {store.spec.shape[0]} tokens, found {len(blocks.array)}. Give more texts, or a smaller max_length.")
    return blocks, np.arange(len(blocks.array))


def _balance(model: Model, store: Store, rows: Split, balance: Balance) -> np.ndarray | None:
    """What is done against unbalanced classes: weights of the loss, or the weight with which each row is drawn."""
    if balance is Balance.weights:
        model.head.balance(store.targets(rows.train))
    labels = store.labels[rows.train]
    return 1 / np.bincount(labels)[labels] if balance is Balance.sampling else None
