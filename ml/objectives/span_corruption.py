"""Text infilling (BART, Lewis et al. 2019, arXiv:1910.13461): spans give way to one mask each, and the whole text is written again.

B batch, S spans of a text at most, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ml.contracts import Batch, DataSpec, InputError, Options, StepResult
from ml.losses import next_tokens

EXAMPLES = 8  # texts in the report


class SpanCorruptionOptions(Options):
    rate: float = Field(0.3, gt=0, lt=1, description="Share of the tokens that are hidden.")
    span: float = Field(3.0, ge=1, le=64, description="Mean tokens of a hidden span; how many is drawn (Poisson, at least 1).")


class SpanCorruption(nn.Module):
    """Text infilling: writes a text again of which spans are hidden, each behind one mask; of pairs either side, one by one."""

    Options = SpanCorruptionOptions
    needs: ClassVar[frozenset[str]] = frozenset({"tokens", "vocabulary", "sequence-to-sequence"})
    labels: ClassVar[bool] = False
    views: ClassVar[int] = 1
    augmentation: ClassVar[str] = "none"
    packed: ClassVar[bool] = False

    def __init__(self, options: SpanCorruptionOptions, backbone: nn.Module, spec: DataSpec):
        super().__init__()
        self.options, self.backbone, self.marks, self.length = options, backbone, dict(spec.statistics["tokens"]), spec.shape[0]
        if self.marks.get("mask") is None:
            raise InputError("the tokenizer has no mask token, which span-corruption hides spans behind: use another one")

    def step(self, batch: Batch) -> StepResult:
        """Mean cross-entropy of a token of the whole texts in nats, and the share of tokens guessed right."""
        tokens_BT, mask_BT = self._texts(batch)
        logits_BTV = self.backbone.logits(self._corrupted(tokens_BT, mask_BT) | {"target": tokens_BT, "target_mask": mask_BT}).float()
        return next_tokens(logits_BTV, tokens_BT, mask_BT)

    @torch.no_grad()
    def examples(self, batch: Batch, decode: Callable[[Sequence[int]], str]) -> list[str]:
        """Texts with masks, and what is written of each."""
        tokens_BT, mask_BT = (one[:EXAMPLES] for one in self._texts(batch))
        seen = self._corrupted(tokens_BT, mask_BT)
        written_BT = self.backbone.generate(seen, self.length, 1, self.marks)
        shown = []
        for ids_T, inside_T, written_T in zip(seen["tokens"], seen["mask"], written_BT.tolist(), strict=True):
            parts, part = [], []
            for token in ids_T[inside_T].tolist():  # piece by piece: a decoder may drop the mask token, as it does others of its kind
                if token == self.marks["mask"]:
                    parts.append(decode(part))
                    part = []
                else:
                    part.append(token)
            parts.append(decode(part))
            written = written_T[: written_T.index(self.marks["end"])] if self.marks["end"] in written_T else written_T
            shown.append(f"{' [MASK] '.join(parts).strip()} -> {decode(written)}")
        return shown

    def _texts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Tokens and mask of all texts, (B, T): of pairs, sources and then targets; a missing target is padding alone."""
        inputs = batch.inputs
        if "target" not in inputs:
            return inputs["tokens"], inputs["mask"]
        width = max(inputs["tokens"].shape[1], inputs["target"].shape[1])

        def joined(source_BT: Tensor, target_BT: Tensor, fill: int) -> Tensor:
            return torch.cat([F.pad(one, (0, width - one.shape[1]), value=fill) for one in (source_BT, target_BT)])

        return joined(inputs["tokens"], inputs["target"], self.marks["pad"]), joined(inputs["mask"], inputs["target_mask"], False)

    def _corrupted(self, tokens_BT: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
        """{"tokens", "mask"} (B, T) of the texts with spans hidden; the marks stay.

        Tokens begin spans with a chance that hides `rate` of all; spans that touch are one. Of one shape for all batches of a size, so that
        a GPU need not wait. Drawn on the CPU, whose generator the loop seeds for each step.
        """
        device, (rows, width) = tokens_BT.device, tokens_BT.shape
        place_T = torch.arange(width, device=device)
        chance = -math.log1p(-self.options.rate) / self.options.span
        drawn_BT = (torch.rand(rows, width) < chance).to(device)
        size_BT = torch.poisson(torch.full((rows, width), self.options.span)).clamp(min=1).long().to(device)
        inner_BT = mask_BT & (place_T > 0) & (place_T < mask_BT.sum(1, keepdim=True) - 1)
        end_BT = torch.where(drawn_BT, place_T + size_BT, 0).cummax(1).values  # of all spans that begin up to a place, the furthest
        hidden_BT = inner_BT & (place_T < end_BT)
        first_BT = hidden_BT & ~F.pad(hidden_BT[:, :-1], (1, 0))
        kept_BT = mask_BT & (~hidden_BT | first_BT)
        seen_BT = tokens_BT.masked_fill(first_BT, self.marks["mask"])
        order_BT = (~kept_BT).long().argsort(dim=1, stable=True)  # what is kept moves to the front
        moved_BT, inside_BT = seen_BT.gather(1, order_BT), kept_BT.gather(1, order_BT)
        return {"tokens": moved_BT.masked_fill(~inside_BT, self.marks["pad"]), "mask": inside_BT}
