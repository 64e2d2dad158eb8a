"""The stages one by one, as plain functions: what each leaves in MLflow, and what it reuses."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows.cli import app
from ml.contracts import InputError
from ml.predictor import Predictor
from ml.recipe import parse
from ml.store import Store
from tasks.classical import classical
from tasks.evaluate import evaluate, read_evaluation
from tasks.finetune import baseline, finetune
from tasks.preprocess import preprocess
from tasks.pretrain import pretrain
from tasks.register import register
from tasks.report import report
from tasks.split import read_split, split
from tasks.stage import STAGES, dump, flat, pipeline_run, redo_from
from tasks.tracking import database, registry
from tasks.tracking.artifacts import fetch, resolve_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]

RECIPE = {
    "name": "tiny",
    "data": {"source": "sklearn-digits"},
    "backbone": {"name": "small-cnn", "options": {"width": 0.5}},
    "pretraining": {"objective": "simclr", "fit": {"epochs": 1, "batch_size": 256}},
    "splitting": {"labels_per_class": 20},
    "finetuning": {"fit": {"epochs": 8, "batch_size": 50, "learning_rate": 0.005}},
    "evaluation": {"bootstrap": 100},
    "compute": {"threads": 1},
}


def go_through(recipe, from_stage: str = "") -> dict:
    """All stages in order, without Prefect; gives the references by stage, and the summary."""
    with pipeline_run(recipe, from_stage) as run:
        dataset = preprocess.fn(recipe, run)
        backbone = pretrain.fn(dataset, recipe, run)
        splits = split.fn(dataset, recipe, run)
        model = finetune.fn(dataset, backbone, splits, recipe, run)
        scratch = baseline.fn(dataset, splits, recipe, run)
        simple = classical.fn(dataset, splits, recipe, run)
        evaluation = evaluate.fn(dataset, backbone, splits, model, scratch, simple, recipe, run)
        registered = register.fn(dataset, backbone, splits, model, evaluation, recipe, run)
        summary = report.fn(dataset, backbone, splits, model, scratch, simple, evaluation, registered, recipe, run)
    references = (dataset, backbone, splits, model, scratch, simple, evaluation, registered)
    return {"run": run, "summary": summary, **dict(zip(STAGES, references, strict=True))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with MLflow's own default database in it."""
    place = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "WARMSTART_HOME"):
            patch.delenv(name, raising=False)
        yield place


@pytest.fixture(scope="module")
def first(folder):
    return go_through(parse(RECIPE))


@pytest.fixture(scope="module")
def client(first):
    return database.client()


def test_every_stage_is_a_finished_child_of_the_pipeline_run(first, client):
    children = client.search_runs([first["run"].tracked.experiment_id], f"tags.mlflow.parentRunId = '{first['run'].tracked.run_id}'")
    assert {run.info.run_name for run in children} == set(STAGES)
    assert {run.info.status for run in children} == {"FINISHED"}


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "baseline"])
def test_trainings_leave_curves_parameters_inputs_and_pictures(first, client, stage):
    run = client.get_run(first[stage].stage.run_id)
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert len(history) >= 4 and [one.step for one in history] == sorted({one.step for one in history})
    assert {"train/learning_rate", "train/rows_per_second", "train/data_share", "rows_per_second"} <= set(run.data.metrics)
    assert {"seed", "steps", "precision_used", "backbone.name"} <= set(run.data.params)
    assert [one.dataset.digest for one in run.inputs.dataset_inputs] == [first["preprocess"].digest[:36]]
    assert fetch(run.info.run_id, "pictures/curves.png").stat().st_size > 1000


def test_the_model_beats_the_commonest_class_and_is_the_champion(first):
    assert first["summary"]["metrics"]["accuracy"]["low"] > 0.3
    assert first["register"].passed and "champion" in first["register"].aliases


def test_the_test_rows_were_never_trained_on(first):
    store = Store.open(Path(first["preprocess"].path))
    rows = read_split(first["split"])
    assert set(store.table["part"].iloc[rows.test]) == {"test"}
    assert not set(rows.test) & (set(rows.train) | set(rows.validation))
    assert read_evaluation(first["evaluate"])["seen_in_pretraining"] == 0


