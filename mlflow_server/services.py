"""The servers of a team in one supervised group: MLflow, Prefect, a worker, and a private PostgreSQL where it is installed.

    up(Wanted()) → starts what is not running, returns once all answer     status() → how each is     down() → ends all

FOLDER/services.json, for its owner alone, holds what runs and what clients need; every command of Warmstart in that folder uses it
(in_use.py). supervisord keeps the programs running (supervision.py), each within bound.py, so that none outlives the group.
"""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ml.contracts import InputError
from mlflow_server import credentials, in_use, ports, postgresql, prefect_app, supervision
from mlflow_server.bound import mark, sweep
from mlflow_server.tracking import Server
from tasks.hosts import EVERYWHERE, bracketed, loopback, names
from tasks.tracking.database import file_lock, private_folder

READY = 240.0  # seconds for all to answer; tables are made and migrated at the first start
FAILING = 20.0  # seconds in which a service that ended at once is started again, before we give up waiting for it
POOL = "warmstart"


@dataclass(frozen=True)
class Wanted:
    """What `warmstart up` was asked for; a port of 0 takes the usual one, or a free one where that is in use."""

    host: str = "127.0.0.1"
    mlflow_port: int = 0
    prefect_port: int = 0
    database: str = ""
    prefect_database: str = ""
    artifacts: str = "mlartifacts"
    auth: bool = False
    runs: int = 1
    names: list[str] = field(default_factory=list)
    """By which browsers and programs call the servers, beside their own."""


def up(wanted: Wanted, say: Callable[[str], None], foreground: bool = False) -> dict[str, Any]:
    """Starts the group if it does not run, waits until it answers, and gives its status. Raises InputError."""
    folder = in_use.folder()
    with file_lock(private_folder() / "ports.lock"):  # until they are taken: two groups that start at once do not choose the same
        with _alone(folder):
            before = in_use.read()
            if before and supervision.running(folder):
                if before["wanted"] != asdict(wanted) and wanted != Wanted():
                    raise InputError("the services run with other settings: `warmstart down` first")
            else:
                group = _group(folder, wanted, before, say)
                ports.keep(folder, group["ports"].values())
                sweep(mark(folder, ""))  # of a group that was killed
                credentials.write(folder / "services.json", json.dumps(group, indent=1))
                if foreground:
                    supervision.become(folder, list(group["programs"]))
                supervision.start(folder, list(group["programs"]))
        _wait(folder, say)
    return status()


def down(say: Callable[[str], None]) -> bool:
    """Ends the group, and what a group that was killed has left; whether there was one."""
    folder = in_use.folder()
    if not folder.is_dir():
        return False
    with _alone(folder):
        found = in_use.read()
        ran = supervision.stop(folder, say)
        left = sweep(mark(folder, ""))
        if found:
            credentials.write(folder / "services.json", json.dumps({**found, "down": True}, indent=1))
    return ran or left > 0


def status() -> dict[str, Any]:
    """Each service with its state and whether it answers, and where they are."""
    folder = in_use.folder()
    found = in_use.read()
    states = supervision.states(folder) if found else {}
    services = {}
    for name, program in (found or {"programs": {}})["programs"].items():
        state = states.get(name, {"state": "STOPPED", "since": None})
        ready = state["state"] == "RUNNING" and _answers(program["probe"])
        services[name] = {**state, "ready": ready, "log": str(folder / f"{name}.log")}
    where = found["where"] if found else {}
    return {"running": bool(states), "ready": bool(services) and all(one["ready"] for one in services.values()), "services": services, **where, "folder": str(folder)}


