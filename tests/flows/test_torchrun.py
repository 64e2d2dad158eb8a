"""`warmstart run` with two processes: stopped, killed and gone on with, it ends as a run does."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

TWO = ["compute.engine=torchrun", "compute.workers=2", "compute.timeout=60"]
CHANGES = [
    "pretraining.objective=simclr",
    "pretraining.fit.epochs=20",
    "pretraining.fit.checkpoint_seconds=0",
    "finetuning.fit.epochs=2",
    "finetuning.baseline=false",
    "finetuning.classical=false",
]


def ranks_in(folder: Path) -> list[psutil.Process]:
    """Processes that train in `folder`, by their number."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "ml.engines.rank" in words and words[-1].startswith(str(folder)) and "torch.distributed.run" not in words:
            with_number = process.environ().get("RANK") if process.is_running() else None
            found[with_number] = process
    return [process for _, process in sorted(found.items())]


def step(folder: Path) -> int:
    """Of the newest checkpoint of the pretraining."""
    return max((int(path.parent.name.split("-")[1]) for path in folder.glob(".warmstart/work/pretrain-*/checkpoints/step-*/manifest.json")), default=0)


def wait_for(what, process, seconds: float = 240):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end and process.process.is_alive(), process.err
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory, start, tiny):
    """A folder in which the run was stopped, then went on, had a rank killed, and ended; where it was at each; and what it printed."""
    folder = tmp_path_factory.mktemp("two")
    first = start(folder, "run", tiny, "--json", *CHANGES, *TWO)
    wait_for(lambda: step(folder) >= 3, first)
    before = ranks_in(folder)
    first.signal(signal.SIGTERM)
    stopped = first.wait()
    left, at = ranks_in(folder), step(folder)
    second = start(folder, "run", tiny, "--json", *CHANGES, *TWO)
    wait_for(lambda: step(folder) >= at + 3, second)
    os.kill(ranks_in(folder)[1].pid, signal.SIGKILL)
    return {"folder": folder, "before": before, "stopped": stopped, "left": left, "at": at, "ended": second.wait()}


def test_a_stop_reaches_the_ranks_and_leaves_a_checkpoint(done):
    assert len(done["before"]) == 2 and done["left"] == []
    assert done["stopped"].code == 130 and "goes on from there" in done["stopped"].err
    assert done["at"] >= 3


def test_a_killed_rank_costs_nothing_but_time(done):
    result = done["ended"].result
    assert {stage["name"] for stage in result["stages"]} >= {"pretrain", "finetune", "register"}
    assert ranks_in(done["folder"]) == []
    client = MlflowClient(f"sqlite:///{done['folder'] / 'mlflow.db'}")
    runs = {stage["name"]: client.get_run(stage["run_id"]) for stage in result["stages"]}
    assert {runs[name].data.tags["warmstart.processes"] for name in ("pretrain", "finetune")} == {"2"}
    steps = [one.step for one in client.get_metric_history(runs["pretrain"].info.run_id, "train/loss")]
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] == int(runs["pretrain"].data.params["steps"])
    assert result["model"]["aliases"] == ["champion"]


def test_the_engine_is_not_part_of_what_is_meant(done, warmstart, tiny):
    result = warmstart(done["folder"], "run", tiny, "--json", *CHANGES).result
    assert all(stage["cached"] for stage in result["stages"] if stage["name"] in ("pretrain", "finetune"))
