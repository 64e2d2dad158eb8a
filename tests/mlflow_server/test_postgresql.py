"""A private cluster: made once, reached by its owner alone, and found again."""

import os
import shutil
import subprocess
import time

import psycopg
import pytest

from ml.contracts import InputError
from mlflow_server import dump, postgresql


@pytest.fixture(scope="module")
def private(installed, place):
    """A cluster that answers."""
    one = postgresql.cluster(place)
    user = {"user": one.user, "group": one.user, "extra_groups": []} if one.user else {}
    process = subprocess.Popen(one.command, cwd="/", stderr=subprocess.DEVNULL, **user)
    deadline = time.monotonic() + 60
    while subprocess.run(one.probe, check=False, capture_output=True).returncode:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    yield one
    process.terminate()
    process.wait(30)
    shutil.rmtree(one.socket, ignore_errors=True)


def test_it_answers_its_owner_through_the_socket_alone(private):
    with psycopg.connect(private.url("mlflow")) as connection:
        assert connection.execute("show listen_addresses").fetchone() == ("",)
        assert {name for (name,) in connection.execute("select datname from pg_database")} >= {"mlflow", "prefect"}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can try as another user")
def test_another_user_cannot_connect(private):
    program = private.binaries / "psql"
    tried = subprocess.run([str(program), private.url("mlflow"), "-c", "select 1"], user="nobody", group="nogroup", extra_groups=[], cwd="/", capture_output=True, text=True, check=False)
    assert tried.returncode != 0 and "Permission denied" in tried.stderr


def test_it_is_found_again(private, place):
    assert postgresql.cluster(place) == private


def test_a_version_that_is_not_installed_is_told(private, place, monkeypatch):
    monkeypatch.setattr(postgresql, "installed", lambda: {"99": private.binaries})
    with pytest.raises(InputError, match=r"was made by PostgreSQL \d+, found are 99. Install it"):
        postgresql.cluster(place)


def test_somebody_elses_socket_folder_is_refused(installed, tmp_path, monkeypatch):
    monkeypatch.setattr(postgresql.tempfile, "gettempdir", lambda: str(tmp_path))
    path = postgresql._socket(tmp_path, "")
    path.chmod(0o755)
    with pytest.raises(InputError, match="open to others"):
        postgresql._socket(tmp_path, "")


def test_a_database_goes_into_a_file_and_back(private, tmp_path):
    with psycopg.connect(private.url("mlflow"), autocommit=True) as connection:
        connection.execute("create table runs (name text)")
        connection.execute("insert into runs values ('kept')")
        uri = private.url("mlflow", "psycopg")
        file = dump.dump(uri, tmp_path / "copy")
        with pytest.raises(InputError, match="holds 1 runs already"):
            dump.load(uri, file)
        connection.execute("delete from runs")
        dump.load(uri, file)
        assert connection.execute("select name from runs").fetchall() == [("kept",)]
        connection.execute("drop table runs")
    with pytest.raises(InputError, match="of another kind of database"):
        dump.load(f"sqlite:///{tmp_path / 'x.db'}", file)