def _group(folder: Path, wanted: Wanted, before: dict[str, Any] | None, say: Callable[[str], None]) -> dict[str, Any]:
    """What is to run, checked, and what its clients need."""
    auth = wanted.auth or not loopback(wanted.host)
    had, taken = (before or {}).get("ports", {}), ports.of_others(folder)
    mlflow_port = ports.choose(wanted.host, wanted.mlflow_port, had.get("mlflow", 5000), "--mlflow-port", taken)
    prefect_port = ports.choose(wanted.host, wanted.prefect_port, had.get("prefect", 4200), "--prefect-port", taken | {mlflow_port})
    cluster = None if wanted.database and wanted.prefect_database else postgresql.cluster(folder)
    if cluster is None and not (wanted.database and wanted.prefect_database):
        say("PostgreSQL is not installed: SQLite is used, which serves a few runs at a time. `apt install postgresql`, or give --database and --prefect-database.")
    own = Path("mlflow.db").resolve()
    database = wanted.database or (f"sqlite:///{own}" if own.exists() or cluster is None else cluster.url("mlflow", "psycopg"))
    if own.exists() and not wanted.database and cluster:
        say(f"MLflow's records stay in {own}, where this folder's runs are; in a folder without it they would be kept in PostgreSQL")
    health_port = ports.choose("127.0.0.1", 0, had.get("worker", 4201), "", taken | {mlflow_port, prefect_port})
    server = Server(wanted.host, mlflow_port, database, wanted.artifacts, 1, auth, tuple(wanted.names), tuple(f"https://{name}" for name in wanted.names), folder)
    server.check()
    prefect = wanted.prefect_database or (cluster.url("prefect", "asyncpg") if cluster else f"sqlite+aiosqlite:///{folder / 'prefect.db'}")
    token = f"warmstart:{credentials.kept(folder, 'prefect-password')}" if auth else ""
    url = f"http://{'127.0.0.1' if wanted.host in EVERYWHERE else bracketed(wanted.host)}"
    clients = {**server.client(), "PREFECT_API_URL": f"{url}:{prefect_port}/api", **({"PREFECT_API_AUTH_STRING": token} if token else {})}
    after = [cluster.probe] if cluster else []
    programs = {
        **({"postgresql": _program(cluster.command, stop="SIGINT", orphaned="SIGINT", user=cluster.user, probe=cluster.probe, folder="/")} if cluster else {}),
        "mlflow": _program(
            [sys.executable, "-m", "mlflow_server", *_options(server)], server.environment(), after=after, probe=f"{url}:{mlflow_port}/health"
        ),
        "prefect": _program(_prefect_command(wanted.host, prefect_port), _prefect(folder, wanted, prefect_port, prefect, token), after=after, probe=f"{url}:{prefect_port}/api/health"),
        "worker": _program(
            [sys.executable, "-m", "mlflow_server.worker", POOL, str(wanted.runs), str(health_port)],
            {**clients, "PREFECT_HOME": str(folder / "prefect"), "PREFECT_RUNNER_HEARTBEAT_FREQUENCY": "30"},
            after=[_asking(f"{url}:{prefect_port}/api/health"), _asking(f"{url}:{mlflow_port}/health")],
            probe=f"http://127.0.0.1:{health_port}/health",
            grace=25.0,  # a run that is asked to end makes a checkpoint, within 20 s
        ),
    }
    where = {"mlflow": clients["MLFLOW_TRACKING_URI"], "prefect": f"{url}:{prefect_port}", "pool": POOL, "database": "PostgreSQL" if database.startswith("postgresql") else "SQLite"}
    where |= {"user": server.environment()["MLFLOW_AUTH_ADMIN_USERNAME"], "passwords": str(folder)} if auth else {}
    return {"wanted": asdict(wanted), "ports": {"mlflow": mlflow_port, "prefect": prefect_port, "worker": health_port}, "where": where, "clients": clients, "programs": programs}


QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONUNBUFFERED": "1"}


def _program(
    command: list[str],
    environment: dict[str, str] | None = None,
    *,
    probe: str | list[str],
    after: list[list[str]] | None = None,
    stop: str = "SIGTERM",
    orphaned: str = "SIGTERM",
    user: str = "",
    grace: float = 15.0,
    folder: str = "",
) -> dict[str, Any]:
    """What bound.py is told of one service: `after` are commands that succeed once what it needs is there."""
    return {
        "command": command,
        "environment": {**QUIET, **(environment or {})},
        "probe": probe,
        "after": after or [],
        "stop": stop,
        "orphaned": orphaned,
        "user": user,
        "grace": grace,
        "folder": folder or str(Path.cwd()),
    }


