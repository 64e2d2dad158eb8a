"""Changes to a batch of token ids, with parameters of their own for each text: a part of it, and words left out.

Shapes in names: B batch, T tokens, with the marks of beginning and end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from pydantic import Field
from torch import Tensor

from ml.contracts import DataSpec, Options

PADDING = -1
"""What stands behind a text in a collated batch: no id, as the padding token of some tokenizers also ends texts."""


class Augmentation(Options):
    crop: float = Field(0.0, ge=0, lt=1, description="Most of a text that is cut away around a run of its tokens, as a share.")
    crop_least: float = Field(0.0, ge=0, lt=1, description="Least of a text that is cut away where any is.")
    drop: float = Field(0.0, ge=0, lt=1, description="Share of the tokens that are hidden.")


PRESETS: Mapping[str, Callable[[DataSpec], Augmentation]] = {
    "none": lambda spec: Augmentation(),
    "light": lambda spec: Augmentation(drop=0.05),
    "standard": lambda spec: Augmentation(drop=0.1),
    "contrastive": lambda spec: Augmentation(crop=0.8, crop_least=0.4, drop=0.2),
}


def augment(array_BT: Tensor, spec: DataSpec, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """(B, T) ids, altered; each text keeps its marks and a token at least."""
    marks = spec.statistics["tokens"]
    if augmentation.crop:
        array_BT = _crop(array_BT, marks, augmentation, generator)
    if augmentation.drop:
        hidden = marks["mask"] if marks["mask"] is not None else marks["unknown"]
        inside_BT = (array_BT != PADDING) & (array_BT != marks["begin"]) & (array_BT != marks["end"])
        drawn_BT = torch.rand(array_BT.shape, generator=generator).to(array_BT.device).masked_fill(~inside_BT, -1.0)
        hides_BT = inside_BT & (drawn_BT < augmentation.drop) & (drawn_BT < drawn_BT.amax(1, keepdim=True))
        array_BT = torch.where(hides_BT, hidden, array_BT)
    return array_BT


def _crop(array_BT: Tensor, marks: Mapping[str, int], augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """A run of each text's tokens, as long as drawn."""
    batch, width = array_BT.shape
    size_B, start_B = (torch.rand(batch, generator=generator).to(array_BT.device) for _ in range(2))
    whole_B = (array_BT != PADDING).sum(1) - 2
    least, most = min(augmentation.crop_least, augmentation.crop), augmentation.crop
    kept_B = (whole_B * (1 - least - (most - least) * size_B)).ceil().long().clamp(min=1).minimum(whole_B)
    first_B = (start_B * (whole_B - kept_B + 1)).long()
    place_T = torch.arange(width, device=array_BT.device)
    moved_BT = array_BT.gather(1, (first_B[:, None] + place_T).clamp(max=width - 1))
    moved_BT[:, 0] = array_BT[:, 0]
    moved_BT = moved_BT.where(place_T <= kept_B[:, None], PADDING)
    return moved_BT.where(place_T != kept_B[:, None] + 1, marks["end"])  # as wide as it was: views of one batch go together
