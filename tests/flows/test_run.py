"""`warmstart run`: what it prints, what it reuses, and what stands in MLflow after it."""

import math
import re
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

STAGES = ["preprocess", "pretrain", "split", "finetune", "baseline", "classical", "evaluate", "register"]


@pytest.fixture(scope="module")
def finished(finish):
    """Of its own: these tests move the champion."""
    return finish()


@pytest.fixture(scope="module")
def client(finished) -> MlflowClient:
    return MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")


@pytest.fixture(scope="module")
def runs(client, finished):
    """All runs of the first command by id."""
    experiment = client.get_experiment_by_name("tiny")
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    own = {finished.result["run_id"], *finished.stages().values()}
    return {run.info.run_id: run for run in found if run.info.run_id in own}


def cached(result: dict) -> dict[str, bool]:
    return {stage["name"]: stage["cached"] for stage in result["stages"]}


def numbers(value):
    if isinstance(value, dict):
        for one in value.values():
            yield from numbers(one)
    elif isinstance(value, list):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, float):
        yield value


def test_the_printed_object(finished):
    result = finished.result
    assert {"run_id", "experiment", "stages", "metrics", "baseline", "classical", "model", "verdict", "report"} <= result.keys()
    assert result["experiment"] == "tiny"
    assert [stage["name"] for stage in result["stages"]] == STAGES
    for stage in result["stages"]:
        assert stage["cached"] is False and stage["why"] and stage["seconds"] >= 0 and stage["run_id"]
    for arm in ("metrics", "baseline", "classical"):
        for name, one in result[arm].items():
            assert set(one) >= {"value", "low", "high", "n"}, name
            assert one["low"] <= one["value"] <= one["high"]
    assert result["metrics"]["accuracy"]["value"] > 0.8, "colours tell the classes"
    assert result["model"] == {"name": "tiny", "version": "1", "uri": "models:/tiny/1", "aliases": ["champion"]}
    assert result["verdict"]["passed"] is True and all(isinstance(reason, str) for reason in result["verdict"]["reasons"])
    assert all(map(math.isfinite, numbers(result)))


def test_a_second_run_reuses_every_stage(finished, installed, tiny):
    again = installed(finished.folder, "run", tiny, "--json").result
    assert all(cached(again).values()), again["stages"]
    assert {stage["name"]: stage["run_id"] for stage in again["stages"]} == finished.stages()
    assert again["metrics"] == finished.result["metrics"]
    assert again["model"] == finished.result["model"]
    assert again["run_id"] != finished.result["run_id"]


def test_from_a_stage_on_it_is_done_anew(finished, warmstart, tiny):
    again = warmstart(finished.folder, "run", tiny, "--json", "--from", "finetune").result
    assert cached(again) == {name: number < 3 for number, name in enumerate(STAGES)}
    assert again["metrics"] == finished.result["metrics"]


def test_another_budget_of_fine_tuning_keeps_the_pretraining(finished, warmstart, tiny):
    again = warmstart(
        finished.folder, "run", tiny, "--json", "finetuning.fit.epochs=7", "finetuning.baseline=false", "finetuning.classical=false"
    ).result
    assert [name for name, was in cached(again).items() if was] == ["preprocess", "pretrain", "split"]
    assert again["baseline"] is None and again["classical"] is None
    why = next(stage["why"] for stage in again["stages"] if stage["name"] == "finetune")
    assert "finetuning.fit.epochs 8 → 7" in why


def test_another_recipe_that_shares_the_pretraining_reuses_it(finished, warmstart, tiny):
    again = warmstart(
        finished.folder, "run", tiny, "--json", "name=second", "finetuning.method=linear-probe", "finetuning.classical=false"
    ).result
    assert again["experiment"] == again["model"]["name"] == "second"
    reused = {stage["name"]: stage["run_id"] for stage in again["stages"] if stage["cached"]}
    assert reused["pretrain"] == finished.stages()["pretrain"]
    assert reused.keys() == {"preprocess", "pretrain", "split"}


def test_another_seed_keeps_the_data(finished, warmstart, tiny):
    again = warmstart(finished.folder, "run", tiny, "--json", "seed=1", "finetuning.baseline=false", "finetuning.classical=false").result
    assert [name for name, was in cached(again).items() if was] == ["preprocess"]
    assert again["model"]["version"] != "1"


