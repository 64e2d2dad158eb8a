"""Runs and models are found by what people type, shown with what became of them, and what is gone is told as gone."""

import subprocess
import sys
import time
from dataclasses import replace

import pytest
from tracking_models import register_tiny

from ml.contracts import InputError
from tasks.tracking import database, history, lease, listing, registry, runs
from tasks.tracking.lineage import by_hand, lineage
from tasks.tracking.stages import run_stage


def stage_of(pipeline, name, key, folder, **inputs):
    def body(stage):
        stage.log_text("weights", "model/weights.txt")
        return {"digest": key}

    return run_stage(pipeline, name, key=key, params={"seed": 0}, inputs=inputs, workroot=folder / "work", body=body)


@pytest.fixture
def pipeline(tracked):
    with runs.pipeline_run("letters", "name: letters\nseed: 3\n", 3) as run:
        stage_of(run, "preprocess", "k1", tracked, source="s1")
        stage_of(run, "pretrain", "k2", tracked, dataset="d1")
    return run


def test_where_there_is_no_database_none_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with pytest.raises(InputError, match=r"no MLflow database .*mlflow.db yet.*warmstart run"):
        database.look()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database(tracked):
    assert listing.pipelines("", 5) == {"runs": []} and listing.models() == {"models": []}
    with pytest.raises(InputError, match=r"no pipeline run 'abc'. Known: none yet"):
        history.run("abc")
    with pytest.raises(InputError, match=r"no registered model 'x'. Known: none yet"):
        history.version("x@champion")
    with pytest.raises(InputError, match=r"no experiment 'x'. Known: Default"):
        listing.pipelines("x", 5)


def test_a_run_is_found_by_the_beginning_of_its_id(pipeline):
    for name in (pipeline.run_id, pipeline.run_id[:8]):
        assert history.run(name).info.run_id == pipeline.run_id
    stage = history.stages(history.run(pipeline.run_id))["pretrain"]
    for name in (stage.run_id, stage.run_id[:12]):
        with pytest.raises(InputError, match=f"stage .pretrain., of the pipeline run {pipeline.run_id[:8]}"):
            history.run(name)
    for name in ("zzz", "%", "a' OR 'b", "", "0" * 40):
        with pytest.raises(InputError, match=rf"no pipeline run .*Known: {pipeline.run_id[:8]} \(letters\)"):
            history.run(name)


def test_a_beginning_of_several_runs_names_them(tracked):
    made = []
    while len({one[0] for one in made}) == len(made):
        with runs.pipeline_run("letters", "name: letters\n") as run:
            made.append(run.run_id)
    both = [one for one in made if one[0] == made[-1][0]]
    with pytest.raises(InputError, match="beginning of several runs") as raised:
        history.run(made[-1][0])
    assert all(one[:8] in str(raised.value) for one in both)
    assert len({one["id"] for one in listing.pipelines("", 50)["runs"]}) == len(made)
    assert [one["run_id"] for one in listing.pipelines("letters", 1)["runs"]] == [made[-1]]


def test_how_runs_ended(tracked):
    with pytest.raises(RuntimeError), runs.pipeline_run("letters", "name: letters\n"):
        raise RuntimeError("[bold]no\nmore")
    with pytest.raises(KeyboardInterrupt), runs.pipeline_run("letters", "name: letters\n"):
        raise KeyboardInterrupt
    child = subprocess.Popen([sys.executable, "-c", ""])
    held = replace(lease.Lease.mine(), pid=child.pid, started=1)
    child.wait()
    tags = {"warmstart.kind": "pipeline", lease.TAG: held.dump()}
    for one in (held, replace(held, host="elsewhere"), replace(held, host="elsewhere", beat=time.time() - 1000)):
        time.sleep(0.002)  # the order is that of the milliseconds
        runs.create_run(database.experiment("letters"), "letters", tags | {lease.TAG: one.dump()})
    with runs.pipeline_run("others", "name: others\n"):
        found = listing.pipelines("", 9)["runs"]
    assert [one["status"] for one in found] == ["running", "dead", "running", "dead", "interrupted", "failed"]
    assert found[-1]["error"] == "RuntimeError: [bold]no" and found[0]["seconds"] is None
    assert listing.pipelines("letters", 9)["runs"][0]["status"] == "dead", "looking changes nothing"


