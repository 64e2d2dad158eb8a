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
    y, mean_C, variance_C, rows = _Normalised.apply(x, weight, bias, eps)
    if running_mean is not None:
        with torch.no_grad():
            running_mean.lerp_(mean_C.to(running_mean), momentum)
            running_var.lerp_((variance_C * (rows / (rows - 1).clamp(min=1))).to(running_var), momentum)
    return y


class _Normalised(torch.autograd.Function):
    """(y, mean (C,), variance (C,), values a channel) by torch's own kernels on either way, with one exchange on each.

    The gradient is that of Ioffe and Szegedy 2015, section 3, with sums over all ranks.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean_C, variance_C, total = _statistics(x)
        y = torch.native_batch_norm(x, weight, bias, mean_C, variance_C, False, 0.0, eps)[0]
        ctx.save_for_backward(x, weight, mean_C, variance_C, total)
        ctx.eps, ctx.biased = eps, bias is not None
        ctx.mark_non_differentiable(mean_C, variance_C, total)
        return y, mean_C, variance_C, total

    @staticmethod
    def backward(ctx, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean_C, variance_C, total = ctx.saved_tensors
        as_given, by_weight_C, by_bias_C = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean_C, variance_C, None, None, False, ctx.eps, [True, True, True]
        )  # as if mean and variance were given; what x does by them follows
        all_2C = torch.stack([by_bias_C, by_weight_C]).to(mean_C)
        ranks.add_up(all_2C)
        all_2C /= total
        spread_C = (variance_C + ctx.eps).rsqrt()
        factor_C = spread_C if weight is None else spread_C * weight.to(spread_C)
        slope_C = factor_C * spread_C * all_2C[1]
        shape = (1, -1) + (1,) * (x.ndim - 2)
        as_given.sub_((factor_C * all_2C[0] - slope_C * mean_C).to(x.dtype).view(shape)).addcmul_(x, slope_C.to(x.dtype).view(shape), value=-1)
        return as_given, by_weight_C if weight is not None else None, by_bias_C if ctx.biased else None, None


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (C,) of all ranks' rows, and how many values each is of: one exchange, put together as by Chan et al. 1979."""
    count = x.numel() // x.shape[1]
    own_mean_C, own_var_C = torch.batch_norm_update_stats(x if x.dtype is torch.float64 else x.float(), None, None, 0.0)
    own_C1 = torch.cat([own_mean_C, own_var_C * count, own_mean_C.new_tensor([count])])
    index = ranks.rank()
    all_NC = own_C1.new_zeros(ranks.count(), len(own_C1))
    all_NC[index] = own_C1
    ranks.add_up(all_NC)
    means_NC, squares_NC, counts_N1 = all_NC[:, : x.shape[1]], all_NC[:, x.shape[1] : -1], all_NC[:, -1:]
    total = counts_N1.sum()
    mean_C = (means_NC * counts_N1).sum(0) / total
    return mean_C, (squares_NC + counts_N1 * (means_NC - mean_C).square()).sum(0) / total, total
