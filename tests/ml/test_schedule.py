import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.recipe import Fit, Schedule
from ml.schedule import epochs_of, rate

settings = st.builds(Fit, schedule=st.sampled_from(Schedule), warmup=st.floats(0, 0.9))


@given(settings, st.integers(1, 500))
def test_the_rate_stays_within_its_peak_and_reaches_it(fit, total):
    rates = [rate(fit, step, total) for step in range(total)]
    assert all(0 <= one <= 1 for one in rates)
    assert total < 10 or max(rates) > 0.9


@given(settings, st.integers(20, 500))
def test_it_warms_up_and_then_never_rises_again(fit, total):
    rates = [rate(fit, step, total) for step in range(total)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize(("rows", "epochs"), [(1_000, 100), (100, 200), (1_000_000, 1)])
def test_unset_epochs_follow_from_the_samples(rows, epochs):
    assert epochs_of(Fit(samples=100_000, max_epochs=200), rows) == epochs


def test_set_epochs_hold_whatever_the_samples():
    assert epochs_of(Fit(epochs=3, samples=1), 1_000_000) == 3
