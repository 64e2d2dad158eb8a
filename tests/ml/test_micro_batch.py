"""Whatever waits together, each request gets what computing it alone gives."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.micro_batch import MicroBatches, Request, first_batch, run

requests = st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 9), max_size=5), st.booleans()), max_size=20)


class Poisoned(ValueError):
    pass


def computing(name: str):
    """Doubles rows, and fails where a 7 is among them."""

    def compute(rows: list[int]) -> list[str]:
        if 7 in rows:
            raise Poisoned(name)
        return [f"{name}{2 * row}" for row in rows]

    return compute


COMPUTE = {name: computing(name) for name in "ab"}


def settled(future: Future, name: str, rows: list[int]) -> None:
    """Checks that the future holds what this request alone gives."""
    if 7 in rows:
        assert isinstance(future.exception(60), Poisoned)
    else:
        assert future.result(60) == COMPUTE[name](rows)


@given(requests, st.integers(1, 12))
def test_batches_keep_the_order_mix_no_computations_and_fill_up(given, most):
    waiting = [Request(COMPUTE[name], rows) for name, rows, _ in given]
    taken = []
    while rest := waiting[len(taken) :]:
        batch = first_batch(rest, most)
        taken += batch
        assert batch == rest[: len(batch)] and len(batch) >= 1
        assert len({one.compute for one in batch}) == 1
        assert len(batch) == 1 or sum(len(one.rows) for one in batch) <= most
        if len(batch) < len(rest):  # the next one did not fit
            more = rest[len(batch)]
            assert more.compute != batch[0].compute or sum(len(one.rows) for one in [*batch, more]) > most


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=8))
def test_each_gets_its_own_rows_and_a_failure_is_its_own(rows):
    batch, told = [Request(COMPUTE["a"], one) for one in rows], []
    run(batch, told.append)
    for one in batch:
        settled(one.future, "a", one.rows)
    assert sum(told) == sum(len(one) for one in rows if 7 not in one)


def test_results_that_are_too_few_are_an_error_of_each():
    batch = [Request(lambda rows: rows[1:], [1]), Request(lambda rows: rows, [2])]
    run([batch[0]])
    assert "0 results for 1 rows" in str(batch[0].future.exception())


@settings(max_examples=40, deadline=None)
@given(requests, st.integers(1, 12), st.sampled_from([0.0, 0.001]))
def test_in_any_interleaving_and_with_any_cancelled_all_others_get_their_own(given, most, seconds):
    batches = MicroBatches(most, seconds)

    def ask(one) -> None:
        name, rows, cancelled = one
        future = batches.submit(COMPUTE[name], rows)
        if not (cancelled and future.cancel()):
            settled(future, name, rows)

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(ask, given))
    batches.close()


def test_those_that_come_while_it_computes_are_computed_together():
    going, seen = threading.Event(), []

    def compute(rows):
        seen.append(list(rows))
        going.wait(60)
        return rows

    batches = MicroBatches(4, 0.0)
    first = batches.submit(compute, [0])
    while not seen:
        pass
    others = [batches.submit(compute, [number]) for number in range(1, 7)]
    assert others[1].cancel()
    others.append(batches.submit(compute, [7]))
    assert batches.waiting == 6  # the cancelled one is no longer among them
    going.set()
    batches.close()
    assert seen == [[0], [1, 3, 4, 5], [6, 7]]
    assert first.result() == [0] and [one.result() for one in others if not one.cancelled()] == [[1], [3], [4], [5], [6], [7]]


def test_closing_does_what_waits_at_once_and_takes_no_more():
    batches = MicroBatches(100, 3600.0)
    futures = [batches.submit(COMPUTE["a"], [number]) for number in range(3)]
    batches.close()
    assert [one.result(0) for one in futures] == [["a0"], ["a2"], ["a4"]]
    with pytest.raises(RuntimeError, match="closed"):
        batches.submit(COMPUTE["a"], [1])
