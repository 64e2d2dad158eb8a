"""Which ports a group gets."""

import socket

import pytest

from ml.contracts import InputError
from mlflow_server import ports, supervision


@pytest.fixture
def free():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_port_in_use_is_replaced_unless_it_was_asked_for(free):
    with socket.socket() as other:
        other.bind(("127.0.0.1", free))
        other.listen()
        assert ports.choose("127.0.0.1", 0, free, "--mlflow-port", ()) not in (0, free)
        with pytest.raises(InputError, match=f"--mlflow-port {free} on 127.0.0.1: .*leave it out"):
            ports.choose("127.0.0.1", free, 5000, "--mlflow-port", ())
    assert ports.choose("127.0.0.1", 0, free, "--mlflow-port", ()) == free


def test_a_port_of_another_group_is_not_taken_though_nothing_listens_there(free, tmp_path, monkeypatch):
    monkeypatch.setattr(ports, "private_folder", lambda: tmp_path)
    runs = {tmp_path / "a", tmp_path / "b"}
    monkeypatch.setattr(supervision, "running", lambda folder: folder in runs)
    ports.keep(tmp_path / "a", [free])
    assert ports.of_others(tmp_path / "a") == set() and ports.of_others(tmp_path / "b") == {free}
    assert ports.choose("127.0.0.1", 0, free, "--mlflow-port", {free}) != free
    with pytest.raises(InputError, match=f"--mlflow-port {free}: the services of another folder"):
        ports.choose("127.0.0.1", free, 5000, "--mlflow-port", {free})
    ports.keep(tmp_path / "b", [free + 1])
    assert ports.of_others(tmp_path / "c") == {free, free + 1}
    runs.remove(tmp_path / "a")  # it has ended
    assert ports.of_others(tmp_path / "c") == {free + 1}
    [written] = tmp_path.iterdir()
    assert written.stat().st_mode & 0o077 == 0
