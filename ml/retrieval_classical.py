"""How texts are found without a network: by the words that they share (TF-IDF, Spärck Jones 1972), and by latent semantic indexing of both sides of
pairs (Dumais et al. 1997, "Automatic cross-language retrieval using latent semantic indexing"), which learns words of like meaning from them.

D dimensions, F words, N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ml.classical import Classical
from ml.minhash import WORDS
from ml.progress import update
from ml.retrieval import RETRIEVAL, search

FEATURES = 50_000
"""Words at most, the commonest ones."""
PAIRS = 100_000
"""Training pairs at most."""
DIMENSIONS = (50, 100, 200, 400)
"""Numbers of a text, of which the validation rows choose."""

Pairs = tuple[Sequence[str], Sequence[str]]
"""Sources and targets."""


def shared_words(train: Pairs, asked: Pairs) -> Any:
    """(N, 2F) sparse, of unit length: sources and targets by their words, each counting more the fewer training texts have it."""
    from scipy.sparse import hstack

    words = _words().fit([*train[0], *train[1]])
    return hstack([words.transform(side) for side in asked]).tocsr()


def classical(train: Pairs, validation: Pairs, asked: Pairs, seed: int) -> Classical:
    """Learns from pairs; its answers are as the head's outputs, (N, 2D): sources and targets, of unit length."""
    from sklearn.decomposition import TruncatedSVD

    update("classical", 0, 2)
    order = np.sort(np.random.default_rng(seed).permutation(len(train[0]))[:PAIRS])
    words = _words()
    both_NF = words.fit_transform([f"{train[0][row]}\n{train[1][row]}" for row in order])
    most = max(1, min(max(DIMENSIONS), both_NF.shape[1] - 1, both_NF.shape[0] - 1))
    axes_DF = TruncatedSVD(most, random_state=seed).fit(both_NF).components_ if both_NF.shape[1] > 1 else np.ones((1, 1))
    update("classical", 1, 2)

    def placed(pairs: Pairs) -> list[np.ndarray]:
        return [np.asarray(words.transform(side) @ axes_DF.T) for side in pairs]

    def right(size: int) -> float:
        return RETRIEVAL["mrr"](np.zeros(0), search(*(_unit(side[:, :size]) for side in held), *validation).scores)

    held = placed(validation)
    size = max([one for one in DIMENSIONS if one < most] + [most], key=right)
    answers_N2D = np.concatenate([_unit(side[:, :size]) for side in placed(asked)], 1).astype(np.float32)
    update("classical", 2, 2)
    return Classical(answers_N2D, {"dimensions": float(size)}, f"latent semantic indexing in {size} dimensions, learnt from {len(order):,} training pairs")


def _words() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer  # imported where it is used: it costs seconds

    return TfidfVectorizer(analyzer=lambda text: WORDS.findall(text.lower()) or list(text), sublinear_tf=True, max_features=FEATURES)


def _unit(side_ND: np.ndarray) -> np.ndarray:
    return side_ND / np.maximum(np.linalg.norm(side_ND, axis=1, keepdims=True), 1e-12)
