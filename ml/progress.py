"""Progress of long work: whoever works tells, whoever shows it (command line, log) listens.

One listener a process; without one, telling costs a call and goes nowhere.
"""

from __future__ import annotations

import logging
from typing import Protocol

_log = logging.getLogger(__name__)


class Listener(Protocol):
    """Who is told."""

    def update(self, stage: str, done: int, total: int, facts: dict[str, float]) -> None: ...
    def finish(self, stage: str, words: str) -> None: ...
    def warn(self, stage: str, words: str) -> None: ...


_listener: Listener | None = None


def listen(listener: Listener | None) -> None:
    """Sets who is told of progress; None tells nobody."""
    global _listener
    _listener = listener


def update(stage: str, done: int, total: int, **facts: float) -> None:
    """Tells that `done` of `total` units of `stage` are done, with facts such as loss or rows_per_second."""
    if _listener is not None:
        _listener.update(stage, done, total, facts)


def finish(stage: str, words: str) -> None:
    """Tells that `stage` is over, and how it came about."""
    if _listener is not None:
        _listener.finish(stage, words)


def warn(stage: str, words: str) -> None:
    """Tells what of `stage` could go better, and how; without a listener, the log is told."""
    if _listener is not None:
        _listener.warn(stage, words)
    else:
        _log.warning("%s %s", stage, words)
