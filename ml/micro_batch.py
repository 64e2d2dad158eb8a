"""Micro-batching: requests that wait are computed together, one batch at a time, and each gets precisely its own rows back.

A batch is full at a number of rows, and does not wait for longer than some milliseconds after its first request came. Requests are taken in the
order in which they came. Those that were cancelled meanwhile are left out. Where a batch fails, its requests are computed one by
one, so that only those that fail alone fail.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

Compute = Callable[[list[Any]], Any]
"""Rows to results: one for each row, sliceable as a list or a frame of pandas is."""


@dataclass(frozen=True, eq=False)
class Request:
    """Rows, what is to compute them, and where the results go. `since` is when it came, by the monotonic clock."""

    compute: Compute
    rows: Sequence[Any]
    since: float = 0.0
    future: Future = field(default_factory=Future)


def first_batch(waiting: Iterable[Request], most: int) -> list[Request]:
    """The requests at the head that the same `compute` can do with at most `most` rows together; one alone may have more."""
    batch, rows = [], 0
    for one in waiting:
        if batch and (one.compute != batch[0].compute or rows + len(one.rows) > most):
            break
        batch.append(one)
        rows += len(one.rows)
    return batch


def run(batch: Sequence[Request], told: Callable[[int], None] = lambda rows: None) -> None:
    """Computes the requests, which share their `compute`, and settles their futures; `told` hears of the rows of each computation."""
    rows = [row for one in batch for row in one.rows]
    try:
        results = batch[0].compute(rows)
        if len(results) != len(rows):
            raise RuntimeError(f"{len(results)} results for {len(rows)} rows")
    except Exception as error:
        if len(batch) == 1:
            batch[0].future.set_exception(error)
            return
        for one in batch:
            run([one], told)
        return
    told(len(rows))
    start = 0
    for one in batch:
        one.future.set_result(results[start : start + len(one.rows)])
        start += len(one.rows)


class MicroBatches:
    """Computes what is submitted on a thread of its own, in batches of at most `rows`, for which the first waits at most `seconds`."""

    def __init__(self, rows: int, seconds: float, told: Callable[[int], None] = lambda rows: None):
        self._rows, self._seconds, self._told = rows, seconds, told
        self._waiting: deque[Request] = deque()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="micro-batches", daemon=True)
        self._thread.start()

    def submit(self, compute: Compute, rows: Sequence[Any]) -> Future:
        """The future results of `compute` for these rows; it can be cancelled until they are computed. RuntimeError once closed."""
        request = Request(compute, rows, time.monotonic())
        with self._changed:
            if self._closed:
                raise RuntimeError("closed")
            self._forget_cancelled()
            self._waiting.append(request)
            self._changed.notify()
        return request.future

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        with self._changed:
            self._forget_cancelled()
            return len(self._waiting)

    def close(self, seconds: float | None = None) -> None:
        """Takes no more, and returns when all that waits is done, or after so many seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            batch = [one for one in batch if one.future.set_running_or_notify_cancel()]
            if batch:
                run(batch, self._told)
            batch = []  # a request that was answered, and its model, are not kept until the next one comes

    def _next(self) -> list[Request] | None:
        """The next batch, once it is full or has waited; None where it is closed and nothing waits."""
        with self._changed:
            while True:
                self._forget_cancelled()
                batch = first_batch(self._waiting, self._rows)
                if not batch:
                    if self._closed:
                        return None
                    self._changed.wait()
                    continue
                left = batch[0].since + self._seconds - time.monotonic()
                full = len(batch) < len(self._waiting) or sum(len(one.rows) for one in batch) >= self._rows
                if full or self._closed or left <= 0:
                    for _ in batch:
                        self._waiting.popleft()
                    return batch
                self._changed.wait(left)

    def _forget_cancelled(self) -> None:
        """Those that nobody waits for any more, so that they do not pile up behind a long batch."""
        if any(one.future.cancelled() for one in self._waiting):
            self._waiting = deque(one for one in self._waiting if not one.future.cancelled())
