"""Activations computed anew in the backward pass instead of kept: less memory, for a third more time (Chen et al. 2016, arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute(backbone: nn.Module) -> None:
    """From now on each of the backbone's layers keeps, for its backward pass, what it was given alone. A stand-in for remembered features has none."""
    for layer in backbone.layers() if hasattr(backbone, "layers") else ():
        layer.forward = partial(_forward, layer, layer.forward)


def _forward(layer: nn.Module, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _unnoticed(layer)), **named)


@contextmanager
def _unnoticed(layer: nn.Module) -> Iterator[None]:
    """Within it batch normalisation does not count what it sees, which it has seen before."""
    norms = [module for module in layer.modules() if isinstance(module, _BatchNorm) and module.training and module.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # without the statistics themselves other tensors would be kept than before
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
