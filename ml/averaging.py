"""Weights set aside: the best so far, and their exponential moving average (Polyak and Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ml.shards import part

Weights = dict[str, Tensor]


def weights_of(module: nn.Module) -> Weights:
    """A copy of the module's parameters and buffers by name."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def average(ema: Weights, module: nn.Module, decay: float) -> None:
    """Moves the average towards the module by 1 − decay, in place; what is no float, such as a counter, is copied."""
    state = module.state_dict()
    floats = [name for name, value in state.items() if value.is_floating_point()]
    torch._foreach_lerp_([part(ema[name]) for name in floats], [part(state[name].detach()) for name in floats], 1 - decay)
    for name in state.keys() - set(floats):
        ema[name].copy_(state[name])


@contextmanager
def swapped(module: nn.Module, weights: Weights | None) -> Iterator[None]:
    """Puts other weights into the module while the block runs; None changes nothing."""
    if weights is None:
        yield
        return
    before = weights_of(module)
    module.load_state_dict(weights)
    try:
        yield
    finally:
        module.load_state_dict(before)
