"""Batch normalisation over ranks: where there is one, torch's own. What several make of it: test_ranks.py."""

import pytest
import torch
from torch.nn import functional as F

from ml.shared_norm import batch_norm

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 5e-2}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [*TOLERANCE])
@pytest.mark.parametrize(("shape", "channels_last"), [((8, 5), False), ((8, 5, 7), False), ((8, 16, 6, 6), False), ((8, 16, 6, 6), True), ((4, 3, 2, 3, 4), False)])
def test_one_rank_has_torchs_own(shape, channels_last, dtype, affine):
    generator = torch.Generator().manual_seed(0)
    x, gradient = (3 * torch.randn(shape, generator=generator) + 1 for _ in range(2))
    if channels_last:
        x, gradient = (one.to(memory_format=torch.channels_last) for one in (x, gradient))
    kept = torch.float64 if dtype is torch.float64 else torch.float32  # as under autocast
    found = {}
    for name, function in (("ours", batch_norm), ("torch", F.batch_norm)):
        inputs = x.to(dtype).requires_grad_()
        mean, variance = torch.zeros(shape[1], dtype=kept), torch.ones(shape[1], dtype=kept)
        weights = [torch.linspace(low, 2, shape[1], dtype=kept, requires_grad=True) for low in (0.5, -1)] if affine else [None, None]
        y = function(inputs, mean, variance, *weights, training=True, momentum=0.3, eps=1e-3)
        y.backward(gradient.to(dtype))
        found[name] = [y, inputs.grad, mean, variance, *(one.grad for one in weights if affine)]
        assert inputs.grad.stride() == inputs.stride()
    for ours, theirs in zip(found["ours"], found["torch"], strict=True):
        assert ours.dtype is theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
