"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685), which are part of the plain weights in the end, or stay apart from them.

They sit on the weights and not around the layers: so torch's attention, which reads the weights of its projections without calling
them, learns as well, every frozen weight stays to the bit, and taking the adapters off leaves the modules that were there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ml.adapter import Adapter, Change
from ml.contracts import InputError, Options
from ml.groups import layered_groups

WEIGHTS = ("weight", "in_proj_weight")  # of linear layers and convolutions; of attention


class LoraOptions(Options):
    rank: int = Field(8, ge=1, le=1024, description="Rank of the change that each layer of the backbone may learn.")
    alpha: float = Field(16.0, gt=0, le=4096, description="The change is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of an adapter's weights dropped in each step.")
    merge: bool = Field(True, description="Register weights with the changes added; false keeps the weights as they were and the adapter beside them.")


class Lora:
    """Trains the head, and for each layer of the frozen backbone a change of low rank, which is added to its weights in the end."""

    Options = LoraOptions

    def __init__(self, options: LoraOptions):
        self.options = options

    def suits(self, backbone: nn.Module) -> bool:
        """Whether there is a weight to adapt."""
        return any(True for _ in self._adaptable(backbone))

    def begin(self, model: nn.Module) -> None:
        """Puts adapters on the backbone's weights; they begin without effect, drawn from torch's own generator."""
        found = list(self._adaptable(model.backbone))
        if not found:
            raise InputError(
                f"lora found no linear layer or convolution in the backbone {type(model.backbone).__name__} that is larger than "
                f"an adapter of rank {self.options.rank}: lower finetuning.method.options.rank or use another method"
            )
        for layer, name in found:
            parametrize.register_parametrization(layer, name, _Adapter(getattr(layer, name), self.options))

    def groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        return layered_groups([(nn.ModuleList(_adapters(model)), learning_rate), (model.head, learning_rate)], weight_decay)

    def prepare(self, model: nn.Module, progress: float) -> None:
        """Freezes the backbone, its normalisation statistics and its dropout too; the adapters learn beside it."""
        model.backbone.requires_grad_(False)
        model.backbone.eval()
        for adapter in _adapters(model):
            adapter.requires_grad_(True).train()

    def finish(self, model: nn.Module) -> Adapter:
        """Adds what the adapters learnt to the weights and takes them off: the backbone is as it was built, names and all. Gives what they learnt."""
        model.backbone.eval()
        changes, before, turned = {}, {}, False
        for path, layer in [one for one in model.backbone.named_modules() if parametrize.is_parametrized(one[1])]:
            for name in list(layer.parametrizations):
                weight, adapter = layer.parametrizations[name].original, layer.parametrizations[name][0]
                changes[f"{path}.{name}"] = adapter.change(weight)
                before |= {} if self.options.merge else {f"{path}.{name}": weight.detach().clone()}
                turned = turned or hasattr(layer, "nf")  # a Conv1D of transformers
                parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
        model.backbone.requires_grad_(True)
        return Adapter(changes, self.options.rank, self.options.alpha, self.options.dropout, turned, before)

    def _adaptable(self, backbone: nn.Module) -> Iterator[tuple[nn.Module, str]]:
        """Layers and names of weights that are matrices or kernels, and larger than an adapter would be; not those that layers share."""
        owners = Counter(id(weight) for layer in backbone.modules() for weight in layer.parameters(recurse=False))
        for layer in list(backbone.modules()):
            for name, weight in list(layer.named_parameters(recurse=False)):
                matrix = name in WEIGHTS and weight.ndim >= 2 and not isinstance(layer, nn.Embedding)
                if matrix and owners[id(weight)] == 1 and self.options.rank * (len(weight) + weight[0].numel()) < weight.numel():
                    yield layer, name


class _Adapter(nn.Module):
    """weight + alpha / rank · up · down."""

    def __init__(self, weight: Tensor, options: LoraOptions):
        super().__init__()
        self.scale, self.dropout = options.alpha / options.rank, options.dropout
        self.down = nn.Parameter(torch.empty(options.rank, weight[0].numel(), device=weight.device))
        self.up = nn.Parameter(torch.zeros(len(weight), options.rank, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return Change(self.up, F.dropout(self.down, self.dropout, self.training), self.scale).added_to(weight)

    def change(self, weight: Tensor) -> Change:
        """What it learnt of the weight."""
        return Change(self.up.detach(), self.down.detach().view(-1, *weight.shape[1:]), self.scale)


def _adapters(model: nn.Module) -> list[_Adapter]:
    return [module for module in model.backbone.modules() if isinstance(module, _Adapter)]
