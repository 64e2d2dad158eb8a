"""Batch normalisation by the statistics of the whole batch, where several ranks have parts of it.

torch's own SyncBatchNorm does it on CUDA alone, and replaces the layers. This keeps them, so that weights have the same names with any
number of ranks, and serves all kinds that call `F.batch_norm`.

B rows, C channels, N ranks.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ml import ranks


def share_statistics(module: nn.Module) -> None:
    """Makes every batch normalisation within `module` use what all ranks see, from now on. Does nothing where there is one rank."""
    if ranks.count() > 1:
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.forward = _shared(layer.forward)


def _shared(forward: Any) -> Any:
    @wraps(forward)
    def within(*inputs: Tensor) -> Tensor:
        with _Shared():
            return forward(*inputs)

    return within


class _Shared(TorchFunctionMode):
    """`F.batch_norm` becomes `batch_norm`."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return (batch_norm if function is F.batch_norm else function)(*args, **(kwargs or {}))


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As `F.batch_norm` of (B, C, ...), with the mean and the variance of all ranks' rows in training."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    mean_C, variance_C, rows = _statistics(x)
    if running_mean is not None:
        with torch.no_grad():
            running_mean.lerp_(mean_C.to(running_mean), momentum)
            running_var.lerp_((variance_C * (rows / (rows - 1).clamp(min=1))).to(running_var), momentum)
    scale_C = (variance_C + eps).rsqrt()
    scale_C = scale_C if weight is None else scale_C * weight.float()
    shift_C = -mean_C * scale_C if bias is None else bias.float() - mean_C * scale_C
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return torch.addcmul(shift_C.view(shape), x.float(), scale_C.view(shape)).to(x.dtype)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (C,) of all ranks' rows, and how many values each is of: one exchange, put together as by Chan et al. 1979."""
    dims = [0, *range(2, x.ndim)]
    count = x.numel() // x.shape[1]
    own_var_C, own_mean_C = torch.var_mean(x.float(), dims, correction=0)
    own_C1 = torch.cat([own_mean_C, own_var_C * count, own_mean_C.new_tensor([count])])
    index = ranks.rank()
    all_NC = ranks.all_reduce(F.pad(own_C1[None], (0, 0, index, ranks.count() - index - 1)))
    means_NC, squares_NC, counts_N1 = all_NC[:, : x.shape[1]], all_NC[:, x.shape[1] : -1], all_NC[:, -1:].detach()
    total = counts_N1.sum()
    mean_C = (means_NC * counts_N1).sum(0) / total
    return mean_C, (squares_NC + counts_N1 * (means_NC - mean_C).square()).sum(0) / total, total
