"""What the measurements share: fresh processes, a Prefect server to run against, medians with intervals, the machine."""

from __future__ import annotations

import os
import platform
import resource
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
WARMSTART = (sys.executable, "-c", "from flows.cli import command; command()")


def run(command: list[str], folder: Path) -> tuple[dict[str, float], str]:
    """Wall and CPU seconds and standard output of a fresh process, whose own errors end this one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WARMSTART_HOME": str(folder / ".warmstart")}
    environment.pop("MLFLOW_TRACKING_URI", None)
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    taken = {"wall": time.perf_counter() - began, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return taken, done.stdout


@contextmanager
def prefect_server(scratch: Path) -> Iterator[None]:
    """A Prefect server as a user runs one, on a free port, its records in `scratch`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"PREFECT_HOME": str(scratch / "prefect"), "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    os.environ.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (scratch / "prefect.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.5)
            os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
            yield
        finally:
            server.terminate()
            server.wait()


def median(values: list[float]) -> dict[str, float]:
    drawn = np.random.default_rng(0).choice(values, (10_000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return {"median": float(np.median(values)), "low": float(low), "high": float(high), "n": len(values)}


def machine(threads: int) -> dict[str, Any]:
    """What the figures were taken on."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        platform.machine(),
    )
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "threads": threads, "python": platform.python_version()} | {name: version(name) for name in ("torch", "mlflow", "prefect")}  # fmt: skip
