"""Keeps one Prefect server for all Warmstart processes of a PREFECT_HOME, for as long as one of them lives.

    python prefect_supervisor.py FOLDER HOST

Each client holds a shared lock on FOLDER/users.lock. The kernel drops it with the process, however that ends; when none is left,
the server is stopped. FOLDER/server.json (for its owner alone) says where the server is, and on which host, once it answers.
Only the standard library is imported, so that this process starts at once and stays small.
"""

import ctypes
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

STARTUP = 180.0  # seconds; migrations on a busy machine take long
POLL = 0.25
RESTARTS = 5

SETTINGS = {
    "PREFECT__SERVER_EPHEMERAL": "1",  # neither UI nor scheduling services
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_UI_ENABLED": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",  # we store nothing in blocks
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "DO_NOT_TRACK": "1",
}


def main(folder: Path, host: str) -> int:
    """Leaves a supervisor behind and gives 0, or 1 if there is one already."""
    with (folder / "supervisor.lock").open("a") as supervisor:
        deadline = time.monotonic() + 2.0
        while not lock(supervisor):
            # A client that looks whether there is a supervisor holds the lock for a moment.
            if time.monotonic() > deadline:
                return 1
            time.sleep(0.02)
        # The child keeps the lock. It is nobody's child, so that no client has to wait for its end.
        if os.fork() == 0:
            supervise(folder, host)
    return 0


def supervise(folder: Path, host: str) -> None:
    """Runs the server until no client is left."""
    with (folder / "users.lock").open("a") as users:
        published = folder / "server.json"
        published.unlink(missing_ok=True)
        auth = f"warmstart:{secrets.token_urlsafe(24)}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = None
        try:
            for _ in range(RESTARTS):
                server = serve(port, auth)
                if not answers(server, port, users):
                    return
                publish(published, {"url": f"http://127.0.0.1:{port}/api", "auth": auth, "server": server.pid, "supervisor": os.getpid(), "host": host})
                while server.poll() is None:  # a server that died is started again at its address: its clients wait for it
                    if lock(users):
                        return
                    time.sleep(POLL)
        finally:
            published.unlink(missing_ok=True)
            if server is not None:
                end(server)


def lock(file) -> bool:
    """Whether the file could be locked for this process alone."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def serve(port: int, auth: str) -> subprocess.Popen:
    """Starts the server, which is killed with this process."""
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--log-level", "error", "--lifespan", "on", "--timeout-graceful-shutdown", "1"]
    drop = {"PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"}
    environment = {name: value for name, value in os.environ.items() if name not in drop}
    environment |= SETTINGS | {"PREFECT_SERVER_API_AUTH_STRING": auth, "PREFECT_API_AUTH_STRING": auth}
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)


def answers(server: subprocess.Popen, port: int, users) -> bool:
    """Waits until the server is up; false when it ended, took too long, or nobody waits for it any more."""
    deadline = time.monotonic() + STARTUP
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5):
                return True
        except OSError:
            if lock(users):
                return False
        time.sleep(POLL / 2)
    return False


def publish(path: Path, content: dict) -> None:
    """Writes the file whole, readable for its owner alone."""
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(content, file)
    temporary.replace(path)


def end(server: subprocess.Popen) -> None:
    """Ends the server: asked first, then killed."""
    server.terminate()
    try:
        server.wait(timeout=2)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
