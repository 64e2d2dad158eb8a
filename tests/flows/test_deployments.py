"""The deployments of prefect.yaml on a real server: a worker of one pool pretrains, and the pipeline, on another, finds that done."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from ml.recipe import load

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("deployed")


@pytest.fixture(scope="module")
def prefect(environment, folder):
    """Runs the command `prefect` in a folder that holds the project, its work and its records."""
    for path in ROOT.iterdir():  # what it works in is where it deploys from, and MLflow's artifacts go there too
        if path.name in ("flows", "tasks", "ml", "prefect.yaml"):
            (folder / path.name).symlink_to(path)
    given = {**environment, "PWD": str(folder), "PYTHONPATH": str(folder), "WARMSTART_HOME": str(folder / "home"), "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}

    def prefect(*arguments: str) -> str:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    prefect("work-pool", "create", "warmstart", "--type", "process")
    prefect("work-pool", "create", "warmstart-large", "--type", "process")
    prefect("work-pool", "set-concurrency-limit", "warmstart-large", "1")
    prefect("deploy", "--all")
    return prefect


def test_a_pipeline_goes_on_from_what_another_pool_pretrained(prefect, folder, tiny):
    recipe = load(tiny).model_dump(mode="json")

    def run(deployment: str, pool: str) -> str:
        said = prefect("deployment", "run", deployment, "--params", json.dumps({"recipe": recipe}))
        prefect("worker", "start", "--pool", pool, "--run-once")
        return prefect("flow-run", "logs", said.partition("UUID: ")[2].split()[0])

    first = run("pretrain/digits", "warmstart-large")
    assert "Finished in state Completed" in first
    second = run("pretrain-finetune/digits", "warmstart")
    assert "Finished in state Completed" in second
    with closing(sqlite3.connect(folder / "mlflow.db")) as records:
        names = [name for (name,) in records.execute("select name from runs order by start_time")]
    assert names[:5] == ["tiny", "preprocess", "pretrain", "tiny", "preprocess (cached)"] and names[5] == "pretrain (cached)"
    assert {"finetune", "register"} <= set(names)
