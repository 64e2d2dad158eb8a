"""Convolutions over words, which a CPU trains in minutes (Kim 2014, arXiv:1408.5882); without any, fastText's bag of words (Joulin et al. 2016, arXiv:1607.01759).

B batch, D features, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ml.contracts import DataSpec, Features, Options


class TextCnnOptions(Options):
    width: int = Field(128, ge=2, le=4096, multiple_of=2, description="Features of a token.")
    depth: int = Field(2, ge=0, le=32, description="Convolutions, each with a shortcut; 0 is fastText: the mean of the tokens' vectors.")
    kernel: Literal[1, 3, 5, 7] = Field(3, description="Tokens that a convolution sees at once.")
    words: float = Field(0.0, ge=0, le=100, description="How much it weighs for heads, beside the learnt features, which words a text holds, rare ones more; at 0 they do not see it.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of activations dropped in training.")


class TextCnn(nn.Module):
    """Small convolutional network over tokens: the choice for training on a CPU."""

    Options = TextCnnOptions
    modalities: ClassVar[frozenset[str]] = frozenset({"text", "text-pair", "tagged"})
    traits: ClassVar[frozenset[str]] = frozenset({"tokens", "vocabulary", "bidirectional"})

    def __init__(self, options: TextCnnOptions, spec: DataSpec):
        super().__init__()
        self.width, self.words = options.width, options.words
        self.wide = spec.options["vocabulary"] if options.words else 0
        self.embedding = nn.Embedding(spec.options["vocabulary"], options.width)
        nn.init.normal_(self.embedding.weight, std=0.02)  # small, as output layers share it: their first guesses are even then
        self.enter = nn.LayerNorm(options.width) if options.depth else nn.Identity()
        self.dropout = nn.Dropout(options.dropout)
        self.blocks = nn.ModuleList(_Block(options.width, options.kernel, options.dropout) for _ in range(options.depth))
        self.leave = nn.LayerNorm(options.width) if options.depth else nn.Identity()
        rarity = spec.statistics.get("rarity") or [1.0] * spec.options["vocabulary"]
        self.register_buffer("rarity", torch.tensor(rarity), persistent=False)  # belongs to the data, which a model's description holds

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes tokens (B, T) where mask (B, T) holds."""
        mask_BT1 = inputs["mask"][:, :, None]
        tokens_BTD = self.dropout(self.enter(self.embedding(inputs["tokens"])))
        for block in self.blocks:
            tokens_BTD = block(tokens_BTD, mask_BT1)
        tokens_BTD = self.leave(tokens_BTD)
        weight_BT1 = self.rarity[inputs["tokens"]][:, :, None] * mask_BT1 + 1e-6 * mask_BT1  # rare words tell more (Arora et al. 2017)
        mean_BD = (tokens_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1e-6)
        wide_BW = self._words(inputs) if self.wide else None
        if not self.blocks:
            # A token then knows its text by the mean alone, which is what masked pretraining needs (CBOW, Mikolov et al. 2013).
            return Features(F.normalize(mean_BD, dim=1) * self.width**0.5, tokens_BTD=tokens_BTD + mean_BD[:, None], wide_BW=wide_BW)
        # What a text is about shows in the mean, single telling words in the maximum: half of the features each.
        half = self.width // 2
        most_BD = tokens_BTD[:, :, half:].masked_fill(~mask_BT1, torch.finfo(tokens_BTD.dtype).min).amax(1)
        return Features(torch.cat([mean_BD[:, :half], most_BD], 1), tokens_BTD=tokens_BTD, wide_BW=wide_BW)

    def _words(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """TF-IDF over the vocabulary (B, W), so many times as long as the learnt features."""
        count_BW = torch.zeros(len(inputs["tokens"]), self.wide, device=self.rarity.device)
        count_BW.scatter_add_(1, inputs["tokens"], inputs["mask"].to(count_BW.dtype))
        return F.normalize(count_BW.log1p() * self.rarity, dim=1) * self.width**0.5 * self.words

    def layers(self) -> list[nn.Module]:
        return [nn.ModuleList([self.embedding, self.enter]), *self.blocks, self.leave]


class _Block(nn.Module):
    """Normalisation, a convolution along the tokens, GELU; beside a shortcut."""

    def __init__(self, width: int, kernel: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, mask_BT1: Tensor) -> Tensor:
        inner_BTD = self.norm(x_BTD) * mask_BT1  # zeros where nothing stands, as beyond the end: padding changes nothing
        return x_BTD + self.dropout(F.gelu(self.convolution(inner_BTD.transpose(1, 2)).transpose(1, 2)))
