"""Backup, destroy, restore: every alias loads and predicts the same; and what may be removed."""

import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
from PIL import Image

from ml.contracts import InputError
from ml.predictor import Predictor
from mlflow_server import backup, clean, dump
from tasks.tracking import database, registry
from tasks.tracking.artifacts import fetch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path, finished, monkeypatch):
    """A copy of a finished run's folder, whose artifacts lie in its own place, and which this process uses."""
    target = tmp_path / "team"
    shutil.copytree(finished.folder, target, ignore=shutil.ignore_patterns("mlflow.db*"))
    # Not as a file: closing one that this process has open as a database ends SQLite's locks on it, and others remove its log.
    with closing(sqlite3.connect(finished.folder / "mlflow.db")) as source, closing(sqlite3.connect(target / "mlflow.db")) as records:
        source.backup(records)
    with closing(sqlite3.connect(target / "mlflow.db")) as records, records:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("model_versions", "source"), ("model_versions", "storage_location"), ("logged_models", "artifact_location")):
            records.execute(f"update {table} set {column} = replace({column}, ?, ?)", (str(finished.folder), str(target)))
    monkeypatch.chdir(target)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{target / 'mlflow.db'}")
    monkeypatch.setenv("WARMSTART_HOME", str(target / ".warmstart"))
    database.prepare()
    yield target
    mlflow.set_tracking_uri(None)