def test_one_parent_and_a_child_for_each_stage(runs, finished):
    parent = runs[finished.result["run_id"]]
    assert "mlflow.parentRunId" not in parent.data.tags
    children = {name: runs[run_id] for name, run_id in finished.stages().items()}
    assert len(children) == len(set(children)) == len(STAGES)
    for name, run in children.items():
        assert run.info.run_name == name
        assert run.data.tags["warmstart.parents"].split(",")[0] == parent.info.run_id
        assert run.data.params and run.info.status == "FINISHED"


def test_nothing_is_left_running(client, finished, runs):
    ids = [one.experiment_id for one in client.search_experiments()]
    assert client.search_runs(ids, "attributes.status = 'RUNNING'") == []
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_what_the_stages_recorded(runs, client, finished):
    stage = {name: runs[run_id] for name, run_id in finished.stages().items()}
    losses = client.get_metric_history(stage["pretrain"].info.run_id, "train/loss")
    assert len(losses) >= 3 and [one.step for one in losses] == sorted({one.step for one in losses})
    assert "best/score" in stage["finetune"].data.metrics and "rows_per_second" in stage["finetune"].data.metrics
    assert stage["finetune"].data.params["finetuning.fit.learning_rate"] == "0.01"
    assert runs[finished.result["run_id"]].data.metrics["best/accuracy"] == finished.result["metrics"]["accuracy"]["value"]
    for name in ("preprocess", "pretrain", "finetune", "baseline", "evaluate"):
        assert stage[name].inputs.dataset_inputs, name
    digests = {stage[name].inputs.dataset_inputs[0].dataset.digest for name in ("preprocess", "pretrain", "finetune", "evaluate")}
    assert len(digests) == 1, "all saw the same data"


@pytest.mark.parametrize(
    ("stage", "paths"),
    [
        ("preprocess", ["data.json", "store/quarantine.parquet"]),
        ("pretrain", ["backbone/backbone.safetensors", "backbone/backbone.json", "pictures/curves.png"]),
        ("split", ["ids.parquet"]),
        ("finetune", ["model/model.safetensors", "model/model.json", "pictures/curves.png"]),
        ("evaluate", ["evaluation.json", "predictions.parquet", "pictures/2_confusion.png"]),
        ("register", ["judged.json"]),
    ],
)
def test_artifacts(runs, finished, stage, paths):
    root = runs[finished.stages()[stage]].info.artifact_uri
    for path in [*paths, "manifest.json"]:
        assert mlflow.artifacts.download_artifacts(f"{root}/{path}"), path


def test_the_report_stands_alone(finished):
    page = Path(finished.result["report"]).read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html")
    loads = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]+)\)|@import\s+(\S+)""", page)
    outside = [one for found in loads for one in found if one and not one.startswith(("data:", "#"))]
    assert outside == []
    for words in ("tiny", "accuracy", "from scratch", "models:/tiny/1"):
        assert words in page


def test_the_recipe_is_kept(runs, client, finished, tmp_path):
    path = client.download_artifacts(finished.result["run_id"], "recipe.yaml", str(tmp_path))
    text = Path(path).read_text(encoding="utf-8")
    assert "learning_rate: 0.01" in text and "name: tiny" in text


def test_the_table_fits_a_narrow_terminal(finished, warmstart, tiny):
    done = warmstart(finished.folder, "run", tiny)
    title, header, rule, *rows = done.out.splitlines()[:9]
    assert all(len(line) <= 80 for line in (title, header, rule, *rows))
    assert [row.split("  ")[0] for row in rows] == ["accuracy", "balanced accuracy", "macro f1", "auroc", "log loss ↓", "calibration ↓"]
    assert re.search(r"^ *accuracy +\d+\.\d \[[\d.]+, [\d.]+\]|^ *accuracy +100 \[100, 100\]", done.out, re.MULTILINE), done.out
    assert "compare  mlflow ui\n" in done.out and "gate: passed" in done.out
    assert "models:/tiny/1" in done.out
    assert "Traceback" not in done.err and "pretrain   reused" in done.err
