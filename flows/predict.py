"""Batch scoring: `warmstart predict models:/digits@champion pictures/ --output scores.parquet`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from pydantic import ValidationError

from ml import engines, scoring
from ml.choice import problems, unknown
from ml.contracts import InputError
from ml.device import device_of
from ml.engines import ENGINES
from ml.onnx_graph import Graph
from ml.predictor import Predictor
from ml.recipe import Compute
from tasks import collector
from tasks.stage import TASK
from tasks.tracking import flow_run, registry
from tasks.tracking.database import prepare
from tasks.tracking.versions import pinned


@flow(name="predict", persist_result=False)
def predict(
    model_uri: str, inputs: list[str], output: str, batch_size: int = 256, column: str = "", engine: str = "torch", compute: str = "local", workers: int = 1, address: str = ""
) -> dict[str, Any]:
    """Scores files, folders of pictures, Parquet and CSV files; interrupted, the same call goes on where it was."""
    with flow_run.followed():
        found = score(model_uri, inputs, output, batch_size, column, engine, scoring_compute(compute, workers, address))
        flow_run.summarise("predict", f"# Scored with {flow_run.plain(found['model'])}\n\n{flow_run.table(found)}\n")
        return found


def scoring_compute(compute: str, workers: int, address: str) -> Compute:
    """What is scored on; InputError where that cannot be."""
    valid = [name for name, one in ENGINES.items() if one.data or not one.several]
    if compute not in valid:
        raise InputError(unknown("compute", compute, valid))
    try:
        return Compute(engine=compute, workers=workers, address=address)
    except ValidationError as error:
        raise InputError("; ".join(problems(error, Compute))) from None


@task(name="score", cache_policy=NO_CACHE, **TASK)
def score(model_uri: str, inputs: list[str], output: str, batch_size: int, column: str, engine: str, compute: Compute) -> dict[str, Any]:
    """One task for the whole: its parts are files, and cost no orchestration."""
    prepare()
    collector.resume()
    version = pinned(model_uri)
    folder, made_by = registry.files(version) / "artifacts" / "model", version.uri if engine == "torch" else f"{version.uri} {engine}"
    elsewhere = engines.data(compute)
    if elsewhere:
        return {"model": version.uri, **elsewhere.score(folder, engine, made_by, inputs, Path(output), batch_size, column, compute)}
    with nullcontext() if engine == "torch" else Graph(folder, torch.get_num_threads(), engine) as graph:
        predictor = Predictor.load(folder, device_of(compute), graph)
        return {"model": version.uri, **scoring.score(predictor, made_by, inputs, Path(output), batch_size, column)}
