"""Words with their tags: how a row of them is stored as tokens, and how a text that has no words yet is split into some.

A word's first token bears its tag in bits above the id, so that a row is the very sequence that models read, a stream of rows holds nothing
else, and a run of it still knows the words and tags within. T tokens.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

import numpy as np

from ml.minhash import UNSPACED

SHIFT = 20
"""Bits of a stored token that are its id; what stands above them is its role."""
IDS = (1 << SHIFT) - 1
INSIDE, UNTAGGED, TAGGED = 0, 1, 2
"""Roles: not the first token of a word; the first of one without a known tag; from here on, the first of one with tag 0, 1 ..."""
MOST_TAGS = (1 << 11) - TAGGED

_WORDS = re.compile(r"\w+|[^\w\s]")
_JOINED = ("M", "Cf")


def role_of(tag: int | None) -> int:
    """What stands above the id of a word's first token, shifted to its place."""
    return (UNTAGGED if tag is None else TAGGED + tag) << SHIFT


def split_words(text: str) -> list[tuple[int, int]]:
    """The characters (start, end) of each word: a run of letters, digits, underscores and what is set above or below them; any other sign alone.

    Scripts without blanks between words give a word a character.
    """
    # A letter in place of marks and of what joins letters, which Python's \w leaves out.
    shape = "".join("a" if unicodedata.category(one).startswith(_JOINED) else one for one in text) if not text.isascii() else text
    found = []
    for word in _WORDS.finditer(shape):
        start, end = word.span()
        cuts = sorted({start, end, *(place for one in UNSPACED.finditer(text, start, end) for place in one.span())})
        found += pairwise(cuts)
    return found


def windows(length: int, limit: int) -> list[tuple[int, int, int, int]]:
    """(first token, the one behind the last, first that is told, the one behind the last told) of each window over the tokens of a row but its two
    marks, of which `limit` are read with the marks. They overlap by half, and each token is told by the window that holds most around it."""
    tokens, room = length - 2, limit - 2
    last = max(0, tokens - room)
    starts = [*range(0, last, max(1, room // 2)), last]
    cuts = [0, *((a + b + room) // 2 for a, b in pairwise(starts)), tokens]
    return [(start + 1, min(start + room, tokens) + 1, cuts[n] + 1, cuts[n + 1] + 1) for n, start in enumerate(starts)]


def window_of(row_T: np.ndarray, limit: int, place: float) -> np.ndarray:
    """What is read at once of a row: all, or of a longer one its two marks and a run of the rest, which begins where `place` in [0, 1) says."""
    if len(row_T) <= limit:
        return row_T
    first = 1 + int(place * (len(row_T) - limit + 1))
    return np.concatenate([row_T[:1], row_T[first : first + limit - 2], row_T[-1:]])
