"""Tensors of which each rank holds a part (torch's DTensor, cut along the first dimension), beside plain ones, which each rank holds whole.

They are known by their methods: torch's own module for them takes most of a second to import. N ranks.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ml import ranks


def part(value: Tensor) -> Tensor:
    """This rank's part, in the same memory; all of a plain tensor."""
    return value.to_local() if _divided(value) else value


def whole(content: Any) -> Any:
    """`content` (mappings, lists and tuples of tensors and plain data) with whole tensors on the CPU in place of divided ones: in rank 0, None in the others.

    All ranks call this, with content of the same structure. Tensor after tensor, so that no device ever holds more than one of them whole.
    """
    if isinstance(content, Tensor):
        if not _divided(content):
            return content
        full = content.detach().full_tensor()
        return full.cpu() if ranks.rank() == 0 else None
    if isinstance(content, dict):
        found = copy.copy(content)  # with the versions that a module's state carries
        found.update((name, whole(value)) for name, value in content.items())
        return found
    return type(content)(map(whole, content)) if isinstance(content, list | tuple) else content


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A copy of a whole `value` that lies as `like`, a tensor of its shape: on its device, with its strides, divided where that is. What is divided already stays."""
    if _divided(value):
        return value
    found = torch.empty_like(like)
    own = part(found)
    if _divided(like):
        start = min(len(value), ranks.rank() * -(-len(value) // ranks.count()))
        value = value[start : start + len(own)]
    own.copy_(value)
    return found


def _divided(value: Tensor) -> bool:
    return hasattr(value, "full_tensor")
