"""Causal language modelling (Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training"): each token from those before it.

B batch, D features, N new tokens, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ml.contracts import Batch, DataSpec, Options, StepResult
from ml.losses import next_tokens
from ml.sampling import draw

EXAMPLES, PROMPT, NEW = 8, 16, 32  # continuations in the report, tokens that each is given and gets


class CausalLanguageOptions(Options):
    temperature: float = Field(0.8, ge=0, le=10, description="Of the examples: lower keeps to what is likely, 0 always takes the likeliest token.")
    top_p: float = Field(0.95, gt=0, le=1, description="Of the examples: draws among the likeliest tokens that together have this probability.")


class CausalLanguage(nn.Module):
    """Causal language modelling: guesses each next token, and so learns to write."""

    Options = CausalLanguageOptions
    needs: ClassVar[frozenset[str]] = frozenset({"tokens", "vocabulary", "causal"})
    labels: ClassVar[bool] = False
    views: ClassVar[int] = 1
    augmentation: ClassVar[str] = "none"
    packed: ClassVar[bool] = True

    def __init__(self, options: CausalLanguageOptions, backbone: nn.Module, spec: DataSpec):
        super().__init__()
        self.options, self.backbone = options, backbone
        self.length, self.end = spec.shape[0], spec.statistics["tokens"].get("end")

    def step(self, batch: Batch) -> StepResult:
        tokens_BT, mask_BT = batch.inputs["tokens"], batch.inputs["mask"]
        logits_BTV = self._logits(self.backbone.encode(batch.inputs).tokens_BTD[:, :-1])
        return next_tokens(logits_BTV, tokens_BT, mask_BT)

    @torch.no_grad()
    def examples(self, batch: Batch, decode: Callable[[Sequence[int]], str]) -> list[str]:
        """Beginnings of texts, and how the model goes on; drawn from a seed of their own, so that equal weights write the same."""
        tokens_BT, mask_BT = (batch.inputs[name][:EXAMPLES] for name in ("tokens", "mask"))
        given = min(PROMPT, int(mask_BT.sum(1).min()), self.length - 1)
        written_BT = tokens_BT[:, :given]
        generator = torch.Generator().manual_seed(0)
        for _ in range(min(NEW, self.length - given)):
            states_BTD = self.backbone.encode({"tokens": written_BT, "mask": torch.ones_like(written_BT, dtype=torch.bool)}).tokens_BTD
            logits_BV = self._logits(states_BTD[:, -1]).cpu()
            next_B1 = draw(logits_BV, self.options.temperature, self.options.top_p, generator).to(written_BT.device)
            written_BT = torch.cat([written_BT, next_B1], 1)
        shown = []
        for ids in written_BT.tolist():
            new = ids[given:]
            new = new[: new.index(self.end)] if self.end in new else new
            shown.append(f"{decode(ids[:given])} -> {decode(new)}")
        return shown

    def _logits(self, states_D: Tensor) -> Tensor:
        return F.linear(states_D, self.backbone.embedding.weight).float()
