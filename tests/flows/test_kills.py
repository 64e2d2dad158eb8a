"""Killed at any point, the same command goes on from there, in the same MLflow runs, to the same weights."""

import hashlib
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient
from often import SEEDS

from ml.heads import HEADS

pytestmark = pytest.mark.e2e

POINTS = [
    "preprocess.chunk",
    "checkpoint.write",
    "checkpoint.manifest",
    "pretrain.step:5",
    "stage.upload",
    "finetune.step:3",
    "register.uploaded",
    "register.version",
    "register.alias.tiny-backbone",
    "register.alias.tiny",
]
"""Each next attempt dies at the next point; where a point lies behind, the attempt before has got past it."""
TEXT_POINTS = ["preprocess.chunk", "pretrain.step:3", "checkpoint.write", "finetune.step:3", "register.version"]
HEAD_POINTS = ["finetune.step:2", "register.version"]

OFTEN = ["pretraining.fit.checkpoint_seconds=0", "finetuning.fit.checkpoint_seconds=0"]  # a checkpoint after each step


def weights(folder: Path) -> dict[str, str]:
    """sha256 of all weights that the runs of a folder stored, by stage."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    found = {}
    for run in client.search_runs([experiment.experiment_id], "tags.`warmstart.kind` = 'stage'"):
        for file in Path(run.info.artifact_uri.removeprefix("file://")).rglob("*.safetensors"):
            if "artifacts/model/" in str(file) or "backbone/" in str(file):
                found[f"{run.info.run_name}/{file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def stage_runs(folder: Path) -> dict[str, list[str]]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    found: dict[str, list[str]] = {}
    for run in client.search_runs([experiment.experiment_id], "tags.`warmstart.kind` = 'stage'"):
        found.setdefault(run.info.run_name, []).append(run.info.run_id)
    return found


def running(folder: Path) -> list[str]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return [
        run.info.run_id
        for run in client.search_runs([one.experiment_id for one in client.search_experiments()], "attributes.status = 'RUNNING'")
    ]


def kill_at(points, folder, start, recipe) -> None:
    for point in points:
        process = start(folder, "run", recipe, "--json", *OFTEN, crash=point)
        done = process.wait()
        assert done.code == -signal.SIGKILL, (point, done.err)
        with pytest.raises(ProcessLookupError):  # it leaves no process behind
            os.killpg(process.process.pid, 0)


@pytest.fixture(scope="module")
def killed(tmp_path_factory, start, warmstart, tiny):
    """A folder in which the command was killed at each point in turn and then run to its end; and that last end."""
    folder = tmp_path_factory.mktemp("killed")
    kill_at(POINTS, folder, start, tiny)
    return folder, warmstart(folder, "run", tiny, "--json", *OFTEN)


def test_the_same_weights_as_an_unkilled_run(killed, finished):
    assert weights(killed[0]) == weights(finished.folder)
    assert {"pretrain/backbone.safetensors", "finetune/model.safetensors", "baseline/model.safetensors"} <= weights(killed[0]).keys()
    assert killed[1].result["metrics"] == finished.result["metrics"]


def test_in_one_mlflow_run_for_each_stage(killed):
    folder, done = killed
    runs = stage_runs(folder)
    assert {name: len(ids) for name, ids in runs.items()} == dict.fromkeys(runs, 1)
    assert {stage["name"]: [stage["run_id"]] for stage in done.result["stages"]} == runs


def test_nothing_is_left_running_and_no_version_twice(killed):
    folder, done = killed
    assert running(folder) == []
    assert done.result["model"] == {"name": "tiny", "version": "1", "uri": "models:/tiny/1", "aliases": ["champion"]}
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    assert len(client.search_model_versions("name = 'tiny'")) == 1
    assert list((folder / ".warmstart" / "work").glob("*/")) == []


def test_curves_have_each_step_once(killed):
    folder, done = killed
    run_id = next(stage["run_id"] for stage in done.result["stages"] if stage["name"] == "pretrain")
    steps = [one.step for one in MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").get_metric_history(run_id, "train/loss")]
    assert steps == sorted(set(steps)) and len(steps) == 9


def test_texts_too(tmp_path, start, warmstart, tiny_text, finished_text):
    kill_at(TEXT_POINTS, tmp_path, start, tiny_text)
    result = warmstart(tmp_path, "run", tiny_text, "--json", *OFTEN).result
    assert weights(tmp_path) == weights(finished_text.folder)
    assert {"pretrain/backbone.safetensors", "finetune/model.safetensors", "baseline/model.safetensors"} <= weights(tmp_path).keys()
    assert result["metrics"] == finished_text.result["metrics"] and result["metrics"]["accuracy"]["value"] > 0.8
    assert {len(ids) for ids in stage_runs(tmp_path).values()} == {1} and running(tmp_path) == []


@pytest.mark.parametrize("head", [name for name, head in HEADS.items() if not head.labels])
def test_heads_without_classes_too(tmp_path, start, warmstart, tiny_heads, finished_heads, head):
    kill_at(HEAD_POINTS, tmp_path, start, tiny_heads[head])
    done = warmstart(tmp_path, "run", tiny_heads[head], "--json", *OFTEN)
    whole = finished_heads(head)
    assert weights(tmp_path) == weights(whole.folder)
    assert {"pretrain/backbone.safetensors", "finetune/model.safetensors"} <= weights(tmp_path).keys()
    assert done.result["metrics"] == whole.result["metrics"]
    assert {name: len(ids) for name, ids in stage_runs(tmp_path).items()} == dict.fromkeys(whole.stages(), 1)
    assert running(tmp_path) == [] and done.result["model"]["version"] == "1"


LONG = ["pretraining.fit.epochs=400", "pretraining.probe=false", "finetuning.baseline=false", "finetuning.classical=false"]
SHORT = ["pretraining.fit.epochs=30", *LONG[1:]]


def until_pretraining(process) -> None:
    deadline = time.monotonic() + 120
    while "pretrain: " not in process.err:
        assert process.process.is_alive() and time.monotonic() < deadline, process.err
        time.sleep(0.02)


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory, warmstart, tiny):
    """The weights of a run that nobody killed, and the seconds that it took."""
    folder, began = tmp_path_factory.mktemp("unkilled"), time.monotonic()
    assert warmstart(folder, "run", tiny, "--json", *SHORT, *OFTEN).code == 0
    return weights(folder), time.monotonic() - began


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(SEEDS))
def test_killed_at_a_random_moment(tmp_path, start, warmstart, tiny, unkilled, seed):
    process = start(tmp_path, "run", tiny, "--json", *SHORT, *OFTEN)
    process.process.join(random.Random(seed).uniform(0, 0.95 * unkilled[1]))
    with suppress(ProcessLookupError):  # faster than the one before, it is at its end
        process.signal(signal.SIGKILL)
    process.wait()
    done = warmstart(tmp_path, "run", tiny, "--json", *SHORT, *OFTEN)
    assert done.code == 0, done.err
    assert weights(tmp_path) == unkilled[0]
    assert {len(ids) for ids in stage_runs(tmp_path).values()} == {1} and running(tmp_path) == []
    assert done.result["model"]["version"] == "1" and "champion" in done.result["model"]["aliases"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_keeps_a_checkpoint(tmp_path, start, warmstart, tiny, number):
    process = start(tmp_path, "run", tiny, "--json", *LONG)
    until_pretraining(process)
    process.signal(number)
    done = process.wait(60)
    assert done.code == 130, done.err
    assert "Traceback" not in done.err and "interrupted" in done.err and "the same command goes on from there" in done.err
    assert running(tmp_path) == []
    kept = sorted((tmp_path / ".warmstart" / "work").glob("pretrain-*/checkpoints/step-*/manifest.json"))
    assert kept and int(kept[-1].parent.name.split("-")[1]) > 0, done.err


def test_asked_to_stop_at_any_point(tmp_path, start, warmstart, tiny, finished):
    """In an upload, between version and alias: what a cancellation in Prefect sends."""
    for point in POINTS:
        done = start(tmp_path, "run", tiny, "--json", *OFTEN, crash=point, WARMSTART_CRASH_BY="SIGTERM").wait(60)
        assert done.code == 130 and "Traceback" not in done.err and "interrupted" in done.err, (point, done.err)
        assert running(tmp_path) == [], (point, done.err)
    done = warmstart(tmp_path, "run", tiny, "--json", *OFTEN)
    assert weights(tmp_path) == weights(finished.folder)
    assert {len(ids) for ids in stage_runs(tmp_path).values()} == {1} and running(tmp_path) == []
    assert done.result["model"] == {"name": "tiny", "version": "1", "uri": "models:/tiny/1", "aliases": ["champion"]}


def test_a_termination_outside_training(tmp_path, start, warmstart, tiny):
    process = start(tmp_path, "run", tiny, "--json", *SHORT)
    deadline = time.monotonic() + 120
    while "preprocess: " not in process.err and time.monotonic() < deadline:
        time.sleep(0.01)
    process.signal(signal.SIGTERM)
    done = process.wait(60)
    assert done.code == 130 and "Traceback" not in done.err and "interrupted: " in done.err, done.err
    assert running(tmp_path) == []


def test_two_interrupts_end_it_at_once(tmp_path, start, tiny):
    process = start(tmp_path, "run", tiny, "--json", *LONG)
    until_pretraining(process)
    process.signal(signal.SIGINT)
    process.signal(signal.SIGINT)
    done = process.wait(60)
    assert done.code == 130 and "Traceback" not in done.err and "interrupted: " in done.err, done.err
    assert running(tmp_path) == []
