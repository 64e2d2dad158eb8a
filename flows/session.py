"""What a command needs around a flow: quiet libraries, a Prefect server on its way while torch loads, prepared tracking."""

from __future__ import annotations

import os
import signal
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
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait starve whatever else runs on the machine
}


@contextmanager
def session() -> Iterator[Any]:
    """Starts what takes long in the background; `wait()` of what it yields blocks until a Prefect server answers.

    Raises Stopped where the block is ended by Ctrl-C or SIGTERM.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from tasks.prefect_server import start

    before = signal.signal(signal.SIGTERM, _interrupt)  # while nothing of ours listens to it: runs are closed, then it ends
    handle = start()
    try:
        yield handle
    except KeyboardInterrupt as error:
        raise Stopped(str(error)) from error
    finally:
        signal.signal(signal.SIGTERM, before)
        handle.close()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
