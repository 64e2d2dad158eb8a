"""supervisord, which keeps the services of a folder running: started, asked and ended through a socket for its owner alone."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from xmlrpc.client import Error, ServerProxy

from mlflow_server import bound, credentials
from tasks.tracking import database

BOUND = Path(bound.__file__)
STOPPING = 90.0  # seconds for all services to end, one after another
CONFIGURATION = """; made by `warmstart up`, which writes it anew
[unix_http_server]
file={socket}
chmod=0700

[supervisord]
identifier={identifier}
directory={directory}
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
logfile_maxbytes=10MB
umask=077
{user}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{socket}
"""
PROGRAM = """
[program:{name}]
command="{python}" "{bound}" "{folder}" {name}
priority={priority}
autorestart=true
startsecs=3
startretries=1000
stopsignal=TERM
stopwaitsecs=60
redirect_stderr=true
stdout_logfile={folder}/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3
"""
"""A program that ends is started again: after a second, two, three ... as long as it does not stay up for `startsecs`."""


def start(folder: Path, names: list[str]) -> None:
    """Starts the programs, and what supervises them, in the background."""
    done = subprocess.run(_command(folder, names), cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, umask=0o077, check=False)
    if done.returncode:
        raise RuntimeError(f"supervisord: {' '.join(done.stderr.split() or done.stdout.split())}")


def become(folder: Path, names: list[str]) -> None:
    """Turns this process into what supervises the programs, as systemd and containers want it."""
    line = [*_command(folder, names), "--nodaemon"]
    os.umask(0o077)
    os.execv(line[0], line)


def running(folder: Path) -> bool:
    """Whether the supervisor of the folder lives. Cheap: nothing is asked of it."""
    try:
        pid = int((folder / "supervisord.pid").read_text())
        return str(_file(folder)).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False


def states(folder: Path) -> dict[str, dict[str, Any]]:
    """Each program's state (STARTING, RUNNING, BACKOFF, ...) and the time in seconds since when; empty where nothing supervises."""
    try:
        with asking(folder) as supervisor:
            return {one["name"]: {"state": one["statename"], "since": one["start"] or None} for one in supervisor.getAllProcessInfo()}
    except (OSError, Error):
        return {}


def stop(folder: Path, say: Callable[[str], None]) -> bool:
    """Ends the programs and then what supervises them; whether it lived."""
    if not running(folder):
        return False
    pid = int((folder / "supervisord.pid").read_text())
    say("stopping: " + ", ".join(reversed(states(folder))))
    try:
        with asking(folder) as supervisor:
            supervisor.shutdown()
    except (OSError, Error):
        with suppress(OSError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOPPING
    while bound.running(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    if bound.running(pid):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)  # its programs end with it
    return True


def last_words(folder: Path, name: str) -> str:
    """The last line of a program's log."""
    try:
        lines = (folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return f"{lines[-1][:300]!r}." if lines else "it said nothing."


def _command(folder: Path, names: list[str]) -> list[str]:
    """The command line, once the configuration is written."""
    identifier = f"warmstart-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    quoted = str(folder).replace("%", "%%")
    text = CONFIGURATION.format(socket=_socket(folder), identifier=identifier, directory=quoted, folder=quoted, user="user=root\n" if os.getuid() == 0 else "")
    for number, name in enumerate(names):
        text += PROGRAM.format(name=name, python=sys.executable.replace("%", "%%"), bound=str(BOUND).replace("%", "%%"), folder=quoted, priority=10 * (number + 1))
    credentials.write(_file(folder), text)
    program = shutil.which("supervisord", path=str(Path(sys.executable).parent)) or "supervisord"
    return [program, "--configuration", str(_file(folder))]


def _file(folder: Path) -> Path:
    return folder / "supervisord.conf"


def _socket(folder: Path) -> Path:
    """In the folder, or where that is too deep for a socket's path (107 characters) in a private one with a short name."""
    if len(str(folder)) < 80:
        return folder / "supervisor.sock"
    return database.private_folder() / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.sock"


@contextmanager
def asking(folder: Path) -> Iterator[Any]:
    """What supervises the folder's programs, to be asked by its XML-RPC interface. Raises OSError and xmlrpc's Error."""
    from supervisor.xmlrpc import SupervisorTransport

    transport = SupervisorTransport(serverurl=f"unix://{_socket(folder)}")
    try:
        yield ServerProxy("http://127.0.0.1", transport=transport).supervisor
    finally:
        transport.close()
