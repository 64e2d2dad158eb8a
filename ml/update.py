"""One update of the weights: gradients of a batch in its parts, then a step of the optimizer; in one process or several, in any precision."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from ml import ranks
from ml.contracts import Batch
from ml.coupling import Coupled
from ml.optimizer import optimizer_of
from ml.recipe import Fit, Strategy
from ml.sharding import Sharded
from ml.shards import placed
from ml.shared_norm import share_statistics
from ml.step_probe import How, Step

MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
STRATEGIES = {Strategy.ddp: Coupled, Strategy.fsdp: Sharded}


class Updates:
    """Makes updates of `module`, whose parameters `groups` name with their peak rates, as `how` and `strategy` say."""

    def __init__(self, module: nn.Module, groups: list[dict[str, Any]], settings: Fit, strategy: Strategy, how: How, device: torch.device):
        self.module, self.settings, self.device = module, settings, device
        AcceleratorState._reset_state(True)  # each training has its own precision
        self.accelerator = Accelerator(mixed_precision=MIXED[how.precision], cpu=device.type == "cpu")
        kind = STRATEGIES[strategy]
        step = Step(module, how if kind.probed else replace(how, compiled=False))  # what goes on under another strategy may have been compiled
        self.coupled = kind(self.accelerator.prepare(step, device_placement=[False]), groups, device)
        self.groups = self.coupled.groups
        self.trained = [parameter for group in self.groups for parameter in group["params"]]
        self.optimizer = self.accelerator.prepare(optimizer_of(settings, self.groups, device))
        share_statistics(module)

    def renew(self) -> None:
        """To be called whenever parameters may have begun or ceased to learn."""
        self.coupled.renew()

    def gradients(self, batches: list[Batch]) -> dict[str, Tensor]:
        """Adds up the gradients; gives the loss and the extras of the whole batch, over all ranks, on the device."""
        rows = sum(batch.rows for batch in batches)
        found = {"loss": torch.zeros((), device=self.device)}
        for batch in batches:
            with nullcontext() if batch is batches[-1] else self.coupled.alone():
                result = self.coupled(batch)
                share = batch.rows / rows * ranks.share_of(batch, result.weight)
                for name, value in {"loss": result.loss, **result.extras}.items():
                    value = value.detach().float() * share
                    found[name] = found[name] + value if name in found else value
                self._backward(result.loss * (share * self.coupled.mean_of))
        return self.coupled.share(found)

    def step(self, factor: float) -> None:
        """Clips the gradients, and goes a step along them at `factor` of the peak rates."""
        for group, peak in zip(self.optimizer.param_groups, self.groups, strict=True):
            group["lr"] = peak["lr"] * factor
        if self.settings.clip:
            self.accelerator.unscale_gradients()
            torch.nn.utils.clip_grad_norm_(self.trained, self.settings.clip)  # accelerate's own looks at each tensor's kind first
        self.optimizer.step()
        self.forget()

    def forget(self) -> None:
        """Drops the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        scaler = self.accelerator.scaler
        return {"optimizer": self.optimizer.state_dict(), "scaler": scaler.state_dict() if scaler is not None else None}

    def load(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave."""
        saved, scaler = state["optimizer"], self.accelerator.scaler
        moments = {number: self._placed(one, self.trained[number]) for number, one in saved["state"].items()}
        self.optimizer.load_state_dict({**saved, "state": moments})
        if scaler is not None and state["scaler"] is not None:
            scaler.load_state_dict(state["scaler"])

    def _placed(self, moments: dict[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
        """What the optimizer keeps of a parameter, lying as that does; its counters as they are."""
        return {name: placed(value, parameter) if value.shape == parameter.shape else value for name, value in moments.items()}

    def _backward(self, loss: Tensor) -> None:
        """As accelerate's own, which looks at each step whether a package is installed: 4 % of a small network's time."""
        scaler = self.accelerator.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()
