"""Which servers a command uses: those of its folder, unless the environment names others."""

import json
import os

import pytest

from ml.contracts import InputError
from mlflow_server import in_use, supervision

CLIENTS = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000", "MLFLOW_TRACKING_PASSWORD": "one", "PREFECT_API_URL": "http://127.0.0.1:4200/api", "PREFECT_API_AUTH_STRING": "two"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose services run, as far as can be seen."""
    monkeypatch.setenv("WARMSTART_HOME", str(tmp_path))
    for name in CLIENTS:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(supervision, "running", lambda folder: True)
    (tmp_path / "services").mkdir()
    (tmp_path / "services" / "services.json").write_text(json.dumps({"clients": CLIENTS, "programs": {}}))
    return tmp_path / "services"


def used() -> dict[str, str]:
    return {name: os.environ[name] for name in CLIENTS if name in os.environ}


def test_those_of_the_folder(folder):
    in_use.adopt()
    assert used() == CLIENTS


def test_a_server_that_the_environment_names_gets_none_of_our_passwords(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    in_use.adopt()
    assert used() == {"MLFLOW_TRACKING_URI": "http://elsewhere:5000"} | {name: value for name, value in CLIENTS.items() if name.startswith("PREFECT")}


def test_none_after_down(folder):
    (folder / "services.json").write_text(json.dumps({"clients": CLIENTS, "programs": {}, "down": True}))
    in_use.adopt()
    assert used() == {}


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_damaged_record_is_none(folder, content):
    (folder / "services.json").write_text(content)
    in_use.adopt()
    assert used() == {}


def test_those_that_should_run_and_do_not_are_told(folder, monkeypatch):
    monkeypatch.setattr(supervision, "running", lambda folder: False)
    with pytest.raises(InputError, match="`warmstart up` starts them again"):
        in_use.adopt()
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.setenv(name, "http://elsewhere")
    in_use.adopt()  # they are not used
