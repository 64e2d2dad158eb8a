"""The temporary Prefect server: one for all, for as long as one of them lives, and no longer."""

import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from ml.contracts import InputError
from tasks import prefect_server

ROOT = Path(__file__).resolve().parents[2]
CLIENT = """
import sys, time
from tasks.prefect_server import start
handle = start()
print(handle.wait(), flush=True)
if sys.argv[1] == "stay":
    time.sleep(600)
from prefect import flow
@flow(persist_result=False)
def one():
    return 1
assert one() == 1
print("done", flush=True)
handle.close()
"""


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture
def client(tmp_path):
    """Starts a client process on one Prefect home, whose last it shall be."""
    home = tmp_path / "prefect"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    environment |= {"PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT), "PREFECT_LOGGING_LEVEL": "ERROR"}
    started = []

    def start(mode):
        process = subprocess.Popen([sys.executable, "-c", CLIENT, mode], env=environment, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        started.append(process)
        return process

    start.folder = home / "warmstart"
    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_shared_then_ended_with_the_last_client_however_that_ends(client):
    together = [client("stay") for _ in range(3)]
    urls = {process.stdout.readline().strip() for process in together}
    assert len(urls) == 1
    found = json.loads((client.folder / "server.json").read_text())
    assert urls == {found["url"]}
    assert stat.S_IMODE((client.folder / "server.json").stat().st_mode) == 0o600
    with pytest.raises(urllib.error.HTTPError) as refused:  # others on this machine do not know the password
        urllib.request.urlopen(f"{found['url']}/admin/version", timeout=5)
    refused.value.close()
    assert refused.value.code == 401
    for process in together[:2]:
        process.send_signal(signal.SIGKILL)
        process.wait()
    one = client("flow")
    assert [one.stdout.readline().strip(), one.stdout.readline().strip()] == [found["url"], "done"]
    assert one.wait(60) == 0
    assert not gone(found["server"])
    os.kill(found["server"], signal.SIGKILL)  # it is started again, at the same address
    until(lambda: (json.loads((client.folder / "server.json").read_text()))["server"] != found["server"], 180)
    again = json.loads((client.folder / "server.json").read_text())
    assert again["url"] == found["url"]
    together[2].send_signal(signal.SIGKILL)
    together[2].wait()
    until(lambda: gone(again["server"]) and gone(again["supervisor"]), 15)
    assert not (client.folder / "server.json").exists()


def test_a_killed_supervisor_takes_its_server_along(client):
    one = client("stay")
    one.stdout.readline()
    found = json.loads((client.folder / "server.json").read_text())
    os.kill(found["supervisor"], signal.SIGKILL)
    until(lambda: gone(found["server"]), 15)


def test_where_another_machine_has_its_server_in_the_folder_this_one_has_its_own(client):
    client.folder.mkdir(parents=True)
    with (client.folder / "supervisor.lock").open("a") as lock, (client.folder / "users.lock").open("a") as users:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = {"url": "http://127.0.0.1:9/api", "auth": "a:b", "server": os.getpid(), "supervisor": os.getpid(), "host": "another"}
        (client.folder / "server.json").write_text(json.dumps(told))
        one = client("stay")
        url = one.stdout.readline().strip()
        own = client.folder / "hosts" / socket.gethostname() / "warmstart" / "server.json"
        assert json.loads(own.read_text())["url"] == url != told["url"]
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the other machine's may end
    one.kill()
    until(lambda: not own.exists(), 15)


def test_a_configured_server_that_is_away(monkeypatch):
    monkeypatch.setattr(prefect_server, "PATIENCE", 0.1)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    away = temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"})
    with away, pytest.raises(InputError, match=r"unreachable Prefect at http://127.0.0.1:9/api"), prefect_server.server():
        raise AssertionError
