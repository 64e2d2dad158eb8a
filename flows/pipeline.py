"""The main job: `warmstart run conf/image/digits.yaml`."""

from __future__ import annotations

from typing import Any

from prefect import flow

from ml.recipe import Recipe
from tasks.classical import classical
from tasks.evaluate import evaluate
from tasks.finetune import baseline, finetune
from tasks.preprocess import preprocess
from tasks.pretrain import pretrain
from tasks.register import register
from tasks.report import report
from tasks.split import split
from tasks.stage import pipeline_run


@flow(name="pretrain-finetune", flow_run_name="{recipe.name}-seed-{recipe.seed}", persist_result=False)
def pipeline(recipe: Recipe, from_stage: str = "") -> dict[str, Any]:
    """Preprocess, pretrain, split, fine-tune, evaluate and register one model; gives what `warmstart run --json` prints.

    Stages that an earlier run has done are reused, from `from_stage` on they are done anew.
    """
    with pipeline_run(recipe, from_stage) as run:
        dataset = preprocess(recipe, run)
        backbone = pretrain(dataset, recipe, run)
        splits = split(dataset, recipe, run)
        model = finetune(dataset, backbone, splits, recipe, run)
        scratch = baseline(dataset, splits, recipe, run) if recipe.finetuning.baseline else None
        simple = classical(dataset, splits, recipe, run) if recipe.finetuning.alternative else None
        evaluation = evaluate(dataset, backbone, splits, model, scratch, simple, recipe, run)
        registered = register(dataset, backbone, splits, model, evaluation, recipe, run)
        return report(dataset, backbone, splits, model, scratch, simple, evaluation, registered, recipe, run)
