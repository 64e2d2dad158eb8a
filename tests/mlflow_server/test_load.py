"""Many runs at once on the servers of a team: none fails, and every row is there once."""

import multiprocessing

import load_worker
import pytest

from mlflow_server import postgresql

pytestmark = [pytest.mark.servers, pytest.mark.timeout(900)]
ROWS = 200


def test_runs_at_once_with_exact_row_counts(team):
    count = 32 if postgresql.installed() else 8
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow", "tasks.tracking.stages", "load_worker"])
    environment = {name: value for name, value in team.clients().items() if name.startswith("MLFLOW_")} | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    processes = [context.Process(target=load_worker.work, args=(number, ROWS, environment, str(team.folder))) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0] * count
    experiment = team.mlflow("experiments/get-by-name?experiment_name=load")["experiment"]["experiment_id"]
    found = team.mlflow("runs/search", {"experiment_ids": [experiment], "max_results": 1000})["runs"]
    assert len(found) == 2 * count and {one["info"]["status"] for one in found} == {"FINISHED"}
    for one in found:
        if one["info"]["run_name"] == "pretrain":
            number = int(next(param["value"] for param in one["data"]["params"] if param["key"] == "number"))
            rows = team.mlflow(f"metrics/get-history?run_id={one['info']['run_id']}&metric_key=loss&max_results=25000")["metrics"]
            assert sorted((row["step"], row["value"]) for row in rows) == [(step, float(number * ROWS + step)) for step in range(ROWS)]
