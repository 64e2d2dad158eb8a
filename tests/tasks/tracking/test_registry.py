"""A version is offered whole or not at all, a kill anywhere is made good by the same call, and one promotion of many wins."""

import signal

import mlflow
import pandas as pd
import pytest
from often import times
from tracking_models import register_tiny
from tracking_workers import read

from ml.contracts import InputError
from tasks.tracking import artifacts, database, registry, runs


@pytest.fixture
def run(tracked):
    return runs.create_run(database.experiment("registry"), "register", {})


def test_a_version_serves_and_is_found_by_its_key(run, tmp_path):
    first = register_tiny("tiny", run.info.run_id, "k1", tmp_path / "model")
    assert (first.version, first.aliases, first.tags["seed"]) == (1, ("challenger",), "0")
    loaded = mlflow.pyfunc.load_model("models:/tiny@challenger")
    assert loaded.predict(pd.DataFrame({"x": [2.0]})).tolist() == [6.0]
    assert loaded.metadata.signature.inputs.input_names() == ["x"]
    assert (artifacts.fetch("models:/tiny@challenger", "artifacts/model") / "model.json").is_file()
    assert register_tiny("tiny", run.info.run_id, "k1", tmp_path / "model") == first
    second = register_tiny("tiny", run.info.run_id, "k2", tmp_path / "model")
    assert (second.version, second.aliases) == (2, ("challenger",))
    assert registry.version("tiny", 1).aliases == ()


def test_a_version_that_fails_its_check_is_not_offered(run, tmp_path):
    seen = []

    def refuse(uri: str) -> None:
        seen.append((uri, registry.version("tiny", 1).aliases))
        raise ValueError("differs")

    with pytest.raises(ValueError, match="differs"):
        register_tiny("tiny", run.info.run_id, "k1", tmp_path / "model", check=refuse)
    assert seen == [("models:/tiny/1", ())]
    assert registry.version("tiny", 1).aliases == () and registry.champion("tiny", "challenger") is None


def test_promotion_and_rollback(run, tmp_path):
    for key in ("k1", "k2", "k3"):
        register_tiny("tiny", run.info.run_id, key, tmp_path / "model")
    assert registry.champion("tiny") is None and registry.champion("unknown") is None
    assert registry.promote("tiny", 1, None, {"passed": True}).aliases == ("champion",)
    registry.promote("tiny", 2, 1, {"passed": True})
    assert registry.promote("tiny", 2, 1, {"passed": True}).version == 2  # again, as after a kill
    assert registry.champion("tiny", "previous").version == 1
    with pytest.raises(registry.Outrun, match="is version 2, not 1"):
        registry.promote("tiny", 3, 1, {})
    assert registry.rollback("tiny", {"why": "wrong"}).version == 1
    assert (registry.champion("tiny").version, registry.champion("tiny", "previous").version) == (1, 2)
    log = [(entry["action"], entry["from"], entry["to"], entry["done"]) for entry in registry.audit("tiny")]
    assert log == [("promote", None, 1, True), ("promote", 1, 2, True), ("rollback", 2, 1, True)]
    assert registry.audit("tiny")[2]["evidence"] == {"why": "wrong"}


def test_an_alias_moved_by_hand_is_honoured_and_noted(run, tmp_path):
    client = database.client()
    for key in ("k1", "k2", "k3"):
        register_tiny("tiny", run.info.run_id, key, tmp_path / "model")
    client.set_registered_model_alias("tiny", "champion", "1")
    assert registry.moved_by_hand("tiny") is None, "there is nothing to compare it with yet"
    registry.promote("tiny", 1, None, {})
    assert registry.moved_by_hand("tiny") is None
    client.set_registered_model_alias("tiny", "champion", "3")
    moved = registry.moved_by_hand("tiny")
    assert (moved["from"], moved["to"], moved["after"]) == (1, 3, registry.audit("tiny")[-1]["time"])
    with pytest.raises(registry.Outrun, match="is version 3, not 1"):
        registry.promote("tiny", 2, 1, {})
    assert registry.champion("tiny").version == 3, "honoured"
    registry.promote("tiny", 2, 3, {"why": "judged against 3"})
    assert registry.champion("tiny", "previous").version == 3 and registry.moved_by_hand("tiny") is None
    assert moves("tiny") == [("promote", None, 1), ("noticed", 1, 3), ("promote", 3, 2)], "noted once"
    client.delete_registered_model_alias("tiny", "champion")
    assert registry.moved_by_hand("tiny") | {"after": 0} == {"from": 2, "to": None, "after": 0}
    registry.promote("tiny", 1, None, {})
    assert moves("tiny")[3:] == [("noticed", 2, None), ("promote", None, 1)]


def test_rollback_notes_it_too_and_a_promotion_of_what_was_set_by_hand_keeps_the_way_back(run, tmp_path):
    client = database.client()
    for key in ("k1", "k2", "k3"):
        register_tiny("tiny", run.info.run_id, key, tmp_path / "model")
    registry.promote("tiny", 1, None, {})
    client.set_registered_model_alias("tiny", "champion", "2")
    registry.promote("tiny", 2, 2, {"reason": "seen in the UI"})
    assert moves("tiny")[1:] == [("noticed", 1, 2), ("promote", 1, 2)]
    assert registry.champion("tiny", "previous").version == 1
    client.set_registered_model_alias("tiny", "champion", "3")
    assert registry.rollback("tiny", {}).version == 1, "the alias says what is previous"
    assert moves("tiny")[3:] == [("noticed", 2, 3), ("rollback", 3, 1)]


