"""The drift test keeps its level where nothing drifts, and finds what does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml import drift
from ml.contracts import InputError
from ml.drift import compare


def rows(seed: int, n: int, d: int = 5, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)) * scale + shift


@pytest.mark.parametrize("draw", ["normal", "heavy", "discrete", "one-hot"])
def test_the_level_holds_where_nothing_drifts(draw, monkeypatch):
    """Of 200 comparisons at level 0.1 at most 32 reject: more would have a chance of 1 in 1,000."""
    monkeypatch.setattr(drift, "PERMUTATIONS", 99)
    monkeypatch.setattr(drift, "_auc", lambda *given: 0.5)

    def sample(generator, n):
        if draw == "normal":
            return generator.standard_normal((n, 3))
        if draw == "heavy":
            return generator.standard_cauchy((n, 3))
        if draw == "discrete":
            return generator.integers(0, 2, (n, 2)).astype(float)
        return np.eye(4)[generator.integers(0, 4, n)]

    generator = np.random.default_rng(7)
    rejected = sum(compare("x", sample(generator, 40), sample(generator, 30), seed).p <= 0.1 for seed in range(200))
    assert rejected <= 32


@pytest.mark.parametrize(("changed", "auc"), [({"shift": 1.0}, 0.8), ({"scale": 3.0}, 0.5)])
def test_a_drift_is_found(changed, auc):
    found = compare("x", rows(0, 200), rows(1, 200, **changed))
    assert found.p == pytest.approx(1 / (drift.PERMUTATIONS + 1)) and found.auc >= auc
    assert found.found(0.01, auc)


def test_a_sure_but_small_drift_breaks_no_bound():
    found = compare("x", rows(0, 500), rows(1, 500, shift=0.25))
    assert found.p <= 0.01 and not found.found(0.01, 0.9)


@given(st.integers(0, 2**32 - 1), st.integers(30, 80), st.integers(30, 80), st.floats(1e-6, 1e6))
@settings(max_examples=15, deadline=None)
def test_units_and_order_do_not_matter(seed, n, m, unit):
    one, other = rows(seed, n), rows(seed + 1, m)
    found = compare("x", one, other)
    assert compare("x", one * unit + 3 * unit, other * unit + 3 * unit).p == pytest.approx(found.p, abs=2 / drift.PERMUTATIONS)
    assert 0 < found.p <= 1 and 0.5 <= found.auc <= 1


def test_equal_and_constant_samples_do_not_drift():
    same = rows(3, 60)
    assert compare("x", same, same).p > 0.5
    assert compare("x", np.ones((40, 3)), np.ones((50, 3))).p == 1.0


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (rows(0, 19), rows(1, 50), "19 reference rows are too few"),
        (rows(0, 50), rows(1, 3), "3 recent rows are too few"),
        (rows(0, 50), np.full((50, 5), np.nan), "not finite"),
        (rows(0, 50), rows(1, 50, d=4), "of different models"),
    ],
)
def test_what_cannot_be_compared_is_told(one, other, message):
    with pytest.raises(InputError, match=message):
        compare("x", one, other)
