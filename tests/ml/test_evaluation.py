"""An evaluation finds what was planted, and says it plainly."""

import json

import numpy as np
import pandas as pd
import pytest

from ml.class_details import details
from ml.contracts import InputError
from ml.evaluation import Evaluation, evaluate, points, words
from ml.evidence import Estimate
from ml.metrics import CLASSIFICATION

CLASSES = ("cat", "dog", "<b>cow</b>")
ROWS = 300


def arm(targets_N: np.ndarray, right: float, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    named_N = np.where(generator.random(len(targets_N)) < right, targets_N, (targets_N + 1) % 3)
    probabilities_NK = generator.random((len(targets_N), 3)) * 0.2
    probabilities_NK[np.arange(len(targets_N)), named_N] += 1
    return (probabilities_NK / probabilities_NK.sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Test rows as a store's table gives them: numbered from elsewhere, some in a slice."""
    return pd.DataFrame(
        {
            "row_id": [f"{row:04x}" for row in range(ROWS)],
            "key": [f"folder/{row}.png" for row in range(ROWS)],
            "group": np.arange(ROWS) // 2,
            "slice": ["day"] * 200 + ["night"] * 20 + [None] * 80,
        },
        index=np.arange(ROWS) * 7 + 3,
    )


def of_classes(table, targets_N, arms, classes, mistakes=24, temperature=1.0, **options) -> Evaluation:
    """As the classification head has it."""

    def facts(drawn):
        return details(table, targets_N, arms["model"], arms["model"], classes, temperature=temperature, mistakes=mistakes, options=drawn)

    return evaluate(table, targets_N, arms, CLASSIFICATION, "accuracy", facts, trivial="always naming the commonest class", **options)


@pytest.fixture(scope="module")
def result(table) -> Evaluation:
    targets_N = np.random.default_rng(0).integers(0, 3, ROWS)
    arms = {
        "model": arm(targets_N, 0.85, 1),
        "baseline": arm(targets_N, 0.6, 2),
        "classical": arm(targets_N, 0.97, 3),
        "trivial": np.tile(np.array([0.4, 0.3, 0.3]), (ROWS, 1)),
    }
    return of_classes(table, targets_N, arms, CLASSES, resamples=200, mistakes=5, temperature=1.5)


def test_the_words_say_who_wins(result):
    baseline, classical, trivial = result.words
    assert baseline.startswith("Pretraining was worth it: accuracy +")
    assert classical.startswith("The simple alternative wins: accuracy −")
    assert trivial.startswith("The model beats always naming the commonest class")


def test_differences_are_those_of_the_metrics(result):
    for other, difference in result.differences.items():
        for name, estimate in difference.items():
            assert estimate.value == pytest.approx(result.metrics["model"][name].value - result.metrics[other][name].value)
            assert estimate.low <= estimate.value <= estimate.high


def test_confusion_and_classes_agree_with_the_predictions(result):
    frame = result.predictions
    assert list(frame.columns) == ["row_id", "key", "label", "predicted", "probability", "p_cat", "p_dog", "p_<b>cow</b>"]
    for i, own in enumerate(CLASSES):
        for j, other in enumerate(CLASSES):
            assert result.details["confusion"][i, j] == ((frame["label"] == own) & (frame["predicted"] == other)).sum()
        row = result.details["per_class"][i]
        assert row["support"] == result.details["confusion"][i].sum() == row["recall"].n
        assert row["recall"].value == pytest.approx(result.details["confusion"][i, i] / row["support"])
        assert row["precision"].value == pytest.approx(result.details["confusion"][i, i] / result.details["confusion"][:, i].sum())
    np.testing.assert_allclose(frame["probability"], frame.filter(like="p_").max(axis=1))


def test_mistakes_are_the_most_confident_first(result):
    frame = result.predictions
    wrong = frame[frame["label"] != frame["predicted"]]
    assert len(result.details["mistakes"]) == 5
    assert [item["probability"] for item in result.details["mistakes"]] == sorted(wrong["probability"], reverse=True)[:5]
    for item in result.details["mistakes"]:
        assert frame.loc[item["row"], "row_id"] == item["row_id"] and item["label"] != item["predicted"]


def test_slices_are_measured_and_small_ones_marked(result):
    day, night = result.slices
    assert (day["slice"], day["n"], day["sure"]) == ("day", 200, True)
    assert (night["slice"], night["n"], night["sure"]) == ("night", 20, False)
    inside = result.predictions.iloc[:200]
    assert day["model"].value == pytest.approx((inside["label"] == inside["predicted"]).mean())


def test_it_is_plain_json(result):
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert content["metrics"]["model"]["accuracy"]["n"] == ROWS
    assert np.sum(content["confusion"]) == ROWS and content["calibration"]["temperature"] == 1.5


def test_it_is_the_same_twice(table, result):
    targets_N = np.random.default_rng(0).integers(0, 3, ROWS)
    again = of_classes(table, targets_N, {"model": arm(targets_N, 0.85, 1)}, CLASSES, resamples=200)
    assert again.metrics["model"] == result.metrics["model"]


def test_classes_without_a_test_row_are_null_and_not_an_error(table):
    targets_N = np.zeros(ROWS, dtype=int)
    alone = of_classes(table, targets_N, {"model": arm(targets_N, 1.0, 0)}, CLASSES, resamples=100)
    content = alone.to_dict()
    assert content["metrics"]["model"]["auroc"]["value"] is None and content["per_class"][1]["recall"]["value"] is None
    assert alone.details["mistakes"] == [] and content["metrics"]["model"]["accuracy"]["value"] == 1


def test_probabilities_that_are_not_finite_are_refused(table):
    targets_N = np.zeros(ROWS, dtype=int)
    broken = arm(targets_N, 1.0, 0)
    broken[5] = np.nan
    with pytest.raises(InputError, match="1 of 300 rows are not finite"):
        of_classes(table, targets_N, {"model": broken}, CLASSES, resamples=100)


@pytest.mark.parametrize(
    ("metric", "low", "high", "start"),
    [
        ("accuracy", 0.01, 0.05, "Pretraining was worth it"),
        ("accuracy", -0.01, 0.05, "Pretraining made no difference"),
        ("accuracy", 0.0, 0.05, "Pretraining made no difference"),
        ("accuracy", -0.05, -0.01, "Pretraining was not worth it"),
        ("log_loss", -0.05, -0.01, "Pretraining was worth it"),
        ("log_loss", 0.01, 0.05, "Pretraining was not worth it"),
        ("accuracy", float("nan"), float("nan"), "Pretraining made no difference"),
    ],
)
def test_words_follow_the_interval(metric, low, high, start):
    assert words("baseline", metric, Estimate((low + high) / 2, low, high, 1000)).startswith(start)


def test_points_are_percentage_points_or_nats():
    assert points(Estimate(0.071, 0.05, 0.093, 10), "accuracy") == "+7.1 points [+5.0, +9.3]"
    assert points(Estimate(-0.071, -0.093, 0.0, 10), "log_loss") == "−0.071 nats [−0.093, +0.000]"
