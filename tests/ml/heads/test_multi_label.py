"""Several classes a row: the loss, thresholds, what users are told, and what an evaluation shows."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from sklearn.metrics import f1_score
from torch import nn
from torch.nn import functional as F

from ml.contracts import Batch, DataSpec, Features, InputError, Mix
from ml.evaluation import evaluate
from ml.heads.multi_label import HEAVIEST, MultiLabel
from ml.thresholds import best_thresholds, sigmoid

SPEC = DataSpec("image", {}, (1, 16, 16), ("a", "b", "$c"), {"mean": [0.5], "std": [0.25]})
LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]], dtype=torch.int8)


def make(**options) -> MultiLabel:
    torch.manual_seed(0)
    return MultiLabel(MultiLabel.Options(**options), 8, SPEC)


def answered(head: MultiLabel, rows: int = 200, skill: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Targets, of which most rows have none, and answers."""
    random = np.random.default_rng(1)
    targets_NK = (random.random((rows, 3)) < [0.3, 0.1, 0.05]).astype(np.int8)
    outputs_NK = (random.normal(size=(rows, 3)) + skill * targets_NK - skill / 2).astype(np.float32)
    return targets_NK, head.answers(outputs_NK, {}, 1.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0]])
def test_the_loss_is_that_of_torch(smoothing, weights):
    head = make(label_smoothing=smoothing)
    if weights:
        head.set_class_weights(torch.tensor(weights))
    soft = TARGETS * (1 - smoothing) + smoothing / 2
    expected = F.binary_cross_entropy_with_logits(LOGITS, soft, pos_weight=torch.tensor(weights) if weights else None)
    torch.testing.assert_close(head.loss(LOGITS, Batch({}, TARGETS)), expected)


def test_unlabelled_rows_do_not_count_and_rows_of_no_class_do():
    some = TARGETS.clone()
    some[4:] = -1
    torch.testing.assert_close(make().loss(LOGITS, Batch({}, some)), F.binary_cross_entropy_with_logits(LOGITS[:4], TARGETS[:4].float()))
    assert float(make().loss(LOGITS, Batch({}, torch.full_like(TARGETS, -1)))) == 0


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixed_targets(share):
    partner = torch.tensor([5, 4, 3, 2, 1, 0]).roll(1)
    mixed = make().loss(LOGITS, Batch({}, TARGETS, mix=Mix(partner, torch.full((6,), share))))
    soft = share * TARGETS + (1 - share) * TARGETS[partner]
    torch.testing.assert_close(mixed, F.binary_cross_entropy_with_logits(LOGITS, soft))


@pytest.mark.parametrize("hidden", [0, 16])
def test_it_learns(hidden):
    head, features = make(hidden=hidden), torch.randn(6, 8, generator=torch.Generator().manual_seed(3))

    class Fixed(nn.Module):
        def encode(self, inputs):
            return Features(features)

    optimizer = torch.optim.Adam(head.parameters(), 0.1)
    for _ in range(60):
        result = head.step(Fixed(), Batch({}, TARGETS))
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
    assert float(head.step(Fixed(), Batch({}, TARGETS)).extras["micro_f1"]) == 1
    told = head.answers(head.outputs(Fixed(), {}).detach().numpy(), {}, 1.0)
    assert (told[:, 1] == TARGETS.numpy()).all() and told.shape == (6, 2, 3)
    assert all(metric(TARGETS.numpy(), head.scores(told, {})) in (0, 1) for metric in head.metrics.values())


def test_presence_weighs_more_the_rarer_it_is_within_bounds():
    head, targets = make(), np.zeros((100, 3), np.int8)
    targets[:25, 0], targets[:1, 1], targets[:, 2] = 1, 1, 1
    head.balance(targets)
    assert head.class_weights.tolist() == pytest.approx([3, HEAVIEST, 1 / HEAVIEST])
    assert "class_weights" not in head.state_dict() and "thresholds" in head.state_dict()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from([1, 7]))
def test_no_threshold_has_a_better_f1(seed, rows, digits):
    random = np.random.default_rng(seed)
    targets, probabilities = random.integers(0, 2, (rows, 1)), np.round(random.random((rows, 1)), digits)
    (threshold,) = best_thresholds(probabilities, targets)
    if targets.sum() < 5:
        assert threshold == 0.5
        return
    mine = f1_score(targets, probabilities > threshold)
    assert all(mine >= f1_score(targets, probabilities > other) - 1e-9 for other in np.append(np.unique(probabilities), 0))