def test_saved_predictions_are_those_of_the_registered_model(first):
    stored = pd.read_parquet(fetch(first["evaluate"].stage.run_id, "predictions.parquet"))
    store, rows = Store.open(Path(first["preprocess"].path)), read_split(first["split"])
    predictor = Predictor.load(fetch(first["register"].uri, "artifacts/model"))
    columns = [name for name in stored if name.startswith("p_")]
    assert np.allclose(stored[columns], predictor.answers({"array": store.array[rows.test]}), atol=1e-6)


def test_a_second_run_reuses_every_stage(first):
    again = go_through(parse(RECIPE))
    assert {name: again[name].stage.run_id for name in STAGES} == {name: first[name].stage.run_id for name in STAGES}
    assert all(again[name].stage.cached and again[name].stage.why for name in STAGES)
    assert again["register"].version == first["register"].version


def test_other_fine_tuning_under_another_name_shares_the_pretraining(first):
    other = parse({**RECIPE, "name": "other", "finetuning": {**RECIPE["finetuning"], "method": "linear-probe"}})
    second = go_through(other)
    cached = {name: second[name].stage.cached for name in STAGES}
    assert cached == {"preprocess": True, "pretrain": True, "split": True, "classical": True} | dict.fromkeys(("finetune", "baseline", "evaluate", "register"), False)
    assert second["pretrain"].stage.run_id == first["pretrain"].stage.run_id


def test_a_challenger_that_is_worse_does_not_become_champion(first):
    worse = parse({**RECIPE, "finetuning": {**RECIPE["finetuning"], "fit": {"epochs": 1, "batch_size": 50, "learning_rate": 1e-5}}})
    second = go_through(worse)
    assert not second["register"].passed and second["register"].aliases == ("challenger",)
    assert any("champion" in reason for reason in second["register"].reasons)
    assert registry.champion("tiny").version == int(first["register"].version)


def test_the_champion_is_moved_and_moved_back_by_one_command(first, capsys):
    champion = registry.champion("tiny").version
    other = 3 - champion  # the two versions that the tests above made
    app(["promote", "tiny", str(other)], standalone_mode=False)
    assert registry.champion("tiny").version == other
    app(["rollback", "tiny", "--reason", "worse"], standalone_mode=False)
    assert registry.champion("tiny").version == champion
    assert [one["action"] for one in registry.audit("tiny")][-2:] == ["promote", "rollback"]
    assert f"models:/tiny/{champion} is the champion of tiny again" in capsys.readouterr().out


def test_from_a_stage_on_all_is_done_anew_and_comes_out_the_same(first):
    again = go_through(parse(RECIPE), from_stage="finetune")
    assert [again[name].stage.cached for name in STAGES] == [True] * 3 + [False] * 5
    assert again["finetune"].digest == first["finetune"].digest


def test_the_pretrained_backbone_is_registered_and_can_be_started_from(first):
    weights = resolve_weights("models:/tiny-backbone@champion")
    assert (weights / "backbone.safetensors").is_file()
    started = parse({**RECIPE, "name": "started", "weights": "models:/tiny-backbone@champion", "pretraining": {"enabled": False}})
    second = go_through(started)
    assert second["pretrain"].seen == () and second["pretrain"].digest == first["pretrain"].digest
    assert second["summary"]["model"]["name"] == "started"


def test_a_lost_store_is_built_again_with_the_same_content(first):
    import shutil

    shutil.rmtree(first["preprocess"].path)
    with pipeline_run(parse(RECIPE)) as run:
        dataset = preprocess.fn(parse(RECIPE), run)
        assert not dataset.stage.cached and "not on this machine" in dataset.stage.why
        assert dataset.digest == first["preprocess"].digest
        assert pretrain.fn(dataset, parse(RECIPE), run).stage.cached


def test_the_report_is_one_file_that_asks_no_network(first):
    page = Path(first["summary"]["report"]).read_text(encoding="utf-8")
    assert "tiny" in page and "data:image/png;base64," in page
    for word in ('src="http', "href='http", "<script src", "@import", "url(http"):
        assert word not in page


def test_the_summary_is_json_without_nan(first):
    json.dumps(first["summary"], allow_nan=False)


def test_stages_are_named_as_they_are_asked_for():
    assert redo_from("") == frozenset()
    assert redo_from("evaluate") == {"evaluate", "register"}
    with pytest.raises(InputError, match=r"unknown stage 'train'.*finetune"):
        redo_from("train")


def test_sections_are_dumped_with_the_chosen_options_defaults():
    content = flat(dump(parse(RECIPE)))
    assert content["backbone.options.width"] == 0.5
    assert content["pretraining.objective.options.temperature"] > 0
