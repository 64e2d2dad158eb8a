"""A server of one model under load: `python -m benchmarks.serving`.

    python -m benchmarks.serving --output serving.json               # the measurement
    python -m benchmarks.serving --pairs 1 --seconds 2               # does it work?

`warmstart serve` beside `mlflow models serve` with the same version of the demo's model: one client, and several at once that each send their next request
when the last one is answered, one picture a request. `moving`: the same load while the alias that is served moves ten times. Every answer must be 200.
The clients run in a process of their own, on the same cores as the servers.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from benchmarks.harness import ROOT, WARMSTART, arguments, finish, free_port, ratios, run, server, turns

CLIENTS = 8
MOVES = 10
RECIPE = [str(ROOT / "conf" / "image" / "digits.yaml"), "pretraining.enabled=false", "finetuning.fit.epochs=10", "finetuning.baseline=false", "finetuning.classical=false"]
MEASURES = ("requests/s", "p50 ms", "p99 ms")
GOALS = {"8 clients: p99, ours / mlflow": "≤ 1", "8 clients: requests/s, ours / mlflow": "≥ 1"}


def main() -> None:
    parser = arguments("serving", __doc__, pairs=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of load in each arm of a round")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    with tempfile.TemporaryDirectory(prefix="serving-") as scratch:
        folder = Path(scratch)
        for seed in (0, 1):
            run([*WARMSTART, "run", *RECIPE, f"compute.threads={given.threads}", f"seed={seed}"], folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        point(1)
        ours, theirs = free_port(), free_port()
        serve = [*WARMSTART, "serve", "digits@champion", "--port", str(ours), "--follow", "0.2"]
        peer = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/digits/1", "--env-manager", "local", "-p", str(theirs), "-w", "1"]
        with server(serve, folder, f"http://127.0.0.1:{ours}/ping"), server(peer, folder, f"http://127.0.0.1:{theirs}/ping"):
            arms: dict[str, Callable[[], dict[str, float]]] = {
                "1 client, ours": lambda: load(ours, 1, given.seconds),
                "1 client, mlflow": lambda: load(theirs, 1, given.seconds),
                "8 clients, ours": lambda: load(ours, CLIENTS, given.seconds),
                "8 clients, mlflow": lambda: load(theirs, CLIENTS, given.seconds),
                "8 clients, ours, alias moving": lambda: while_moving(ours, given.seconds),
            }
            for port in (ours, theirs):
                load(port, CLIENTS, 1.0)
            rounds = turns(arms, given.pairs)
    figures = {f"{name}: {what}": [one[name][what] for one in rounds] for name in arms for what in MEASURES}
    for what in MEASURES:
        of_each = [{name: one[name][what] for name in arms} for one in rounds]
        figures |= {f"{clients}: {what.removesuffix(' ms')}, ours / mlflow": ratios(of_each, f"{clients}, ours", f"{clients}, mlflow") for clients in ("1 client", "8 clients")}
    finish(given, figures, GOALS, rounds=rounds)


def point(version: int) -> None:
    """Sets the alias that is served, as MLflow's page does."""
    from mlflow import MlflowClient

    MlflowClient().set_registered_model_alias("digits", "champion", str(version))


def while_moving(port: int, seconds: float) -> dict[str, float]:
    """The load while the alias moves; both versions must have answered."""
    stop = threading.Event()

    def move() -> None:
        for number in range(MOVES):
            point(2 - number % 2)
            if stop.wait(seconds / MOVES):
                return

    mover = threading.Thread(target=move)
    mover.start()
    try:
        found = load(port, CLIENTS, seconds)
    finally:
        stop.set()
        mover.join()
        point(1)
    if found["versions"] != 2 and seconds >= 10:
        raise SystemExit(f"{found['versions']:.0f} version answered while the alias moved, expected 2")
    return found


def load(port: int, clients: int, seconds: float) -> dict[str, float]:
    """What `clients` at once see in `seconds`; SystemExit where a request fails."""
    bodies = [request(number) for number in range(clients)]
    until = time.perf_counter() + seconds
    with ThreadPoolExecutor(clients) as pool:
        each = [one.result() for one in [pool.submit(client, f"http://127.0.0.1:{port}/invocations", until, one) for one in bodies]]
    taken = np.array([one for seconds, _ in each for one in seconds]) * 1000
    versions = set().union(*(found for _, found in each))
    return {"requests/s": len(taken) / seconds, "p50 ms": float(np.quantile(taken, 0.5)), "p99 ms": float(np.quantile(taken, 0.99)), "requests": len(taken), "versions": len(versions)}


def client(url: str, until: float, body: bytes) -> tuple[list[float], set[str | None]]:
    """Seconds of each request over one connection, and the versions that answered."""
    parts, taken, versions = urlsplit(url), [], set()
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    while (began := time.perf_counter()) < until:
        connection.request("POST", parts.path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        taken.append(time.perf_counter() - began)
        versions.add(answer.headers.get("X-Model-Version"))
        if answer.status != 200:
            raise SystemExit(f"{url} answered {answer.status}: {text[:500]!r}")
    connection.close()
    return taken, versions


def request(number: int) -> bytes:
    """A request for one of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    file = io.BytesIO()
    Image.fromarray((load_digits().images[number] * 15).astype(np.uint8)).save(file, "PNG")
    return json.dumps({"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(file.getvalue()).decode()]]}}).encode()


if __name__ == "__main__":
    main()
