"""BERT (Devlin et al. 2018, arXiv:1810.04805), from transformers, in the sizes of Google's miniatures (Turc et al. 2019, arXiv:1908.08962).

B batch, D features, T tokens.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator
from torch import Tensor, nn

from ml.contracts import DataSpec, Features, InputError, Options
from ml.huggingface import POSITIONS, Shape, check_shape, shape_of


class Size(enum.StrEnum):
    tiny = "tiny"
    mini = "mini"
    small = "small"
    medium = "medium"
    base = "base"


class Pooling(enum.StrEnum):
    mean = "mean"
    cls = "cls"


SIZES = {Size.tiny: (2, 128), Size.mini: (4, 256), Size.small: (4, 512), Size.medium: (8, 512), Size.base: (12, 768)}  # blocks, features
HEAD = 64  # features of an attention head
KEYS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("hidden_act", "max_position_embeddings", "type_vocab_size", "layer_norm_eps"),
)


class BertOptions(Options):
    size: Size = Field(Size.mini, description="Blocks x features: tiny 2x128, mini 4x256, small 4x512, medium 8x512, base 12x768.")
    config: str | Shape = Field("", description="Folder with Hugging Face's config.json, whose shape is taken instead of the size.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of activations and attention weights dropped in training.")
    pooling: Pooling = Field(Pooling.mean, description="mean of a text's tokens, or the state of its first, the class token.")

    @field_validator("config", mode="before")
    @classmethod
    def _read(cls, config: Any) -> Any:
        return shape_of(config, "bert", KEYS)


class Bert(nn.Module):
    """BERT: a transformer that reads texts in both directions; made for masked pretraining, and for published BERT and MiniLM weights."""

    Options = BertOptions
    requires: ClassVar[tuple[str, ...]] = ("transformers",)
    modalities: ClassVar[frozenset[str]] = frozenset({"text", "text-pair", "question", "tagged"})
    traits: ClassVar[frozenset[str]] = frozenset({"tokens", "vocabulary", "bidirectional"})

    def __init__(self, options: BertOptions, spec: DataSpec):
        from transformers import BertConfig, BertModel  # imported where it is used: it costs seconds

        super().__init__()
        depth, width = SIZES[options.size]
        shape = options.config or {
            "vocab_size": spec.options["vocabulary"],
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": width // HEAD,
            "intermediate_size": 4 * width,
            "max_position_embeddings": max(POSITIONS, spec.shape[0]),
        }
        check_shape(shape, spec, "max_position_embeddings")
        drop = {"hidden_dropout_prob": options.dropout, "attention_probs_dropout_prob": options.dropout}
        try:
            config = BertConfig(**shape, **drop, pad_token_id=spec.statistics["tokens"]["pad"], attn_implementation="sdpa")
            self.net = BertModel(config, add_pooling_layer=False)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"no BERT can be built of backbone.options.config={shape}: {error}") from None
        self.width, self.pooling = config.hidden_size, options.pooling

    @property
    def embedding(self) -> nn.Embedding:
        """The vectors of the tokens, for output layers that share them."""
        return self.net.embeddings.word_embeddings

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes tokens (B, T) where mask (B, T) holds."""
        mask_BT = inputs["mask"]
        tokens_BTD = self.net(inputs["tokens"], attention_mask=mask_BT).last_hidden_state
        if self.pooling is Pooling.cls:
            return Features(tokens_BTD[:, 0], tokens_BTD=tokens_BTD)
        weight_BT1 = mask_BT[:, :, None].to(tokens_BTD.dtype)
        return Features((tokens_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1), tokens_BTD=tokens_BTD)

    def layers(self) -> list[nn.Module]:
        return [self.net.embeddings, *self.net.encoder.layer]
