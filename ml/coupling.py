"""A module as several ranks train it together: torch's DistributedDataParallel, set up anew whenever other parameters learn; where the ranks of a
small one share a machine, its gradients are added up at once, as nothing is left to be hidden behind the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.nn.parallel import DistributedDataParallel

from ml import ranks

T = TypeVar("T")
SMALL = 64 << 20
"""Bytes of gradients in all ranks together."""


class Coupled:
    """Calls `module`, which it puts on `device`. With several ranks its gradients are those of the mean of `mean_of` losses, or of their sum, once `renew` was called.

    `groups` are those of the optimizer; what is `probed` fits into one process, which finds out how its steps are fastest.
    """

    probed: ClassVar[bool] = True

    def __init__(self, module: nn.Module, groups: list[dict[str, Any]], device: torch.device):
        self.module = self.called = module.to(device)
        self.groups = groups
        self.learns: list[bool] = []
        self.learnt: list[nn.Parameter] = []
        self.orders: list[list[int]] = []  # of their dimensions in memory
        self.small = ranks.near(device) and ranks.count() * sum(parameter.nbytes for parameter in module.parameters()) <= SMALL
        if self.small:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)  # as DistributedDataParallel begins
        self.mean_of = 1 if self.small else ranks.count()
        """Ranks, of whose losses the gradients are the mean; 1 where they are the sum."""

    def __call__(self, *inputs: Any) -> Any:
        return self.called(*inputs)

    def renew(self) -> None:
        """To be called whenever parameters may have begun or ceased to learn: parallelism is told of that once."""
        learns = [parameter.requires_grad for parameter in self.module.parameters()]
        self.learnt = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self.orders = [sorted(range(one.ndim), key=one.stride().__getitem__, reverse=True) for one in self.learnt]
        if ranks.count() > 1 and not self.small and learns != self.learns:
            if self.learns:
                self.called._remove_autograd_hooks()  # it may live on in cycles
            # Parameters that a step does not use must not be waited for.
            self.called, self.learns = DistributedDataParallel(self.module, broadcast_buffers=False, find_unused_parameters=True), learns

    def alone(self) -> AbstractContextManager:
        """Within it gradients stay in a rank: they go along with those of the next step outside."""
        return self.called.no_sync() if self.learns else nullcontext()

    def share(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """To be called after the last backward pass of an update: the sums over the ranks of what was `found`, all scalars."""
        if not self.small:
            return ranks.summed(found)  # that pass has exchanged the gradients
        used = torch.tensor([parameter.grad is not None for parameter in self.learnt], dtype=torch.float32)
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in self.learnt]
        gradients = [one.permute(order) for one, order in zip(gradients, self.orders, strict=True)]  # as the parameter lies
        total = _flatten_dense_tensors([*found.values(), used, *gradients])
        ranks.add_up(total)
        sums, used, rest = total.split([len(found), len(used), len(total) - len(found) - len(used)])
        shared = _unflatten_dense_tensors(rest, gradients)
        for parameter, order, one, has in zip(self.learnt, self.orders, shared, used.tolist(), strict=True):
            if has:  # otherwise no rank has used it, and the optimizer passes it over
                parameter.grad = one.permute([order.index(dimension) for dimension in range(one.ndim)]).to(parameter.dtype)
        return dict(zip(found, sums.clone(), strict=True))  # which do not keep the rest in memory

    def told(self, make: Callable[[], T]) -> T:
        """What `make`, which may call the module or parts of it, gives in rank 0, where alone it is called; plain data, in all ranks."""
        return ranks.told(make)
