"""How a language model chooses what it writes: the likeliest token, or one drawn from the nucleus.

B batch, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw(logits_BV: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """One token (B, 1) for each row, among the likeliest that together have the probability `top_p` (Holtzman et al. 2019, arXiv:1904.09751).

    A temperature of 0 takes the likeliest.
    """
    if temperature == 0:
        return logits_BV.argmax(1, keepdim=True)
    share_BV, order_BV = (logits_BV / temperature).softmax(1).sort(1, descending=True)
    share_BV = share_BV.masked_fill(share_BV.cumsum(1) - share_BV >= top_p, 0.0)
    return order_BV.gather(1, torch.multinomial(share_BV, 1, generator=generator))
