"""What a user would pick for texts instead of a network: logistic regression on TF-IDF (Salton and Buckley 1988)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import numpy as np

from ml.classical import Classical, Targets
from ml.one_versus_rest import answers, fitted, right, scores
from ml.progress import update

PENALTIES = (1.0, 10.0, 100.0)
"""Inverse strengths of the regularization, of which the validation rows choose one."""
FEATURES = 200_000
"""Words and pairs of words at most."""
WORD = r"(?u)\b\w+\b"


def classical(
    texts: Callable[[np.ndarray], list[str]],
    targets: Targets,
    train: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
    classes: int,
    seed: int,
) -> Classical:
    """Fits on the rows `train`, whose strings `texts` gives, to their targets, and scores the rows `test`.

    The validation rows choose its settings and calibrate its probabilities, as they choose the network's best epoch.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # imported where it is used: it costs seconds
    from sklearn.linear_model import LogisticRegression

    update("classical", 0, 3)
    own, held = texts(train), texts(validation)
    wanted, hoped = targets(train), targets(validation)
    solver = "liblinear" if wanted.ndim == 2 else "lbfgs"  # of two classes it is many times faster
    best: tuple[float, int, float] | None = None
    pattern = WORD if any(re.search(WORD, text) for text in own) else r"\S"  # texts of emoji or signs alone have no word
    for longest in (1, 2):
        words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, longest), max_features=FEATURES, token_pattern=pattern)
        own_NF, held_NF = words.fit_transform(own), words.transform(held)
        for penalty in PENALTIES:
            machine = fitted(partial(LogisticRegression, C=penalty, max_iter=300, random_state=seed, solver=solver), own_NF, wanted)
            good = right(machine, held_NF, hoped)
            if best is None or good > best[0]:
                best, chosen = (good, longest, penalty), (words, machine)
    update("classical", 1, 3)
    words, machine = chosen

    update("classical", 2, 3)
    told, temperature = answers(scores(machine, words.transform(held), classes), hoped, scores(machine, words.transform(texts(test)), classes))
    update("classical", 3, 3)
    settings = {"ngrams": float(best[1]), "C": best[2], "temperature": temperature}
    return Classical(told, settings, f"logistic regression on TF-IDF, fitted on {len(train):,} training rows")
