"""Pretraining alone, on machines of its own where that pays: a pipeline with the same settings and tracking server finds it done."""

from __future__ import annotations

from typing import Any

from prefect import flow

from ml.contracts import InputError
from ml.recipe import Recipe
from tasks.preprocess import preprocess
from tasks.pretrain import pretrain as pretrain_task
from tasks.register import register_backbone
from tasks.stage import pipeline_run
from tasks.tracking import flow_run, parent


@flow(name="pretrain", flow_run_name="{recipe.name}-seed-{recipe.seed}", persist_result=False)
def pretrain(recipe: Recipe, from_stage: str = "") -> dict[str, Any]:
    """Preprocesses, pretrains and registers the backbone of one recipe; gives where it is, for `weights` of other recipes."""
    if not recipe.pretraining.enabled:
        raise InputError("this recipe does not pretrain: set pretraining.enabled=true, or run its pipeline")
    with pipeline_run(recipe, from_stage) as run:
        dataset = preprocess(recipe, run)
        backbone = pretrain_task(dataset, recipe, run)
        uri = register_backbone(backbone, recipe)
        stages = [one.stage.to_dict() for one in (dataset, backbone)]
        page = parent.page(run.tracked)
        flow_run.summarise(f"{recipe.name}-pretraining", f"# Backbone {flow_run.plain(uri)}\n\n[Curves and checkpoints in MLflow]({page})\n")
        return {"run_id": run.tracked.run_id, "experiment": run.tracked.experiment, "stages": stages, "backbone": uri}
