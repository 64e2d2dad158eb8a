"""The tracking database is whole or not there, whoever starts at once; what cannot be used says so in one line."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from ml.contracts import InputError
from ml.masking import mask
from tasks.tracking import database, runs

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    yield
    mlflow.set_tracking_uri(None)


def test_eight_at_once_on_an_empty_folder(processes, tmp_path):
    started = [processes("start_runs", number) for number in range(8)]
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * 8
    database.prepare()
    client = database.client()
    ids = {client.get_experiment_by_name("eight").experiment_id}
    found = runs.search(list(ids), "")
    assert len(found) == 16
    assert {run.info.status for run in found} == {"FINISHED"}
    stages = [run for run in found if run.data.tags["warmstart.kind"] == "stage"]
    assert [len(client.get_metric_history(run.info.run_id, "loss")) for run in stages] == [20] * 8


def test_default_is_mlflows_own_in_the_working_folder(monkeypatch, template, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "mlflow.db").write_bytes(template.read_bytes())
    assert database.prepare() == f"sqlite:///{tmp_path}/mlflow.db"
    experiment = database.client().get_experiment(database.experiment("mine"))
    assert experiment.artifact_location == f"{tmp_path}/mlruns/{experiment.experiment_id}"
    assert database.experiment("mine") == experiment.experiment_id


def test_standard_output_stays_clean_and_no_run_id_is_inherited(tmp_path):
    code = "from tasks.tracking import database, runs, stages, registry, artifacts; import os; before = dict(os.environ)\n"
    code += "assert not os.listdir(); database.prepare()\n"
    code += "with runs.pipeline_run('a', 'x') as run: print(run.run_id)\n"
    code += "assert 'MLFLOW_RUN_ID' not in os.environ"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_RUN_ID": "0" * 32}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("content", "message"), [(b"not a database, but a text that is long enough " * 50, "is damaged"), (None, "is damaged")], ids=["text", "flipped page"]
)
def test_damaged_file(content, message, template, tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_bytes(content or template.read_bytes())
    if content is None:
        with path.open("r+b") as file:
            file.seek(4096 * 3)
            file.write(os.urandom(4096 * 20))
    with pytest.raises(InputError, match=message):
        database.prepare()


def test_a_log_left_by_a_database_that_was_removed_does_not_get_into_the_next(template, tmp_path):
    path, log = tmp_path / "mlflow.db", tmp_path / "mlflow.db-wal"
    path.write_bytes(template.read_bytes())
    database.prepare()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE large (x); INSERT INTO large SELECT randomblob(100000) FROM (VALUES (1), (2), (3))")
        left = log.read_bytes()
    path.unlink()
    log.write_bytes(left)
    database.prepare()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'large'").fetchone() == (0,)


def test_held_by_another_process_is_waited_for(template, tmp_path, monkeypatch):
    path = tmp_path / "mlflow.db"
    path.write_bytes(template.read_bytes())
    database.prepare()
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        from threading import Timer

        release = Timer(1.0, holder.execute, ["ROLLBACK"])
        release.start()
        assert database.experiment("waited")
        release.join()


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot keep MLflow's database"):
            database.prepare()
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_is_a_file(monkeypatch, tmp_path):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/taken/mlflow.db")
    with pytest.raises(InputError, match="cannot keep MLflow's database"):
        database.prepare()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://user:hunter22@127.0.0.1:9", r"unreachable MLflow at http://\*\*\*@127.0.0.1:9"),
        ("postgresql://user:hunter22@127.0.0.1:9/mlflow", r"unreachable MLflow database postgresql\+psycopg://\*\*\*@127.0.0.1:9/mlflow"),
        ("sqlite://", "keeps nothing"),
        ("./mlruns", "migrate-filestore"),
    ],
)
def test_what_cannot_be_used_is_named_without_its_password(uri, message, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=message) as caught:
        database.prepare(0.1)
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(("given", "seconds"), [("", 7.0), (" 90 ", 90.0), ("0", 0.0), ("3600.5", 3600.5)])
def test_how_long_mlflow_is_waited_for(given, seconds, monkeypatch):
    monkeypatch.setenv(database.PATIENCE, given)
    assert database.patience(7.0) == seconds


@pytest.mark.parametrize("given", ["an hour", "-1", "inf", "nan", "1e3", "٣"])
def test_a_time_to_wait_that_is_none_is_told(given, monkeypatch):
    monkeypatch.setenv(database.PATIENCE, given)
    with pytest.raises(InputError, match="expected seconds"):
        database.patience(7.0)


def test_a_deleted_experiment_is_named(tracked):
    database.client().delete_experiment(database.experiment("gone"))
    with pytest.raises(InputError, match="was deleted"):
        database.experiment("gone")


def test_mask(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "abcdef123")
    assert mask("postgresql://me:pw@host/x?password=qq&a=1 abcdef123") == "postgresql://***@host/x?password=***&a=1 ***"
