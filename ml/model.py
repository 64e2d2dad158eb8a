"""A backbone with a head, and the files that hold one: safetensors weights beside a JSON description.

A model's folder holds `model.safetensors` and `model.json`; a backbone's alone `backbone.safetensors` and `backbone.json`. Where what was learnt
stays apart from the weights, it is in `adapter/`, in PEFT's format, and is added to them when they are read. Equal weights give equal bytes.
Nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from ml import adapter as adapters
from ml.backbones import BACKBONES
from ml.choice import Choice, choice
from ml.contracts import Batch, DataSpec, InputError, StepResult
from ml.heads import HEADS

FORMAT, APART = 1, 2
"""Versions of the JSON description, without and with an adapter that stays apart; a reader refuses what is newer."""
BACKBONE = "backbone."
"""What the names of a backbone's tensors begin with among those of a model."""


class Model(nn.Module):
    """A backbone and a head, trained together."""

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    @classmethod
    def build(cls, backbone: Choice, head: Choice, spec: DataSpec) -> Model:
        """A model with random weights for the data that `spec` describes."""
        made = backbone.make(spec)
        return cls(made, head.make(made.width + getattr(made, "wide", 0), spec))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The head's outputs (B, S)."""
        return self.head.outputs(self.backbone, inputs)

    def step(self, batch: Batch) -> StepResult:
        """The head's loss on the batch."""
        return self.head.step(self.backbone, batch)

    def serve(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """As `forward`, with what only users are told."""
        return getattr(self.head, "serve", self.head.outputs)(self.backbone, inputs)


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What stands beside a model's weights; `temperature` divides its logits."""

    backbone: Choice
    head: Choice
    spec: DataSpec
    temperature: float = 1.0


def save_model(
    model: Model, folder: Path, backbone: Choice, head: Choice, spec: DataSpec, temperature: float = 1.0, adapter: adapters.Adapter | None = None
) -> None:
    """Writes model.safetensors and model.json into `folder`, which is made where missing; with an adapter that stays apart, that too."""
    described = {"backbone": _plain(backbone), "head": _plain(head), "spec": dataclasses.asdict(spec), "temperature": float(temperature)}
    tensors = model.state_dict()
    if adapter is not None and adapter.before:
        adapter.save(Path(folder) / "adapter")
        described |= {"format": APART, "adapter": adapters.digest(adapter.files())}
        tensors |= {f"{BACKBONE}{name}": weight for name, weight in adapter.before.items()}
    _write(folder, "model", tensors, described)


def load_model(folder: Path) -> tuple[Model, ModelInfo]:
    """The model in `folder`, in evaluation mode, and its description; InputError where the files are damaged or not ours."""
    described, tensors = read_described(Path(folder), "model")
    path = Path(folder) / "model.json"
    try:
        backbone, head = choice("backbone", BACKBONES)(**described["backbone"]), choice("head", HEADS)(**described["head"])
        temperature = float(described["temperature"])
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature {temperature} is not a positive number")
        spec = read_spec(described["spec"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not describe a model of ours: {' '.join(str(error).split())}") from None
    model = Model.build(backbone, head, spec)
    state = model.state_dict()
    differing = sorted(state.keys() ^ tensors.keys()) or [name for name in state if state[name].shape != tensors[name].shape]
    if differing:
        raise InputError(f"{path.with_suffix('.safetensors')} does not fit its description {path.name}: {', '.join(differing[:12])} differ")
    model.load_state_dict(tensors)
    return model.eval(), ModelInfo(backbone, head, spec, temperature)


def save_backbone(backbone: nn.Module, folder: Path, chosen: Choice, spec: DataSpec) -> None:
    """Writes backbone.safetensors and backbone.json into `folder`, which is made where missing."""
    _write(folder, "backbone", backbone.state_dict(), {"backbone": _plain(chosen), "spec": dataclasses.asdict(spec)})


def read_described(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors of the `kind` (model or backbone) in `folder`; raises InputError."""
    path = folder / f"{kind}.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"there is no {kind} in {folder}: {path.name} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged: not JSON ({error})") from None
    if not isinstance(described, dict) or "format" not in described:
        raise InputError(f"{path} does not describe a {kind} of ours: it has no `format`")
    if described["format"] not in (FORMAT, APART):
        raise InputError(f"{path} has format {described['format']!r}, this version reads {FORMAT} and {APART}: update warmstart")
    tensors = read_tensors(path.with_suffix(".safetensors"))
    return described, _composed(tensors, folder / "adapter", described) if described["format"] == APART else tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises InputError."""
    try:
        return safetensors.torch.load_file(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is damaged or no safetensors file: {error}") from None


def read_spec(content: Mapping[str, Any]) -> DataSpec:
    """A DataSpec from its JSON form; raises KeyError, TypeError or ValueError."""
    shape = tuple(int(size) for size in content["shape"])
    if len(shape) == 0 or min(shape) < 1:
        raise ValueError(f"shape {shape} is not one of an item")
    return DataSpec(str(content["modality"]), dict(content["options"]), shape, tuple(map(str, content["classes"])), dict(content["statistics"]))


def _composed(tensors: Mapping[str, Tensor], folder: Path, described: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors with the changes that the adapter in `folder` holds, which must be the one described."""
    try:
        files = {name: (folder / name).read_bytes() for name in (adapters.CONFIG, adapters.WEIGHTS)}
    except OSError as error:
        raise InputError(f"the model in {folder.parent} needs its adapter: {error.filename} cannot be read ({error.strerror})") from None
    if adapters.digest(files) != described.get("adapter"):
        raise InputError(f"{folder} is damaged, or not the adapter of the model beside it")
    try:
        return adapters.composed(tensors, files, BACKBONE)
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"the adapter in {folder} does not fit the weights beside it: {' '.join(str(error).split())}") from None


def _write(folder: Path, kind: str, state: Mapping[str, Tensor], described: Mapping[str, Any]) -> None:
    folder = Path(folder)
    # Contiguous copies in plain order: neither channels-last strides nor storage that tensors share reaches the file.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in sorted(state.items())}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{kind}.safetensors").write_bytes(safetensors.torch.save(tensors))
        text = json.dumps({"format": FORMAT, **described}, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / f"{kind}.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the {kind} to {folder}: {error.strerror or error}") from None


def _plain(chosen: Choice) -> dict[str, Any]:
    """The choice with every option spelled out, so that a later change of a default does not change the model."""
    return {"name": chosen.name.value, "options": chosen.parsed().model_dump(mode="json")}