def test_a_promotion_that_was_killed_is_no_move_by_hand(tracked, processes):
    for name, point in (("tiny", "register.version"), ("tiny", "register.alias.tiny")):
        process = processes("register", name, "k", "done", "model", crash=point)
        process.join(60)
        assert registry.moved_by_hand(name) is None
    processes("register", "tiny", "k", "done", "model").join(60)
    assert registry.champion("tiny").version == 1 and "noticed" not in [action for action, *_ in moves("tiny")]


def moves(name):
    return [(entry["action"], entry["from"], entry["to"]) for entry in registry.audit(name)]


def test_nothing_to_roll_back_to(run, tmp_path):
    register_tiny("tiny", run.info.run_id, "k1", tmp_path / "model")
    registry.promote("tiny", 1, None, {})
    with pytest.raises(InputError, match="no version to go back to"):
        registry.rollback("tiny", {})


def test_a_damaged_version_is_neither_promoted_nor_reused(run, tmp_path):
    one = register_tiny("tiny", run.info.run_id, "k1", tmp_path / "model")
    folder = artifacts.local_folder(database.client().get_model_version_download_uri("tiny", "1"))
    (folder / "artifacts" / "model" / "model.json").write_text('{"factor": 4.0}')
    with pytest.raises(InputError, match="damaged"):
        registry.promote("tiny", one.version, None, {})
    assert registry.champion("tiny") is None
    assert register_tiny("tiny", run.info.run_id, "k1", tmp_path / "model").version == 2


@pytest.mark.parametrize(("point", "versions"), [("register.uploaded", 1), ("register.version", 1), ("register.alias.tiny", 1)])
def test_killed_between_upload_and_audit(point, versions, tracked, processes):
    first = processes("register", "tiny", "k", "done", "model", crash=point)
    first.join(60)
    assert first.exitcode == -signal.SIGKILL
    again = processes("register", "tiny", "k", "done", "model")
    again.join(60)
    assert again.exitcode == 0 and read("done") == 1
    assert len(database.client().search_model_versions("name = 'tiny'")) == versions
    assert registry.champion("tiny").aliases == ("champion",)
    assert registry.audit("tiny")[-1]["done"]
    assert mlflow.pyfunc.load_model("models:/tiny@champion").predict(pd.DataFrame({"x": [1.0]})).tolist() == [3.0]


@pytest.mark.chaos
@pytest.mark.timeout(3600)  # 100 rounds of it
def test_of_eight_promotions_at_once_one_wins(run, tmp_path, processes):
    for number in range(9):
        register_tiny("tiny", run.info.run_id, f"k{number}", tmp_path / "model")
    registry.promote("tiny", 1, None, {})
    for turn in range(times(2, 5)):
        before = registry.champion("tiny").version
        others = [number for number in range(1, 10) if number != before]
        started = [processes("promote", "tiny", number, before, f"won-{turn}-{number}") for number in others]
        for process in started:
            process.join(60)
        [winner] = [number for number in others if read(f"won-{turn}-{number}")]
        assert registry.champion("tiny").version == winner
        assert registry.champion("tiny", "previous").version == before
        assert [entry["to"] for entry in registry.audit("tiny")][-1] == winner


def test_backbones_by_uri(run, tmp_path):
    run_id = run.info.run_id
    for name in ("backbone.safetensors", "backbone.json"):
        (tmp_path / name).write_text(name)
        database.client().log_artifact(run_id, str(tmp_path / name), "backbone")
    one = registry.register_backbone("digits-backbone", run_id=run_id, key="b1")
    assert registry.register_backbone("digits-backbone", run_id=run_id, key="b1") == one and one.aliases == ("champion",)
    for uri in ("models:/digits-backbone@champion", "models:/digits-backbone/1", f"runs:/{run_id}", f"runs:/{run_id}/backbone"):
        assert (artifacts.resolve_weights(uri) / "backbone.safetensors").read_text() == "backbone.safetensors"
    database.client().log_text(run_id, "x", "other/file")
    for uri, message in (
        ("models:/nothing@champion", "not in the registry"),
        ("models:/digits-backbone/7", "not in the registry"),
        (f"runs:/{run_id}/other", "no backbone.safetensors"),
        ("runs:/0123", "no run '0123'"),
        ("s3://x", "expected models:/"),
    ):
        with pytest.raises(InputError, match=message):
            artifacts.resolve_weights(uri)


def test_who_made_a_backbone_the_champion_stands_in_the_audit(run, tmp_path):
    run_id = run.info.run_id
    (tmp_path / "backbone.json").write_text("{}")
    database.client().log_artifact(run_id, str(tmp_path / "backbone.json"), "backbone")
    one, other = (registry.register_backbone("audited-backbone", run_id=run_id, key=key) for key in ("b1", "b2"))
    registry.register_backbone("audited-backbone", run_id=run_id, key="b1")
    moves = [(entry["from"], entry["to"], entry["evidence"], entry["done"]) for entry in registry.audit("audited-backbone")]
    assert moves == [(before, to, {"run": run_id}, True) for before, to in ((None, one.version), (one.version, other.version), (other.version, one.version))]
    assert registry.rollback("audited-backbone", {"reason": "complaints"}).version == other.version
