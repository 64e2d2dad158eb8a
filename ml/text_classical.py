"""What a user would pick for texts instead of a network: logistic regression on TF-IDF (Salton and Buckley 1988)."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from ml.calibration import fit_temperature, softmax
from ml.classical import Classical
from ml.progress import update

PENALTIES = (1.0, 10.0, 100.0)
"""Inverse strengths of the regularization, of which the validation rows choose one."""
FEATURES = 200_000
"""Words and pairs of words at most."""
WORD = r"(?u)\b\w+\b"


def classical(
    texts: Callable[[np.ndarray], list[str]],
    labels: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
    classes: int,
    seed: int,
) -> Classical:
    """Fits on the rows `train`, whose strings `texts` gives, and scores the rows `test`.

    The validation rows choose its settings and calibrate its probabilities, as they choose the network's best epoch.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # imported where it is used: it costs seconds
    from sklearn.linear_model import LogisticRegression

    update("classical", 0, 3)
    own, held = texts(train), texts(validation)
    best: tuple[float, int, float] | None = None
    pattern = WORD if any(re.search(WORD, text) for text in own) else r"\S"  # texts of emoji or signs alone have no word
    for longest in (1, 2):
        words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, longest), max_features=FEATURES, token_pattern=pattern)
        own_NF, held_NF = words.fit_transform(own), words.transform(held)
        for penalty in PENALTIES:
            machine = LogisticRegression(C=penalty, max_iter=300, random_state=seed).fit(own_NF, labels[train])
            right = float((machine.predict(held_NF) == labels[validation]).mean())
            if best is None or right > best[0]:
                best, chosen = (right, longest, penalty), (words, machine)
    update("classical", 1, 3)
    words, machine = chosen

    def scores(rows: list[str]) -> np.ndarray:
        found = np.atleast_2d(machine.decision_function(words.transform(rows)).T).T
        found = np.concatenate([-found / 2, found / 2], axis=1) if found.shape[1] == 1 else found
        scores_NK = np.full((len(rows), classes), found.min() - 1)
        scores_NK[:, machine.classes_] = found
        return scores_NK

    temperature = fit_temperature(scores(held), labels[validation])
    update("classical", 2, 3)
    probabilities_NK = softmax(scores(texts(test)) / temperature)
    update("classical", 3, 3)
    settings = {"ngrams": float(best[1]), "C": best[2], "temperature": temperature}
    return Classical(probabilities_NK, settings, f"logistic regression on TF-IDF, fitted on {len(train):,} training rows")
