"""The alias moves under load: no request fails, and each answer is wholly of the version that its header names."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import mlflow
import numpy as np
import pytest

from ml.contracts import InputError
from tasks.serve.metrics import Metrics
from tasks.serve.model import LiveModel
from tasks.tracking import registry


@pytest.fixture(params=["image", "text"])
def model(request, registered):
    yield registered.models[request.param]
    registered.point(request.param, "1")


def numbers(model, version: str) -> np.ndarray:
    frame = model.expected(version).predict(model.values)
    return frame[[name for name in frame if name.startswith("p_")]].to_numpy()


def test_eight_clients_while_the_alias_moves_ten_times(serving, registered, model):
    expected = {version: numbers(model, version) for version in ("1", "2")}
    assert np.abs(expected["1"] - expected["2"]).max() > 0.01  # a thousand times what is told apart below
    rows, stop = model.rows(), threading.Event()

    def client(server, seed: int) -> dict[str, int]:
        random, seen = np.random.default_rng(seed), {"1": 0, "2": 0}
        while not stop.is_set():
            chosen = random.integers(0, len(rows), random.integers(1, 5))
            answer = server.ask("/invocations", {"dataframe_records": [rows[row] for row in chosen]})
            assert answer.status == 200, answer.body
            version = answer.headers["X-Model-Version"]
            told = [[value for name, value in row.items() if name.startswith("p_")] for row in answer.json["predictions"]]
            np.testing.assert_allclose(told, expected[version][chosen], atol=1e-5)
            seen[version] += 1
        return seen

    with serving(f"{model.name}@champion", "--follow", 0.05) as server, ThreadPoolExecutor(8) as clients:
        seen = [clients.submit(client, server, seed) for seed in range(8)]
        try:
            for move in range(10):
                version = "12"[(move + 1) % 2]
                registered.point(model.name, version)
                server.until(lambda version=version: server.ask("/health").json["version"] == version or any(one.done() for one in seen))
        finally:
            stop.set()
        counts = [one.result() for one in seen]
        assert server.metric("warmstart_swaps_total") == 10
        assert server.metric(f'warmstart_model_info{{name="{model.name}",version="1"}}') == 1
        assert server.metric('warmstart_requests_total{path="/invocations",status="200"}') == sum(sum(one.values()) for one in counts)
    assert all(sum(one[version] for one in counts) > 0 for version in ("1", "2"))


def damaged(registered, kind: str, source: str, damage) -> str:
    """A further version of `kind`, whose files are damaged after they were registered; its number."""
    client, first = registered.client, registered.client.get_model_version(kind, "1")
    folder = registered.folder / source
    shutil.copytree(registered.client.get_model_version_download_uri(kind, "1").removeprefix("file://"), folder)
    made = client.create_model_version(kind, str(folder), first.run_id, dict(first.tags))
    damage(folder / "artifacts" / "model")
    return made.version


def flip(folder) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, lambda folder: (folder / "model.json").unlink()], ids=["a flipped bit", "a missing file"])
def test_a_damaged_version_leaves_the_old_one(serving, warmstart, registered, model, damage, request):
    bad = damaged(registered, model.name, f"bad-{model.name}-{request.node.callspec.indices['damage']}", damage)
    with serving(f"{model.name}@champion", "--follow", 0.05) as server:
        registered.point(model.name, bad)
        server.until(lambda: server.ask("/health").json["problem"])
        health = server.ask("/health")
        assert health.status == 200 and health.json["version"] == "1"
        assert f"models:/{model.name}/{bad}" in health.json["problem"] and "damaged" in health.json["problem"]
        assert server.metric("warmstart_swap_failures_total") >= 1 and server.metric("warmstart_swaps_total") == 0
        answer = server.ask("/invocations", {"dataframe_records": model.rows()})
        assert answer.status == 200 and answer.headers["X-Model-Version"] == "1"
        registered.point(model.name, "2")  # a whole one is taken at once
        server.until(lambda: server.ask("/health").json == {"status": "ok", "model": f"models:/{model.name}@champion", "version": "2", "problem": None})
        assert server.running.err.count("cannot be served") == 1
    warmstart(registered.folder, "serve", f"models:/{model.name}/{bad}", "--port", 0).refused(["damaged"])


def test_without_its_alias_it_goes_on(serving, registered):
    model = registered.models["text"]
    registered.point("text", "1", "staging")
    with serving("models:/text@staging", "--follow", 0.05) as server:
        registered.client.delete_registered_model_alias("text", "staging")
        server.until(lambda: "no longer in the registry" in (server.ask("/health").json["problem"] or ""))
        assert server.ask("/invocations", {"dataframe_records": model.rows()}).status == 200
        registered.point("text", "2", "staging")
        server.until(lambda: server.ask("/health").json["version"] == "2")
        assert server.ask("/health").json["problem"] is None


def test_a_version_by_its_number_stays(serving, registered, model):
    with serving(f"models:/{model.name}/1", "--follow", 0.05) as server:
        registered.point(model.name, "2")
        answer = server.ask("/invocations", {"dataframe_records": model.rows()})
        assert answer.headers["X-Model-Version"] == "1"


def test_while_the_registry_is_away_it_goes_on(here, registered):
    live = LiveModel("models:/text@champion", Metrics(), threads=1)
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    live.look()
    assert "the registry cannot be asked" in live.problem and live.current.version.version == 1
    registered.point("text", "2")
    mlflow.set_tracking_uri(here)
    live.look()
    assert live.problem == "" and live.current.version.version == 2
    registered.point("text", "1")


def test_verify_looks_at_the_folder_that_is_loaded(here, registered, tmp_path):
    version, copy = registry.version("image", 1), tmp_path / "copy"
    shutil.copytree(registered.client.get_model_version_download_uri("image", "1").removeprefix("file://"), copy)
    registry.verify(version, copy)
    flip(copy / "artifacts" / "model")
    with pytest.raises(InputError, match="damaged"):
        registry.verify(version, copy)
    registry.verify(version)
