"""BART (Lewis et al. 2019, arXiv:1910.13461), from transformers.

B batch, D features, S tokens of the target, T tokens, V vocabulary.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
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


SIZES = {Size.nano: (2, 128, 4), Size.tiny: (3, 256, 4), Size.small: (6, 512, 8), Size.base: (6, 768, 12)}  # blocks a side, features, heads
KEYS = (
    *("vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"),
    *("encoder_ffn_dim", "decoder_ffn_dim", "activation_function", "max_position_embeddings", "scale_embedding"),
)


TIED = ("net.model.encoder.embed_tokens.weight", "net.model.decoder.embed_tokens.weight", "net.lm_head.weight")
"""What is the same tensor as EMBEDDING, and is left out of what is saved, as is the output's bias, which is 0."""
EMBEDDING, BIAS = "net.model.shared.weight", "net.final_logits_bias"


class BartOptions(Options):
    size: Size = Field(Size.tiny, description="Blocks of encoder + decoder x features: nano 2+2x128, tiny 3+3x256, small 6+6x512, base 6+6x768.")
    config: str | Shape = Field("", description="Folder with Hugging Face's config.json, whose shape is taken instead of the size.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of activations and attention weights dropped in training.")

    @field_validator("config", mode="before")
    @classmethod
    def _read(cls, config: Any) -> Any:
        return shape_of(config, "bart", KEYS)


class Bart(nn.Module):
    """BART: a transformer that reads a text and writes another; made for translation and denoising, and for published BART weights."""

    Options = BartOptions
    requires: ClassVar[tuple[str, ...]] = ("transformers",)
    modalities: ClassVar[frozenset[str]] = frozenset({"text", "text-pair"})
    traits: ClassVar[frozenset[str]] = frozenset({"tokens", "vocabulary", "sequence-to-sequence"})

    def __init__(self, options: BartOptions, spec: DataSpec):
        from huggingface_hub.errors import StrictDataclassError
        from transformers import BartConfig, BartForConditionalGeneration  # imported where it is used: it costs seconds

        super().__init__()
        depth, width, heads = SIZES[options.size]
        both = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in (("layers", depth), ("attention_heads", heads), ("ffn_dim", 4 * width))}
        shape = options.config or {
            "vocab_size": spec.options["vocabulary"],
            "d_model": width,
            "max_position_embeddings": max(POSITIONS, spec.shape[0]),
            "init_std": width**-0.5,  # BART's own 0.02 is for wide layers: narrow ones learn late to look at the source
            **both,
        }
        check_shape(shape, spec, "max_position_embeddings")
        shape = {**shape, "scale_embedding": bool(shape.get("scale_embedding", False))}  # a shape's values are numbers
        marks = spec.statistics["tokens"]
        drop = {"dropout": options.dropout, "attention_dropout": options.dropout}
        ids = {"pad_token_id": marks["pad"], "bos_token_id": marks["begin"], "eos_token_id": marks["end"], "decoder_start_token_id": marks["begin"]}
        try:
            config = BartConfig(**shape, **drop, **ids, forced_eos_token_id=None, attn_implementation="sdpa")
            self.net = BartForConditionalGeneration(config)
        except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
            raise InputError(f"no BART can be built of backbone.options.config={shape}: {error}") from None
        self.width = config.d_model
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_pre_hook(_fill_in)

    @property
    def embedding(self) -> nn.Embedding:
        """The vectors of the tokens, which the encoder, the decoder and the output layer share."""
        return self.net.model.shared

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes tokens (B, T) where mask (B, T) holds: the encoder's states, and their mean."""
        mask_BT = inputs["mask"]
        tokens_BTD = self.net.model.encoder(input_ids=inputs["tokens"], attention_mask=mask_BT).last_hidden_state
        weight_BT1 = mask_BT[:, :, None].to(tokens_BTD.dtype)
        return Features((tokens_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1), tokens_BTD=tokens_BTD)

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, S − 1, V): of each token of the target (B, S) but the first, predicted from those before it and from the source."""
        # No mask for the target: no token looks ahead, and what pads a text stands behind it.
        states_BTD = self.encode(inputs).tokens_BTD
        decoded = self.net.model.decoder(
            input_ids=inputs["target"][:, :-1], encoder_hidden_states=states_BTD, encoder_attention_mask=inputs["mask"], use_cache=False
        )
        return self.net.lm_head(decoded.last_hidden_state)

    @torch.no_grad()
    def generate(self, inputs: Mapping[str, Tensor], most: int, beams: int, marks: Mapping[str, int]) -> Tensor:
        """(B, most) int64 ids of what is written of each source, without the mark of its beginning, padded behind that of its end.

        The likeliest token each time, or with `beams` the likeliest text found by a beam search of that width. Nothing is drawn.
        """
        from transformers import GenerationConfig

        config = GenerationConfig(
            max_new_tokens=most,
            num_beams=beams,
            do_sample=False,
            early_stopping=beams > 1,
            use_cache=True,
            decoder_start_token_id=marks["begin"],
            bos_token_id=marks["begin"],
            eos_token_id=marks["end"],
            pad_token_id=marks["pad"],
        )
        found_BS = self.net.generate(inputs["tokens"], generation_config=config, attention_mask=inputs["mask"].long())[:, 1:]
        written_BS = found_BS.new_full((len(found_BS), most), marks["pad"])
        written_BS[:, : found_BS.shape[1]] = found_BS[:, :most]
        ends_BS = (written_BS == marks["end"]).cumsum(1)  # a beam search goes on writing ends
        return written_BS.masked_fill(ends_BS.roll(1, 1).index_fill(1, ends_BS.new_zeros(1), 0) > 0, marks["pad"])

    def layers(self) -> list[nn.Module]:
        encoder, decoder = self.net.model.encoder, self.net.model.decoder
        first = nn.ModuleList([self.embedding, encoder.embed_positions, encoder.layernorm_embedding])
        between = nn.ModuleList([decoder.embed_positions, decoder.layernorm_embedding])
        return [first, *encoder.layers, between, *decoder.layers]


def _leave_out(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name in (*TIED, BIAS):
        state.pop(prefix + name, None)


def _fill_in(module: Bart, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    if prefix + EMBEDDING in state:
        state.update({prefix + name: state[prefix + EMBEDDING] for name in TIED})
    state.setdefault(prefix + BIAS, module.net.final_logits_bias)
