"""What an evaluation of tags shows beyond its metrics: each type, which types are taken for which, the most confident mistakes.

N test rows, K types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ml import tag_metrics
from ml.evidence import bootstrap
from ml.tag_metrics import OUTSIDE, Scheme

AROUND = 8
"""Words on either side of a mistake that are shown."""


def details(
    table: pd.DataFrame, answers: Sequence[Mapping[str, Any]], truths: Sequence[Sequence[str]], scheme: Scheme, *, mistakes: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """`per_class` of the types of spans; `confusion[i][j]`: words of type i taken for type j; `mistakes` by row, the surest first."""
    told = [one["tags"] for one in answers]
    types = sorted({scheme.type_of(tag) for some in (told, truths) for row in some for tag in row}, key=lambda kind: (kind == OUTSIDE, kind))
    number = {kind: place for place, kind in enumerate(types)}
    pairs = [(number[scheme.type_of(their)], number[scheme.type_of(our)]) for ours, theirs in zip(told, truths, strict=True) for our, their in zip(ours, theirs, strict=True)]
    confusion_KK = np.bincount([i * len(types) + j for i, j in pairs], minlength=len(types) ** 2).reshape(len(types), len(types))
    return {
        "per_class": _per_type(table, told, truths, scheme, options),
        "counted": "true spans" if scheme.has_spans else "words",
        "types": types,
        "confusion": confusion_KK,
        "mistakes": _mistakes(table, answers, truths, mistakes),
        "mistakes_title": "The wrong tags that the model was surest of",
    }


def _per_type(
    table: pd.DataFrame, told: Sequence[Sequence[str]], truths: Sequence[Sequence[str]], scheme: Scheme, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    types, counts_NS = tag_metrics.by_type(told, truths, scheme)
    if not types:
        return []
    groups_N = table["group"].to_numpy() if "group" in table else None
    measured = bootstrap(tag_metrics.PER_TYPE, np.zeros(len(truths)), {"model": counts_NS}, groups_N=groups_N, **options)
    true_K = counts_NS.sum(0).reshape(-1, 3)[:, 2].astype(int)
    columns = {name: measured.intervals("model", name, true_K) for name in tag_metrics.PER_TYPE}
    return [{"class": kind, "support": int(true_K[k])} | {name: column[k] for name, column in columns.items()} for k, kind in enumerate(types)]


def _mistakes(table: pd.DataFrame, answers: Sequence[Mapping[str, Any]], truths: Sequence[Sequence[str]], count: int) -> list[dict[str, Any]]:
    """The surest wrong tag of each row that has one."""
    found = []
    for row, (one, theirs) in enumerate(zip(answers, truths, strict=True)):
        wrong = [place for place, (our, their) in enumerate(zip(one["tags"], theirs, strict=True)) if our != their]
        if wrong:
            place = max(wrong, key=lambda place: one["scores"][place])
            found.append((one["scores"][place], row, place))
    found.sort(key=lambda one: -one[0])
    keys = table["key"].tolist()
    return [
        {
            "row": row,
            "key": keys[row],
            "text": _around(answers[row]["words"], place),
            "truth": truths[row][place],
            "predicted": answers[row]["tags"][place],
            "probability": float(sure),
        }
        for sure, row, place in found[:count]
    ]


def _around(words: Sequence[str], place: int) -> str:
    """The word in brackets, between those around it."""
    before, behind = words[max(0, place - AROUND) : place], words[place + 1 : place + 1 + AROUND]
    return " ".join([*["…"] * (place > AROUND), *before, f"[{words[place]}]", *behind, *["…"] * (place + 1 + AROUND < len(words))])
