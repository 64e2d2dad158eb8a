"""The collector passes over what was loaded, still finds what dies later, and is left alone where it was not paused."""

import gc
import weakref

import pytest

from tasks import collector


class Node:
    pass


def dead_cycle() -> weakref.ref:
    one, other = Node(), Node()
    one.other, other.other = other, one
    return weakref.ref(one)


@pytest.fixture(autouse=True)
def as_before():
    yield
    gc.unfreeze()
    gc.enable()


def test_what_was_loaded_is_passed_over_and_what_dies_later_is_found():
    collector.pause()
    assert not gc.isenabled()
    before = gc.get_freeze_count()
    collector.resume()
    assert gc.isenabled() and gc.get_freeze_count() > before + 10_000
    dead = dead_cycle()
    gc.collect()
    assert dead() is None


def test_where_nothing_was_paused_nothing_is_frozen():
    before = gc.get_freeze_count()
    collector.resume()
    assert gc.get_freeze_count() == before
