"""The tracking server: unsafe settings are refused, and one with passwords lets nobody in without."""

import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from base64 import b64encode
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import mlflow
import pytest
from team import status

from ml.contracts import InputError
from mlflow_server import credentials
from mlflow_server.__main__ import server
from mlflow_server.tracking import Server
from tasks.hosts import loopback
from tasks.reach import wait_for
from tasks.tracking import database

ROOT = Path(__file__).resolve().parents[2]
OWN = "correct horse battery"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "can be reached by others"),
        (["--host", "::"], "can be reached by others"),
        (["--host", "example.org"], "can be reached by others"),
        (["--workers", "2"], "one writer at a time"),
        (["--allowed-host", "*"], "every page in the web"),
        (["--allowed-origin", "*"], "every page in the web"),
        (["--auth"], "MLFLOW_AUTH_ADMIN_PASSWORD is weak"),
        (["--auth", "--host", "0.0.0.0"], "MLFLOW_AUTH_ADMIN_PASSWORD is weak"),
    ],
)
def test_unsafe_settings_are_refused(arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "password1234")
    with pytest.raises(InputError, match=message):
        server(arguments)
    assert not (tmp_path / "mlflow.db").exists()


def test_secrets_are_made_once_for_their_owner_alone(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_AUTH_ADMIN_PASSWORD", raising=False)
    one = Server(host="0.0.0.0", auth=True, folder=tmp_path / "secrets")
    one.check()
    first, again = one.environment(), one.environment()
    assert first == again and len(first["MLFLOW_AUTH_ADMIN_PASSWORD"]) >= 24
    for path in (tmp_path / "secrets").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    secrets = (first["MLFLOW_AUTH_ADMIN_PASSWORD"], first["MLFLOW_FLASK_SERVER_SECRET_KEY"])
    assert not any(secret in " ".join(one.command()) for secret in secrets), "command lines can be read by all"
    (tmp_path / "secrets" / "admin-password").chmod(0o644)
    with pytest.raises(InputError, match="can be read by others"):
        one.check()


def test_a_secret_that_was_cut_off_is_refused(tmp_path):
    (tmp_path / "key").write_text("short")
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(InputError, match="a secret of 5 characters"):
        credentials.kept(tmp_path, "key")


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("10.0.0.1", False), ("localhost.example.org", False)])
def test_loopback(host, expected):
    assert loopback(host) is expected


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server with passwords, and a user `reader` beside the administrator."""
    folder = tmp_path_factory.mktemp("auth")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")} | {"PYTHONPATH": str(ROOT), "MLFLOW_AUTH_ADMIN_PASSWORD": OWN}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "log").open("w") as log:
        line = [sys.executable, "-m", "mlflow_server", "--port", str(port), "--auth", "--allowed-host", "models.example.org"]
        process = subprocess.Popen(line, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", "the server", "", 180)
        where = f"http://127.0.0.1:{port}"
        assert ask(where, "POST", "/api/2.0/mlflow/users/create", {"username": "reader", "password": "another long one"}, "admin") == 200
        assert OWN not in (folder / "log").read_text()
        yield where
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(url, method, path, content=None, user=None, **headers) -> int:
    """The status of a request."""
    if user:
        headers["Authorization"] = "Basic " + b64encode(f"{user}:{ {'admin': OWN, 'reader': 'another long one'}.get(user, 'guess guess guess') }".encode()).decode()
    return status(url + path, method, content, **headers)


def routes() -> list[tuple[str, str]]:
    """All routes of MLflow's application, as their tables have them, with something in the place of each variable."""
    program = "\n".join([
        "from mlflow.server.auth import create_app",
        "from mlflow.server import app",
        "from mlflow.server.fastapi_app import create_fastapi_app",
        "found = [(rule.methods, rule.rule) for rule in app.url_map.iter_rules()]",
        "found += [(route.methods, route.path) for route in create_fastapi_app(app).routes if getattr(route, 'methods', None)]",
        "print(*(f'{method} {path}' for methods, path in found for method in methods - {'HEAD', 'OPTIONS'}), sep=chr(10))",
    ])  # fmt: skip
    environment = {**os.environ, "MLFLOW_FLASK_SERVER_SECRET_KEY": "k" * 30}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, env=environment, check=True)
    return sorted({(line.split()[0], re.sub(r"<[^>]*>|{[^}]*}", "1", line.split()[1])) for line in done.stdout.splitlines() if line.startswith(("GET /", "POST /", "PUT /", "PATCH /", "DELETE /"))})


# What says nothing of anybody's work: that it lives, its version, the files of its pages.
OPEN = ("/health", "/version", "/static-files/1", "/api/3.0/mlflow/server-info", "/ajax-api/3.0/mlflow/server-info")


def test_no_route_answers_without_a_password(url):
    found = {(method, path): ask(url, method, path) for method, path in routes() if path not in OPEN}
    assert len(found) > 100
    assert not {route: status for route, status in found.items() if status not in (401, 403)}


