"""`warmstart run` on two machines, each with a home of its own, that share a tracking database and a bucket of a real S3 server."""

import hashlib
import os
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from ml.feed import seed_of
from ml.model import save_backbone
from ml.recipe import load
from ml.remote import Remote
from ml.store import Store
from tasks import pretrain
from tasks.preprocess import _fetch
from tasks.stage import Run

CHANGES = [
    "pretraining.fit.epochs=60",
    "pretraining.fit.checkpoint_seconds=0",
    "pretraining.probe=false",
    "finetuning.fit.epochs=2",
    "finetuning.baseline=false",
    "finetuning.classical=false",
]


@dataclass
class Story:
    """What happened, in order: where, what was said, what the storage held."""

    folder: Path
    storage: Remote
    killed_at: int = 0
    done: dict = field(default_factory=dict)

    def copies(self) -> list[int]:
        """Steps of the checkpoints in the storage that are whole."""
        found = self.storage.within("checkpoints")
        return [int(step.partition("-")[2]) for run in found.names() for step in found.within(run).names() if found.within(run).holds(step)]


class Quiet:
    """A stage's run without MLflow, for a training in this process."""

    def __init__(self, workdir: Path):
        self.workdir = workdir
        workdir.mkdir()
        (workdir / "metrics.jsonl").touch()

    def nothing(self, *content):
        pass

    report = log_params = log_metrics = log_figure = log_text = set_tag = nothing


def unbroken(story, recipe_path: Path, workdir: Path) -> str:
    """sha256 of the weights of the same pretraining, done at once."""
    recipe = load(recipe_path, [*CHANGES, "pretraining.fit.checkpoint_seconds=1000"])
    [folder] = (story.folder / "abroad" / "stores").iterdir()
    store = Store.open(folder)
    torch.set_num_threads(1)
    torch.manual_seed(seed_of(recipe.seed, "backbone"))
    backbone = recipe.backbone.make(store.spec)
    pretrain._train(backbone, store, recipe, Quiet(workdir))
    save_backbone(backbone, workdir / "backbone", recipe.backbone, store.spec)
    return hashlib.sha256((workdir / "backbone" / "backbone.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def story(tmp_path_factory, start, warmstart, tiny, s3, bucket) -> Story:
    """Killed in its pretraining at home, gone on with abroad; then the same command in a third home while the storage is away."""
    folder = tmp_path_factory.mktemp("two")
    story = Story(folder, Remote(f"{bucket}/two"))

    def arguments(home: str, **more) -> tuple[tuple, dict]:
        return (folder, "run", tiny, "--json", *CHANGES), {"WARMSTART_HOME": str(folder / home), "WARMSTART_STORAGE": f"{bucket}/two", **s3, **more}

    given, environment = arguments("home")
    first = start(*given, **environment)
    deadline = time.monotonic() + 120
    while not story.copies():
        assert first.process.is_alive() and time.monotonic() < deadline, first.err
        time.sleep(0.05)
    first.signal(signal.SIGKILL)
    story.done["home"] = first.wait()
    story.killed_at = max(story.copies())
    for home, more in (("abroad", {}), ("third", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"})):
        given, environment = arguments(home, **more)
        story.done[home] = warmstart(*given, **environment)
    return story


def test_another_machine_goes_on_from_the_copy_to_the_same_weights(story, tmp_path, tiny):
    assert story.done["home"].code == -signal.SIGKILL and story.killed_at > 0
    abroad = story.done["abroad"]
    [pretraining] = [stage for stage in abroad.result["stages"] if stage["name"] == "pretrain"]
    assert "did not finish" in pretraining["why"]
    taken_up = int(re.search(r"goes on from the checkpoint s3://\S+/step-(\d+)", abroad.err).group(1))
    assert taken_up >= story.killed_at
    client = MlflowClient(f"sqlite:///{story.folder / 'mlflow.db'}")
    [weights] = Path(client.get_run(pretraining["run_id"]).info.artifact_uri.removeprefix("file://")).rglob("backbone.safetensors")
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == unbroken(story, tiny, tmp_path / "work")


def test_its_curve_is_whole(story):
    run_id = next(stage["run_id"] for stage in story.done["abroad"].result["stages"] if stage["name"] == "pretrain")
    told = MlflowClient(f"sqlite:///{story.folder / 'mlflow.db'}").get_metric_history(run_id, "train/loss")
    before = [one.step for one in told if one.step <= story.killed_at]
    assert before and len(before) == len(set(before)), "told twice"
    assert len({(one.step, one.value) for one in told}) == len({one.step for one in told}), "a step that was done again differs"


def test_the_store_is_fetched_and_not_made_again(story):
    done = story.done["abroad"]
    preprocess = next(stage for stage in done.result["stages"] if stage["name"] == "preprocess")
    assert preprocess["cached"] and f"store fetched from {story.storage.url}" in done.err
    [store] = [path for path in (story.folder / "abroad" / "stores").iterdir() if path.is_dir()]
    assert story.storage.within("stores").names() == [store.name]


def test_a_store_of_another_name_is_not_taken(story, tmp_path, s3):
    [store] = [path for path in (story.folder / "abroad" / "stores").iterdir() if path.is_dir()]
    story.storage.publish(store, "stores/other")
    run = Run(None, tmp_path, storage=story.storage)
    assert "stores/other is another one" in _fetch("other", run) and list(run.stores.iterdir()) == []
    story.storage.remove("stores/other")


def test_checkpoints_of_finished_trainings_are_gone(story):
    assert story.storage.within("checkpoints").names() == []


def test_a_storage_that_is_away_is_told_once_and_stops_nothing(story):
    done = story.done["third"]
    assert done.result["metrics"] == story.done["abroad"].result["metrics"]
    assert done.err.count("warning: ") == 1 and f"{story.storage.url}" in done.err, done.err
    stages = {stage["name"]: stage for stage in done.result["stages"]}
    assert not stages["preprocess"]["cached"] and "its store is not on this machine" in stages["preprocess"]["why"]
    assert all(stage["cached"] for name, stage in stages.items() if name != "preprocess")


def test_secrets_are_nowhere(story, s3):
    secret = s3["AWS_SECRET_ACCESS_KEY"].encode()
    for root, _, names in os.walk(story.folder):
        for name in names:
            assert secret not in (Path(root) / name).read_bytes(), name
    for done in story.done.values():
        assert secret.decode() not in done.err + done.out


@pytest.mark.parametrize(("url", "words"), [("s3://me:hidden@bucket/x", "Credentials belong"), ("folder", "neither a whole path nor a URL")])
def test_a_setting_that_cannot_be_used_is_refused_first(tmp_path, warmstart, tiny, url, words):
    done = warmstart(tmp_path, "run", tiny, "--json", WARMSTART_STORAGE=url)
    done.refused([words])
    assert "hidden" not in done.err and not (tmp_path / "mlflow.db").exists()
