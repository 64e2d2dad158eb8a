"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"), from transformers.

B batch, D features, T tokens.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from ml.contracts import DataSpec, Features, InputError, Options
from ml.huggingface import POSITIONS, Shape, check_shape, shape_of


class Size(enum.StrEnum):
    nano = "nano"
    tiny = "tiny"
    small = "small"
    base = "base"


class Pooling(enum.StrEnum):
    last = "last"
    mean = "mean"


SIZES = {Size.nano: (4, 128, 4), Size.tiny: (4, 256, 4), Size.small: (6, 512, 8), Size.base: (12, 768, 12)}  # blocks, features, heads
KEYS = ["vocab_size", "n_embd", "n_layer", "n_head", "n_inner", "activation_function", "n_positions", "layer_norm_epsilon"]


class GptOptions(Options):
    size: Size = Field(Size.nano, description="Blocks x features: nano 4x128, tiny 4x256, small 6x512, base 12x768.")
    config: str | Shape = Field("", description="Folder with Hugging Face's config.json, whose shape is taken instead of the size.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of activations and attention weights dropped in training.")
    pooling: Pooling = Field(Pooling.last, description="State of a text's last token, which alone has read all, or the mean of its tokens.")

    @field_validator("config", mode="before")
    @classmethod
    def _read(cls, config: Any) -> Any:
        return shape_of(config, "gpt2", KEYS)


class Gpt(nn.Module):
    """GPT-2: a transformer that reads texts forwards; made for causal pretraining, and for published GPT-2 weights."""

    Options = GptOptions
    requires: ClassVar[tuple[str, ...]] = ("transformers",)
    modalities: ClassVar[frozenset[str]] = frozenset({"text", "text-pair", "tagged"})
    traits: ClassVar[frozenset[str]] = frozenset({"tokens", "vocabulary", "causal"})

    def __init__(self, options: GptOptions, spec: DataSpec):
        from transformers import GPT2Config, GPT2Model  # imported where it is used: it costs seconds

        super().__init__()
        depth, width, heads = SIZES[options.size]
        shape = options.config or {
            "vocab_size": spec.options["vocabulary"],
            "n_embd": width,
            "n_layer": depth,
            "n_head": heads,
            "n_positions": max(POSITIONS, spec.shape[0]),
        }
        check_shape(shape, spec, "n_positions")
        drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), options.dropout)
        nothing = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))  # it would look for them, and warn
        try:
            config = GPT2Config(**shape, **drop, **nothing, use_cache=False, attn_implementation="sdpa")
            self.net = GPT2Model(config)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"no GPT-2 can be built of backbone.options.config={shape}: {error}") from None
        self.width, self.pooling = config.n_embd, options.pooling

    @property
    def embedding(self) -> nn.Embedding:
        """The vectors of the tokens, for output layers that share them."""
        return self.net.wte

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes tokens (B, T) where mask (B, T) holds."""
        mask_BT = inputs["mask"]
        # No mask for the attention, which is faster so: no token looks ahead, and what pads a text stands behind it.
        tokens_BTD = self.net(inputs["tokens"]).last_hidden_state
        if self.pooling is Pooling.last:
            last_B = (mask_BT.sum(1) - 1).clamp(min=0)
            return Features(tokens_BTD[torch.arange(len(last_B), device=last_B.device), last_B], tokens_BTD=tokens_BTD)
        weight_BT1 = mask_BT[:, :, None].to(tokens_BTD.dtype)
        return Features((tokens_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1), tokens_BTD=tokens_BTD)

    def write(self, given_T: Tensor, most: int, choose: Callable[[Tensor], int | None]) -> list[int]:
        """At most `most` tokens after given_T: each what `choose` makes of the last state (D,), until it says None."""
        found: list[int] = []
        fresh_1T, cache = given_T[None], None
        while len(found) < most:
            done = self.net(fresh_1T, cache=cache, use_cache=True)
            token, cache = choose(done.last_hidden_state[0, -1]), done.cache
            if token is None:
                break
            found.append(token)
            fresh_1T = torch.tensor([[token]], device=given_T.device)
        return found

    def layers(self) -> list[nn.Module]:
        return [nn.ModuleList([self.net.wte, self.net.wpe]), *self.net.h, self.net.ln_f]
