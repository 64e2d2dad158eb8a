"""Masked language modelling (Devlin et al. 2018, arXiv:1810.04805), with other masks at every step (Liu et al. 2019, arXiv:1907.11692).

B batch, D features, H hidden tokens of a text, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ml.contracts import Batch, DataSpec, InputError, Options, StepResult

MASKED, RANDOM = 0.8, 0.1  # shares of the hidden tokens that the mask or any token replaces; the rest stays, as texts have no masks later
NOT_ASKED = -100  # the target of what is not to be guessed
EXAMPLES, SHOWN = 8, 48  # texts in the report, and tokens of each


class MaskedLanguageOptions(Options):
    rate: float = Field(0.15, gt=0, lt=1, description="Share of the tokens that is hidden and must be guessed.")


class MaskedLanguage(nn.Module):
    """Masked language modelling: guesses hidden tokens from those around them."""

    Options = MaskedLanguageOptions
    needs: ClassVar[frozenset[str]] = frozenset({"tokens", "vocabulary", "bidirectional"})
    labels: ClassVar[bool] = False
    views: ClassVar[int] = 1
    augmentation: ClassVar[str] = "none"
    packed: ClassVar[bool] = True

    def __init__(self, options: MaskedLanguageOptions, backbone: nn.Module, spec: DataSpec):
        super().__init__()
        special = [int(token) for token in spec.statistics["tokens"].values() if token is not None]
        if spec.statistics["tokens"].get("mask") is None:
            raise InputError("the tokenizer has no mask token, which masked-language hides tokens behind: use another one, or causal-language")
        self.rate, self.backbone, self.mask = options.rate, backbone, int(spec.statistics["tokens"]["mask"])
        self.register_buffer("special_S", torch.tensor(special), persistent=False)
        tokens, width = backbone.embedding.weight.shape
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(tokens))

    def step(self, batch: Batch) -> StepResult:
        tokens_BT, mask_BT = batch.inputs["tokens"], batch.inputs["mask"]
        index_BH, asked_BH = self._hidden(tokens_BT, mask_BT)
        truth_BH = tokens_BT.gather(1, index_BH)
        seen_BT = tokens_BT.scatter(1, index_BH, torch.where(asked_BH, self._replaced(truth_BH), truth_BH))
        logits_BHV = self._guess(seen_BT, mask_BT, index_BH)
        target_BH = truth_BH.masked_fill(~asked_BH, NOT_ASKED)
        asked = asked_BH.sum().clamp(min=1)
        loss = F.cross_entropy(logits_BHV.flatten(0, 1), target_BH.flatten(), ignore_index=NOT_ASKED, reduction="sum") / asked
        return StepResult(loss, {"accuracy": (logits_BHV.detach().argmax(2) == target_BH).sum() / asked})

    @torch.no_grad()
    def examples(self, batch: Batch, decode: Callable[[Sequence[int]], str]) -> list[str]:
        """Texts with masks, what was guessed for each, and the truth in brackets."""
        tokens_BT, mask_BT = (batch.inputs[name][:EXAMPLES, :SHOWN] for name in ("tokens", "mask"))
        index_BH, asked_BH = self._hidden(tokens_BT, mask_BT)
        truth_BH = tokens_BT.gather(1, index_BH)
        seen_BT = tokens_BT.scatter(1, index_BH, truth_BH.masked_fill(asked_BH, self.mask))
        guess_BH = self._guess(seen_BT, mask_BT, index_BH).argmax(2)
        shown = []
        for tokens_T, mask_T, *hidden in zip(tokens_BT, mask_BT, index_BH, asked_BH, guess_BH, strict=True):
            index_H, asked_H, guess_H = (one.tolist() for one in hidden)
            guesses = {place: guess for place, asked, guess in zip(index_H, asked_H, guess_H, strict=True) if asked}
            ids, parts, start = tokens_T[mask_T].tolist(), [], 0
            for place in [*sorted(guesses), len(ids)]:  # piece by piece: a decoder may drop the mask token, as it does others of its kind
                parts.append(decode(ids[start:place]))
                start = place + 1
            filled = ", ".join(f"{decode([guesses[place]])} ({decode([ids[place]])})" for place in sorted(guesses))
            shown.append(f"{' [MASK] '.join(parts).strip()} -> {filled}")
        return shown

    def _hidden(self, tokens_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Places (B, H) to hide in order of chance, and where in them there is something to ask: short texts have fewer.

        Of one shape for all batches of a size, so that a GPU need not wait. Drawn on the CPU, whose generator the loop seeds for each step.
        """
        usable_BT = mask_BT & ~torch.isin(tokens_BT, self.special_S)
        chance_BT = torch.rand(tokens_BT.shape).to(tokens_BT.device).masked_fill(~usable_BT, -1.0)
        index_BH = chance_BT.topk(max(1, round(self.rate * tokens_BT.shape[1])), dim=1).indices
        usable_B = usable_BT.sum(1)
        wanted_B = (usable_B * self.rate).round().clamp(min=1).minimum(usable_B)
        return index_BH, torch.arange(index_BH.shape[1], device=index_BH.device) < wanted_B[:, None]

    def _replaced(self, truth_BH: Tensor) -> Tensor:
        """What stands in the hidden places: mostly the mask, at times any token, at times the true one."""
        draw_BH = torch.rand(truth_BH.shape).to(truth_BH.device)
        any_BH = torch.randint(len(self.bias), truth_BH.shape).to(truth_BH.device)
        return torch.where(draw_BH < MASKED, self.mask, torch.where(draw_BH < MASKED + RANDOM, any_BH, truth_BH))

    def _guess(self, seen_BT: Tensor, mask_BT: Tensor, index_BH: Tensor) -> Tensor:
        """Logits (B, H, V) at the places asked for alone: the vocabulary is most of the cost."""
        tokens_BTD = self.backbone.encode({"tokens": seen_BT, "mask": mask_BT}).tokens_BTD
        hidden_BHD = tokens_BTD.gather(1, index_BH[:, :, None].expand(-1, -1, tokens_BTD.shape[2]))
        return F.linear(self.norm(F.gelu(self.dense(hidden_BHD))), self.backbone.embedding.weight, self.bias).float()
