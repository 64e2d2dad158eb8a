"""Items made ahead are the same items, and nothing is left running when their use ends early."""

import threading
from itertools import islice

import pytest

from ml.read_ahead import read_ahead

MOMENTS = pytest.mark.parametrize("when", [lambda: True, lambda: False, iter([True, False, False, True, True] * 9).__next__], ids=["always", "never", "at times"])


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("read-ahead")]


@MOMENTS
@pytest.mark.parametrize("count", [0, 1, 7])
def test_the_same_items_in_the_same_order(when, count):
    assert list(read_ahead(iter(range(count)), when)) == list(range(count))
    assert threads() == []


def test_the_next_item_is_made_while_one_is_used():
    begun, names = threading.Event(), []

    def items():
        for number in range(3):
            names.append(threading.current_thread().name)
            if number == 1:
                begun.set()
            yield number

    for number in read_ahead(items(), lambda: True):
        if number == 0:
            assert begun.wait(30)
    assert names[0] == threading.current_thread().name and all(name.startswith("read-ahead") for name in names[1:])


def test_what_fails_ahead_is_raised_where_the_item_would_be_used():
    def items():
        yield 0
        raise ValueError("no more")

    seen = []
    with pytest.raises(ValueError, match="no more"):
        seen += read_ahead(items(), lambda: True)
    used = read_ahead(items(), lambda: True)
    assert next(used) == 0
    with pytest.raises(ValueError, match="no more"):
        next(used)
    assert threads() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_loop_that_is_left_ends_the_thread(error):
    with pytest.raises(error):
        for _ in read_ahead(iter(range(9)), lambda: True):
            raise error
    assert threads() == []
    for _ in islice(read_ahead(iter(range(9)), lambda: True), 2):
        pass
    assert threads() == []
