"""The next item made on a thread of its own while the last one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Iterator[T], when: Callable[[], bool]) -> Iterator[T]:
    """The same items in the same order; where `when()`, asked before each, the next one is made meanwhile. Closing it waits for that one."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
        item = next(items, None)
        while item is not None:
            upcoming = thread.submit(next, items, None) if when() else None
            yield item
            item = next(items, None) if upcoming is None else upcoming.result()