def test_a_stage_of_an_earlier_run_is_told_as_reused(pipeline, tracked):
    with runs.pipeline_run("letters", "name: letters\n") as second:
        stage_of(second, "preprocess", "k1", tracked, source="s1")
    found = history.stages(history.run(second.run_id))
    assert list(found) == ["preprocess"] and found["preprocess"].reused and found["preprocess"].inputs == {"source": "s1"}
    assert found["preprocess"].run_id == history.stages(history.run(pipeline.run_id))["preprocess"].run_id


def test_lineage_of_what_was_deleted(pipeline, tracked):
    """Version, pipeline and stages go one by one; what is left is told, and what is not is told as missing."""
    client = database.client()
    found = history.stages(history.run(pipeline.run_id))
    client.create_registered_model("letters-backbone")
    client.create_model_version("letters-backbone", found["pretrain"].run.info.artifact_uri, found["pretrain"].run_id)
    whole = lineage("letters-backbone/1")
    assert [step["name"] for step in whole["steps"]] == ["preprocess", "pretrain"] and whole["missing"] == "" and whole["experiment"] == "letters"
    assert [step["missing"] for step in whole["steps"]] == ["", ""]
    data = found["pretrain"].file("") / "data.json"
    for damaged in (b"\xff\xfe", b"[1]", b"{"):
        data.write_bytes(damaged)
        assert found["pretrain"].content("data.json") is None
    folder = found["pretrain"].file("model")
    (folder / "weights.txt").unlink()
    assert lineage("letters-backbone/1")["steps"][1]["missing"] == "1 of its 1 files were deleted: model/weights.txt"
    found["preprocess"].file("manifest.json").unlink()
    assert lineage("letters-backbone/1")["steps"][0]["missing"] == "its artifacts were deleted"
    client.delete_run(found["pretrain"].run_id)
    assert "mlflow runs restore" in lineage("letters-backbone/1")["steps"][1]["missing"]
    client.delete_run(found["preprocess"].run_id)
    assert lineage("letters-backbone/1")["steps"][0]["missing"] == "there is no record of it any more"
    client.delete_run(pipeline.run_id)
    assert lineage("letters-backbone/1")["missing"] == "the pipeline run was deleted"
    client.create_model_version("letters-backbone", str(tracked), "0123456789abcdef0123456789abcdef")
    gone = lineage("letters-backbone/2")
    assert gone["steps"] == [] and gone["missing"] == "the run that registered it was deleted"


def test_models_with_an_alias_moved_by_hand(pipeline, tracked):
    for key in ("k1", "k2", "k3"):
        register_tiny("tiny", pipeline.run_id, key, tracked / "model")
    registry.promote("tiny", 1, None, {"reason": "first"})
    database.client().set_registered_model_alias("tiny", "champion", "2")
    [one] = listing.models()["models"]
    assert one["count"] == 3 and [version["version"] for version in one["versions"]] == [3, 2], "those with aliases"
    [note] = one["notes"]
    assert note.startswith("the alias champion was moved by hand (outside Warmstart) from version 1 to version 2, some time after 20")
    [one] = listing.models("tiny")["models"]
    assert [version["version"] for version in one["versions"]] == [3, 2, 1]
    assert [(entry["from"], entry["to"], entry["evidence"]) for entry in one["audit"]] == [(None, 1, {"reason": "first"})]
    assert lineage("tiny@champion")["notes"] == [note] == lineage("tiny/1")["notes"] and lineage("tiny/3")["notes"] == []
    registry.promote("tiny", 3, 2, {})
    assert listing.models("tiny")["models"][0]["notes"] == []
    assert [entry["action"] for entry in lineage("tiny/2")["history"]] == ["noticed", "promote"]
    with pytest.raises(InputError, match=r"tiny has tiny/1, tiny/2, tiny/3, .*tiny@champion"):
        history.version("tiny/7")
    with pytest.raises(InputError, match=r"no registered model 'tin'. Known: tiny"):
        listing.models("tin")
    assert by_hand({"from": 2, "to": None, "after": 0.0}).endswith("away from version 2, some time after 1970-01-01T00:00:00+00:00")
