"""What a fine-tuning changed in a backbone as changes of low rank (LoRA, Hu et al. 2021, arXiv:2106.09685), and their files in PEFT's format.

`peft.PeftModel.from_pretrained(network, folder)` reads them for the network that a backbone wraps, whose names they have. Of one kind of
layer PEFT has another change: those of grouped convolutions stand there in our own shape.

I and O inputs and outputs of a layer, R rank.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ml.contracts import InputError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
ATTENTION, LAST, WRAPPED_LAST = ".in_proj_weight", ".out_proj", ".base_layer.out_proj"
"""Torch's attention is one module to PEFT: the change of its first projection has the module's own name, that of its last another than here."""


@dataclass(frozen=True)
class Change:
    """weight + scale · up · down, where up is (O, R), and down (R, ...) has the weight's axes after its first: (R, I) of a matrix."""

    up: Tensor
    down: Tensor
    scale: float

    def added_to(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down.flatten(1)).view_as(weight) * self.scale


@dataclass(frozen=True)
class Adapter:
    """The changes of a backbone's weights, by their names in it.

    `turned` says that its matrices are (I, O), as those of GPT-2 are. `before` are the weights as they were, by name, where the adapter
    is to stay apart; where it is empty, the changes are part of the weights.
    """

    changes: Mapping[str, Change]
    rank: int
    alpha: float
    dropout: float
    turned: bool
    before: Mapping[str, Tensor] = field(default_factory=dict)

    def files(self) -> dict[str, bytes]:
        """PEFT's two files by their names; equal adapters give equal bytes."""
        tensors, layers = {}, []
        for name, change in self.changes.items():
            layer = _layer(name, self.changes)
            up = change.up.view(*change.up.shape, *[1] * (change.down.ndim - 2))
            tensors[PREFIX + layer + DOWN], tensors[PREFIX + layer + UP] = (up.T, change.down.T) if self.turned else (change.down, up)
            layers += [layer] if not layer.endswith(WRAPPED_LAST) else []
        config = {
            "peft_type": "LORA",
            "base_model_name_or_path": None,
            "bias": "none",
            "fan_in_fan_out": self.turned,
            "inference_mode": True,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "r": self.rank,
            "target_modules": sorted(layers),
            "task_type": None,
        }
        plain = {name: value.detach().cpu().contiguous().clone() for name, value in sorted(tensors.items())}
        return {CONFIG: (json.dumps(config, indent=2) + "\n").encode(), WEIGHTS: safetensors.torch.save(plain)}

    def save(self, folder: Path) -> None:
        """Writes the files into `folder`, which is made where missing."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in self.files().items():
                (folder / name).write_bytes(content)
        except OSError as error:
            raise InputError(f"cannot write the adapter to {folder}: {error.strerror or error}") from None


def digest(files: Mapping[str, bytes]) -> str:
    """sha256 over an adapter's two files."""
    return hashlib.sha256(b"".join(hashlib.sha256(files[name]).digest() for name in (CONFIG, WEIGHTS))).hexdigest()


def composed(tensors: Mapping[str, Tensor], files: Mapping[str, bytes], prefix: str) -> dict[str, Tensor]:
    """A model's tensors with the changes in `files` added to those of its backbone, whose names begin with `prefix`; KeyError where one is missing."""
    config, pairs = json.loads(files[CONFIG]), safetensors.torch.load(files[WEIGHTS])
    found = dict(tensors)
    for key in [key for key in pairs if key.endswith(DOWN)]:
        layer = key.removeprefix(PREFIX).removesuffix(DOWN)
        down, up = pairs[key], pairs[key.removesuffix(DOWN) + UP]
        if config["fan_in_fan_out"]:
            down, up = up.T.contiguous(), down.T.contiguous()
        name = _weight(prefix, layer, tensors)
        found[name] = Change(up.flatten(1), down, config["lora_alpha"] / config["r"]).added_to(tensors[name])
    return found


def _layer(name: str, changed: Collection[str]) -> str:
    """What PEFT calls the layer of the backbone's weight `name`, where the network within it is the base model."""
    layer = name.rpartition(".")[0].removeprefix("net.")
    return layer.removesuffix(LAST) + WRAPPED_LAST if name.removesuffix(LAST + ".weight") + ATTENTION in changed else layer


def _weight(prefix: str, layer: str, tensors: Mapping[str, Any]) -> str:
    """The full name of the weight that PEFT's `layer` changes."""
    layer = layer.removesuffix(WRAPPED_LAST) + LAST if layer.endswith(WRAPPED_LAST) else layer
    places = [f"{prefix}{inner}{layer}{kind}" for inner in ("net.", "") for kind in (".weight", ATTENTION)]
    return next((name for name in places if name in tensors), places[0])
