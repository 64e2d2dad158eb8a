"""Networks of convolutions as a CPU scores them fastest: each batch normalisation within the convolution before it, the ReLU behind it too, weights
laid out for oneDNN once instead of at every batch, and a matrix in the place of a kernel that is larger than the map it reads.

Most of it is what torch.compile does where it freezes a network, without a compiler. Answers change by rounding alone, which is checked.
B rows, C channels read, D channels made, H and W height and width.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

ROUNDING = 1e-4
"""The most by which an output may change, as a share of the largest one."""
M = TypeVar("M", bound=nn.Module)


def fused(module: M, answer: Callable[[M], Tensor], batch_size: int) -> M:
    """A copy of `module`, in evaluation mode on the CPU, that shares its other weights; `module` itself where nothing is to be fused or outputs change.

    `answer` has the module that it is given answer for some rows. The copy reads rows of their size alone; it is laid out for `batch_size` at a time.
    """
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")):
        return module
    with torch.inference_mode(False), torch.no_grad():
        calls, expected = _watched(module, answer)
        try:
            if not (places := _places(calls, batch_size)):
                return module
            shared = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
            found = answer(made := copy.deepcopy(module, shared | places))
        except (AttributeError, RuntimeError, TypeError):
            return module  # its layers are used otherwise than by calling them, or oneDNN cannot take them
    return made if (found - expected).abs().max() <= ROUNDING * expected.abs().max() else module


class _Convolution(nn.Module):
    """A convolution, with a ReLU behind it where it is `rectified`."""

    def __init__(self, layer: nn.Conv2d, rectified: bool, shape: list[int]):
        super().__init__()
        self.how = layer.padding, layer.stride, layer.dilation, layer.groups
        self.after = "relu" if rectified else "none"
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(layer.weight.detach(), *self.how, shape)
        self.bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x_BCHW, self.weight, self.bias, *self.how, self.after, [], "")


class _Matrix(nn.Module):
    """A convolution of maps so small that most of its kernel lies outside them: fewer products, all of which count."""

    def __init__(self, layer: nn.Conv2d, rectified: bool, shape: list[int]):
        super().__init__()
        (made, read), (height, width) = layer.weight.shape[:2], shape[2:]
        each = torch.eye(height * width).view(-1, 1, height, width)  # what the kernels make of a map with a single 1, place by place
        kernels = layer.weight.detach().reshape(made * read, 1, *layer.kernel_size)
        maps = F.conv2d(each, kernels, None, layer.stride, layer.padding, layer.dilation)
        self.shape, self.rectified = (*maps.shape[2:], made), rectified
        self.weight = maps.view(height * width, made, read, -1).permute(3, 1, 0, 2).reshape(-1, height * width * read)
        self.bias = None if layer.bias is None else layer.bias.detach().repeat(self.shape[0] * self.shape[1])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        made_BD = F.linear(x_BCHW.permute(0, 2, 3, 1).flatten(1), self.weight, self.bias)
        return (made_BD.relu_() if self.rectified else made_BD).view(-1, *self.shape).permute(0, 3, 1, 2)


@dataclass
class _Call:
    """Of a layer: what it was given and what it gave, each as an object and how often that was changed in place by then."""

    layer: nn.Module
    tensors: list[Tensor]  # kept, so that no other gets the id of one
    given: tuple[int, int]
    gave: tuple[int, int] = (0, 0)


def _watched(module: M, answer: Callable[[M], Tensor]) -> tuple[list[_Call], Tensor]:
    """The calls of layers that may be fused, in their order, and the outputs."""
    calls: list[_Call] = []

    def before(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls.append(_Call(layer, [inputs[0]], (id(inputs[0]), inputs[0]._version)))

    def after(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        calls[-1].tensors.append(output)
        calls[-1].gave = (id(output), output._version)

    layers = [layer for layer in module.modules() if type(layer) in (nn.Conv2d, nn.BatchNorm2d, nn.ReLU)]
    hooks = [hook for layer in layers for hook in (layer.register_forward_pre_hook(before), layer.register_forward_hook(after))]
    try:
        return calls, answer(module)
    finally:
        for hook in hooks:
            hook.remove()


def _places(calls: list[_Call], batch_size: int) -> dict[int, nn.Module]:
    """What comes into the place of which layer, by its id."""
    often, next_of = Counter(call.layer for call in calls), {call.given: call for call in calls}
    places: dict[int, nn.Module] = {}
    for call in calls:
        layer = call.layer
        if type(layer) is not nn.Conv2d or often[layer] > 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            continue
        shape, behind = [batch_size, *call.tensors[0].shape[1:]], next_of.get(call.gave)
        if behind and type(behind.layer) is nn.BatchNorm2d and often[behind.layer] == 1 and behind.layer.running_mean is not None:
            layer = fuse_conv_bn_eval(layer, behind.layer)
            places[id(behind.layer)], behind = nn.Identity(), next_of.get(behind.gave)
        rectified = behind is not None and type(behind.layer) is nn.ReLU
        if rectified and often[behind.layer] == 1:  # otherwise it stays, and passes on what has no negative value
            places[id(behind.layer)] = nn.Identity()
        small = layer.groups == 1 and math.prod(shape[2:]) < math.prod(layer.kernel_size)
        places[id(call.layer)] = (_Matrix if small else _Convolution)(layer, rectified, shape)
    return places
