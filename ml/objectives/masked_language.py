"""Masked language modelling (Devlin et al. 2018, arXiv:1810.04805), with other masks at every step (Liu et al. 2019, arXiv:1907.11692).

B batch, C candidates, D features, H hidden tokens of a text, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ml.contracts import Batch, DataSpec, InputError, Options, StepResult
from ml.word_pieces import word_pieces

MASKED, RANDOM = 0.8, 0.1  # shares of the hidden tokens that the mask or any token replaces; the rest stays, as texts have no masks later
NOT_ASKED = -100  # the target of what is not to be guessed
LONGEST = 16  # tokens of a word that are hidden at once; one of more is hidden in parts of so many
EXAMPLES, SHOWN = 8, 48  # texts in the report, and tokens of each


class MaskedLanguageOptions(Options):
    rate: float = Field(0.15, gt=0, lt=1, description="Share of the tokens that is hidden and must be guessed.")
    whole_words: bool = Field(False, description="Hides all pieces of a word or none, so that none is guessed from the others; the same share of the tokens.")
    sampled: bool = Field(False, description="Compares with the tokens hidden in the same batch instead of with the whole vocabulary: many times faster on a CPU.")


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
        self.rate, self.sampled, self.backbone, self.mask = options.rate, options.sampled, backbone, int(spec.statistics["tokens"]["mask"])
        self.register_buffer("special_S", torch.tensor(special), persistent=False)
        tokens, width = backbone.embedding.weight.shape
        self.longest = LONGEST if options.whole_words else 1
        pieces = word_pieces(spec.statistics["tokenizer"], tokens) if options.whole_words else torch.zeros(2, tokens, dtype=torch.bool)
        for name, one_V in zip(("joins_V", "open_V"), pieces, strict=True):
            self.register_buffer(name, torch.as_tensor(one_V), persistent=False)
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(tokens))
        self.register_buffer("asked_V", torch.zeros(tokens))  # how often each was hidden, where that is not in the loss

    def step(self, batch: Batch) -> StepResult:
        tokens_BT, mask_BT = batch.inputs["tokens"], batch.inputs["mask"]
        index_BH, asked_BH = self._hidden(tokens_BT, mask_BT)
        truth_BH = tokens_BT.gather(1, index_BH)
        seen_BT = tokens_BT.scatter(1, index_BH, torch.where(asked_BH, self._replaced(truth_BH), truth_BH))
        # Common tokens are candidates more often. Nothing makes up for it, so a token's logit tells how much likelier it is here than
        # elsewhere, as in word2vec (Levy and Goldberg 2014): that serves features better than how common it is.
        candidates_C, guess_BH = truth_BH.masked_fill(~asked_BH, self.mask).unique(return_inverse=True) if self.sampled else (None, truth_BH)
        logits_BHC = self._guess(seen_BT, mask_BT, index_BH, candidates_C)
        target_BH = guess_BH.masked_fill(~asked_BH, NOT_ASKED)
        tokens = asked_BH.sum()
        asked = tokens.clamp(min=1)
        if self.sampled and self.training:
            self.asked_V.scatter_add_(0, truth_BH.flatten(), asked_BH.flatten().float())
        loss = F.cross_entropy(logits_BHC.flatten(0, 1), target_BH.flatten(), ignore_index=NOT_ASKED, reduction="sum") / asked
        return StepResult(loss, {"accuracy": (logits_BHC.detach().argmax(2) == target_BH).sum() / asked}, tokens)

    @torch.no_grad()
    def examples(self, batch: Batch, decode: Callable[[Sequence[int]], str]) -> list[str]:
        """Texts with masks, what was guessed for each, and the truth in brackets."""
        tokens_BT, mask_BT = (batch.inputs[name][:EXAMPLES, :SHOWN] for name in ("tokens", "mask"))
        index_BH, asked_BH = self._hidden(tokens_BT, mask_BT)
        truth_BH = tokens_BT.gather(1, index_BH)
        seen_BT = tokens_BT.scatter(1, index_BH, truth_BH.masked_fill(asked_BH, self.mask))
        guess_BH = (self._guess(seen_BT, mask_BT, index_BH) + self.asked_V.log1p()).argmax(2)
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
        """Places (B, H) in order of chance, word by word, and whether each is to be hidden: as many as the rate says, short texts having fewer.

        The last word, for which there may not be room, is drawn with the chance that makes the expected number right. Of one shape for all batches
        of a size, so that a GPU need not wait. Drawn on the CPU, whose generator the loop seeds for each step.
        """
        device, width = tokens_BT.device, tokens_BT.shape[1]
        usable_BT = mask_BT & ~torch.isin(tokens_BT, self.special_S)
        first_BT, place_T = self._words(tokens_BT, usable_BT), torch.arange(width, device=device)
        order_BT, draw_B1 = torch.rand(tokens_BT.shape).argsort(1).to(device), torch.rand(len(tokens_BT), 1).to(device)
        key_BT = (order_BT.gather(1, first_BT) * width + place_T).masked_fill(~usable_BT, width**2)
        most = max(1, round(self.rate * width))
        index_BH = key_BT.topk(min(width, most + self.longest - 1), dim=1, largest=False).indices
        size_BT = torch.zeros_like(tokens_BT).scatter_add(1, first_BT, usable_BT.long())
        first_BH = first_BT.gather(1, index_BH)
        before_BH = torch.arange(index_BH.shape[1], device=device) - (index_BH - first_BH)  # hidden tokens before the word
        usable_B1 = usable_BT.sum(1, keepdim=True)
        wanted_B1 = (usable_B1 * self.rate).round().clamp(min=1).minimum(usable_B1)
        return index_BH, usable_BT.gather(1, index_BH) & (draw_B1 * size_BT.gather(1, first_BH) < wanted_B1 - before_BH)

    def _words(self, tokens_BT: Tensor, usable_BT: Tensor) -> Tensor:
        """(B, T) the place where the word of each usable token begins; without whole words each token is one."""
        joined_BT = usable_BT & self.joins_V[tokens_BT]
        joined_BT[:, 0] = False
        joined_BT[:, 1:] &= usable_BT[:, :-1] & self.open_V[tokens_BT[:, :-1]]
        place_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
        first_BT = place_BT.masked_fill(joined_BT, 0).cummax(1).values
        return place_BT - (place_BT - first_BT) % self.longest

    def _replaced(self, truth_BH: Tensor) -> Tensor:
        """What stands in the hidden places: mostly the mask, at times any token, at times the true one."""
        draw_BH = torch.rand(truth_BH.shape).to(truth_BH.device)
        any_BH = torch.randint(len(self.bias), truth_BH.shape).to(truth_BH.device)
        return torch.where(draw_BH < MASKED, self.mask, torch.where(draw_BH < MASKED + RANDOM, any_BH, truth_BH))

    def _guess(self, seen_BT: Tensor, mask_BT: Tensor, index_BH: Tensor, candidates_C: Tensor | None = None) -> Tensor:
        """Logits (B, H, C or V) at the places asked for alone: the vocabulary is most of the cost."""
        tokens_BTD = self.backbone.encode({"tokens": seen_BT, "mask": mask_BT}).tokens_BTD
        hidden_BHD = tokens_BTD.gather(1, index_BH[:, :, None].expand(-1, -1, tokens_BTD.shape[2]))
        weight_VD, bias_V = self.backbone.embedding.weight, self.bias
        if candidates_C is not None:
            weight_VD, bias_V = F.embedding(candidates_C, weight_VD), bias_V[candidates_C]
        return F.linear(self.norm(F.gelu(self.dense(hidden_BHD))), weight_VD, bias_V).float()
