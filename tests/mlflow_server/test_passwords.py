"""`warmstart up --auth`: Prefect and MLflow let in who has the passwords, which the commands of the folder have."""

import json
import urllib.request

import pytest
from team import status
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import connect

pytestmark = [pytest.mark.servers, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def guarded(team):
    """The same servers, started again with passwords."""
    team.run("down")
    team.run("up", "--auth")
    return team


def test_every_route_of_prefect_asks_for_the_password(guarded):
    where = guarded.status()["prefect"]
    with urllib.request.urlopen(f"{where}/openapi.json", timeout=60) as answer:  # what routes there are is in Prefect's source
        paths = json.load(answer)["paths"]
    found = {}
    for path, methods in paths.items():
        for method in methods:
            given = path.replace("{", "").replace("}", "")
            found[method.upper(), path] = status(f"{where}{given if given.startswith('/api') else '/api' + given}", method.upper())
    assert len(found) > 100
    assert not {route: status for route, status in found.items() if status != 401 and not route[1].endswith(("/health", "/ready"))}


@pytest.mark.parametrize("path", ["events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled"])
@pytest.mark.parametrize("subprotocols", [None, ["prefect"]])
def test_websockets_ask_for_it_too(guarded, path, subprotocols):
    url = f"{guarded.status()['prefect'].replace('http', 'ws')}/api/{path}"
    with pytest.raises((WebSocketException, EOFError, AssertionError)), connect(url, subprotocols=subprotocols, open_timeout=30) as socket:
        socket.send(json.dumps({"type": "auth", "token": "guess"}))
        assert json.loads(socket.recv(timeout=30)).get("type") == "auth_success"


def test_pages_and_names_of_others_are_refused(guarded):
    where = guarded.status()["prefect"]
    assert status(f"{where}/api/health") == 200
    assert status(f"{where}/api/health", Host="evil.example.org") == 400
    assert status(f"{where}/api/health", Origin="https://evil.example.org") == 403
    assert status(f"{where}/api/health", Origin=where) == 200
    with pytest.raises(InvalidStatus) as refused, connect(f"{where.replace('http', 'ws')}/api/events/in", origin="https://evil.example.org"):
        pass
    assert refused.value.response.status_code == 403
    assert status(f"{guarded.status()['mlflow']}/api/2.0/mlflow/experiments/search?max_results=1") == 401


def test_the_folders_commands_have_the_passwords(guarded):
    assert guarded.run("runs") is not None
    guarded.run("deploy", "tiny.yaml")
    said = guarded.run("status")
    secrets = [value for name, value in guarded.clients().items() if "PASSWORD" in name or "AUTH" in name]
    assert len(secrets) == 2 and not any(secret.rpartition(":")[2] in said for secret in secrets)
    for log in guarded.services.glob("*.log"):
        assert not any(secret.rpartition(":")[2] in log.read_text() for secret in secrets), log
    for pid in guarded.processes():
        line = (guarded.services.__class__(f"/proc/{pid}/cmdline")).read_bytes().decode()
        assert not any(secret.rpartition(":")[2] in line for secret in secrets), "command lines can be read by all"
