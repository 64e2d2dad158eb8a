"""The demo as a plain script: its trainings are a bare torch loop, without tracking, checkpoints, Prefect and accelerate.

    python -m benchmarks.bare RECIPE [KEY=VALUE ...]

The steps around the trainings (the store, the simple alternative, the evaluation, all pictures) are plain calls of the same functions. Rows, order, augmentation, model, optimizer, schedule and validations are those
of the pipeline, so equal weights at the end show that it is the same work. Prints one JSON object. Full fine-tuning of float32
weights without moving average, accumulation or early stopping is all that is written out here.
"""

from __future__ import annotations

import copy
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from ml import pictures
from ml.contracts import Batch
from ml.evaluation import evaluate
from ml.feed import generator, plain_batches, rows_of, seed_of
from ml.groups import parameter_groups
from ml.model import Model, save_backbone, save_model
from ml.overview import overview
from ml.predictor import Predictor
from ml.preprocess import preprocess
from ml.probe import nearest_neighbours
from ml.recipe import Recipe, augmentation, load
from ml.schedule import epochs_of, rate
from ml.splitting import Split, split
from ml.store import Store

VALIDATIONS = 25  # in one training at most, as in the pipeline


def train(module, groups, store, modality, augment, rows, settings, seed, views, validate, metric=""):
    """Leaves the weights that are best by `metric` (else the last) in `module`; gives facts that show what was done."""
    steps = max(1, round(len(rows) / min(settings.batch_size, len(rows))))
    epochs = epochs_of(settings, len(rows))
    every, total, window = max(1, -(-epochs // VALIDATIONS)), epochs * steps, max(1, epochs * steps // 200)
    module.to(memory_format=torch.channels_last)
    parameters = [parameter for group in groups for parameter in group["params"]]
    peaks = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    losses, best_score, best, scores = [], float("-inf"), None, {}
    for epoch in range(epochs):
        random = np.random.Generator(np.random.Philox(seed_of(seed, "order", epoch)))
        for step, chosen in enumerate(np.array_split(rows[random.permutation(len(rows))], steps)):
            array_B, targets_B = torch.from_numpy(store.array[chosen]), torch.from_numpy(store.targets(chosen))
            inputs, mix = [], None
            for view in range(views):
                one, mix = modality.augment(array_B, store.spec, augment, generator(seed, "augment", epoch, step, 0, view))
                inputs.append(one)
            module.train()
            factor = rate(settings, epoch * steps + step, total)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            loss = module.step(Batch(inputs[0], targets_B, views=tuple(inputs) if views > 1 else (), mix=mix)).loss
            losses.append(loss.item())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if epoch + 1 == epochs or (epoch + 1) % every == 0:
            module.eval()
            with torch.no_grad():
                scores = validate(module)
            if metric and scores[metric] > best_score:
                best_score, best = scores[metric], copy.deepcopy(module.state_dict())
    if best is not None:
        module.load_state_dict(best)
    module.eval()
    last = losses[-(total % window or window) :]
    return {"steps": total, "rows": len(rows), "loss": sum(last) / len(last), "parameters": sum(one.numel() for one in parameters)}


def main(path: str, overrides: list[str]) -> dict[str, Any]:
    """The whole job in a folder that is removed; seconds, facts and the weights' digest of each training."""
    with tempfile.TemporaryDirectory() as folder:
        return run(load(path, overrides), Path(folder))


def run(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """As `main`, in `folder`."""
    torch.set_num_threads(recipe.compute.threads)
    cpu, modality = torch.device("cpu"), recipe.data.modality.make()
    store = preprocess(recipe.data.source.make(), modality, recipe.data, folder / "work", folder / "stores")
    draw(overview(store, modality), folder)
    parts = split(store.table, store.strata, recipe.splitting, recipe.seed)

    def augment(part):
        return augmentation(recipe, part, store.spec)

    def pretrain(backbone):
        part, probe = recipe.pretraining, nearest_neighbours(store, modality, cpu, recipe.seed)
        objective = part.objective.make(backbone, store.spec)
        groups = parameter_groups(objective, part.fit.learning_rate, part.fit.weight_decay)
        rows = rows_of(store, "train", "unlabelled")
        validate = lambda module: {"knn": probe(module.backbone)}  # noqa: E731
        return train(objective, groups, store, modality, augment(part), rows, part.fit, recipe.seed, objective.views, validate)

    def finetune(model):
        part, truth = recipe.finetuning, store.rows(parts.validation)
        groups = part.method.make().groups(model, part.fit.learning_rate, part.fit.weight_decay)

        def validate(module):
            outputs_NK = torch.cat([module(inputs).float() for inputs in plain_batches(store, modality, parts.validation, cpu)])
            scores_NK = module.head.scores(module.head.answers(outputs_NK.numpy(), truth, 1.0), truth)
            return {name: measure(truth["label"], scores_NK) for name, measure in module.head.metrics.items()}

        return train(model, groups, store, modality, augment(part), parts.train, part.fit, recipe.seed, 1, validate, model.head.primary)

    def new_model():
        torch.manual_seed(seed_of(recipe.seed, "model"))
        return Model.build(recipe.backbone, recipe.finetuning.head, store.spec)

    found = {}
    began = clocks()
    torch.manual_seed(seed_of(recipe.seed, "backbone"))
    backbone = recipe.backbone.make(store.spec)
    facts = pretrain(backbone)
    save_backbone(backbone, folder / "pretrain", recipe.backbone, store.spec)
    found["pretrain"] = facts | since(began)
    for name in ("finetune", "baseline"):
        began = clocks()
        model = new_model()
        if name == "finetune":
            model.backbone.load_state_dict(backbone.state_dict())
        facts = finetune(model)
        save_model(model, folder / name, recipe.backbone, recipe.finetuning.head, store.spec)
        found[name] = facts | since(began)
    measure_all(recipe, store, parts, folder)
    for name, facts in found.items():
        facts["weights"] = hashlib.sha256(next((folder / name).glob("*.safetensors")).read_bytes()).hexdigest()
    return found


def measure_all(recipe: Recipe, store: Store, parts: Split, folder: Path) -> None:
    """The simple alternative, and the evaluation of all arms with its pictures."""
    truth, table = store.rows(parts.test), store.table.iloc[parts.test]
    modality = recipe.data.modality.make()
    simple = modality.alternative(store, parts.train, parts.validation, parts.test, recipe.seed)
    predictor = Predictor.load(folder / "finetune")
    head = predictor.model.head
    arms = {
        "model": predictor.answers(truth),
        "baseline": Predictor.load(folder / "baseline").answers(truth),
        "classical": simple.answers,
        "trivial": head.trivial_answers(store.rows(parts.train), truth),
    }

    def details(options):
        return head.details(table, arms["model"], arms["model"], truth, temperature=1.0, mistakes=recipe.evaluation.mistakes, options=options)

    result = evaluate(table, truth["label"], arms, head.metrics, head.primary, details, resamples=recipe.evaluation.bootstrap)
    content = result.to_dict()
    wrong = parts.test[[one["row"] for one in content["mistakes"]]]
    drawn = {"arms": pictures.arms(content["metrics"], content["primary"]), **head.pictures(content)}
    draw({**drawn, "mistakes": modality.mistakes(content["mistakes"], store, wrong)}, folder)


def draw(figures: Mapping[str, Figure], folder: Path) -> None:
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png")


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> dict[str, float]:
    """Seconds of the wall clock and of the process's CPUs."""
    wall, cpu = clocks()
    return {"seconds": wall - began[0], "cpu_seconds": cpu - began[1]}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2:])))
