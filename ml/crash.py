"""Crash points, where tests kill the process as a power cut would. Without both variables they do nothing."""

from __future__ import annotations

import os
import signal


def crash_point(name: str) -> None:
    """Kills this process with SIGKILL where WARMSTART_TESTING=1 and WARMSTART_CRASH_AT names this point."""
    if os.environ.get("WARMSTART_CRASH_AT") == name and os.environ.get("WARMSTART_TESTING") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
