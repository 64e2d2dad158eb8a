"""Losses that more than one part uses."""

from __future__ import annotations

from collections.abc import Callable

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
    return _over_rows(batch, lambda targets_B: _rows(logits_BK.float(), targets_B, smoothing, class_weights_K))


def binary_cross_entropy(logits_BK: Tensor, batch: Batch, smoothing: float = 0.0, positive_weights_K: Tensor | None = None) -> Tensor:
    """As `cross_entropy`, of targets (B, K): each class is told from its absence, which counts as much as the weight of its presence says."""

    def rows(targets_BK: Tensor) -> tuple[Tensor, Tensor]:
        labelled_B = (targets_BK != UNLABELLED).all(1).float()
        soft_BK = targets_BK.clamp(min=0).float() * (1 - smoothing) + smoothing / 2
        loss_BK = F.binary_cross_entropy_with_logits(logits_BK.float(), soft_BK, pos_weight=positive_weights_K, reduction="none")
        return loss_BK.mean(1) * labelled_B, labelled_B

    return _over_rows(batch, rows)


def _over_rows(batch: Batch, rows: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """The mean of the rows' losses, by their weights, as `rows` gives both for targets; mixed where the batch is."""
    own = rows(batch.targets_B)
    if batch.mix is None:
        loss_B, weight_B = own
    else:
        share_B = batch.mix.weight_B
        other = rows(batch.partners_B)
        loss_B, weight_B = (share_B * mine + (1 - share_B) * theirs for mine, theirs in zip(own, other, strict=True))
    return loss_B.sum() / weight_B.sum().clamp(min=torch.finfo(weight_B.dtype).tiny)


def _rows(logits_BK: Tensor, targets_B: Tensor, smoothing: float, class_weights_K: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each row's loss, and the weight with which it counts."""
    loss_B = F.cross_entropy(logits_BK, targets_B, class_weights_K, ignore_index=UNLABELLED, label_smoothing=smoothing, reduction="none")
    return loss_B, _weights(targets_B, class_weights_K)


def _weights(targets_B: Tensor, class_weights_K: Tensor | None) -> Tensor:
    weight_B = (targets_B != UNLABELLED).float()
    return weight_B if class_weights_K is None else weight_B * class_weights_K[targets_B.clamp(min=0)]


def part_weight(batch: Batch, class_weights_K: Tensor) -> Tensor | None:
    """What `cross_entropy` with these weights is a mean over, in a part of a batch; None of a whole one, where nothing is weighed by it."""
    if batch.part is None:
        return None
    weight_B = _weights(batch.targets_B, class_weights_K)
    if batch.mix is not None:
        weight_B = weight_B * batch.mix.weight_B + _weights(batch.partners_B, class_weights_K) * (1 - batch.mix.weight_B)
    return weight_B.sum()


def labelled_accuracy(logits_BK: Tensor, batch: Batch) -> Tensor:
    """Share of the labelled rows that are right, on the whole batch's own targets."""
    labelled_B = batch.targets_B != UNLABELLED
    right_B = (logits_BK.argmax(1) == batch.targets_B) & labelled_B
    return right_B.sum().float() / labelled_B.sum().clamp(min=1)


def labelled_f1(logits_BK: Tensor, batch: Batch) -> Tensor:
    """Micro F1 on the labelled rows, of targets (B, K): a class is told where its logit is above 0."""
    labelled_B1 = (batch.targets_B != UNLABELLED).all(1, keepdim=True)
    told_BK, there_BK = (logits_BK > 0) & labelled_B1, batch.targets_B == 1
    return 2 * (told_BK & there_BK).sum().float() / (told_BK.sum() + there_BK.sum()).clamp(min=1)


def next_tokens(logits_BTV: Tensor, tokens_BT: Tensor, mask_BT: Tensor, smoothing: float = 0.0) -> StepResult:
    """Mean cross-entropy in nats, and the share guessed right, of all tokens (B, T + 1) but the first, of which `mask_BT` holds those that count."""
    asked_BT = mask_BT[:, 1:]
    target_BT = tokens_BT[:, 1:].masked_fill(~asked_BT, NOT_ASKED)
    tokens = asked_BT.sum()
    asked = tokens.clamp(min=1)
    loss = F.cross_entropy(logits_BTV.flatten(0, 1), target_BT.flatten(), ignore_index=NOT_ASKED, reduction="sum", label_smoothing=smoothing) / asked
    return StepResult(loss, {"accuracy": (logits_BTV.detach().argmax(2) == target_BT).sum() / asked}, tokens)


def similarities(first_ND: Tensor, second_MD: Tensor, temperature: float) -> Tensor:
    """(N, M) float32: the cosine of each with each over the temperature."""
    first_ND, second_MD = (F.normalize(one.float(), dim=1) for one in (first_ND, second_MD))
    with torch.autocast(first_ND.device.type, enabled=False):  # the temperature magnifies rounding
        return first_ND @ second_MD.T / temperature


def contrast(first_BD: Tensor, second_BD: Tensor, temperature: float, same_BB: Tensor, counted_B: Tensor) -> StepResult:
    """InfoNCE in both directions (van den Oord et al. 2018, arXiv:1807.03748; Radford et al. 2021, arXiv:2103.00020): each row of one side must
    find its own of the other among all of the batch. In nats, with the share of first ones that do.

    Rows that `same_BB` calls the same are no wrong answers to one another; those that are not counted are neither asked nor answers.
    """
    rows = len(first_BD)
    own_B = torch.arange(rows, device=first_BD.device)
    barred_BB = (same_BB | ~counted_B) & ~torch.eye(rows, dtype=torch.bool, device=first_BD.device)
    logits_BB = similarities(first_BD, second_BD, temperature)
    # Not −inf: a row that counts for nothing may bar all others.
    there_BB, back_BB = (one_BB.masked_fill(barred_BB, torch.finfo(one_BB.dtype).min) for one_BB in (logits_BB, logits_BB.T))
    target_B, asked = own_B.masked_fill(~counted_B, NOT_ASKED), counted_B.sum().clamp(min=1)
    losses = [F.cross_entropy(one_BB, target_B, ignore_index=NOT_ASKED, reduction="sum") for one_BB in (there_BB, back_BB)]
    found = ((there_BB.detach().argmax(1) == own_B) & counted_B).sum() / asked
    return StepResult(sum(losses) / (2 * asked), {"contrastive_accuracy": found})
