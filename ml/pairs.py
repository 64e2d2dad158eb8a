"""Pairs of texts, both sides read by one network, which are to lie near one another and far from those of other pairs.

B pairs, D features, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ml.contracts import Batch, StepResult
from ml.losses import contrast
from ml.ranks import gathered

FACTOR = 6364136223846793005
"""Of a hash of tokens, in 64 bits that overflow (Knuth's multiplier)."""


def both_sides(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{"tokens", "mask"} (2B, T) of the sources and then of the targets, (B, T) each. Of a target that is missing its first token is read, padding."""
    mask_BT = torch.cat([inputs["mask"], inputs["target_mask"]])
    mask_BT[:, 0] = True
    return {"tokens": torch.cat([inputs["tokens"], inputs["target"]]), "mask": mask_BT}


def contrast_sides(embedded_BD: Tensor, batch: Batch, temperature: float) -> StepResult:
    """The loss of ml.losses.contrast for what is made of `both_sides` of the whole batch, also where several processes share it.

    Pairs with an equal source or target are no wrong answers to one another.
    """
    inputs, part = batch.inputs, batch.part
    first_BD, second_BD = (gathered(side_BD, part) for side_BD in embedded_BD.chunk(2))
    numbers = [gathered(_number(inputs[tokens], inputs[mask]), part) for tokens, mask in (("tokens", "mask"), ("target", "target_mask"))]
    source_BB, target_BB = (number_B[:, None] == number_B for number_B in numbers)
    return contrast(first_BD, second_BD, temperature, source_BB | target_BB, gathered(inputs["target_mask"].any(1).int(), part) > 0)


def _number(tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(B,) int64, the same for equal texts and as good as never for others."""
    power_T = torch.full(tokens_BT.shape[1:], FACTOR, device=tokens_BT.device).cumprod(0)
    return ((tokens_BT + 1) * mask_BT * power_T).sum(1)
