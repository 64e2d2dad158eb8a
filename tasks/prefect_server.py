"""The Prefect server that flows of this process talk to: the one that is configured, or a temporary one of our own.

    with server(): ...                    # or: handle = start(); ...; handle.wait(); ...; handle.close()

PREFECT_API_URL, set or in the active profile, is used as it is. Without one, all Warmstart processes of a PREFECT_HOME share a
server that lives no longer than they do (prefect_supervisor.py): one server a database, so that its tables are made once. Where
another machine that mounts the same folder has its server there, this one has its own in a folder below.
"""

from __future__ import annotations

import contextvars
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ml.contracts import InputError
from ml.masking import mask
from tasks.hosts import this_host
from tasks.reach import wait_for

PATIENCE = 20.0  # seconds for a server that somebody else runs
STARTUP = 200.0  # seconds for ours
ATTEMPTS = 3
SUPERVISOR = Path(__file__).with_name("prefect_supervisor.py")


_temporary: list[str] = []  # addresses of servers of ours that this process uses


def lasting() -> bool:
    """Whether flows of this process run on a server that stays when they are over, and has a UI."""
    return not _temporary


class Handle:
    """A server on its way. `wait()` blocks until it answers; `close()` lets go of it."""

    def __init__(self) -> None:
        self._done = ExitStack()
        self._found: dict[str, str] = {}
        self._error: BaseException | None = None
        self._closed = threading.Event()
        # Prefect's settings may be changed for the caller's context alone.
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=(self._find,), name="prefect-server", daemon=True)
        self._thread.start()

    def wait(self) -> str:
        """The API's URL, once it answers; from then on Prefect uses it in this thread and in new ones. Raises InputError."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        if "auth" in self._found:
            self._use(self._found["url"], self._found["auth"])
            self._found.pop("auth")
        return self._found["url"]

    def close(self) -> None:
        """Restores Prefect's settings and, when this was the last to use it, ends a server of ours."""
        self._closed.set()
        self._thread.join()
        self._done.close()

    def _find(self) -> None:
        try:
            url, home = _configured()
            self._found = {"url": url} if url else self._share(home)
            if url:
                wait_for(f"{url.rstrip('/')}/health", f"Prefect at {mask(url)}", _remedy(), PATIENCE)
        except BaseException as error:  # raised again by wait(), in the caller's thread
            self._error = error

    def _share(self, home: Path) -> dict[str, str]:
        folder = home / "warmstart"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            users = self._done.enter_context((folder / "users.lock").open("a"))
        except OSError as error:
            raise InputError(f"cannot keep Prefect's records in {home}: {error.strerror}. Set PREFECT_HOME to a folder that can be written.") from None
        fcntl.flock(users, fcntl.LOCK_SH)  # the supervisor has it alone while it ends a server
        deadline, begun = time.monotonic() + STARTUP, 0
        while time.monotonic() < deadline and not self._closed.is_set():
            found = _published(folder)
            if found is not None and found["host"] != this_host():
                users.close()
                return self._share(folder / "hosts" / socket.gethostname())
            if found is not None:
                return {"url": found["url"], "auth": found["auth"]}
            if _unsupervised(folder):
                if begun == ATTEMPTS:
                    break
                begun += _supervise(folder, home)
            time.sleep(0.1)
        raise InputError(
            f"Prefect's temporary server did not start: {_last_words(folder)} See {folder / 'server.log'}, or start one with `prefect server "
            "start` and set PREFECT_API_URL=http://127.0.0.1:4200/api."
        )

    def _use(self, url: str, auth: str) -> None:
        before = {name: os.environ.get(name) for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")}
        os.environ |= {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": auth}
        self._done.callback(_restore, before)
        _temporary.append(url)
        self._done.callback(_temporary.remove, url)
        # Prefect reads the environment when it is first imported; later it looks at its context.
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        self._done.enter_context(temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: auth}))


def start() -> Handle:
    """Looks for the server, or starts it, in the background: torch can be loaded meanwhile."""
    return Handle()


@contextmanager
def server() -> Iterator[Handle]:
    """A server that answers, for the block."""
    handle = start()
    try:
        handle.wait()
        yield handle
    finally:
        handle.close()


def _configured() -> tuple[str | None, Path]:
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    return settings.api.url, Path(settings.home)


def _remedy() -> str:
    where = "unset PREFECT_API_URL" if "PREFECT_API_URL" in os.environ else "take it out of the active profile (`prefect config unset PREFECT_API_URL`)"
    return f"Start it (`prefect server start`), or {where} to use a temporary server."


def _published(folder: Path) -> dict[str, Any] | None:
    """What the supervisor has published, if its server lives, as far as this machine can tell."""
    try:
        found = json.loads((folder / "server.json").read_text())
        if found.setdefault("host", this_host()) == this_host():  # an older Warmstart's does not say
            os.kill(found["server"], 0)
    except (OSError, ValueError, KeyError):
        return None
    return None if _unsupervised(folder) else found


def _unsupervised(folder: Path) -> bool:
    """Whether no supervisor runs. Asked with a shared lock, so that a supervisor that begins is hardly ever in the way."""
    with (folder / "supervisor.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _supervise(folder: Path, home: Path) -> bool:
    """Starts a supervisor, in a session of its own: the terminal's Ctrl-C is for its clients. False if there was one already."""
    with (folder / "server.log").open("ab") as log:
        done = subprocess.run(
            [sys.executable, str(SUPERVISOR), str(folder), this_host()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=home,
            env=os.environ | {"PREFECT_HOME": str(home)},
            check=False,
        )
    return done.returncode == 0


def _last_words(folder: Path) -> str:
    lines = (folder / "server.log").read_text(errors="replace").strip().splitlines() if (folder / "server.log").exists() else []
    return f"{mask(lines[-1])[:300]}." if lines else "it said nothing."


def _restore(before: dict[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
