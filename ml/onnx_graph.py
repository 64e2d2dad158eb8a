"""A model as an ONNX graph: from batches of stored rows, as `Modality.collate` makes them, to the head's outputs.

B batch, T tokens, S numbers that a head puts out for a row. The graph is made by torch.export, holds what `Modality.encode` does, and takes any
B, of texts any T.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ml.choice import Choice
from ml.contracts import DataSpec, InputError
from ml.modalities import MODALITIES
from ml.model import Model, load_model
from ml.onnx_worker import read, write

FILE, INT8 = "model.onnx", "model.int8.onnx"
GRAPHS = {"onnx": FILE, "int8": INT8}
"""Engines that score with a graph, and the one that each needs beside the model."""
OPSET = 18
"""The version of ONNX's operators: torch's own, which onnxruntime reads from 1.14 on."""
LIBRARIES = ("onnx", "onnxruntime", "onnxscript")
ROWS = 3
"""Of the batch that the graph is traced with; a batch of 1 would be taken for a constant."""


class Graph:
    """The graph beside a model, run by onnxruntime in a process of its own; a context, at whose end the process ends too."""

    def __init__(self, folder: Path, threads: int, engine: str = "onnx") -> None:
        if engine not in GRAPHS:
            raise InputError(f"unknown engine {engine!r}. Valid: torch, {', '.join(GRAPHS)}.")
        path = Path(folder) / GRAPHS[engine]
        check_libraries()
        if not path.is_file():
            setting = "registration.onnx=true" + (" registration.int8=true" if engine == "int8" else "")
            raise InputError(f"this model has no {path.name}: run its recipe again with {setting}, or score with the engine torch")
        command = [sys.executable, "-P", str(Path(__file__).with_name("onnx_worker.py")), str(path), str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._read()

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.communicate()

    def __call__(self, array_B: np.ndarray) -> np.ndarray:
        """The outputs (B, S) float32 of a batch of stored rows."""
        with suppress(BrokenPipeError):  # it has ended, which shows when it is read from
            write(self._process.stdin, array_B)
        return self._read()

    def _read(self) -> np.ndarray:
        array = read(self._process.stdout)
        if array is None:
            self._process.communicate()
            raise RuntimeError(f"onnxruntime ended with {self._process.returncode}; what it said stands above")
        return array


class _Whole(nn.Module):
    """A model with what its modality does before it."""

    def __init__(self, model: Model, spec: DataSpec) -> None:
        super().__init__()
        modality = MODALITIES[spec.modality]
        self.model, self.spec, self.modality = model, spec, modality(modality.Options(**spec.options))

    def forward(self, array_B: Tensor) -> Tensor:
        return self.model(self.modality.encode(array_B, self.spec))


def export(folder: Path) -> Path:
    """Writes the graph of the model in `folder` beside it; gives its path. InputError where the model cannot be exported."""
    model, info = load_model(folder)
    _export(model, info.spec).save(folder / FILE)
    return folder / FILE


def quantise(folder: Path) -> Path:
    """Writes beside the exported graph the one with 8-bit weights; gives its path."""
    script = Path(__file__).with_name("onnx_quantise.py")
    done = subprocess.run([sys.executable, "-P", str(script), str(folder / FILE), str(folder / INT8)], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"the graph cannot be quantised: {done.stderr.strip().rpartition(chr(10))[2][-300:]} Set registration.int8=false")
    return folder / INT8


def check_exports(backbone: Choice, head: Choice, spec: DataSpec) -> None:
    """InputError where a model of these parts cannot be exported; tried with random weights, as nothing else can tell."""
    check_libraries()
    with torch.random.fork_rng(devices=[]):
        _export(Model.build(backbone, head, spec), spec)


def check_libraries() -> None:
    """InputError where the extra is not installed."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX graphs need {', '.join(missing)}: install the extra with `pip install 'warmstart[onnx]'`")


def _export(model: Model, spec: DataSpec) -> Any:
    module = _Whole(model.eval(), spec)
    if module.modality.item_shape:
        array_B = torch.zeros(ROWS, *module.modality.item_shape, dtype=torch.uint8)
    else:
        array_B = torch.full((ROWS, min(spec.shape[0], 7)), spec.statistics["tokens"]["unknown"], dtype=torch.int32)
    dynamic = dict.fromkeys(range(1 if module.modality.item_shape else 2), torch.export.Dim.DYNAMIC)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own calls of what torch deprecates
            return torch.onnx.export(
                module, (array_B,), dynamo=True, dynamic_shapes=(dynamic,), input_names=["rows"], output_names=["outputs"], opset_version=OPSET, verbose=False
            )
    except Exception as error:  # the exporter raises whatever what it calls does
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise InputError(f"this model cannot be exported to ONNX: {reason}. Set registration.onnx=false, or take another backbone") from None
