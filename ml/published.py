"""Weights that torchvision publishes: found by name, downloaded once, checked by hash, never unpickled."""

from __future__ import annotations

import enum
import urllib.error
from collections.abc import Mapping

from torch import Tensor

from ml.contracts import InputError


class Stem(enum.StrEnum):
    """Which first layers a network has: those it was published with, or ones that keep small images large enough."""

    auto = "auto"
    small = "small"
    standard = "standard"


SMALL_SIDE = 64
"""Images up to this side, in pixels, get the small stem where the recipe leaves the choice open."""


def is_small(stem: Stem, shape: tuple[int, ...]) -> bool:
    """Whether images of shape (C, H, W) get the small stem."""
    return stem is Stem.small or (stem is Stem.auto and max(shape[1:]) <= SMALL_SIDE)


def torchvision_weights(model: str, name: str) -> Mapping[str, Tensor]:
    """The tensors of torchvision's weights `name` (IMAGENET1K_V1, DEFAULT, ResNet18_Weights.DEFAULT) for its `model`."""
    from torchvision.models import get_model_weights  # imported where it is used: it costs seconds

    family = get_model_weights(model)
    enumeration, _, member = name.rpartition(".")
    valid = [*family.__members__, "DEFAULT"]
    if member not in valid or enumeration not in ("", family.__name__):
        raise InputError(f"torchvision has no weights {name!r} for {model}. Valid: {', '.join(dict.fromkeys(valid))}.")
    try:
        return family[member].get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise InputError(
            f"cannot download torchvision's {name} for {model} ({error}). Check the network, or download the file elsewhere "
            f"from {family[member].url} and give its path as `weights`."
        ) from None
    except (RuntimeError, OSError) as error:
        raise InputError(f"torchvision's {name} for {model} cannot be used: {error}. Remove the damaged file and try again.") from None
