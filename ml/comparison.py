"""Runs side by side: what of their recipes differs, and whether their models do, on the same test rows.

Shapes in names: N test rows, S numbers of a row that metrics read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ml.evidence import Estimate, bootstrap
from ml.masking import mask
from ml.metrics import Metric


@dataclass(frozen=True)
class Measured:
    """What one evaluation kept: scores (N, S) of the rows `ids`, what is right of them, groups of near copies, and where they come from."""

    ids: np.ndarray
    scores_NS: np.ndarray
    targets_N: np.ndarray
    groups_N: np.ndarray
    head: str
    labelled: bool
    classes: tuple[str, ...]
    store: str


def differing(recipes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The parameters whose values are not the same in all recipes: {path: "a.b.c", values: one a recipe}, by path.

    What is not set is None. Values are what they were, secrets in texts aside.
    """
    flat = [dict(_leaves(recipe)) for recipe in recipes]
    paths = sorted({path for one in flat for path in one})
    rows = ((path, [one.get(path) for one in flat]) for path in paths)
    return [{"path": ".".join(path), "values": [_masked(value) for value in values]} for path, values in rows if any(not _same(value, values[0]) for value in values)]


def apart(a: Measured, b: Measured) -> str:
    """Why two evaluations cannot be compared row by row, in words; "" where they can."""
    if a.head != b.head:
        return f"they are made for different purposes ({a.head} and {b.head})"
    if a.classes != b.classes:
        return "they tell different classes"
    if len(a.ids) != len(b.ids) or set(a.ids) != set(b.ids):
        return f"they were measured on different test rows ({len(set(a.ids) & set(b.ids)):,} in common, of {len(a.ids):,} and {len(b.ids):,})"
    if len(set(a.ids)) < len(a.ids) and not np.array_equal(a.ids, b.ids):
        return "some of their test rows cannot be told apart"
    if a.store != b.store and not a.labelled:
        return "their data were prepared differently, and so what is right of a row may be"
    if not np.array_equal(a.targets_N, aligned(a, b).targets_N):
        return "the labels of their test rows differ"
    return ""


def aligned(a: Measured, b: Measured) -> Measured:
    """`b` in the order of a's rows; the rows must be the same."""
    if np.array_equal(a.ids, b.ids):
        return b
    order = pd.Index(b.ids).get_indexer(a.ids)
    return replace(b, ids=b.ids[order], scores_NS=b.scores_NS[order], targets_N=b.targets_N[order], groups_N=b.groups_N[order])


def differences(
    first: Measured, others: Sequence[Measured], metrics: Mapping[str, Metric], *, resamples: int, confidence: float, seed: int
) -> list[dict[str, Estimate]]:
    """By metric, the paired difference other − first of each, all on the same resamples; `apart` must be "" for each."""
    scores = {"first": first.scores_NS} | {str(number): aligned(first, one).scores_NS for number, one in enumerate(others)}
    measured = bootstrap(metrics, first.targets_N, scores, resamples=resamples, confidence=confidence, seed=seed, groups_N=first.groups_N)
    return [{name: measured.difference(str(number), "first", name) for name in metrics} for number in range(len(others))]


def _leaves(content: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, value) of all that is set."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, str(name)))
        elif value is not None:
            yield (*above, str(name)), value


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (a == b or (a != a and b != b))


def _masked(value: Any) -> Any:
    return mask(value) if isinstance(value, str) else value
