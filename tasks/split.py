"""The labelled rows outside the test, divided into train and validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE

from ml.recipe import Recipe
from ml.splitting import Split
from ml.splitting import split as divide
from ml.store import Store
from tasks.references import DatasetRef, SplitsRef
from tasks.stage import TASK, Run, dump
from tasks.tracking.artifacts import fetch
from tasks.tracking.stages import StageRun


@task(name="split", cache_policy=NO_CACHE, **TASK)
def split(dataset: DatasetRef, recipe: Recipe, run: Run) -> SplitsRef:
    """Chooses the rows by seed and group; the ids are an artifact."""

    def body(stage: StageRun) -> dict:
        store = Store.open(Path(dataset.path))
        parts = divide(store.table, store.strata, recipe.splitting, recipe.seed)
        named = {"train": parts.train, "validation": parts.validation, "test": parts.test}
        ids = pd.concat([pd.DataFrame({"row": rows, "row_id": store.table["row_id"].to_numpy()[rows], "part": part}) for part, rows in named.items()])
        ids.to_parquet(stage.workdir / "ids.parquet", index=False)
        stage.log_artifact(stage.workdir / "ids.parquet")
        stage.log_metrics({f"rows/{part}": float(len(rows)) for part, rows in named.items()})
        return {"digest": parts.digest}

    options = {"seed": recipe.seed, **dump(recipe.splitting)}
    summary, output = run.stage("split", body, options=options, inputs={"dataset": dataset.digest}, modules=["ml.splitting", "tasks.split"])
    return SplitsRef(summary, output["digest"])


def read_split(splits: SplitsRef) -> Split:
    """The rows of each part, ascending."""
    ids = pd.read_parquet(fetch(splits.stage.run_id, "ids.parquet"))
    return Split(*(np.sort(ids.loc[ids["part"] == part, "row"].to_numpy()) for part in ("train", "validation", "test")))
