"""What a pipeline's parent run holds: its summary, its report, and the values to compare runs by."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from tasks.tracking import database
from tasks.tracking.artifacts import local_folder
from tasks.tracking.runs import PipelineRun

if TYPE_CHECKING:
    from mlflow.entities import Run


def store(run: PipelineRun, workroot: Path, files: Mapping[str, str]) -> str:
    """Stores text files by name; gives where the last one is: a path where the artifact store is local, else its URI."""
    client = database.client()
    root = database.retry(client.get_run, run.run_id).info.artifact_uri
    workroot.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=workroot) as temporary:
        for name, text in files.items():
            file = Path(temporary) / name
            file.write_text(text, encoding="utf-8")
            database.retry(client.log_artifact, run.run_id, str(file))
    folder = local_folder(root)
    return str(folder / name) if folder is not None else f"{root}/{name}"


def describe(run: PipelineRun, params: Mapping[str, Any], metrics: Mapping[str, float | None], datasets: Mapping[str, str]) -> None:
    """Parameters, final values and data sets of the whole run, in one request each."""
    from mlflow.entities import Dataset, DatasetInput, Metric, Param

    now = int(time.time() * 1000)
    database.retry(
        database.client().log_batch,
        run.run_id,
        metrics=[Metric(name, value, now, 0) for name, value in metrics.items() if value is not None],
        params=[Param(name, str(value)) for name, value in params.items()],
    )
    given = [
        DatasetInput(dataset=Dataset(name=name, digest=digest[:36], source_type="warmstart", source=json.dumps({"digest": digest})), tags=[])
        for name, digest in datasets.items()
    ]
    database.retry(database.client().log_inputs, run.run_id, datasets=given)


def page(run: PipelineRun) -> str:
    """The run's address in MLflow's UI, or its id where no server runs."""
    uri = database.uri()
    return f"{uri.rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.run_id}" if uri.startswith("http") else run.run_id


def where_to_look() -> str:
    """The command or address that shows the runs."""
    uri = database.uri()
    if uri == f"sqlite:///{Path('mlflow.db').resolve()}":
        return "mlflow ui"  # which looks there by itself
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


def address(run: Run) -> str:
    """The page of a run on the tracking server, "" where records are kept without one."""
    import mlflow

    parts = urlsplit(mlflow.get_tracking_uri())
    if parts.scheme not in ("http", "https"):
        return ""
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")  # without a password
    return f"{urlunsplit(bare).rstrip('/')}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
