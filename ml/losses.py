"""Losses that more than one part uses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ml.contracts import UNLABELLED, Batch, StepResult

NOT_ASKED = -100
"""The target of a token that does not count."""


def cross_entropy(logits_BK: Tensor, batch: Batch, smoothing: float = 0.0, class_weights_K: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over the labelled rows, with the targets mixed where the batch is.

    With class weights the mean is weighted, as in torch. Zero, with its graph, where no row is labelled.
    """
    logits_BK = logits_BK.float()
    own = _rows(logits_BK, batch.targets_B, smoothing, class_weights_K)
    if batch.mix is None:
        loss_B, weight_B = own
    else:
        share_B = batch.mix.weight_B
        other = _rows(logits_BK, batch.targets_B[batch.mix.partner_B], smoothing, class_weights_K)
        loss_B, weight_B = (share_B * mine + (1 - share_B) * theirs for mine, theirs in zip(own, other, strict=True))
    return loss_B.sum() / weight_B.sum().clamp(min=torch.finfo(weight_B.dtype).tiny)


def _rows(logits_BK: Tensor, targets_B: Tensor, smoothing: float, class_weights_K: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each row's loss, and the weight with which it counts."""
    loss_B = F.cross_entropy(logits_BK, targets_B, class_weights_K, ignore_index=UNLABELLED, label_smoothing=smoothing, reduction="none")
    labelled_B = targets_B != UNLABELLED
    weight_B = labelled_B.to(logits_BK.dtype)
    if class_weights_K is not None:
        weight_B = weight_B * class_weights_K[targets_B.clamp(min=0)]
    return loss_B, weight_B


def labelled_accuracy(logits_BK: Tensor, batch: Batch) -> Tensor:
    """Share of the labelled rows that are right, on the whole batch's own targets."""
    labelled_B = batch.targets_B != UNLABELLED
    right_B = (logits_BK.argmax(1) == batch.targets_B) & labelled_B
    return right_B.sum().float() / labelled_B.sum().clamp(min=1)


def next_tokens(logits_BTV: Tensor, tokens_BT: Tensor, mask_BT: Tensor, smoothing: float = 0.0) -> StepResult:
    """Mean cross-entropy in nats, and the share guessed right, of all tokens (B, T + 1) but the first, of which `mask_BT` holds those that count."""
    asked_BT = mask_BT[:, 1:]
    target_BT = tokens_BT[:, 1:].masked_fill(~asked_BT, NOT_ASKED)
    asked = asked_BT.sum().clamp(min=1)
    loss = F.cross_entropy(logits_BTV.flatten(0, 1), target_BT.flatten(), ignore_index=NOT_ASKED, reduction="sum", label_smoothing=smoothing) / asked
    return StepResult(loss, {"accuracy": (logits_BTV.detach().argmax(2) == target_BT).sum() / asked})
