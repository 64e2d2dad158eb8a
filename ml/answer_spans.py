"""Answers as spans of a context: found again where an offset is off, told in tokens, and the windows that a long context is read in.

A row of tokens is begin, question, end, context, end. Its roles stand in bits above the ids, so that a row is the very sequence that models
read, a stream of rows holds nothing else, and a run of it still knows whether the answer lies within. C tokens of a context.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ml.minhash import UNSPACED

NEAR = 50
"""Characters between where an answer is said to start and where it is found, at most."""

CONTEXT, FIRST, LAST = 1 << 27, 1 << 28, 1 << 29
"""Roles of a token: of the context (or the mark at its end), first or last of the answer."""
IDS = CONTEXT - 1
"""The bits of a stored token that are its id."""


class NotInContext(ValueError):
    """An answer does not stand in its context; the message is the reason, in words for the quarantine's table."""


def locate_answer(context: str, text: str, start: int) -> int:
    """Where in the context the answer stands: at `start`, else where it occurs once, else nearest to `start` within NEAR."""
    if not text:
        raise NotInContext("an answer is empty")
    if start >= 0 and context.startswith(text, start):
        return start
    first = context.find(text)
    if first >= 0 and context.find(text, first + 1) < 0:
        return first
    low = max(0, start - NEAR)
    near, place = [], context.find(text, low)
    while 0 <= place <= start + NEAR:
        near.append(place)
        place = context.find(text, place + 1)
    if not near:
        raise NotInContext(f"the answer {text!r:.80} does not stand in the context {'' if first < 0 else f'within {NEAR} characters '}at {start}")
    return min(near, key=lambda place: (abs(place - start), place))


def answers_of(value: Any) -> list[tuple[str, int]]:
    """(text, start) of each answer: SQuAD's list of objects, or Hugging Face's object of two lists; ValueError for anything else."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start", value.get("start"))
        if not (isinstance(texts, Sequence) and isinstance(starts, Sequence) and not isinstance(texts, str) and len(texts) == len(starts)):
            raise ValueError(f'answers {value!r:.80}; expected {{"text": [...], "answer_start": [...]}} of equal length')
        value = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if not isinstance(value, list):
        raise ValueError(f'answers {value!r:.80}; expected a list of {{"text": ..., "answer_start": ...}}')
    found = []
    for one in value:
        text, start = (one.get("text"), one.get("answer_start", one.get("start"))) if isinstance(one, Mapping) else (None, None)
        if not isinstance(text, str) or not isinstance(start, int):
            raise ValueError(f'answer {one!r:.80}; expected {{"text": text, "answer_start": number of a character}}')
        found.append((text, start))
    return found


def item(question: str, context: str, answers: Sequence[tuple[str, int]]) -> bytes:
    """A question with its context and answers as UTF-8 JSON, as sources give it."""
    content = {"question": question, "context": context, "answers": [{"text": text, "start": start} for text, start in answers]}
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")


def token_span(offsets_C2: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """The first and last token of the context that share a character with [start, end)."""
    first = int(np.searchsorted(offsets_C2[:, 1], start, side="right"))
    last = int(np.searchsorted(offsets_C2[:, 0], end, side="left")) - 1
    first = min(first, len(offsets_C2) - 1)
    return first, max(first, last)


def whole_words(text: str, start: int, end: int) -> tuple[int, int]:
    """A span made longer so that it cuts no word, in scripts that set words apart."""

    def within(place: int) -> bool:
        return 0 < place < len(text) and all(one.isalnum() and not UNSPACED.match(one) for one in text[place - 1 : place + 1])

    while within(start):
        start -= 1
    while within(end):
        end += 1
    return start, end


def window(length: int, question: int, limit: int) -> tuple[int, int]:
    """(tokens kept of the question, with its marks; tokens of context beside it) of a row of `length` tokens read `limit` at a time.

    A row that fits is read whole; else the question has a third of a window at most.
    """
    if length <= limit:
        return question, length - question - 1
    kept = min(question, max(2, limit // 3))
    return kept, limit - kept - 1


def window_index(length: int, question: int, limit: int, start: int) -> np.ndarray:
    """The tokens of a row that the window from context token `start` on holds: question, its end mark, a run of the context, the end mark."""
    kept, room = window(length, question, limit)
    first = question + start
    context = np.arange(first, min(first + room, length - 1))
    return np.concatenate([np.arange(kept - 1), [question - 1], context, [length - 1]])


def window_starts(length: int, question: int, limit: int, stride: int) -> list[int]:
    """Where the windows of a row begin in its context: one every `stride` tokens, and the last ends with the context."""
    _, room = window(length, question, limit)
    last = max(0, length - question - 1 - room)
    return [*range(0, last, max(1, min(stride, room))), last]
