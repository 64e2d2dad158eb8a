"""How well tags of words agree with the truth: F1 of whole spans, as conlleval measures it (Tjong Kim Sang and Buchholz 2000), and accuracy of words.

Metrics are functions of statistics of each row, (N, S) with the columns of STATISTICS. K types, N rows, R resamples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ml.metrics import Metric

OUTSIDE = "O"
STATISTICS = ("found", "predicted", "true", "right", "words")
"""Of each row: spans predicted that are true ones, spans predicted, true spans; words tagged right, words."""

Span = tuple[str, int, int]
"""(type, first word, the one behind the last)."""

_PREFIXED = re.compile(r"([BIESMLU])-(.*)", re.DOTALL)
_BARE = frozenset("BIESMLU")
_SAME = {"M": "I", "L": "E", "U": "S"}
"""Letters of the schemes BMES and BILOU in those of IOBES."""


@dataclass(frozen=True)
class Scheme:
    """How tags tell spans, which depends on all the tags that there are.

    1. `prefixed`: B-TYPE, I-TYPE and the like (IOB1, IOB2, IOBES, BILOU; bare letters where there is one type), read as conlleval does, and seqeval by
       default. A span begins with B or S, ends with E or S, and also begins where a type follows that is another, or nothing.
    2. Else, where some words are `outside`: runs of the same type.
    3. Else each word is a span, so that precision, recall and F1 are the accuracy: parts of speech.
    """

    prefixed: bool
    outside: bool

    @classmethod
    def of(cls, tags: Iterable[str]) -> Scheme:
        """That of a data set with such tags."""
        tags = set(tags)
        inside = tags - {OUTSIDE}
        bare = "B" in inside and inside <= _BARE
        return cls(bare or any(tag.startswith(("B-", "I-")) for tag in inside), OUTSIDE in tags)

    @property
    def has_spans(self) -> bool:
        """Whether spans say more than the tags themselves."""
        return self.prefixed or self.outside

    def spans(self, tags: Sequence[str]) -> list[Span]:
        """The spans of one row, from left to right."""
        if self.prefixed:
            return _chunks(tags)
        return _runs(tags) if self.outside else [(tag, place, place + 1) for place, tag in enumerate(tags)]

    def type_of(self, tag: str) -> str:
        """The type that a tag belongs to, O for none."""
        return _split(tag)[1] if self.prefixed and tag != OUTSIDE else tag


def statistics(predicted: Sequence[Sequence[str]], truths: Sequence[Sequence[str]], scheme: Scheme) -> np.ndarray:
    """(N, S) float64 of rows of tags, as many in each prediction as in its truth."""
    rows = np.zeros((len(truths), len(STATISTICS)))
    for row, (ours, theirs) in enumerate(zip(predicted, truths, strict=True)):
        said, true = set(scheme.spans(ours)), set(scheme.spans(theirs))
        right = sum(our == their for our, their in zip(ours, theirs, strict=True))
        rows[row] = len(said & true), len(said), len(true), right, len(theirs)
    return rows


def by_type(predicted: Sequence[Sequence[str]], truths: Sequence[Sequence[str]], scheme: Scheme) -> tuple[list[str], np.ndarray]:
    """The types of spans there are, and (N, 3K) float64: found, predicted and true spans of each row, one type after the other."""
    counted = []
    for ours, theirs in zip(predicted, truths, strict=True):
        said, true = set(scheme.spans(ours)), set(scheme.spans(theirs))
        counted.append((said & true, said, true))
    types = sorted({span[0] for row in counted for some in row for span in some})
    column = {kind: 3 * number for number, kind in enumerate(types)}
    rows = np.zeros((len(counted), 3 * len(types)))
    for row, kinds in enumerate(counted):
        for offset, some in enumerate(kinds):
            for kind, _, _ in some:
                rows[row, column[kind] + offset] += 1
    return types, rows


def _split(tag: str) -> tuple[str, str]:
    """(letter, type): ("B", "PER") of B-PER, ("I", "") of I; a type without a letter stands for I."""
    matched = _PREFIXED.fullmatch(tag)
    letter, kind = matched.groups() if matched else (tag, "") if tag in _BARE or tag == OUTSIDE else ("I", tag)
    return _SAME.get(letter, letter), kind


def _chunks(tags: Sequence[str]) -> list[Span]:
    found: list[Span] = []
    begun: tuple[str, int] | None = None
    before = OUTSIDE
    for place, tag in enumerate((*tags, OUTSIDE)):
        letter, kind = _split(tag)
        begins = letter != OUTSIDE and (begun is None or letter in "BS" or before in "ES" or kind != begun[0])
        if begun and (begins or letter == OUTSIDE):
            found.append((*begun, place))
            begun = None
        if begins:
            begun = kind, place
        before = letter
    return found


def _runs(tags: Sequence[str]) -> list[Span]:
    edges = [place for place in range(1, len(tags)) if tags[place] != tags[place - 1]]
    pairs = zip([0, *edges], [*edges, len(tags)], strict=True) if len(tags) else ()
    return [(tags[start], start, end) for start, end in pairs if tags[start] != OUTSIDE]


def _ratio(over: Callable[..., np.ndarray], under: Callable[..., np.ndarray], columns: Callable[[np.ndarray], np.ndarray] = np.transpose) -> Metric:
    """A ratio of sums over rows, 0 where there is nothing to divide by, as conlleval has it; `columns` makes what both are told of the sums (R, S)."""

    def measure(targets_N: np.ndarray, scores_NS: np.ndarray, weights_NR: np.ndarray | None = None) -> float | np.ndarray:
        scores_NS = np.asarray(scores_NS, np.float64)
        weights = np.ones((len(scores_NS), 1)) if weights_NR is None else weights_NR
        told = columns(weights.T @ scores_NS)
        values = over(*told) / np.maximum(under(*told), 1)
        if weights_NR is not None:
            return values
        return float(values[0]) if values.ndim == 1 else values[0]

    return measure


_SPANS: Mapping[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    "f1": (lambda found, predicted, true, *_: 2 * found, lambda found, predicted, true, *_: predicted + true),
    "precision": (lambda found, *_: found, lambda found, predicted, *_: predicted),
    "recall": (lambda found, *_: found, lambda found, predicted, true, *_: true),
}

TAGS: Mapping[str, Metric] = {
    **{name: _ratio(*parts) for name, parts in _SPANS.items()},
    "accuracy": _ratio(lambda *sums: sums[3], lambda *sums: sums[4]),
}
"""By name: of spans but for accuracy, which is that of words."""

PER_TYPE: Mapping[str, Metric] = {
    name: _ratio(*parts, columns=lambda sums_RS: sums_RS.reshape(len(sums_RS), -1, 3).transpose(2, 0, 1)) for name, parts in _SPANS.items()
}
"""Of each type, (K,), for the statistics of `by_type`."""
