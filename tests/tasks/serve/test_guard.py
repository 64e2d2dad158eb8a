"""Who may not ask is refused, on every route."""

import pytest
from starlette.testclient import TestClient

from ml.contracts import InputError
from ml.micro_batch import MicroBatches
from tasks.serve.app import Limits, application
from tasks.serve.guard import OPEN, Access, access
from tasks.serve.metrics import Metrics
from tasks.serve.model import LiveModel

TOKEN = "correct horse battery"


@pytest.fixture
def live(here):
    return LiveModel("models:/text/1", Metrics(), threads=1)


@pytest.fixture
def app(live):
    return lambda permitted: application(live, MicroBatches(8, 0.0), Metrics(), None, Limits(), permitted)


def asked(client: TestClient, route, **headers):
    return client.request(sorted(route.methods)[-1], route.path, headers=headers, json={"dataframe_records": [{"text": "gold"}]})


@pytest.mark.parametrize("given", ["", TOKEN[:-1], TOKEN + "x", "Basic " + TOKEN, TOKEN, "Bearer " + TOKEN[:-1], "Bearer é"], ids=range(7))
def test_without_the_token_only_the_page_and_the_ping_answer(app, given):
    made = app(access_with(TOKEN))
    with TestClient(made, base_url="http://127.0.0.1") as client:
        assert len(made.routes) >= 7
        for route in made.routes:
            answer = asked(client, route, **({"Authorization": given.encode()} if given else {}))
            assert answer.status_code == (200 if route.path in OPEN else 401), route.path
            assert asked(client, route, Authorization=f"Bearer {TOKEN}").status_code == 200, route.path
        assert client.get("/nothing").status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "10.0.0.1", "", "[::1", "a b"])
def test_a_forged_host_is_refused_on_every_route(app, host):
    made = app(access_with(""))
    with TestClient(made, base_url="http://127.0.0.1") as client:
        for route in made.routes:
            assert asked(client, route, Host=host).status_code == 400, route.path
            for own in ("localhost", "127.0.0.1:8080", "[::1]:8080"):
                assert asked(client, route, Host=own).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://127.0.0.1.evil.example", "http://localhost"])
def test_a_foreign_origin_is_refused_on_every_route(app, origin):
    made = app(access_with(""))
    with TestClient(made, base_url="http://127.0.0.1") as client:
        for route in made.routes:
            answer = asked(client, route, Origin=origin)
            assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
            assert asked(client, route, Origin="http://127.0.0.1").status_code == 200
        assert client.options("/invocations", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}).status_code == 403


def access_with(token: str) -> Access:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARMSTART_SERVE_TOKEN", token)
        return access("127.0.0.1")


@pytest.mark.parametrize(("host", "token", "words"), [("0.0.0.0", "", "can be reached by others"), ("::", "", "can be reached"), ("gpu7", "", "can be reached"), ("127.0.0.1", "short", "5 characters")])
def test_beyond_this_machine_a_long_token_is_demanded(monkeypatch, host, token, words):
    monkeypatch.setenv("WARMSTART_SERVE_TOKEN", token)
    with pytest.raises(InputError, match=words):
        access(host)


def test_names_of_a_server_for_others(monkeypatch):
    monkeypatch.setenv("WARMSTART_SERVE_TOKEN", TOKEN)
    everywhere, one = access("0.0.0.0", ["Models.example"]), access("10.0.0.7")
    assert everywhere.names_this("models.example:443") and everywhere.names_this("10.1.2.3:8080") and everywhere.names_this("[fe80::1]:80")
    assert not everywhere.names_this("evil.example")
    assert one.names_this("10.0.0.7:8080") and not one.names_this("10.0.0.8:8080")
