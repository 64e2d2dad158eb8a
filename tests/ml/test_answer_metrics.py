"""Exact match and F1, against the official script of SQuAD v2 (evaluate-v2.0.py) as it stands, and on examples."""

import collections
import re
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.answer_metrics import ANSWERS, normalise, question_word, statistics


def normalize_answer(s):
    def remove_articles(text):
        regex = re.compile(r"\b(a|an|the)\b", re.UNICODE)
        return re.sub(regex, " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def get_tokens(s):
    return normalize_answer(s).split() if s else []


def compute_exact(a_gold, a_pred):
    return int(normalize_answer(a_gold) == normalize_answer(a_pred))


def compute_f1(a_gold, a_pred):
    gold_toks, pred_toks = get_tokens(a_gold), get_tokens(a_pred)
    common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision, recall = 1.0 * num_same / len(pred_toks), 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def official(answer, truths):
    gold = [one for one in truths if normalize_answer(one)] or [""]
    return max(compute_exact(one, answer) for one in gold), max(compute_f1(one, answer) for one in gold)


words = st.lists(st.sampled_from(["the", "The", "a", "An", "Norman", "norman", "duke,", "of", "U.S.", "--", "1066", "än", "a.m."]), max_size=6).map(" ".join)


@given(words, st.lists(words, max_size=4))
def test_as_the_official_script(answer, truths):
    exact, f1 = official(answer, truths)
    assert normalise(answer) == normalize_answer(answer)
    np.testing.assert_allclose(statistics([answer], [truths]), [[exact, f1, bool(truths)]])


@pytest.mark.parametrize(
    ("answer", "truths", "exact", "f1"),
    [
        ("the Duke.", ["duke"], 1, 1),
        ("Duke of Normandy", ["Normandy", "the duke"], 0, 0.5),
        ("", [], 1, 1),
        ("Normandy", [], 0, 0),
        ("", ["Normandy"], 0, 0),
        ("a a b b", ["b b b"], 0, 0.8),
    ],
)
def test_examples(answer, truths, exact, f1):
    assert statistics([answer], [truths])[0].tolist() == pytest.approx([exact, f1, float(bool(truths))])


def test_metrics_are_means_of_any_weighted_set_of_rows():
    scores = statistics(["x", "", "y z", "no"], [["x"], [], ["y"], []])
    assert {name: measure(np.zeros(4), scores) for name, measure in ANSWERS.items()} == pytest.approx(
        {"f1": (1 + 1 + 2 / 3) / 4, "exact_match": 0.5, "answerable_f1": (1 + 2 / 3) / 2, "answerable_exact_match": 0.5}
    )
    weights = np.array([[1, 0, 0], [1, 3, 1], [1, 0, 2], [1, 1, 0]])
    for measure in ANSWERS.values():
        drawn = measure(np.zeros(4), scores, weights)
        assert drawn.shape == (3,)
        for column, counts in enumerate(weights.T):
            assert drawn[column] == pytest.approx(measure(np.zeros(4), scores.repeat(counts, 0)), nan_ok=True)
    assert np.isnan(ANSWERS["answerable_f1"](np.zeros(1), scores[1:2]))


def test_questions_are_told_apart_by_their_word():
    asked = ["Who was Rollo?", "In what year?", "To whom was it given?", "How many?", "Name the duke.", "whatever"]
    assert [question_word(one) for one in asked] == ["who", "what", "who", "how", "", ""]
