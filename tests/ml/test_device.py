"""How many threads a process computes with."""

import os

import pytest
import torch

from ml.device import device_of
from ml.recipe import Compute

CORES = len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("given", "asked", "expected"),
    [(None, 0, CORES), (None, 3, 3), ("3", 0, 3), ("3", 2, 2), ("3,1", 0, 3), ("", 0, CORES), ("0", 0, CORES), ("many", 0, CORES)],
)
def test_threads_are_those_asked_for_or_the_environments_or_all_cores(monkeypatch, given, asked, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    device_of(Compute(device="cpu", threads=asked))
    assert torch.get_num_threads() == expected
