"""Heads: their loss against torch's own, mixed targets, weights, and predictions that are probabilities."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ml.contracts import Batch, DataSpec, Features, InputError, Mix
from ml.heads import HEADS

SPEC = DataSpec("image", {}, (1, 16, 16), ("a", "b", "c"), {"mean": [0.5], "std": [0.25]})
LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 2, 1, 0])


CLASSES = [name for name, head in HEADS.items() if head.labels and not head.several]


@pytest.mark.parametrize("name", HEADS)
def test_a_head_says_what_it_is(name):
    head = HEADS[name]
    assert head.primary in head.metrics and head.trivial and head.__doc__
    for part in ("step", "outputs", "answers", "scores", "trivial_answers", "frame", "details", "pictures"):
        assert callable(getattr(head, part))
    assert isinstance(head.packed, bool) and isinstance(head.whole, bool) and isinstance(head.several, bool) and head.needs <= {"tokens", "vocabulary", "causal", "bidirectional", "sequence-to-sequence", "map"}


def make(name: str = "classification", **options):
    torch.manual_seed(0)
    return HEADS[name](HEADS[name].Options(**options), 8, SPEC)


@pytest.mark.parametrize("hidden", [0, 16])
@pytest.mark.parametrize("name", CLASSES)
def test_outputs_become_probabilities(name, hidden):
    head = make(name, hidden=hidden)
    outputs = head(Features(torch.randn(5, 8)))
    probabilities = head.probabilities(outputs)
    assert probabilities.shape == (5, 3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5))
    assert head.primary in head.metrics


@pytest.mark.parametrize("name", CLASSES)
def test_metrics_of_a_perfect_prediction(name):
    targets, sure = TARGETS.numpy(), torch.eye(3)[TARGETS].numpy()
    best = {"log_loss": 0.0, "expected_calibration_error": 0.0}
    for metric, measure in HEADS[name].metrics.items():
        assert measure(targets, sure) == pytest.approx(best.get(metric, 1.0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0]])
def test_loss_is_that_of_torch(smoothing, weights):
    head = make(label_smoothing=smoothing)
    if weights:
        head.set_class_weights(torch.tensor(weights))
    expected = F.cross_entropy(LOGITS, TARGETS, torch.tensor(weights) if weights else None, label_smoothing=smoothing)
    torch.testing.assert_close(head.loss(LOGITS, Batch({}, TARGETS)), expected)


def test_standardised_features_have_mean_0_and_deviation_1():
    options = HEADS["classification"].Options(standardise=True)
    head = HEADS["classification"](options, 4, SPEC)
    features_ND = torch.randn(4096, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.01, 1, 10, 1000]) + torch.tensor([5, 0, -3, 1e4])
    for part_BD in features_ND.split(32):
        head(Features(part_BD))
    scaled_ND = head.eval().scaled(features_ND)
    torch.testing.assert_close(scaled_ND.mean(0), torch.zeros(4), atol=0.2, rtol=0)
    torch.testing.assert_close(scaled_ND.std(0), torch.ones(4), atol=0.2, rtol=0)
    torch.testing.assert_close(head.train()(Features(features_ND[:1])), head.eval()(Features(features_ND[:1])))


def test_unlabelled_rows_do_not_count():
    head = make()
    some = TARGETS.where(torch.arange(6) < 4, -1)
    torch.testing.assert_close(head.loss(LOGITS, Batch({}, some)), F.cross_entropy(LOGITS[:4], TARGETS[:4]))
    assert float(head.loss(LOGITS, Batch({}, torch.full((6,), -1)))) == 0


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixed_targets(share):
    head, partner = make(), torch.tensor([5, 4, 3, 2, 1, 0]).roll(1)
    mixed = head.loss(LOGITS, Batch({}, TARGETS, mix=Mix(partner, torch.full((6,), share))))
    soft = share * F.one_hot(TARGETS, 3) + (1 - share) * F.one_hot(TARGETS[partner], 3)
    torch.testing.assert_close(mixed, F.cross_entropy(LOGITS, soft.float()))


def test_class_weights_are_no_part_of_the_model():
    head = make()
    head.set_class_weights(torch.tensor([1.0, 2.0, 3.0]))
    assert not [name for name in head.state_dict() if "weights" in name]


def test_one_class_is_refused():
    one = DataSpec("image", {}, (1, 16, 16), ("only",), {})
    with pytest.raises(InputError, match="found 1: only"):
        HEADS["classification"](HEADS["classification"].Options(), 8, one)


def test_answers_of_other_classes_are_matched_by_name():
    own = np.array([[0.7, 0.2, 0.1]])
    np.testing.assert_array_equal(make().align(own, ("b", "gone", "a")), [[0.1, 0.7, 0.0]])
