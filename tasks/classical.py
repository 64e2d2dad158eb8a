"""The simple alternative: scikit-learn on plain features and the same labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from ml.recipe import Recipe
from ml.store import Store
from tasks.references import ClassicalRef, DatasetRef, SplitsRef
from tasks.split import read_split
from tasks.stage import TASK, Run, sha256
from tasks.tracking.stages import StageRun


@task(name="classical", cache_policy=NO_CACHE, **TASK)
def classical(dataset: DatasetRef, splits: SplitsRef, recipe: Recipe, run: Run) -> ClassicalRef:
    """Fits on the training rows, and keeps its answers for the test rows."""
    head = recipe.finetuning.head.chosen

    def body(stage: StageRun) -> dict:
        store, rows = Store.open(Path(dataset.path)), read_split(splits)
        if head.labels:
            found = recipe.data.modality.make().alternative(store, rows.train, rows.validation, rows.test, recipe.seed)
        else:
            found = head.alternative(*map(store.rows, (rows.train, rows.validation, rows.test)), store.spec, recipe.seed)
        stage.log_params(found.settings)
        np.save(stage.workdir / "answers.npy", found.answers.astype(np.float32))
        stage.log_artifact(stage.workdir / "answers.npy")
        return {"digest": sha256(stage.workdir / "answers.npy"), "description": found.note}

    inputs = {"dataset": dataset.digest, "split": splits.digest}
    modules = [(recipe.data.modality.chosen if head.labels else head).__module__, "tasks.classical"]
    summary, output = run.stage("classical", body, options={"seed": recipe.seed}, inputs=inputs, modules=modules)
    return ClassicalRef(summary, output["digest"], output["description"])
