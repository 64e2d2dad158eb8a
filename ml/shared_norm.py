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
    return _Normalised.apply(x, running_mean, running_var, weight, bias, momentum, eps)


class _Normalised(torch.autograd.Function):
    """By torch's own kernels on either way, with one exchange on each. After a layer has emptied the caches even the smallest operation
    takes some 20 µs, so that there are few of them.

    The gradient is that of Ioffe and Szegedy 2015, section 3, with sums over all ranks.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None, bias: Tensor | None, momentum: float, eps: float
    ) -> Tensor:
        mean_C, variance_C, total = _statistics(x)
        ctx.save_for_backward(x, weight, mean_C, variance_C, total)
        ctx.eps, ctx.biased = eps, bias is not None
        if running_mean is not None:
            running_mean.lerp_(mean_C.to(running_mean), momentum)
            running_var.lerp_((variance_C * (total / (total - 1).clamp_(min=1))).to(running_var), momentum)
        return torch.native_batch_norm(x, weight, bias, mean_C, variance_C, False, 0.0, eps)[0]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean_C, variance_C, total = ctx.saved_tensors
        _, by_weight_C, by_bias_C = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean_C, variance_C, None, None, False, ctx.eps, [False, True, True]
        )
        all_2C = torch.stack([by_weight_C, by_bias_C]).to(mean_C)
        ranks.add_up(all_2C)
        factor_C = (variance_C + ctx.eps).rsqrt_()
        if weight is not None:
            factor_C *= weight
        by_spread_C, by_mean_C = all_2C.mul_(factor_C).div_(-total)
        # What x does by mean and variance is linear in it: one pass of the same kernel; what it does by itself is another.
        by_x = torch.native_batch_norm(x, by_spread_C, by_mean_C, mean_C, variance_C, False, 0.0, ctx.eps)[0]
        by_x.addcmul_(gradient, factor_C.to(x.dtype).view(1, -1, *[1] * (x.ndim - 2)))
        return by_x, None, None, by_weight_C if weight is not None else None, by_bias_C if ctx.biased else None, None, None


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (C,) of all ranks' rows, and how many values each is of: one exchange, put together as by Chan et al. 1979."""
    count = x.numel() // x.shape[1]
    own_mean_C, own_var_C = torch.batch_norm_update_stats(x if x.dtype is torch.float64 else x.float(), None, None, 0.0)
    all_NC = ranks.stacked(torch.cat([own_mean_C, own_var_C, own_mean_C.new_full((1,), count)]))
    means_NC, variances_NC, counts_N1 = all_NC.split([x.shape[1], x.shape[1], 1], 1)
    total = counts_N1.sum()
    shares_N1 = counts_N1 / total
    mean_C = (means_NC * shares_N1).sum(0)
    apart_NC = means_NC - mean_C
    return mean_C, (variances_NC.addcmul(apart_NC, apart_NC).mul_(shares_N1)).sum(0), total
