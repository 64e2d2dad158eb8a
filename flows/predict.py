"""Batch scoring: `warmstart predict models:/digits@champion pictures/ --output scores.parquet`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from ml import scoring
from ml.device import device_of
from ml.predictor import Predictor
from ml.recipe import Compute
from tasks import collector
from tasks.stage import TASK
from tasks.tracking.artifacts import fetch
from tasks.tracking.database import prepare
from tasks.tracking.versions import pinned


@flow(name="predict", persist_result=False)
def predict(model_uri: str, inputs: list[str], output: str, batch_size: int = 256, column: str = "") -> dict[str, Any]:
    """Scores files, folders of pictures, Parquet and CSV files; interrupted, the same call goes on where it was."""
    return score(model_uri, inputs, output, batch_size, column)


@task(name="score", cache_policy=NO_CACHE, **TASK)
def score(model_uri: str, inputs: list[str], output: str, batch_size: int, column: str) -> dict[str, Any]:
    """One task for the whole: its parts are files, and cost no orchestration."""
    prepare()
    collector.resume()
    version = pinned(model_uri)
    predictor = Predictor.load(fetch(version, "artifacts/model"), device_of(Compute()))
    return {"model": version, **scoring.score(predictor, version, inputs, Path(output), batch_size, column)}
