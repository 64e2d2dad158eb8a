"""Ranks against a sort by hand, ties against all their orders, and metrics against rows that are repeated."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from ml import retrieval, retrieval_classical
from ml.retrieval import RETRIEVAL, search


def unit(seed: int, rows: int, width: int = 8) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("cells", [8_000_000, 40])
@pytest.mark.parametrize("kind", [np.asarray, csr_matrix])
def test_ranks_are_those_of_a_sort(monkeypatch, cells, kind):
    monkeypatch.setattr(retrieval, "CELLS", cells)
    source, target = unit(0, 30), unit(1, 30)
    names = [f"t{row}" for row in range(30)]
    found = search(kind(source), kind(target), [f"s{row}" for row in range(30)], names)
    order = np.argsort(-(source @ target.T), axis=1)
    ranks = [1 + order[row].tolist().index(row) for row in range(30)]
    assert found.rank_N.tolist() == ranks and (found.tied_N == 0).all() and found.candidates == 30
    wrong = [next(place for place in order[row] if place != row) for row in range(30)]
    assert found.nearest_N.tolist() == wrong
    np.testing.assert_allclose(found.other_N, [source[row] @ target[place] for row, place in enumerate(wrong)], rtol=1e-5)
    scores = found.scores
    assert RETRIEVAL["mrr"](None, scores) == pytest.approx(np.mean(1 / np.array(ranks)))
    assert RETRIEVAL["recall_at_1"](None, scores) == pytest.approx(np.mean(np.array(ranks) == 1))
    assert RETRIEVAL["recall_at_10"](None, scores) == pytest.approx(np.mean(np.array(ranks) <= 10))
    assert RETRIEVAL["median_rank"](None, scores) == sorted(ranks)[14]


def test_equal_targets_are_one_and_equal_sources_share_theirs():
    """Rows 0 and 1 have one target, and what row 0 finds is right for both; rows 2 and 3 ask the same and have two right answers."""
    source, target = np.eye(4, dtype=np.float32)[[0, 1, 2, 2]], np.eye(4, dtype=np.float32)[[0, 0, 3, 2]]
    found = search(source, target, ["a", "b", "c", "c"], ["x", "x", "y", "z"])
    assert found.candidates == 3
    assert found.scores.tolist() == [[0, 0], [0, 2], [0, 1], [0, 0]]
    apart = search(source, target, ["a", "b", "c", "d"], ["x", "x", "y", "z"])
    assert apart.scores[2].tolist() == [1, 1]


@pytest.mark.parametrize(("above", "tied"), [(0, 0), (0, 3), (2, 2), (9, 3), (12, 1)])
def test_ties_count_as_the_mean_over_their_orders(above, tied):
    places = [above + 1 + order.index(0) for order in permutations(range(tied + 1))]
    scores = np.array([[above, tied]], float)
    assert RETRIEVAL["mrr"](None, scores) == pytest.approx(np.mean([1 / place for place in places]))
    for k in (1, 10):
        assert RETRIEVAL[f"recall_at_{k}"](None, scores) == pytest.approx(np.mean([place <= k for place in places]))
    assert RETRIEVAL["median_rank"](None, scores) == np.mean([min(places), max(places)])


def test_what_tells_nothing_apart_scores_as_chance_does():
    same, names = np.ones((50, 4), np.float32) / 2, [f"t{row}" for row in range(50)]
    scores = search(same, same, [name.upper() for name in names], names).scores
    assert RETRIEVAL["recall_at_1"](None, scores) == pytest.approx(1 / 50)
    assert RETRIEVAL["mrr"](None, scores) == pytest.approx(np.mean(1 / np.arange(1, 51)))


def test_numbers_that_are_not_finite_are_not_measured():
    source, target = unit(0, 3), unit(1, 3)
    source[1] = np.nan
    scores = search(source, target, ["a", "b", "c"], ["x", "y", "z"]).scores
    assert np.isnan(scores).all(1).tolist() == [False, True, False]
    assert all(np.isnan(measure(None, scores)) for measure in RETRIEVAL.values())


def test_one_target_alone_is_found():
    found = search(unit(0, 2), unit(1, 2), ["a", "b"], ["x", "x"])
    assert found.scores.tolist() == [[0, 0], [0, 0]] and np.isneginf(found.other_N).all()


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=12).filter(lambda rows: any(one[2] for one in rows)))
def test_weights_count_as_rows_that_are_repeated(rows):
    """The candidates stay the same: only how often a row counts changes."""
    scores, weights = np.array([one[:2] for one in rows], float), np.array([one[2] for one in rows])
    for measure in RETRIEVAL.values():
        found = measure(None, scores, np.stack([weights, np.ones(len(rows))], 1).astype(float))
        assert found == pytest.approx([measure(None, scores.repeat(weights, 0)), measure(None, scores)])


ENGLISH, GERMAN = "dog man house tree river bird stone bread", "Hund Mann Haus Baum Fluss Vogel Stein Brot"
WORDS = dict(zip(ENGLISH.split(), GERMAN.split(), strict=True))


def pairs(start: int, rows: int) -> tuple[list[str], list[str]]:
    chosen = [[list(WORDS)[(row * k + k * k) % 8] for k in (1, 3, 5)] for row in range(start, start + rows)]
    return [" ".join(words) + f" {row}" for row, words in enumerate(chosen)], [" ".join(WORDS[word] for word in reversed(words)) for words in chosen]


def test_shared_words_find_texts_that_share_them():
    asked = (["a red dog", "the old house", "???"], ["house, very old", "RED: a dog!", "unlike all"])
    found = retrieval_classical.shared_words(pairs(0, 20), asked)
    assert found.shape[0] == 3
    known = retrieval_classical.shared_words((["a red dog runs", "an old house"], ["a cat", "very old house"]), asked)
    width = known.shape[1] // 2
    near = (known[:, :width] @ known[:, width:].T).toarray()
    assert near[0].argmax() == 1 and near[1].argmax() == 0 and not near[2].any()


def test_latent_semantic_indexing_learns_words_of_like_meaning_from_pairs():
    asked = pairs(60, 8)
    found = retrieval_classical.classical(pairs(0, 40), pairs(40, 16), asked, seed=0)
    again = retrieval_classical.classical(pairs(0, 40), pairs(40, 16), asked, seed=0)
    np.testing.assert_array_equal(found.answers, again.answers)
    width = found.answers.shape[1] // 2
    assert found.answers.dtype == np.float32 and width == found.settings["dimensions"]
    measured, chance = search(found.answers[:, :width], found.answers[:, width:], *asked), search(np.zeros((8, 1)), np.zeros((8, 1)), *asked)
    assert RETRIEVAL["mrr"](None, measured.scores) > 2 * RETRIEVAL["mrr"](None, chance.scores)
    one_word = (["a", "a", "a"], ["a", "a", "a"])
    assert retrieval_classical.classical(one_word, one_word, one_word, 0).answers.shape == (3, 2)