def upkeep(folder, *arguments, code=0) -> str:
    """`python -m mlflow_server ARGUMENTS`."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", "mlflow_server", *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def answers() -> dict[str, tuple]:
    """What each alias names, and what it says of the same pictures."""
    picture = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), np.uint8)
    found = {}
    for model in database.client().search_registered_models():
        for alias, version in model.aliases.items():
            path = fetch(registry.version(model.name, version).uri, "artifacts/model" if "backbone" not in model.name else "")
            found[f"{model.name}@{alias}"] = (version, sorted(one.name for one in path.iterdir()))
            if "backbone" not in model.name:

                files = []
                for one in picture:
                    Image.fromarray(one).save(buffer := io.BytesIO(), "PNG")
                    files.append(buffer.getvalue())
                found[f"{model.name}@{alias}"] += (Predictor.load(path).predict(files).to_json(),)
    assert found
    return found


def test_backup_destroy_restore(folder, tmp_path):
    before = answers()
    upkeep(folder, "backup", str(tmp_path / "copy"))
    assert "there already" in upkeep(folder, "backup", str(tmp_path / "copy"), code=1)
    assert "holds" in upkeep(folder, "restore", str(tmp_path / "copy"), code=1), "nothing that is there is removed"
    mlflow.set_tracking_uri(None)
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    upkeep(folder, "restore", str(tmp_path / "copy"))
    database.prepare()
    assert answers() == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "removed", "no manifest", "leads out"])
def test_a_damaged_backup_restores_nothing(folder, tmp_path, damage):
    copy = tmp_path / "copy"
    upkeep(folder, "backup", str(copy))
    manifest = json.loads((copy / "manifest.json").read_text())
    victim = copy / next(name for name in manifest["files"] if name.endswith("safetensors"))
    if damage == "cut":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif damage == "flipped":
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif damage == "removed":
        victim.unlink()
    elif damage == "no manifest":
        (copy / "manifest.json").unlink()
    else:
        manifest["records"] = "../../elsewhere.sqlite"
        (copy / "manifest.json").write_text(json.dumps(manifest))
    said = upkeep(tmp_path, "restore", str(copy), "--database", f"sqlite:///{tmp_path / 'new.db'}", "--artifacts", str(tmp_path / "new"), code=1)
    assert "is damaged" in said or "is no backup" in said
    assert not (tmp_path / "new.db").exists() and not (tmp_path / "new").exists()


def test_a_bucket_goes_into_a_backup_and_back(folder, tmp_path, bucket):
    import fsspec

    files = fsspec.filesystem("s3")
    files.pipe("warmstart/served/1/a.txt", b"kept")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    backup.backup(tmp_path / "copy", uri, f"{bucket}/served", None, lambda words: None)
    with pytest.raises(InputError, match="there are artifacts in"):
        backup.restore(tmp_path / "copy", f"sqlite:///{tmp_path / 'new.db'}", f"{bucket}/served", None, lambda words: None)
    manifest = json.loads((tmp_path / "copy" / "manifest.json").read_text())
    for one in manifest["roots"]:
        if not one["served"]:
            shutil.rmtree(one["root"])
    backup.restore(tmp_path / "copy", f"sqlite:///{tmp_path / 'new.db'}", f"{bucket}/again", None, lambda words: None)
    assert files.cat_file("warmstart/again/1/a.txt") == b"kept"


def test_a_copy_while_others_write_is_one_state(folder, tmp_path):
    with closing(sqlite3.connect(folder / "mlflow.db")) as open_:
        open_.execute("insert into registered_models (name, creation_time, workspace) values ('half', 1, 'default')")
        copy = dump.dump(f"sqlite:///{folder / 'mlflow.db'}", tmp_path / "copy")
    with closing(sqlite3.connect(copy)) as found:
        assert found.execute("select count(*) from registered_models where name = 'half'").fetchone() == (0,)


def test_clean_up_keeps_what_the_registry_refers_to(folder):
    client = database.client()
    version = registry.champion("tiny")
    experiment = client.get_run(version.run_id).info.experiment_id
    loose = client.create_run(experiment)
    client.log_text(loose.info.run_id, "of no use", "note.txt")
    client.set_terminated(loose.info.run_id)
    before = answers()
    for run in client.search_runs([experiment]):
        client.delete_run(run.info.run_id)
    uri, place = f"sqlite:///{folder / 'mlflow.db'}", str(folder / "mlartifacts")
    assert clean.clean(uri, place, 30, True, lambda words: None) == ([], []), "not yet old enough"
    removed, kept = clean.clean(uri, place, 0, True, lambda words: None)
    assert loose.info.run_id in removed and version.run_id in kept and not set(removed) & set(kept)
    assert client.get_run(loose.info.run_id), "a dry run removes nothing"
    assert clean.clean(uri, place, 0, False, lambda words: None)[0] == removed
    with pytest.raises(mlflow.exceptions.MlflowException):
        client.get_run(loose.info.run_id)
    assert not fetchable(loose.info.artifact_uri)
    assert answers() == before
    assert "0 runs" in upkeep(folder, "clean", "--days", "0", "--dry-run")


def fetchable(uri: str) -> bool:
    try:
        return fetch(uri, "note.txt").exists()
    except InputError:
        return False


@pytest.mark.e2e
@pytest.mark.parametrize("point", ["register.uploaded", "register.version", "register.alias.second-backbone", "register.alias.second"])
def test_clean_up_while_a_version_is_promoted(folder, start, tiny, point):
    before = answers()
    quick = ["seed=2", "registration.model=second", "finetuning.baseline=false", "finetuning.classical=false"]
    process = start(folder, "run", tiny, "--json", *quick, crash=point, WARMSTART_CRASH_BY="SIGSTOP")
    one, deadline = psutil.Process(process.process.pid), time.monotonic() + 120
    while one.status() != psutil.STATUS_STOPPED:
        assert process.process.is_alive() and time.monotonic() < deadline, process.err
        time.sleep(0.1)
    client = database.client()
    experiment = client.get_experiment_by_name("tiny").experiment_id
    for run in client.search_runs([experiment], "attributes.status = 'FINISHED'"):
        client.delete_run(run.info.run_id)
    _, kept = clean.clean(f"sqlite:///{folder / 'mlflow.db'}", str(folder / "mlartifacts"), 0, False, lambda words: None)
    process.signal(signal.SIGCONT)
    result = process.wait().result
    assert kept
    after = answers()
    assert result["model"]["version"] == "1" and "second@champion" in after
    assert {name: after[name] for name in before} == before
    assert registry.files(registry.version("second", 1)).is_dir() and registry.files(registry.version("tiny", 1)).is_dir()
