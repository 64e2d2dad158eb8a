"""The processes that train one model together, as `torch.distributed` numbers them: ranks 0 to `count() - 1`.

Without a process group there is one rank, and every function here gives back what it was given. B rows of a batch, b of them here, C features.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from ml.contracts import Batch, Part
from ml.neighbours import Neighbours, find
from ml.networks import meet

T = TypeVar("T")

_patient: dist.ProcessGroup | None = None
"""For what rank 0 does alone, such as a validation: it may take longer than a rank may be silent in a step."""
_neighbours: Neighbours | None = None
"""Where all ranks are on one machine: what adds up their tensors that lie on the CPU."""


def begin(device: torch.device, silence: float) -> None:
    """Joins the process group that the environment describes; a rank that is silent for `silence` seconds ends a step's exchange with an error."""
    meet(os.environ["MASTER_ADDR"])
    store, rank, count = next(dist.rendezvous("env://", timeout=timedelta(seconds=silence)))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # the launcher's outlives a restart: it holds addresses of ranks that are gone
        store = dist.PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend_of(device), store=store, rank=rank, world_size=count, timeout=timedelta(seconds=silence))
    adopt(silence)


def backend_of(device: torch.device) -> str:
    """What exchanges tensors: those of a GPU directly, and flags and plain data, which lie on the CPU, in any case."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def adopt(silence: float) -> None:
    """Takes part in a process group, of such a backend, that was joined already."""
    global _patient, _neighbours
    _patient = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    _neighbours = find(rank(), count(), silence, told, _all)


def end() -> None:
    """Waits for the other ranks, and leaves the process group."""
    global _neighbours
    told(lambda: None)
    if _neighbours is not None:
        _neighbours = _neighbours.close()
    dist.destroy_process_group()


def near(device: torch.device) -> bool:
    """Whether the ranks' tensors that lie there are on one machine's CPU."""
    return _neighbours is not None and device.type == "cpu"


def add_up(total: Tensor) -> None:
    """Makes it the sum over the ranks, in place; without gradients."""
    if near(total.device):
        _neighbours.sum(total)
    elif count() > 1:
        dist.all_reduce(total)


def stacked(own: Tensor) -> Tensor:
    """(N, ...) of what each of the N ranks has, of one shape in all; without gradients."""
    if near(own.device):
        return _neighbours.stack(own)
    if count() == 1:
        return own[None]
    found = own.new_empty(count() * own.numel())
    dist.all_gather_into_tensor(found, own.contiguous().view(-1))
    return found.view(-1, *own.shape)


def _all(yes: bool) -> bool:
    flag = torch.tensor(int(yes))
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def summed(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sums of scalars over the ranks, which all name the same ones; without gradients."""
    if count() == 1:
        return dict(values)
    total = torch.stack([value.float() for value in values.values()])
    add_up(total)
    return dict(zip(values, total, strict=True))


def agreed(asked: bool, due: bool) -> tuple[bool, bool]:
    """Whether any rank was asked to stop, and whether rank 0 holds a checkpoint to be due: the same in all ranks."""
    if count() == 1:
        return asked, due
    flags = torch.tensor([asked, due and rank() == 0], dtype=torch.int32)
    add_up(flags)
    return bool(flags[0]), bool(flags[1])


def told(make: Callable[[], T]) -> T:
    """What `make` gives in rank 0, where alone it is called, in all ranks; plain data. The others wait as long as it takes."""
    if count() == 1:
        return make()
    content = torch.frombuffer(bytearray(json.dumps(make()).encode()), dtype=torch.uint8) if rank() == 0 else torch.empty(0, dtype=torch.uint8)
    size = torch.tensor(len(content))
    dist.broadcast(size, 0, group=_patient)
    content = content if rank() == 0 else torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(content, 0, group=_patient)
    return json.loads(bytes(content.tolist()))


def in_turn(make: Callable[[], T]) -> T:
    """What `make` gives in each rank, rank 0 going first: what that tidies up is not touched by two."""
    first = make() if rank() == 0 else None
    told(lambda: None)
    return first if rank() == 0 else make()


def share_of(batch: Batch, weight: Tensor | None) -> float | Tensor:
    """How much this rank's mean counts in that of the whole batch: by its rows, or by the `weight` that the mean was taken over. They sum up to 1."""
    if batch.part is None:
        return 1.0
    if weight is None:
        return len(batch.targets_B) / batch.part.rows
    total = weight.detach().float().clone()
    add_up(total)
    return weight.detach().float() / total.clamp(min=torch.finfo(total.dtype).tiny)


def gathered(rows_bC: Tensor, part: Part | None) -> Tensor:
    """The rows (B, ...) of the whole batch, in its order, of which each rank has its `part`; gradients go back to the rank whose rows they are.

    A loss over all of them is the same in each rank: weighed by shares that sum up to 1, as the loop does, it is learnt from once.
    """
    if part is None:
        return rows_bC
    after = part.rows - part.start - len(rows_bC)
    return all_reduce(F.pad(rows_bC, (0, 0) * (rows_bC.ndim - 1) + (part.start, after)))


def all_reduce(value: Tensor) -> Tensor:
    """The sum over the ranks, through which gradients flow."""
    return _Sum.apply(value)


class _Sum(torch.autograd.Function):
    """The gradient of a sum is the sum of what all ranks make of it."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        add_up(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        add_up(total)
        return total
