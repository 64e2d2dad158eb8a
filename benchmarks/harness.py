"""What the measurements share: turns A B B A, fresh processes, a Prefect server to run against, medians with intervals, the machine, the table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
WORK = ("updates", "rows", "parameters")
"""What two arms must have done alike."""
WARMSTART = (sys.executable, "-c", "from flows.cli import command; command()")


def arguments(name: str, description: str, pairs: int = 7) -> argparse.ArgumentParser:
    """The arguments that every measurement has."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=pairs, help="rounds, each of which runs every arm once")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads of each process")
    parser.add_argument("--output", type=Path, help="JSON file for all measurements")
    return parser


def require(*packages: str) -> None:
    """Ends the program where a peer is not installed, saying how to get it."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise SystemExit(f"this measurement needs {', '.join(missing)}: install the extra with `pip install 'warmstart[bench]'`")


def calls(module: Any) -> list[tuple[float, int]]:
    """Filled with the moment and the rows of each call of a torch module from now on: the speed of any loop around it, measured in one way."""
    found: list[tuple[float, int]] = []
    module.register_forward_pre_hook(lambda _, given, named: found.append((time.perf_counter(), len((*given, *named.values())[0]))), with_kwargs=True)
    return found


def speed(found: Sequence[tuple[float, int]], skipped: int) -> float:
    """Rows a second from call `skipped` on: before it workers start, and kernels and buffers are made."""
    return sum(rows for _, rows in found[skipped:-1]) / (found[-1][0] - found[skipped][0])


def turns(arms: Mapping[str, Callable[[], Any]], rounds: int) -> list[dict[str, Any]]:
    """What each arm gives in each round, in turns A B B A: what the machine does meanwhile falls on all arms alike."""
    found = []
    for number in range(rounds):
        order = list(arms) if number % 2 == 0 else list(arms)[::-1]
        one = {name: arms[name]() for name in order}
        found.append({name: one[name] for name in arms})
        print(f"round {number + 1} of {rounds}: {json.dumps(found[-1], default=str)[:300]}", file=sys.stderr, flush=True)
    return found


def ratios(rounds: Sequence[Mapping[str, float]], arm: str, other: str) -> list[float]:
    """arm / other in each round."""
    return [one[arm] / one[other] for one in rounds]


def control(rounds: Sequence[Mapping[str, float]], arm: str) -> list[float]:
    """An arm beside itself in the next round: how far this is from 1 is the noise."""
    values = [one[arm] for one in rounds]
    return [one / other for one, other in zip(values[:-1:2], values[1::2], strict=False)]


def equal_work(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each arm: updates, rows and parameters, which must be the same in all; the loss before and after, least and most."""
    found = {}
    for arm in rounds[0]:
        runs = [one[arm] for one in rounds]
        same = {key: sorted({one[key] for one in runs}) for key in WORK}
        found[arm] = same | {key: [min(one[key] for one in runs), max(one[key] for one in runs)] for key in ("before", "after")}
    if len({json.dumps([one[key] for key in WORK]) for one in found.values()}) > 1:
        raise SystemExit(f"the arms did different work: {json.dumps(found, indent=1)}")
    return found


def work_table(work: dict[str, Any]) -> str:
    """The proof of equal work as Markdown."""
    lines = ["", "| model | arm | updates | rows | parameters | loss before | loss after, least and most |", "| --- | --- | ---: | ---: | ---: | --- | --- |"]
    for name, arms in work.items():
        for arm, one in arms.items():
            numbers = " | ".join(", ".join(map(str, one[key])) for key in WORK)
            lines.append(f"| {name} | {arm} | {numbers} | {one['before'][0]:.3f} | {one['after'][0]:.3f} {one['after'][1]:.3f} |")
    return "\n".join(lines)


def finish(given: argparse.Namespace, figures: Mapping[str, Sequence[float]], goals: Mapping[str, str], **more: Any) -> None:
    """Prints medians with their intervals beside the goals as Markdown, and writes all that was measured where `--output` says."""
    found = {name: median(list(values)) for name, values in figures.items() if len(values)}
    if given.output:
        facts = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "arguments": sys.argv[1:], "machine": machine(given.threads)}
        given.output.write_text(json.dumps(facts | {"figures": found, **more}, indent=1, default=str) + "\n", encoding="utf-8")
    print("| figure | median | 95 % interval | n | goal |\n| --- | ---: | --- | ---: | --- |")
    for name, one in found.items():
        print(f"| {name} | {one['median']:,.3f} | {one['low']:,.3f} to {one['high']:,.3f} | {one['n']} | {goals.get(name, '')} |")


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
    port = free_port()
    os.environ |= {"PREFECT_HOME": str(scratch / "prefect"), "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    os.environ.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with server(command, scratch, f"http://127.0.0.1:{port}/api/health"):
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        yield


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def server(command: Sequence[str], folder: Path, sign: str) -> Iterator[None]:
    """A server started in `folder`, once the URL `sign` answers; it ends with all its processes."""
    # MLflow starts its workers as `uvicorn`.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    path = folder / f"server-{urlsplit(sign).port}.log"
    with path.open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            deadline = time.monotonic() + 300
            while True:
                try:
                    urllib.request.urlopen(sign, timeout=5).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise SystemExit(f"{' '.join(command)[:200]} did not come up:\n{path.read_text()[-3000:]}") from None
                    time.sleep(0.3)
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


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
