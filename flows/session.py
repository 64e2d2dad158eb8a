"""What a command needs around a flow: quiet libraries, a Prefect server on its way while torch loads, prepared tracking."""

from __future__ import annotations

import os
import signal
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flows.errors import Stopped

QUIET = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the command line shows progress and errors itself
    "GIT_PYTHON_REFRESH": "quiet",
}
SPINS = "10000"
"""Turns that a thread waits awake, some 50 microseconds: nearly as fast as the library's own 300,000 on a machine of its own,
and several times faster beside another program that computes."""
SPINNER = f"\0warmstart-spinner-{os.getuid()}"
"""An abstract socket's name, which one process of the user can hold; the kernel frees it with the process."""


@contextmanager
def session() -> Iterator[Any]:
    """Starts what takes long in the background; `wait()` of what it yields blocks until a Prefect server answers.

    Raises Stopped where the block is ended by Ctrl-C or SIGTERM.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    spinner = _may_spin()
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE"} if spinner is None else {"GOMP_SPINCOUNT": SPINS}
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from tasks import collector
    from tasks.prefect_server import start

    collector.pause()
    before = signal.signal(signal.SIGTERM, _interrupt)  # while nothing of ours listens to it: runs are closed, then it ends
    handle = start()
    try:
        yield handle
    except KeyboardInterrupt as error:
        raise Stopped(str(error)) from error
    finally:
        collector.resume()
        signal.signal(signal.SIGTERM, before)
        if "prefect.logging.handlers" in sys.modules:  # its last lines, while there is a server to take them
            sys.modules["prefect.logging.handlers"].APILogWorker.drain_all(timeout=5)
        handle.close()
        if spinner is not None:
            spinner.close()


def _may_spin() -> socket.socket | None:
    """What the one process holds whose torch threads may spin while they wait for one another; None for all others.

    Spinning makes small networks twice as fast on a machine of their own. But two processes that spin take each other's
    cores and become many times slower, while beside one that does the others lose nothing.
    """
    one = socket.socket(socket.AF_UNIX)
    try:
        one.bind(SPINNER)
    except OSError:
        one.close()
        return None
    return one


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
