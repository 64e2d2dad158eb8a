"""The shape of a transformer out of a Hugging Face folder's config.json: numbers and names alone, never weights or code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml.contracts import DataSpec, InputError

Shape = dict[str, int | float | str]
POSITIONS = 512
"""Positions of a transformer of our own, so that texts of another length can follow; longer texts get as many as they have."""


def shape_of(config: Any, kind: str, keys: Iterable[str]) -> Any:
    """`config` with a folder, or its config.json, replaced by what stands there under `keys`.

    Read when the options are checked: a model's description then holds its shape, and needs the folder no more.
    """
    if not isinstance(config, str) or not config:
        return config
    path = Path(config)
    path = path / "config.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror or error}): give a folder that holds Hugging Face's config.json") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged: not JSON ({error})") from None
    found = content.get("model_type") if isinstance(content, Mapping) else None
    if found != kind:
        raise InputError(f"{path} describes a model of type {found!r}, expected {kind!r}")
    if content.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(f"{path} asks for positions of type {content['position_embedding_type']!r}, expected 'absolute'")
    return {key: content[key] for key in keys if content.get(key) is not None}


def check_shape(shape: Mapping[str, Any], spec: DataSpec, positions: str) -> None:
    """Whether a given shape suits the data's vocabulary and length; `positions` is its key of the longest text."""
    given, wanted = shape.get("vocab_size"), spec.options["vocabulary"]
    if given != wanted:
        raise InputError(
            f"backbone.options.config has a vocabulary of {given} tokens and the data one of {wanted}: "
            f"let the modality adopt the tokenizer that belongs to the weights, or build the backbone without config"
        )
    if shape.get(positions, 0) < spec.shape[0]:
        raise InputError(f"backbone.options.config has {positions}={shape.get(positions)}, the texts have up to {spec.shape[0]} tokens: shorten them")
