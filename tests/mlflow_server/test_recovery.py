"""What is killed or away in a folder with `warmstart up`: services come back, and runs go on, each once."""

import os
import random
import shutil
import signal
import time

import pytest
import yaml
from often import OFTEN, times
from team import wait_for

from mlflow_server import bound, supervision

pytestmark = [pytest.mark.servers, pytest.mark.chaos, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def slow(team):
    """A deployment whose runs take some time."""
    content = yaml.safe_load((team.folder / "tiny.yaml").read_text())
    content["name"] = "slow"
    content["pretraining"]["fit"] = {"epochs": 150, "batch_size": 16, "checkpoint_seconds": 2}
    (team.folder / "slow.yaml").write_text(yaml.safe_dump(content))
    team.run("deploy", "slow.yaml")
    return "pretrain/slow"


def trains(team, run: str) -> bool:
    """Whether a flow run is in its training."""
    return any(one["key"] == "pretrain" and one["flow_run_id"] == run for one in team.prefect("artifacts/filter", {}))


@pytest.fixture
def found(team, slow):
    """Looks for what MLflow has of the deployment's runs. After the test they are forgotten, so that the next one's finds nothing done."""

    def look() -> list[dict]:
        experiment = team.mlflow("experiments/get-by-name?experiment_name=slow")["experiment"]["experiment_id"]
        return team.mlflow("runs/search", {"experiment_ids": [experiment]}).get("runs", [])

    yield look
    shutil.rmtree(team.folder / ".warmstart" / "work", ignore_errors=True)
    for one in look():
        team.mlflow("runs/delete", {"run_id": one["info"]["run_id"]})


def finished(team, run: str, found, seconds: float) -> str:
    """Waits for the end of a flow run, which must be a good one with nothing left RUNNING; gives the id of its one pretraining."""
    wait_for(lambda: team.flow_run(run)["state_type"] in ("COMPLETED", "FAILED", "CANCELLED"), seconds)
    state = team.flow_run(run)["state"]
    assert state["type"] == "COMPLETED", state["message"]
    assert not [one for one in found() if one["info"]["status"] == "RUNNING"]
    [done] = [one["info"]["run_id"] for one in found() if one["info"]["status"] == "FINISHED" and one["info"]["run_name"] == "pretrain"]
    assert "another process is doing the same" not in (team.services / "worker.log").read_text(), "two attempts at once"
    return done


@pytest.mark.parametrize("seed", range(times(1, 1)))
@pytest.mark.parametrize("victim", ["run", "worker", "group"])
def test_a_run_whose_process_was_killed_goes_on(team, slow, found, victim, seed):
    run = team.start(slow)
    wait_for(lambda: trains(team, run))
    time.sleep(random.Random(seed).uniform(0, 4) if OFTEN else 0)
    began = time.monotonic()
    if victim == "run":
        os.kill(team.running("prefect.engine")[0], signal.SIGKILL)
    elif victim == "worker":
        os.kill(team.running("mlflow_server.worker")[0], signal.SIGKILL)
    else:
        os.kill(int((team.services / "supervisord.pid").read_text()), signal.SIGKILL)
        wait_for(lambda: not team.processes(), 120)
        refused = team.command(team.folder, "run", "tiny.yaml")
        assert refused.code == 2 and "`warmstart up` starts them again" in refused.err
        team.run("up")
    wait_for(lambda: team.flow_run(run)["state_type"] == "RUNNING" and team.flow_run(run)["run_count"] > 1)
    print(f"{victim}: went on after {time.monotonic() - began:.0f} s")
    finished(team, run, found, 240)


def test_a_crash_that_is_told_of_a_run_that_works_is_taken_back(team, slow, found):
    """As the worker's second report of a dead process, where it comes so late that the next attempt works."""
    run = team.start(slow)
    wait_for(lambda: trains(team, run))
    engine = team.running("prefect.engine")[0]
    os.kill(engine, signal.SIGSTOP)  # it shall not be at its end before
    team.prefect(f"flow_runs/{run}/set_state", {"state": {"type": "CRASHED", "name": "Crashed", "message": "told too late"}})
    wait_for(lambda: team.flow_run(run)["state_type"] != "CRASHED")
    os.kill(engine, signal.SIGCONT)
    assert team.flow_run(run)["state"]["message"] == "Its process works."
    finished(team, run, found, 400)


AWAY = [("postgresql", 0), ("mlflow", 30), ("prefect", 30), ("prefect", 120), *([pytest.param("mlflow", 600, marks=pytest.mark.timeout(1800))] if OFTEN else [])]


@pytest.mark.parametrize(("name", "seconds"), AWAY)
def test_a_run_outlives_a_server_that_is_away(team, slow, found, name, seconds):
    if name not in team.status()["services"]:
        pytest.skip("PostgreSQL is not installed")
    run = team.start(slow)
    wait_for(lambda: trains(team, run))
    with supervision.asking(team.services) as supervisor:
        supervisor.stopProcess(name)
        time.sleep(seconds)
        supervisor.startProcess(name)
    wait_for(lambda: team.status()["ready"])
    done = finished(team, run, found, 400)
    steps = [point["step"] for point in team.mlflow(f"metrics/get-history?run_id={done}&metric_key=train/loss&max_results=25000")["metrics"]]
    assert sorted(steps) == list(range(4, 901, 4)), "no row is missing, none is there twice"


SERVICES = ["postgresql", "mlflow", "prefect", "worker"]


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("what", ["program", "wrapper"])
def test_a_service_that_was_killed_comes_back_once(team, name, what):
    if name not in team.status()["services"]:
        pytest.skip("PostgreSQL is not installed")
    count = len(team.processes())
    wrapper = team.wrapper(name)
    os.kill(wrapper if what == "wrapper" else bound.descendants(wrapper)[0], signal.SIGKILL)
    wait_for(lambda: team.wrapper(name) != wrapper)
    wait_for(lambda: team.status()["ready"])
    wait_for(lambda: len(team.processes()) <= count)
    assert team.mlflow("experiments/get-by-name?experiment_name=slow")