def test_thresholds_come_from_validation_rows_or_from_the_recipe():
    random = np.random.default_rng(0)
    targets = (random.random((400, 3)) < [0.5, 0.1, 0.005]).astype(np.int8)
    outputs = (random.normal(size=(400, 3)) + 2 * targets + [0, -3, -3]).astype(np.float32)
    chosen, given_ = make(), make(threshold=0.3)
    temperature = chosen.calibrate(outputs, {"label": targets})
    assert temperature == given_.calibrate(outputs, {"label": targets}) and 0.2 <= temperature <= 20
    np.testing.assert_array_equal(given_.thresholds, np.float32(0.3))
    assert chosen.thresholds[1] < 0.4 and chosen.thresholds[2] == 0.5, "a class of two rows keeps the half"
    before, after = (head.metrics["macro_f1"](targets, head.scores(head.answers(outputs, {}, 1.0), {})) for head in (make(), chosen))
    assert after > before
    assert sigmoid(np.array([-1000.0, 0, 1000])).tolist() == [0, 0.5, 1]


def test_what_users_are_told():
    head = make(threshold=0.6)
    frame = head.frame(head.answers(np.array([[2.0, 0.2, 2.0], [-1.0, -1.0, -1.0]], np.float32), {}, 1.0))
    assert list(frame.columns) == ["labels", "p_a", "p_b", "p_$c"] and frame["labels"].tolist() == ["a, $c", ""]
    assert len(head.frame([])) == 0
    told = head.trivial_answers({"label": np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], np.int8)}, {"label": np.zeros((2, 3))})
    np.testing.assert_allclose(told, [[[2 / 3, 1 / 3, 0], [1, 0, 0]]] * 2, atol=1e-6)
    other = np.array([[[0.9, 0.8], [1, 0]]], np.float32)
    np.testing.assert_allclose(head.align(other, ("gone", "b")), [[[0, 0.8, 0], [0, 0, 0]]])


def test_an_evaluation_shows_classes_calibration_and_mistakes():
    head = make()
    targets, told = answered(head)
    table = pd.DataFrame({"row_id": [f"r{row}" for row in range(200)], "key": [f"k{row}" for row in range(200)], "group": np.arange(200) // 2})
    table["slice"] = ["x", "y"] * 100
    trivial = head.trivial_answers({"label": targets}, {"label": targets})

    def details(options):
        return head.details(table, told, told, {"label": targets}, temperature=1.5, mistakes=5, options=options)

    arms = {"model": head.scores(told, {}), "trivial": head.scores(trivial, {})}
    found = evaluate(table, targets, arms, head.metrics, head.primary, details, trivial=head.trivial, resamples=100)
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [one["class"] for one in content["per_class"]] == ["a", "b", "$c"]
    assert [one["support"] for one in content["per_class"]] == targets.sum(0).tolist()
    assert content["per_class"][0]["average_precision"]["low"] <= content["per_class"][0]["average_precision"]["value"]
    assert len(content["slices"]) == 2 and "beats telling every row" in content["words"][0]
    sure = [one["probability"] for one in content["mistakes"]]
    assert len(sure) == 5 and sure == sorted(sure, reverse=True) and min(sure) > 0.5
    for one in content["mistakes"]:
        row, k = one["row"], SPEC.classes.index(one["about"])
        assert (told[row, 1, k] == 1) != (targets[row, k] == 1) and one["predicted"] != one["label"]
    assert found.predictions["label"].tolist().count("(none)") == (targets.sum(1) == 0).sum()
    drawn = head.pictures(content)
    assert set(drawn) == {"reliability", "per_class"} and all(isinstance(figure, Figure) for figure in drawn.values())
    perfect = np.stack([targets, targets], axis=1).astype(np.float32)
    assert head.details(table, perfect, perfect, {"label": targets}, temperature=1.0, mistakes=5, options={"resamples": 100})[0]["mistakes"] == []


def test_data_without_a_class_are_refused():
    with pytest.raises(InputError, match="have no class"):
        MultiLabel(MultiLabel.Options(), 8, DataSpec("image", {}, (1, 16, 16), (), {}))
