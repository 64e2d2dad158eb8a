"""Signals that ask a long loop to stop at its next safe point, so that a checkpoint is made first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """The user or the system asked the run to stop; its state is saved."""


class Interruption:
    """`requested` turns true at the first SIGINT or SIGTERM; a second one interrupts at once."""

    requested = False

    def _handle(self, number: int, frame: object) -> None:
        if self.requested:
            raise Interrupted("stopped at once; the same command goes on from the last checkpoint")
        self.requested = True


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Takes the two signals over while the block runs, in the main thread (elsewhere Python allows no handlers)."""
    asked = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, asked._handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
