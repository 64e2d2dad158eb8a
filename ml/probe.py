"""A probe of features during pretraining: nearest neighbours on labelled training rows (Wu et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ml.contracts import UNLABELLED
from ml.feed import plain_batches, rows_of, seed_of
from ml.store import Store

NEIGHBOURS = 20
TEMPERATURE = 0.1
BANK, QUERIES = 4000, 1000  # rows at most, so that the probe stays cheap beside an epoch


def nearest_neighbours(store: Store, modality: Any, device: torch.device, seed: int) -> Callable[[nn.Module], float] | None:
    """A function from a backbone to the accuracy of its neighbours' weighted vote; None with too few labels, or classes, to tell."""
    rows = rows_of(store, "train")
    rows = rows[store.labels[rows] != UNLABELLED]
    classes = int(store.labels.max(initial=0)) + 1  # or strata, where rows have several
    if classes < 2 or len(rows) < 4 * classes:
        return None
    rows = np.random.Generator(np.random.Philox(seed_of(seed, "probe"))).permutation(rows)[: BANK + QUERIES]
    cut = len(rows) - min(QUERIES, len(rows) // 4)
    labels = torch.from_numpy(store.labels[rows])

    def accuracy(backbone: nn.Module) -> float:
        features = embed(backbone, store, modality, rows, device)
        return vote(features[:cut], labels[:cut], features[cut:], labels[cut:], classes)

    return accuracy


def embed(backbone: nn.Module, store: Store, modality: Any, rows: np.ndarray, device: torch.device) -> Tensor:
    """Pooled features (N, D) on the CPU, of unit length."""
    with torch.no_grad():
        parts = [backbone.encode(inputs).pooled_BD.float().cpu() for inputs in plain_batches(store, modality, rows, device)]
    return F.normalize(torch.cat(parts), dim=1)


def vote(bank_ND: Tensor, bank_N: Tensor, query_MD: Tensor, query_M: Tensor, classes: int) -> float:
    """Share of queries whose neighbours, weighted by exp(similarity / temperature), vote for the right class."""
    similarity, index = (query_MD @ bank_ND.T).topk(min(NEIGHBOURS, len(bank_ND)), dim=1)
    votes_MK = torch.zeros(len(query_MD), classes).scatter_add_(1, bank_N[index], (similarity / TEMPERATURE).exp())
    return float((votes_MK.argmax(1) == query_M).float().mean())
