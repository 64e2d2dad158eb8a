"""Words out of texts, and windows over long rows."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.tagged_words import split_words, window_of, windows


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ann lives in St. Ives.", ["Ann", "lives", "in", "St", ".", "Ives", "."]),
        ("self.my_name(x)", ["self", ".", "my_name", "(", "x", ")"]),
        ("", []),
        (" \n\t", []),
        ("don't — 5€", ["don", "'", "t", "—", "5", "€"]),
        ("cafe\u0301 na\u00efve", ["cafe\u0301", "na\u00efve"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("我在东京 today", ["我", "在", "东", "京", "today"]),
        ("PC版 v2", ["PC", "版", "v2"]),
        ("soft\u00adhyphen", ["soft\u00adhyphen"]),
    ],
)
def test_words(text, words):
    assert [text[start:end] for start, end in split_words(text)] == words


@given(st.text(max_size=40))
def test_words_do_not_overlap_and_leave_out_blanks_alone(text):
    spans = split_words(text)
    assert all(a < b for a, b in spans) and all(a[1] <= b[0] for a, b in pairwise(spans))
    inside = {place for start, end in spans for place in range(start, end)}
    assert all(one.isspace() or place in inside for place, one in enumerate(text))


@given(st.integers(3, 300), st.integers(4, 40))
def test_windows_tell_each_token_once_with_what_is_around_it(length, limit):
    told = []
    for first, end, low, high in windows(length, limit):
        assert 1 <= first <= low <= high <= end <= length - 1 and end - first <= limit - 2
        told += range(low, high)
        margin = (limit - 2) // 4
        for place in range(low, high):
            assert place - first >= min(place - 1, margin) and end - 1 - place >= min(length - 2 - place, margin)
    assert told == list(range(1, length - 1))


@given(st.integers(3, 60), st.integers(4, 20), st.floats(0, 1, exclude_max=True))
def test_a_window_keeps_both_marks_and_a_run(length, limit, place):
    found = window_of(np.arange(length), limit, place)
    assert len(found) == min(length, limit) and (found[0], found[-1]) == (0, length - 1)
    assert (np.diff(found[1:-1]) == 1).all() and (place > 0 or found[1] == 1)
