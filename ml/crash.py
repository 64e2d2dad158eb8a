"""Crash points, where tests kill the process as a power cut would, or send it another signal. Without the variables they do nothing."""

from __future__ import annotations

import os
import signal


def crash_point(name: str) -> None:
    """Sends this process SIGKILL, or what WARMSTART_CRASH_BY names, where WARMSTART_TESTING=1 and WARMSTART_CRASH_AT names this point."""
    if os.environ.get("WARMSTART_CRASH_AT") == name and os.environ.get("WARMSTART_TESTING") == "1":
        os.kill(os.getpid(), signal.Signals[os.environ.get("WARMSTART_CRASH_BY", "SIGKILL")])
