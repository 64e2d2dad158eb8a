"""The gate lets through what is surely no worse, and says why in words."""

import json

import numpy as np
import pytest

from ml.classical import majority
from ml.gate import Candidate, verdict
from ml.metrics import CLASSIFICATION
from ml.recipe import Gate

ROWS, CLASSES = 400, 3
TARGETS = np.random.default_rng(0).integers(0, CLASSES, ROWS)
MAJORITY = majority(TARGETS, CLASSES, ROWS)


def candidate(right: float, seconds: float = 0.001, seed: int = 0, confidence: float | None = None) -> Candidate:
    """A model that is right on that share of the rows, and as sure as it should be unless told otherwise."""
    hit_N = np.random.default_rng(seed).permutation(ROWS) < right * ROWS
    named_N = np.where(hit_N, TARGETS, (TARGETS + 1) % CLASSES)
    sure = right if confidence is None else confidence
    probabilities_NK = np.full((ROWS, CLASSES), (1 - sure) / (CLASSES - 1))
    probabilities_NK[np.arange(ROWS), named_N] = sure
    return Candidate(probabilities_NK, seconds)


def judge(challenger: Candidate, champion: Candidate | None = None, gate: Gate | None = None, primary: str = "accuracy", **options):
    return verdict(TARGETS, challenger, champion, MAJORITY, gate or Gate(), CLASSIFICATION, primary, trivial="always naming the commonest class", resamples=300, **options)


def test_a_first_model_must_beat_the_commonest_class():
    assert judge(candidate(0.8)).passed
    useless = judge(Candidate(MAJORITY, 0.001))
    assert not useless.passed and "commonest class" in useless.reasons[1] and "is not" in useless.reasons[1]


@pytest.mark.parametrize(("right", "passed"), [(0.9, True), (0.8, True), (0.78, False), (0.6, False)])
def test_a_challenger_must_surely_be_no_worse(right, passed):
    """The champion is right on 80 %; 0.8 with its seed is the same predictions, whose difference is exactly 0."""
    assert judge(candidate(right), candidate(0.8)).passed is passed


def test_as_good_but_different_is_not_surely_as_good():
    assert not judge(candidate(0.8, seed=1), candidate(0.8, seed=2)).passed
    assert judge(candidate(0.8, seed=1), candidate(0.8, seed=2), Gate(margin=-0.1)).passed


def test_the_margin_asks_for_more():
    assert judge(candidate(0.9), candidate(0.8), Gate(margin=0.05)).passed
    assert not judge(candidate(0.9), candidate(0.8), Gate(margin=0.15)).passed


def test_less_is_better_where_it_is():
    better, worse = candidate(0.9, confidence=0.9), candidate(0.6, confidence=0.6)
    assert judge(better, worse, primary="log_loss").passed
    assert not judge(worse, better, Gate(margin=0.0), primary="log_loss").passed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_fails(value):
    broken = candidate(0.9).scores_NS.copy()
    broken[3, 1] = value
    assert not judge(Candidate(broken, 0.001)).passed
    assert not judge(candidate(0.9, seconds=value)).passed
    assert not judge(candidate(0.9), Candidate(broken, 0.001)).passed
    assert not judge(candidate(0.9), candidate(0.8, seconds=value)).passed


def test_a_badly_calibrated_model_fails():
    result = judge(candidate(0.7, confidence=1.0))
    assert not result.passed and any("calibration error 0.300 [" in reason and "surely above the limit" in reason for reason in result.reasons)


def test_a_slow_model_fails():
    result = judge(candidate(0.9, seconds=0.01), candidate(0.8, seconds=0.001))
    assert not result.passed and any("10 ms a row" in reason for reason in result.reasons)


def test_a_slice_that_is_lost_fails_but_a_small_one_proves_nothing():
    names_N = np.array(["north"] * 340 + ["south"] * 40 + [""] * 20, dtype=object)
    champion = candidate(0.5, seed=3)
    challenger = Candidate(candidate(0.95, seed=4).scores_NS.copy(), 0.001)
    wrong_N = (TARGETS[340:380] + 1) % CLASSES
    challenger.scores_NS[340:380] = 0.05 / 2
    challenger.scores_NS[np.arange(340, 380), wrong_N] = 0.95
    lost = judge(challenger, champion, slices_N=names_N)
    assert not lost.passed and any("'south'" in reason for reason in lost.reasons)
    names_N[360:380] = "elsewhere"  # now 20 rows each: too few to tell
    assert judge(challenger, champion, Gate(calibration=1), slices_N=names_N).passed


def test_a_verdict_is_plain_json_with_a_reason_for_each_check():
    result = judge(candidate(0.9), candidate(0.8), slices_N=np.array(["a", "b"] * 200))
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert content["passed"] and len(content["reasons"]) == len(content["evidence"]["checks"]) == 5
    assert content["evidence"]["n"] == ROWS and content["evidence"]["checks"][1]["gain"]["low"] > 0
