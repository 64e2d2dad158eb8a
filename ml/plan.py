"""A training as it is planned: small enough to be written down, so that any process can build it.

    job.json              stage, recipe, store, digest of the store
    train.npy, ...        row numbers of the split, where there is one
    given.safetensors     weights of the backbone or model that is trained
    module.safetensors    weights of all that is trained: with an objective's own, or a method's
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from ml import finetuning, pretraining, ranks
from ml.recipe import Recipe, parse
from ml.recompute import recompute
from ml.shards import whole
from ml.splitting import Split
from ml.store import Store
from ml.training import Training

STAGES: dict[str, Any] = {"pretrain": pretraining, "finetune": finetuning, "baseline": finetuning}
"""What makes a `bare` module of a recipe and can `build` its training, by the stage's name up to a hyphen."""


@dataclass(frozen=True)
class Plan:
    """What a stage trains: by a recipe, on a store, and where labels are learnt on the rows of a split."""

    stage: str
    recipe: Recipe
    store: Store
    rows: Split | None = None

    def bare(self) -> nn.Module:
        """What is trained, with random weights."""
        return self._kind.bare(self.recipe, self.store.spec)

    def build(self, given: nn.Module, device: torch.device) -> Training:
        """The training of `given`, in place."""
        training = self._kind.build(self, given, device)
        if self.recipe.compute.recompute:
            recompute(training.module.backbone)
        return training

    @property
    def _kind(self) -> Any:
        return STAGES[self.stage.partition("-")[0]]

    def write(self, folder: Path) -> None:
        """Writes the plan into `folder`, which must exist."""
        for name, rows in dataclasses.asdict(self.rows).items() if self.rows else ():
            np.save(folder / f"{name}.npy", rows, allow_pickle=False)
        described = {"stage": self.stage, "recipe": self.recipe.model_dump(mode="json"), "store": str(self.store.path.resolve()), "split": self.rows is not None}
        (folder / "job.json").write_text(json.dumps(described), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """The plan in `folder`."""
        described = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        names = [field.name for field in dataclasses.fields(Split)] if described["split"] else []
        rows = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in names}
        return cls(described["stage"], parse(described["recipe"]), Store.open(described["store"]), Split(**rows) if rows else None)


def save_weights(module: nn.Module, path: Path) -> None:
    """Writes all parameters and buffers by name; where there are several ranks all call it, and rank 0 writes."""
    tensors = whole(dict(module.state_dict()))
    if ranks.rank() == 0:
        safetensors.torch.save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, path)


def read_weights(module: nn.Module, path: Path) -> None:
    """Puts what `save_weights` wrote into a module that is built in the same way."""
    module.load_state_dict(safetensors.torch.load_file(path))
