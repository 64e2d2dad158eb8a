"""What a training needs in memory: a model of it, for `warmstart check` and docs/scale.md.

Each weight is held once itself, once as its gradient, and in as many moments as the optimizer has; then in copies: the moving average, the best weights so
far, what there is to return to, and the buffers in which all of that waits to be written as a checkpoint. The activations that the backward pass needs are not guessed: they are
counted while a step is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ml.recipe import Fit, Optimizer

MOMENTS = {Optimizer.adamw: 2, Optimizer.sgd: 1}


@contextmanager
def kept() -> Iterator[Callable[[], int]]:
    """Yields what gives the bytes that the block keeps for a backward pass, each memory once, weights aside."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(sizes.values())


def training_bytes(module: nn.Module, settings: Fit, validates: bool, activations: int) -> int:
    """Bytes of a training at its most; `activations` are those of the rows that are computed at once."""
    held = sum(value.nbytes for value in module.state_dict().values())
    learnt = sum(parameter.nbytes for parameter in module.parameters() if parameter.requires_grad)
    moments = MOMENTS[settings.optimizer] * learnt
    copies = held * (bool(settings.ema) + validates)
    saved = held + moments + copies  # a checkpoint
    return held + learnt + moments + copies + max(saved, held) + activations
