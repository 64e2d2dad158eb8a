"""A module that several ranks train together, each of which holds a part of its weights: torch's `fully_shard` (FSDP2; Zhao et al. 2023, arXiv:2304.11277).

A layer's weights are gathered when it is called, and let go after it; gradients and the optimizer's state exist in parts alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ml import ranks
from ml.contracts import InputError

T = TypeVar("T")


class Sharded:
    """Calls `module`, a step around what is trained. Offers what ml.coupling.Coupled does; `groups` name the parameters that took the place of those given.

    Only its parts are put on `device`, layer by layer.
    """

    probed: ClassVar[bool] = False

    def __init__(self, module: nn.Module, groups: list[dict[str, Any]], device: torch.device):
        from torch.distributed.fsdp import fully_shard  # imported where it is used: it costs a second

        single = [name for name, parameter in module.named_parameters() if parameter.ndim == 0]
        if single:
            raise InputError(f"compute.strategy=fsdp divides weights along their first dimension, and {single[0]} is a single number: set compute.strategy=ddp")
        names = {parameter: name for name, parameter in module.named_parameters()}
        module.to(memory_format=torch.contiguous_format)  # the one that fully_shard takes
        mesh = DeviceMesh.from_group(dist.group.WORLD, device.type)
        for layer in _repeated(module.module):
            fully_shard(layer, mesh=mesh)
        self.module = fully_shard(module, mesh=mesh)
        parts = dict(module.named_parameters())
        self.groups = [{**group, "params": [parts[names[parameter]] for parameter in group["params"]]} for group in groups]

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def renew(self) -> None:
        """Nothing needs to be told which parameters learn: each backward pass looks."""

    def alone(self) -> AbstractContextManager:
        """Gradients are exchanged each time: held back, they would be whole in each rank."""
        return nullcontext()

    @property
    def mean_of(self) -> int:
        """Ranks, of whose losses the gradients are the mean."""
        return ranks.count()

    def share(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums over the ranks of what was `found`, all scalars; each backward pass has exchanged the gradients."""
        return ranks.summed(found)

    def told(self, make: Callable[[], T]) -> T:
        """What `make`, which calls the module or parts of it, gives in rank 0: all ranks do the same, as none has all weights."""
        self.module.unshard()  # what is in no layer; those gather their own
        try:
            found = make()
        finally:
            self.module.reshard()
        return ranks.told(lambda: found)


def _repeated(module: nn.Module) -> list[nn.Module]:
    """The backbone's layers that are alike, and are called as they stand: an embedding, which output layers share, is not among them."""
    backbone, inside = getattr(module, "backbone", None), set(module.modules())
    layers = [layer for layer in (backbone.layers() if hasattr(backbone, "layers") else ()) if layer in inside]
    kinds = Counter(map(type, layers))
    return [layer for layer in layers if kinds[type(layer)] > 1]
