"""`warmstart runs`, `models`, `lineage` and `compare` after real runs: what they print, and that it agrees with what was stored."""

import json
import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made import HEADS_WITHOUT_CLASSES
from mlflow import MlflowClient
from rich.console import Console

from flows import tables
from ml.evidence import paired
from ml.metrics import CLASSIFICATION

ROOT = Path(__file__).resolve().parents[2]
STEPS = ["preprocess", "pretrain", "split", "finetune", "evaluate", "register"]
QUICK = ["finetuning.baseline=false", "finetuning.classical=false"]


@pytest.fixture(scope="module")
def finished(finish):
    """Of its own: these tests move the champion."""
    return finish()


@pytest.fixture(scope="module")
def second(finished, warmstart, tiny) -> dict:
    """Another seed in the same folder: the data are reused."""
    return warmstart(finished.folder, "run", tiny, "--json", "seed=1", *QUICK).result


@pytest.fixture(scope="module")
def other_rows(finished, warmstart, tiny) -> dict:
    """A run that was measured on another test."""
    return warmstart(finished.folder, "run", tiny, "--json", "name=larger-test", "data.test_fraction=0.4", "pretraining.enabled=false", *QUICK).result


@pytest.fixture(scope="module")
def followed(finished, second, warmstart, tiny) -> dict:
    """A run that starts from the backbone that the first one registered, by a version; and one from that by an alias."""
    warmstart(finished.folder, "run", tiny, "--json", "name=middle", "weights=models:/tiny-backbone/1", "pretraining.fit.epochs=1", *QUICK)
    done = warmstart(finished.folder, "run", tiny, "--json", "name=follower", "weights=models:/middle-backbone@champion", "pretraining.fit.epochs=1", *QUICK)
    return done.result


def folder_of(finished, run_id: str) -> Path:
    client = MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    return Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))


def stage(result: dict, name: str) -> str:
    return next(one["run_id"] for one in result["stages"] if one["name"] == name)


def test_runs(finished, second, warmstart):
    found = warmstart(finished.folder, "runs", "tiny", "--json", "--limit", "1000").result["runs"]
    assert [one["started"] for one in found] == sorted((one["started"] for one in found), reverse=True)
    assert len({one["id"] for one in found}) == len(found) and {one["experiment"] for one in found} == {"tiny"}
    by_id = {one["run_id"]: one for one in found}
    for result in (finished.result, second):
        told = by_id[result["run_id"]]
        assert told["score"] == {"metric": "accuracy", **result["metrics"]["accuracy"]} and told["status"] == "finished"
        assert told["passed"] is result["verdict"]["passed"] and told["model"]["uri"] == result["model"]["uri"]
        assert warmstart(finished.folder, "compare", told["id"], told["run_id"], "--json").code == 0
    assert len(warmstart(finished.folder, "runs", "--json", "--limit", "1").result["runs"]) == 1
    done = warmstart(finished.folder, "runs", "tiny", "--limit", "1000")
    assert done.code == 0 and all(len(line) <= 80 for line in done.out.splitlines()) and finished.result["run_id"][:8] in done.out
    warmstart(finished.folder, "runs", "tinny").refused(["no experiment 'tinny'", "Known:", "tiny"])


def test_models(finished, second, warmstart):
    found = {one["name"]: one for one in warmstart(finished.folder, "models", "--json").result["models"]}
    assert {"tiny", "tiny-backbone"} <= found.keys() and all(one["notes"] == [] for one in found.values())
    [one] = warmstart(finished.folder, "models", "tiny", "--json").result["models"]
    first = one["versions"][-1]
    assert first["version"] == 1 and first["passed"] is True and first["score"]["value"] == finished.result["metrics"]["accuracy"]["value"]
    assert one["audit"][0]["to"] == 1 and one["audit"][0]["evidence"]["run"] == finished.result["run_id"]
    done = warmstart(finished.folder, "models", "tiny")
    assert "tiny/1" in done.out and f"none → 1  promote by {one['audit'][0]['user']}: run {finished.result['run_id'][:8]}" in done.out
    warmstart(finished.folder, "models", "tinny").refused(["no registered model 'tinny'", "tiny-backbone"])