@pytest.mark.parametrize("user", ["nobody", "admin2", "reader2"])
def test_a_wrong_password_is_refused(url, user):
    assert ask(url, "POST", "/api/2.0/mlflow/experiments/search", {"max_results": 1}, user) == 401


def test_a_password_in_the_address_is_used_and_not_told(url):
    program = "from tasks.tracking import database\ndatabase.prepare()\ndatabase.experiment('addressed')\nprint(database.uri())"
    for password, words in ((OWN, "http://***@127.0.0.1:"), ("guess guess guess", "Check MLFLOW_TRACKING_URI and its user name and password")):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": url.replace("://", f"://admin:{quote(password)}@")}
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, env=environment, check=False)
        said = done.stdout + done.stderr.strip().splitlines()[-1] if done.returncode else done.stdout
        assert (done.returncode == 0) == (password == OWN), done.stderr
        assert words in said and password not in said and quote(password) not in said


def test_a_forged_host_and_a_foreign_page_are_refused(url):
    path, content = "/api/2.0/mlflow/experiments/search", {"max_results": 1}
    assert ask(url, "POST", path, content, "admin") == 200
    assert ask(url, "POST", path, content, "admin", Host="models.example.org") == 200
    assert ask(url, "POST", path, content, "admin", Host="evil.example.org") == 403
    assert ask(url, "POST", path, content, "admin", Host="192.168.1.7") == 403
    assert ask(url, "POST", path, content, "admin", Origin="https://evil.example.org") == 403


def test_who_does_not_own_a_model_cannot_move_its_champion(url):
    move = {"name": "digits", "alias": "champion", "version": "1"}
    assert ask(url, "POST", "/api/2.0/mlflow/registered-models/create", {"name": "digits"}, "admin") == 200
    assert ask(url, "POST", "/api/2.0/mlflow/model-versions/create", {"name": "digits", "source": "models:/m-1"}, "admin") in (200, 400, 404)
    for path, method in (("registered-models/alias", "POST"), ("registered-models/alias", "DELETE"), ("registered-models/delete", "DELETE"), ("registered-models/set-tag", "POST")):
        assert ask(url, method, f"/api/2.0/mlflow/{path}", {**move, "key": "a", "value": "b"}, "reader") == 403
    assert ask(url, "GET", "/api/2.0/mlflow/registered-models/get?name=digits", None, "reader") == 200


@pytest.mark.parametrize("source", ["/etc", "file:///etc", "../../etc", "mlflow-artifacts:/../../etc", "http://169.254.169.254/latest"])
def test_a_version_cannot_name_files_of_the_server(url, source):
    ask(url, "POST", "/api/2.0/mlflow/registered-models/create", {"name": "thief"}, "admin")
    made = ask(url, "POST", "/api/2.0/mlflow/model-versions/create", {"name": "thief", "source": source}, "admin")
    assert made == 400


@pytest.mark.parametrize("path", ["../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "..%2f..%2fetc%2fpasswd", "/etc/passwd"])
def test_artifacts_lead_to_no_other_file(url, path):
    assert ask(url, "GET", f"/api/2.0/mlflow-artifacts/artifacts/{path}", None, "admin") in (400, 404)


def old_database(path: Path) -> str:
    """A database as an older MLflow made it; gives its revision."""
    import sqlalchemy
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base

    url = f"sqlite:///{path}"
    engine = sqlalchemy.create_engine(url)
    Base.metadata.create_all(engine)
    engine.dispose()
    configuration = _get_alembic_config(url)
    older = list(ScriptDirectory.from_config(configuration).walk_revisions())[5].revision
    command.upgrade(configuration, older)
    return older


def revision(path: Path) -> str:
    with closing(sqlite3.connect(path)) as records:
        return records.execute("select version_num from alembic_version").fetchone()[0]


def test_tables_of_an_older_mlflow_are_migrated_after_a_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    older = old_database(tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with pytest.raises(InputError, match="was made by another MLflow"):
        database.prepare()
    assert revision(tmp_path / "mlflow.db") == older, "a client migrates nothing"
    Server(folder=tmp_path / "kept").prepare()
    assert revision(tmp_path / "mlflow.db") != older
    (copy,) = (tmp_path / "kept").glob("before-upgrade-*/database.sqlite")
    assert revision(copy) == older
    mlflow.set_tracking_uri(None)


def test_tables_of_a_newer_mlflow_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Server(folder=tmp_path / "kept").prepare()
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as records, records:
        records.execute("update alembic_version set version_num = 'ffffffffffff'")
    with pytest.raises(InputError, match="was made by a newer MLflow"):
        Server(folder=tmp_path / "kept").prepare()
    assert revision(tmp_path / "mlflow.db") == "ffffffffffff"
    mlflow.set_tracking_uri(None)
