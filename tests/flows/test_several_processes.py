"""`warmstart run` with two processes, of every engine that has several and every strategy: one killed, then stopped, and gone on with in one, it ends as a run does."""

import os
import signal
import time

import psutil
import pytest
from commands import newest_step
from mlflow import MlflowClient

pytestmark = pytest.mark.e2e

CHANGES = [
    "pretraining.objective=simclr",
    "pretraining.fit.epochs=20",
    "pretraining.fit.checkpoint_seconds=0",
    "finetuning.fit.epochs=2",
    "finetuning.baseline=false",
    "finetuning.classical=false",
]
FSDP = ("torchrun",)
"""Engines that are tried with the strategy fsdp, to save time; the others with ddp."""


def ranks_of(command: int) -> list[psutil.Process]:
    """The processes that train for the command with this process id."""
    found = []
    for process in psutil.Process(command).children(recursive=True):
        words = process.cmdline() or [""]
        if words[0].startswith("ray::RayTrainWorker") or ("ml.engines.rank" in words and "torch.distributed.run" not in words):
            found.append(process)
    return found


def wait_for(what, process, seconds: float = 240):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end and process.process.is_alive(), process.err
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def done(engine, tmp_path_factory, start, tiny):
    """A folder in which a process of the run was killed, then the run was stopped, and ended without the engine; what there was at each."""
    folder = tmp_path_factory.mktemp("two")
    settings = [f"compute.engine={engine}", "compute.workers=2", "compute.timeout=60", f"compute.strategy={'fsdp' if engine in FSDP else 'ddp'}"]
    first = start(folder, "run", tiny, "--json", *CHANGES, *settings)
    wait_for(lambda: newest_step(folder) >= 3, first)
    before, at = ranks_of(first.process.pid), newest_step(folder)
    os.kill(before[1].pid, signal.SIGKILL)
    wait_for(lambda: newest_step(folder) >= at + 3, first)
    after, below = ranks_of(first.process.pid), psutil.Process(first.process.pid).children(recursive=True)
    first.signal(signal.SIGTERM)
    stopped = first.wait()
    left, at = psutil.wait_procs(below, 30)[1], newest_step(folder)
    ended = start(folder, "run", tiny, "--json", *CHANGES).wait()
    return {"folder": folder, "before": before, "after": after, "stopped": stopped, "left": left, "at": at, "ended": ended}


def test_a_stop_reaches_the_ranks_and_leaves_a_checkpoint(done):
    assert len(done["before"]) == len(done["after"]) == 2 and not set(done["before"]) & set(done["after"])
    assert done["stopped"].code == 130 and "goes on from there" in done["stopped"].err
    assert done["left"] == []
    assert done["at"] >= 6


def test_a_killed_rank_costs_nothing_but_time_and_one_process_goes_on(done):
    result = done["ended"].result
    assert {stage["name"] for stage in result["stages"]} >= {"pretrain", "finetune", "register"}
    client = MlflowClient(f"sqlite:///{done['folder'] / 'mlflow.db'}")
    run = client.get_run(next(stage["run_id"] for stage in result["stages"] if stage["name"] == "pretrain"))
    assert run.data.tags["warmstart.processes"] == "2, then 1"
    steps = [one.step for one in client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] == int(run.data.params["steps"])
    assert result["model"]["aliases"] == ["champion"]
