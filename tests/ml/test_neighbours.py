"""Ranks of one machine add up in memory that they share: exactly, and with a clear end where one of them is gone, silent, or does something else."""

import mmap
import select
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import pytest
import torch

from ml.neighbours import KIND, MOST, PART, SPIN, Neighbours, find

OPEN: list[Neighbours] = []


@pytest.fixture(autouse=True)
def closed():
    yield
    while OPEN:
        OPEN.pop().close()


def together(count: int, silence: float = 20.0) -> list[Neighbours]:
    """All ranks of a machine, in this process."""
    sockets: list[dict[int, socket.socket]] = [{} for _ in range(count)]
    for one, other in combinations(range(count), 2):
        sockets[one][other], sockets[other][one] = socket.socketpair(socket.AF_UNIX, KIND)
    memory = mmap.mmap(-1, count * 2 * PART)
    made = [Neighbours(rank, dict(sorted(those.items())), memory, silence) for rank, those in enumerate(sockets)]
    OPEN.extend(made)
    return made


def at_once(acts) -> list:
    with ThreadPoolExecutor(len(acts)) as pool:
        return [one.result() for one in [pool.submit(act) for act in acts]]


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int32])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (7, 5), (1_500_001,)])
def test_all_have_the_sum_to_the_bit(count, dtype, shape):
    generator = torch.Generator().manual_seed(0)
    given = [(torch.randn(shape, generator=generator) * 100).to(dtype) for _ in range(count)]
    expected = given[0].clone()
    for one in given[1:]:
        expected += one
    ranks, totals = together(count), [one.clone() for one in given]
    for _ in range(2):  # the sockets hold nothing from before
        at_once([lambda rank=rank, total=total: rank.sum(total) for rank, total in zip(ranks, totals, strict=True)])
        assert all(torch.equal(total, expected) for total in totals)
        totals = [one.clone() for one in given]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("shape", [(), (0,), (7, 5), (600_001,)])
def test_all_have_what_each_has(count, shape):
    given = [torch.full(shape, float(rank)) for rank in range(count)]
    ranks = together(count)
    for _ in range(3):  # what was given out stays, whatever comes after
        found = at_once([lambda rank=rank, own=own: rank.stack(own) for rank, own in zip(ranks, given, strict=True)])
        at_once([lambda rank=rank: rank.sum(torch.ones(PART)) for rank in ranks])
        assert all(torch.equal(one, torch.stack(given)) for one in found)


def test_sums_follow_one_another_at_any_pace():
    """No rank writes over what another still reads."""
    ranks, generator = together(3), torch.Generator().manual_seed(0)
    pauses = torch.rand(3, 300, generator=generator) * 0.002

    def many(rank: Neighbours) -> list[float]:
        found = []
        for number, pause in enumerate(pauses[rank.rank].tolist()):
            time.sleep(pause if pause > 0.001 else 0)
            total = torch.full((1 + number % 5000,), float(number * (rank.rank + 1)))
            rank.sum(total)
            found.append((total.min().item(), total.max().item()))
        return found

    expected = [(6.0 * number,) * 2 for number in range(300)]
    assert at_once([lambda rank=rank: many(rank) for rank in ranks]) == [expected] * 3


def test_what_does_not_lie_in_order():
    totals = [torch.arange(6.0).view(2, 3).T, torch.arange(6.0).view(3, 2)]
    expected = totals[0] + totals[1]
    ranks = together(2)
    at_once([lambda rank=rank, total=total: rank.sum(total) for rank, total in zip(ranks, totals, strict=True)])
    assert torch.equal(totals[0], expected) and torch.equal(totals[1], expected)


def test_a_rank_that_comes_late_is_waited_for_asleep(monkeypatch):
    first, second = together(2)
    total, asleep, real = torch.ones(3), [], select.select
    monkeypatch.setattr("ml.neighbours.select.select", lambda *given: asleep.append(given[-1]) or real(*given))

    def late():
        time.sleep(50 * SPIN)
        second.sum(torch.ones(3))

    thread = threading.Thread(target=late)
    thread.start()
    first.sum(total)
    thread.join()
    assert total.tolist() == [2, 2, 2]
    assert asleep, "it looked again and again instead"


def test_a_rank_that_ended():
    first, second = together(2)
    second.close()
    with pytest.raises(RuntimeError, match="rank 1 has ended"):
        first.sum(torch.ones(3))


def test_a_rank_that_is_silent():
    first, second, third = together(3, silence=0.3)
    with pytest.raises(RuntimeError, match=r"silent for 0\.3 s"):
        at_once([lambda: first.sum(torch.ones(3)), lambda: third.sum(torch.ones(3))])
    second.close()


@pytest.mark.parametrize("other", [4, 2])
def test_ranks_that_do_not_do_the_same(other):
    first, second = together(2, silence=0.5)
    with pytest.raises(RuntimeError, match=r"adds up something else.*part and bytes"):
        at_once([lambda: first.sum(torch.ones(3)), lambda: second.sum(torch.ones(other))])


def joined(count: int, *, sees=lambda rank: True) -> list[Neighbours | None]:
    """What `find` gives each rank; rank r sees the folder where `sees(r)`."""
    barrier, said, votes = threading.Barrier(count), {}, {}

    def of(rank: int) -> Neighbours | None:
        def first(make):
            if rank == 0:
                said[0] = make()
            barrier.wait(20)
            return said[0] if sees(rank) else "/there/is/no/such/folder"

        def agreed(yes):
            votes[rank] = yes
            barrier.wait(20)
            found = all(votes.values())
            barrier.wait(20)
            return found

        return find(rank, count, 20.0, first, agreed)

    found = at_once([lambda rank=rank: of(rank) for rank in range(count)])
    OPEN.extend(filter(None, found))
    assert not said or not Path(said[0]).exists()
    return found


@pytest.mark.parametrize("count", [2, 4])
def test_ranks_find_each_other(count):
    ranks = joined(count)
    assert [[*rank.sockets] for rank in ranks] == [[other for other in range(count) if other != rank] for rank in range(count)]
    totals = [torch.full((2,), float(rank)) for rank in range(count)]
    at_once([lambda rank=rank, total=total: rank.sum(total) for rank, total in zip(ranks, totals, strict=True)])
    assert all(total.tolist() == [sum(range(count))] * 2 for total in totals)


def test_ranks_of_other_machines_are_no_neighbours():
    assert joined(3, sees=lambda rank: rank != 2) == [None] * 3
    assert joined(1) == [None]
    assert find(0, MOST + 1, 1.0, None, None) is None


def test_a_system_without_such_memory(monkeypatch):
    monkeypatch.delattr("os.memfd_create")
    assert joined(3) == [None] * 3


def test_a_killed_rank_is_noticed():
    ours, theirs = socket.socketpair(socket.AF_UNIX, KIND)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=[theirs.fileno()])  # as one that computes
    theirs.close()
    first = Neighbours(0, {1: ours}, mmap.mmap(-1, 2 * 2 * PART), 20.0)
    OPEN.append(first)
    threading.Timer(10 * SPIN, process.kill).start()
    with pytest.raises(RuntimeError, match="rank 1 has ended"):
        first.sum(torch.ones(2))
    process.wait()
