import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml import shuffling
from ml.shuffling import shuffled


def random(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


@pytest.fixture
def small(monkeypatch):
    """Runs of 10 rows of 4 bytes, and windows of 5 runs."""
    for name, value in {"LARGE": 400, "RUN": 40, "WINDOW": 200}.items():
        monkeypatch.setattr(shuffling, name, value)


@given(rows=st.lists(st.integers(0, 10**9), unique=True), seed=st.integers(0, 5), size=st.sampled_from([1, 37, 10**8]))
def test_each_row_comes_once_in_an_order_of_the_seed(rows, seed, size):
    rows = np.array(rows, dtype=np.int64)
    found = shuffled(rows, size, random(seed))
    assert sorted(found) == sorted(rows)
    assert found.tolist() == shuffled(rows, size, random(seed)).tolist()


def test_what_fits_in_memory_is_permuted_as_numpy_does(small):
    rows = np.arange(7, 106)
    assert shuffled(rows, 4, random(1)).tolist() == random(1).permutation(rows).tolist()


def test_large_data_are_read_in_runs(small):
    found = shuffled(np.arange(1000), 4, random(2))
    windows = found.reshape(20, 50)
    assert all(len(set(window // 10)) == 5 for window in windows)  # so many runs are in memory at once
    assert sum(len(set(window[:25] // 10)) >= 4 for window in windows) > 15  # and their rows are mixed
    assert len({tuple(sorted(set(window // 10))) for window in windows} & {tuple(range(5 * n, 5 * n + 5)) for n in range(20)}) < 3  # runs come from anywhere