def test_lineage(finished, warmstart, tmp_path):
    found = warmstart(finished.folder, "lineage", "tiny/1", "--json", "--picture", tmp_path / "one.svg").result
    assert found["uri"] == "models:/tiny/1" and found["run_id"] == finished.result["run_id"] and found["missing"] == ""
    assert {step["name"]: step["run_id"] for step in found["steps"]} == {name: finished.stages()[name] for name in STEPS}
    facts = {step["name"]: step["facts"] for step in found["steps"]}
    assert all(step["reused"] is None and step["missing"] == "" and step["weights"] is None for step in found["steps"])
    assert facts["preprocess"]["source"] == "image-folder" and facts["preprocess"]["rows"] == sum(facts["preprocess"]["parts"].values())
    assert facts["pretrain"]["objective"] == "denoising" and facts["pretrain"]["samples"] == 3 * facts["pretrain"]["rows"]
    assert facts["split"]["rows"]["test"] == finished.result["metrics"]["accuracy"]["n"]
    assert facts["evaluate"]["score"] == finished.result["metrics"]["accuracy"] and facts["evaluate"]["seen in pretraining"] == 0
    assert facts["register"]["reasons"] == finished.result["verdict"]["reasons"]
    first = found["history"][0]
    assert (first["action"], first["from"], first["to"], first["evidence"]["run"]) == ("promote", None, 1, finished.result["run_id"])
    assert "<svg" in (tmp_path / "one.svg").read_text() and [one.name for one in tmp_path.iterdir()] == ["one.svg"]
    done = warmstart(finished.folder, "lineage", "models:/tiny/1", "--picture", tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert "├── pretraining" in done.out and "promoted: the first champion" in done.out and facts["preprocess"]["store"][:16] in done.out


def test_lineage_names_the_run_that_did_what_was_reused(finished, second, warmstart):
    found = warmstart(finished.folder, "lineage", f"tiny/{second['model']['version']}", "--json").result
    reused = {step["name"]: step["reused"] for step in found["steps"]}
    assert reused["preprocess"]["run_id"] == finished.result["run_id"] and reused["preprocess"]["experiment"] == "tiny"
    assert reused["pretrain"] is None and found["steps"][1]["facts"]["seed"] == "1"


def test_lineage_follows_the_backbones_that_were_started_from(finished, followed, warmstart, tmp_path):
    found = warmstart(finished.folder, "lineage", "follower@champion", "--json", "--picture", tmp_path / "x.png").result
    [middle] = [step["weights"] for step in found["steps"] if step["weights"]]
    assert middle["uri"] == "models:/middle-backbone/1" and [step["name"] for step in middle["steps"]] == ["preprocess", "pretrain"]
    first = middle["steps"][1]["weights"]
    assert first["uri"] == "models:/tiny-backbone/1" and first["steps"][1]["run_id"] == finished.stages()["pretrain"]
    assert first["steps"][1]["weights"] is None and (tmp_path / "x.png").exists()
    assert "started from models:/middle-backbone/1" in warmstart(finished.folder, "lineage", "follower/1").out


def test_compare_agrees_with_what_was_stored(finished, second, warmstart, tmp_path):
    page = tmp_path / "page.html"
    found = warmstart(finished.folder, "compare", finished.result["run_id"], second["run_id"], "--json", "--html", page).result
    assert [one["run_id"] for one in found["runs"]] == [finished.result["run_id"], second["run_id"]]
    assert {one["path"]: one["values"] for one in found["parameters"]} == {
        "seed": [0, 1], "finetuning.baseline": [True, False], "finetuning.classical": [True, False],
    }  # fmt: skip
    assert [one["metrics"] for one in found["runs"]] == [finished.result["metrics"], second["metrics"]]
    [difference] = found["differences"]
    assert (difference["run_id"], difference["against"], difference["why_not"]) == (second["run_id"], finished.result["run_id"], "")
    predictions = [pd.read_parquet(folder_of(finished, stage(result, "evaluate")) / "predictions.parquet") for result in (finished.result, second)]
    assert list(predictions[0]["row_id"]) == list(predictions[1]["row_id"])
    classes = [name for name in predictions[0] if name.startswith("p_")]
    targets = predictions[0]["label"].map({name.removeprefix("p_"): number for number, name in enumerate(classes)}).to_numpy()
    groups = np.load(folder_of(finished, stage(second, "evaluate")) / "truth.npz")["groups"]
    for name, metric in CLASSIFICATION.items():
        own, rival = (one[classes].to_numpy() for one in reversed(predictions))
        expected, told = paired(metric, targets, own, rival, resamples=100, seed=0, groups_N=groups), difference["metrics"][name]
        assert [told[part] for part in ("value", "low", "high")] == pytest.approx([expected.value, expected.low, expected.high], abs=1e-6)
        assert told["n"] == expected.n
    text = page.read_text(encoding="utf-8")
    loads = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]+)\)|@import\s+(\S+)""", text)
    assert [one for found in loads for one in found if one and not one.startswith(("data:", "#"))] == []
    assert "<script" not in text and text.count("data:image/png") == 2 and "finetuning.baseline" in text


def test_a_run_against_itself_differs_in_nothing(finished, warmstart):
    name = finished.result["run_id"][:10]
    found = warmstart(finished.folder, "compare", name, "tiny/1", "--json").result
    assert found["parameters"] == []
    for one in found["differences"][0]["metrics"].values():
        assert (one["value"], one["low"], one["high"]) == (0, 0, 0)
    assert "the recipes are equal" in warmstart(finished.folder, "compare", name, name).out


@pytest.mark.e2e
@pytest.mark.parametrize("head", HEADS_WITHOUT_CLASSES)
def test_heads_without_classes_are_compared_too(finished_heads, warmstart, head, tmp_path):
    done = finished_heads(head)
    name = done.result["run_id"]
    found = warmstart(done.folder, "compare", name, name, "--json", "--html", tmp_path / "page.html").result
    [difference] = found["differences"]
    assert difference["why_not"] == "" and difference["metrics"].keys() == done.result["metrics"].keys()
    assert {one["value"] for one in difference["metrics"].values() if one["low"] is not None} == {0}
    assert warmstart(done.folder, "lineage", f"{done.result['model']['uri']}", "--picture", tmp_path / "from.png").code == 0


def test_other_test_rows_give_no_difference(finished, other_rows, warmstart):
    found = warmstart(finished.folder, "compare", finished.result["run_id"], other_rows["run_id"], "--json").result
    [difference] = found["differences"]
    assert "different test rows" in difference["why_not"] and difference["metrics"] == {}
    done = warmstart(finished.folder, "compare", finished.result["run_id"], other_rows["run_id"])
    assert "no difference is given: they were measured on different test rows" in done.out


def test_a_run_that_failed_is_compared_by_what_it_had_done(finished, warmstart, tiny, tmp_path):
    failed = warmstart(finished.folder, "run", tiny, "--json", "registration.model=tiny-backbone", "name=refused")
    assert failed.code != 0, "the champion of that name is a backbone: the gate cannot judge against it"
    [refused] = warmstart(finished.folder, "runs", "refused", "--json").result["runs"]
    assert refused["status"] == "failed" and refused["error"] and refused["score"] is None
    found = warmstart(finished.folder, "compare", refused["id"], finished.result["run_id"], "--json", "--html", tmp_path / "x.html").result
    assert found["runs"][0]["metrics"] == found["runs"][1]["metrics"] == finished.result["metrics"], "its stages are those of the other"
    assert {one["value"] for one in found["differences"][0]["metrics"].values()} == {0}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["lineage", "tiny"], ["expected NAME@ALIAS", "tiny/1"]),
        (["lineage", "nothing@champion"], ["no registered model 'nothing'", "tiny"]),
        (["lineage", "tiny/1", "--picture", "x.gif"], ["x.gif", ".svg"]),
        (["lineage", "tiny/1", "--picture", "no/where.svg"], ["no folder"]),
        (["compare", "abcdefabcdef"], ["two runs or more"]),
        (["compare", "abcdefabcdef", "zzzz"], ["no pipeline run 'abcdefabcdef'", "warmstart runs"]),
        (["compare", "tiny/1", "tiny/99"], ["tiny/99", "tiny/1"]),
    ],
)
def test_what_is_not_there_is_refused(finished, warmstart, command, words):
    warmstart(finished.folder, *command).refused(words)


@pytest.mark.parametrize("command", [["runs"], ["models"], ["lineage", "x@champion"], ["compare", "a", "b"]], ids=lambda command: command[0])
def test_without_a_database(warmstart, tmp_path, command):
    warmstart(tmp_path, *command).refused(["no MLflow database", "warmstart run"])
    assert list(tmp_path.iterdir()) == []


def test_looking_loads_neither_torch_nor_prefect(finished, environment):
    program = "import sys\nfrom flows.cli import app\n"
    program += "for words in (['runs', '--json'], ['models'], ['lineage', 'tiny/1']):\n    app(words, standalone_mode=False)\n"
    program += "sys.exit(','.join({'torch', 'prefect', 'matplotlib'} & sys.modules.keys()) or 0)"
    given = {**environment, "PYTHONPATH": os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", program], cwd=finished.folder, env=given, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_names_are_no_markup_and_move_no_cursor(monkeypatch):
    shown = StringIO()
    monkeypatch.setattr(tables, "Console", lambda: Console(file=shown, width=200, force_terminal=True, color_system=None))
    hostile = "[red]x[/red]\x1b[2J\n[/]"
    run = {"id": "1", "run_id": "1", "experiment": hostile, "started": "2026-01-01T00:00:00", "status": "dead", "seconds": None, "score": None, "passed": None, "model": {"name": hostile, "version": "1"}}
    tables.show_runs({"runs": [run]})
    version = {"version": 1, "aliases": [hostile], "created": "2026-01-01T00:00:00", "passed": True, "score": {"metric": hostile, "value": 0.5, "low": None, "high": None}}
    audit = [{"action": "noticed", "time": "2026-01-01T00:00:00", "user": hostile, "from": 1, "to": None}, {"action": "promote", "time": "2026-01-01T00:00:00", "user": hostile, "from": None, "to": 1, "evidence": {"reason": hostile}}]
    tables.show_models({"models": [{"name": hostile, "count": 2, "versions": [version], "notes": [hostile], "audit": audit}]})
    described = run | {"metrics": {hostile: {"value": 0.5, "low": 0.1, "high": 0.9}}, "data": {"store": hostile}, "missing": {hostile: hostile}}
    compared = {"runs": [described, described], "parameters": [{"path": hostile, "values": [hostile, None]}], "differences": [{"why_not": hostile}]}
    tables.show_comparison(json.loads(json.dumps(compared)), [hostile, "b"])
    text = shown.getvalue()
    assert "\x1b[2J" not in text and "\n[/]" not in text and text.count("[red]x[/red]") >= 12
