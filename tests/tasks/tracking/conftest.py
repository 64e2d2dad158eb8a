"""A tracking database for each test, copied from one that is made once, and real processes that use it."""

import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import mlflow
import pytest

from tasks.tracking import database

sys.path.insert(0, str(Path(__file__).parent))  # the processes import tracking_workers by its name

import tracking_workers as workers


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """A migrated, empty database: making one takes seconds."""
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
        for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
            patch.setenv(name, "true")
        database.prepare()
        mlflow.set_tracking_uri(None)
    return folder / "mlflow.db"


@pytest.fixture
def tracked(tmp_path, monkeypatch, template) -> Path:
    """A working folder with a prepared database, which this process and its children use."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(template, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    monkeypatch.setenv("WARMSTART_HOME", str(tmp_path / ".warmstart"))
    database.prepare()
    yield tmp_path
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="session")
def processes():
    """Starts functions of tracking_workers.py in processes of their own, forked from one that has imported MLflow."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow", "mlflow.store.tracking.sqlalchemy_store", "tracking_workers"])
    started = []

    def start(function: str, *arguments, crash: str = "") -> multiprocessing.Process:
        process = context.Process(target=workers.enter, args=(str(Path.cwd()), dict(os.environ), crash, function, arguments))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()