def _options(server: Server) -> list[str]:
    """The command line of `python -m mlflow_server`; its secrets and its database are in the environment."""
    options = ["--host", server.host, "--port", str(server.port), "--artifacts", server.artifacts, "--folder", str(server.folder)]
    return options + [word for kind, values in (("host", server.hosts), ("origin", server.origins)) for value in values for word in (f"--allowed-{kind}", value)] + (["--auth"] if server.auth else [])


def _prefect_command(host: str, port: int) -> list[str]:
    line = [sys.executable, "-m", "uvicorn", "--factory", "mlflow_server.prefect_app:create", "--host", host, "--port", str(port)]
    return [*line, "--log-level", "warning", "--lifespan", "on", "--timeout-graceful-shutdown", "5"]


def _prefect(folder: Path, wanted: Wanted, port: int, database: str, token: str) -> dict[str, str]:
    """The settings of Prefect's server: closed to pages of other origins, and to whoever has not the token."""
    host, called = wanted.host, [*names(wanted.host), *wanted.names]
    origins = ",".join([*(f"http://{name}:{port}" for name in called), *(f"https://{name}" for name in wanted.names)])  # those of a proxy too
    return {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_DATABASE_CONNECTION_URL": database,
        "PREFECT_SERVER_API_HOST": host,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origins,
        prefect_app.ORIGINS: origins,
        prefect_app.HOSTS: ",".join(name.strip("[]") for name in called),
        "PREFECT_UI_API_URL": f"http://{called[-1] if host in EVERYWHERE else bracketed(host)}:{port}/api",
        "PREFECT_UI_STATIC_DIRECTORY": str(folder / "prefect" / "ui"),
        **({"PREFECT_SERVER_API_AUTH_STRING": token, "PREFECT_API_AUTH_STRING": token} if token else {}),
    }


def _asking(url: str) -> list[str]:
    """A command that succeeds once the URL answers."""
    return [sys.executable, "-c", f"import urllib.request; urllib.request.urlopen({url!r}, timeout=5)"]


def _answers(probe: str | list[str]) -> bool:
    """Whether a service answers: a command succeeds, or a URL is found."""
    if isinstance(probe, list):
        return subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0
    try:
        with urllib.request.urlopen(probe, timeout=5):
            return True
    except (OSError, ValueError):
        return False


def _wait(folder: Path, say: Callable[[str], None]) -> None:
    """Until all answer; InputError with the last words of those that do not."""
    begun, told, failing = time.monotonic(), "", {}
    while time.monotonic() - begun < READY:
        found = status()
        if found["ready"]:
            return
        waiting = ", ".join(name for name, one in found["services"].items() if not one["ready"])
        if waiting != told:
            say(f"waiting for {waiting}")
            told = waiting
        failing = {name: failing.get(name, time.monotonic()) for name, one in found["services"].items() if one["state"] in ("BACKOFF", "FATAL")}
        if not found["running"] or any(time.monotonic() - since > FAILING for since in failing.values()):
            break
        time.sleep(0.5)
    ill = [name for name, one in status()["services"].items() if not one["ready"]]
    words = "; ".join(f"{name}: {supervision.last_words(folder, name)}" for name in ill)
    raise InputError(f"not all services answer. {words} Logs are in {folder}; `warmstart down` ends the others.")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One `up` or `down` at a time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711 if os.getuid() == 0 else 0o700)  # PostgreSQL's user passes through; what is secret is closed itself
        with file_lock(folder / "lock"):
            yield
    except OSError as error:
        raise InputError(f"cannot keep the services' records in {folder}: {error.strerror or error}. Run in a folder that {getpass.getuser()} can write.") from None
