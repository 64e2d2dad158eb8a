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


@pytest.mark.parametrize("seed", range(times(1, 1)))
@pytest.mark.parametrize("victim", ["run", "worker", "group"])
def test_a_run_whose_process_was_killed_goes_on(team, slow, victim, seed):
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
    wait_for(lambda: team.flow_run(run)["state_type"] == "COMPLETED")
    experiment = team.mlflow("experiments/get-by-name?experiment_name=slow")["experiment"]["experiment_id"]
    found = team.mlflow("runs/search", {"experiment_ids": [experiment]})["runs"]
    assert not [one for one in found if one["info"]["status"] == "RUNNING"]
    done = [one for one in found if one["info"]["status"] == "FINISHED" and one["info"]["run_name"] == "pretrain"]
    assert len(done) == 1, "one attempt wins"
    forget(team, found)


AWAY = [("postgresql", 0), ("mlflow", 30), ("prefect", 30), ("prefect", 120), *([pytest.param("mlflow", 600, marks=pytest.mark.timeout(1800))] if OFTEN else [])]


@pytest.mark.parametrize(("name", "seconds"), AWAY)
def test_a_run_outlives_a_server_that_is_away(team, slow, name, seconds):
    if name not in team.status()["services"]:
        pytest.skip("PostgreSQL is not installed")
    run = team.start(slow)
    wait_for(lambda: trains(team, run))
    with supervision.asking(team.services) as supervisor:
        supervisor.stopProcess(name)
        time.sleep(seconds)
        supervisor.startProcess(name)
    wait_for(lambda: team.status()["ready"])
    wait_for(lambda: team.flow_run(run)["state_type"] in ("COMPLETED", "FAILED", "CANCELLED"), 400)
    state = team.flow_run(run)["state"]
    assert state["type"] == "COMPLETED", state["message"]
    experiment = team.mlflow("experiments/get-by-name?experiment_name=slow")["experiment"]["experiment_id"]
    found = team.mlflow("runs/search", {"experiment_ids": [experiment]})["runs"]
    assert not [one for one in found if one["info"]["status"] == "RUNNING"]
    done = [one for one in found if one["info"]["status"] == "FINISHED" and one["info"]["run_name"] == "pretrain"]
    assert len(done) == 1, "one attempt wins"
    steps = [point["step"] for point in team.mlflow(f"metrics/get-history?run_id={done[0]['info']['run_id']}&metric_key=train/loss&max_results=25000")["metrics"]]
    assert sorted(steps) == list(range(4, 901, 4)), "no row is missing, none is there twice"
    forget(team, found)


def forget(team, found) -> None:
    """Lets the next test's run find nothing done."""
    shutil.rmtree(team.folder / ".warmstart" / "work", ignore_errors=True)
    for one in found:
        team.mlflow("runs/delete", {"run_id": one["info"]["run_id"]})


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
