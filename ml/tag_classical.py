"""What a user would pick for tagging instead of a network: logistic regression on a word's shape and its neighbours (as in Ratinov and Roth 2009).

F features, K tags, M rows, W most words of a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from ml.classical import Classical
from ml.progress import update

WORDS = 100_000
"""Training words at most, those of the rows that come first in an order by chance."""
FEATURES = 2**18
PENALTIES = (1e-4, 1e-5, 1e-6)
"""Strengths of the regularization, of which the validation rows choose one."""
PASSES = 8
NEAR = (-2, -1, 1, 2)
"""Neighbours that are looked at."""

Rows = tuple[Sequence[Sequence[str]], Sequence[Sequence[str]]]
"""The words and the tags of rows."""


def classical(train: Rows, validation: Rows, asked: Sequence[Sequence[str]], tags: Sequence[str], seed: int) -> Classical:
    """Fits on tagged rows; its answers are as the head's outputs, (M, 2W): of each word of the rows asked for a tag's number and its probability, then NaN."""
    from sklearn.feature_extraction import FeatureHasher  # imported where it is used: it costs seconds
    from sklearn.linear_model import SGDClassifier

    update("classical", 0, len(PENALTIES) + 1)
    number = {tag: place for place, tag in enumerate(tags)}
    hasher = FeatureHasher(FEATURES, input_type="string", alternate_sign=False)
    order = np.random.default_rng(seed).permutation(len(train[0]))
    before = np.cumsum([0, *(len(train[0][row]) for row in order)])[:-1]
    chosen = np.sort(order[before < WORDS])
    own_wF = hasher.transform(features(train[0][row] for row in chosen))
    own_w = np.array([number[tag] for row in chosen for tag in train[1][row]])
    held_vF = hasher.transform(features(validation[0]))
    held_v = np.array([number.get(tag, -1) for row in validation[1] for tag in row])
    best = None
    for done, penalty in enumerate(PENALTIES, 1):
        machine = SGDClassifier(loss="log_loss", alpha=penalty, max_iter=PASSES, tol=None, average=True, random_state=seed).fit(own_wF, own_w)
        right = float((machine.predict(held_vF) == held_v).mean())
        if best is None or right > best[0]:
            best = right, penalty, machine
        update("classical", done, len(PENALTIES) + 1)
    _, penalty, machine = best
    probabilities_wK = machine.predict_proba(hasher.transform(features(asked)))
    found_w2 = np.stack([machine.classes_[probabilities_wK.argmax(1)], probabilities_wK.max(1)], 1)
    lengths_M = np.array([len(row) for row in asked])
    answers_MW2 = np.full((len(asked), lengths_M.max(), 2), np.nan)
    answers_MW2[np.arange(lengths_M.max()) < lengths_M[:, None]] = found_w2
    update("classical", len(PENALTIES) + 1, len(PENALTIES) + 1)
    note = f"logistic regression on each word's shape and its neighbours, fitted on {len(own_w):,} training words"
    return Classical(answers_MW2.reshape(len(asked), -1), {"alpha": penalty}, note)


def features(rows: Sequence[Sequence[str]] | Iterator[Sequence[str]]) -> Iterator[list[str]]:
    """Of each word, one row after the other: itself, its beginnings and endings, its shape, and its neighbours with theirs."""
    for words in rows:
        small, shapes = [word.lower() for word in words], [shape(word) for word in words]
        for place, word in enumerate(small):
            found = ["bias", f"word={word}", f"exact={words[place]}", f"shape={shapes[place]}"]
            found += [f"begins={word[:size]}" for size in (1, 2, 3)] + [f"ends={word[-size:]}" for size in (1, 2, 3, 4)]
            for step in NEAR:
                inside = 0 <= place + step < len(words)
                found += [f"{step}={small[place + step]}", f"{step}shape={shapes[place + step]}"] if inside else [f"{step}="]
            found += [f"{a}{b}={small[place + a]} {small[place + b]}" for a, b in ((-1, 0), (0, 1)) if place + a >= 0 and place + b < len(words)]
            yield found


def shape(word: str) -> str:
    """Letters as X or x, digits as 0, anything else as it is, runs cut to two: "Xx" of London, "XX-00" of BBC-2000."""
    plain = "".join("X" if one.isupper() else "x" if one.isalpha() else "0" if one.isdigit() else one for one in word[:40])
    return re.sub(r"(.)\1{2,}", r"\1\1", plain)
