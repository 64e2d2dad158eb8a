"""BLEU and chrF from statistics of rows, against sacrebleu's own corpus scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from ml import translation_metrics
from ml.translation_metrics import TRANSLATION, each_chrf, statistics

NONE = np.zeros(0)
REFERENCES = ["Ein Mann schläft auf einem Sofa.", "Zwei Hunde rennen, und ein Kind lacht.", "Ja!", "Eine Frau isst zu Abend (allein)."]
ANSWERS = ["Ein Mann schläft auf dem grünen Sofa.", "Zwei Hunde rennen und ein Kind lacht.", "Nein!", ""]
WORDS = st.sampled_from(["der", "Hund", "läuft", "rennt", "schnell", ".", ",", "ein", "Kind", "x"])
TEXTS = st.lists(WORDS, max_size=12).map(" ".join)


def official(answers, references):
    return {
        "bleu": BLEU(force=True).corpus_score(answers, [references]).score / 100,
        "chrf": CHRF().corpus_score(answers, [references]).score / 100,
    }


def measured(answers, references):
    return {name: metric(NONE, statistics(answers, references)) for name, metric in TRANSLATION.items()}


@pytest.mark.parametrize(
    ("answers", "references"),
    [
        (ANSWERS, REFERENCES),
        (REFERENCES, REFERENCES),
        (ANSWERS[:1], REFERENCES[:1]),
        ([""], ["Ein Mann."]),
        (["ganz anders"], ["Ein Mann schläft."]),
        (["Ein Mann"], ["Ein Mann"]),
        (["Ein Mann schläft auf dem Tisch"], ["Hier ist ein Mann, der auf dem Tisch schläft"]),
    ],
)
def test_as_sacrebleu(answers, references):
    assert measured(answers, references) == pytest.approx(official(answers, references), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS.filter(bool)), min_size=1, max_size=5))
def test_as_sacrebleu_on_any_texts(pairs):
    answers, references = map(list, zip(*pairs, strict=True))
    assert measured(answers, references) == pytest.approx(official(answers, references), abs=1e-12)


def test_weights_are_repetitions_of_rows():
    scores, random = statistics(ANSWERS, REFERENCES), np.random.default_rng(0)
    draws = [random.integers(0, 4, 4) for _ in range(6)]
    weights = np.stack([np.bincount(draw, minlength=4) for draw in draws], axis=1)
    for name, metric in TRANSLATION.items():
        expected = [official([ANSWERS[i] for i in draw], [REFERENCES[i] for i in draw])[name] for draw in draws]
        found = metric(NONE, scores, weights)
        assert found.shape == (6,)
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_shape_and_scale():
    scores = statistics(ANSWERS, REFERENCES)
    assert scores.shape == (4, translation_metrics.WIDTH) and scores.dtype == np.float64
    assert statistics([], []).shape == (0, translation_metrics.WIDTH)
    assert all(metric(NONE, statistics(REFERENCES, REFERENCES)) == pytest.approx(1) for metric in TRANSLATION.values())


def test_chrf_of_each_row():
    each = each_chrf(statistics(ANSWERS, REFERENCES))
    assert each.tolist() == pytest.approx([official([one], [other])["chrf"] for one, other in zip(ANSWERS, REFERENCES, strict=True)])
