"""Rows scored in a second beside bare torch, compiled torch, onnxruntime and row-wise pyfunc: `python -m benchmarks.scoring`.

    python -m benchmarks.scoring --output scoring.json          # the measurement
    python -m benchmarks.scoring --rows 300 --rounds 2 --rest 5 # does it work?

Of each kind of model, with random weights: `Predictor` on raw items (PNG files, strings; decoding included) and on stored rows; the peers get tensors
that are ready, in batches as they come, each padded to its longest text. All arms of a round follow one another, in turns forwards and backwards,
with memory kept as `warmstart predict` keeps it, without which bare torch is a quarter slower; figures are medians of the rounds' ratios. onnxruntime
runs in a process of its own. REST is one row to `mlflow models serve`.
The largest difference of two arms' probabilities shows that the work is the same.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image as Pillow

from benchmarks.harness import ROOT, free_port, machine, median, server
from ml.backbones import BACKBONES
from ml.choice import choice
from ml.device import device_of
from ml.heads import HEADS
from ml.modalities import MODALITIES
from ml.model import Model, load_model, save_model
from ml.onnx_graph import Graph, export
from ml.predictor import BATCH, Predictor, primary
from ml.ragged import Ragged
from ml.recipe import Compute

CASES = {"images, small-cnn": ("image", "small-cnn", {}), "texts, text-cnn": ("text", "text-cnn", {}), "texts, BERT tiny": ("text", "bert", {"size": "tiny"})}
ROWWISE = 20  # rows a round: pyfunc takes one at a time


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000, help="rows that an arm scores in a round")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--rest", type=int, default=100, help="requests of one row")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", type=Path, help="JSON file for all measurements")
    given = parser.parse_args()
    device_of(Compute(threads=given.threads, device="cpu"))  # threads, and memory for all arms as `warmstart predict` has it
    result: dict[str, Any] = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "arguments": sys.argv[1:], "machine": machine(given.threads), "cases": {}}
    for name, (kind, backbone, options) in CASES.items():
        with tempfile.TemporaryDirectory(prefix="scoring-") as scratch:
            result["cases"][name] = one = case(Path(scratch), kind, backbone, options, given)
        print(table(name, one), flush=True)
    if given.output:
        given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def case(folder: Path, kind: str, backbone: str, options: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Rates of each round and arm, seconds of requests, figures."""
    values, spec = (images if kind == "image" else texts)(given.rows)
    torch.manual_seed(0)
    parts = choice("backbone", BACKBONES)(name=backbone, options=options), choice("head", HEADS)(name="classification")
    model = Model.build(*parts, spec)
    torch.nn.init.normal_(model.head.linear.weight, std=0.1)
    save_model(model, folder / "model", *parts, spec)
    export(folder / "model")
    pack(folder, kind, values)
    predictor, plain = Predictor.load(folder / "model"), load_model(folder / "model")[0]
    modality = predictor.modality
    decoded = [modality.decode(modality.serve(value), served=True).array for value in values]
    rows = modality.pack(np.stack(decoded) if modality.item_shape else Ragged.of(decoded, np.uint8), spec)
    stored = primary(rows)
    ready = [np.array(modality.collate(stored[start : start + BATCH], spec)) for start in range(0, len(stored), BATCH)]
    tensors = [modality.encode(torch.from_numpy(one), spec) for one in ready]
    compiled = torch.compile(plain, dynamic=True)
    import mlflow.pyfunc

    pyfunc = mlflow.pyfunc.load_model(str(folder / "packed"))

    def rowwise() -> np.ndarray:
        found = [pyfunc.predict(pd.DataFrame({kind: [value]})) for value in values[:ROWWISE]]
        return pd.concat(found).filter(like="p_").to_numpy(float)

    with Graph(folder / "model", given.threads) as graph:
        exported = Predictor.load(folder / "model", graph=graph)
        arms: dict[str, Callable[[], np.ndarray]] = {
            "Predictor, raw items": lambda: predictor.predict(values).filter(like="p_").to_numpy(),
            "Predictor, raw items, onnx": lambda: exported.predict(values).filter(like="p_").to_numpy(),
            "Predictor, stored rows": lambda: predictor.answers(rows),
            "Predictor, stored rows, onnx": lambda: exported.answers(rows),
            "torch, ready tensors": lambda: eager(plain, tensors),
            "torch.compile, ready tensors": lambda: eager(compiled, tensors),
            "onnxruntime, ready arrays": lambda: softmax(np.concatenate([graph(one) for one in ready])),
            "pyfunc, row by row": rowwise,
        }
        expected, warm, gap = arms["torch, ready tensors"](), {}, {}
        for name, arm in arms.items():
            began = time.perf_counter()
            gap[name] = float(np.abs(found - expected[: len(found)]).max()) if len(found := arm()) else 0.0
            warm[name] = time.perf_counter() - began
        rounds = []
        for number in range(given.rounds):
            order = list(arms) if number % 2 == 0 else list(reversed(arms))
            rounds.append({name: rate(arms[name]) for name in order})
    with served(folder) as url:
        sent = base64.b64encode(values[0]).decode() if kind == "image" else values[0]
        seconds = [ask(url, kind, sent) for _ in range(given.rest + 1)][1:]
    return {"rounds": rounds, "first_seconds": warm, "largest_difference": gap, "rest_seconds": seconds, "figures": figures(rounds, seconds)}


def images(rows: int) -> tuple[list[bytes], Any]:
    """PNG files of scikit-learn's digits, 8 pixels a side, stored at 16."""
    from sklearn.datasets import load_digits

    pixels, found = (load_digits().images * 15).astype(np.uint8), []
    for number in range(rows):
        file = io.BytesIO()
        Pillow.fromarray(np.roll(pixels[number % len(pixels)], number // len(pixels))).save(file, "PNG")
        found.append(file.getvalue())
    modality = MODALITIES["image"](MODALITIES["image"].Options(size=16, channels=1))
    return found, modality.spec([str(k) for k in range(10)], {"mean": [0.3], "std": [0.35]})


def texts(rows: int) -> tuple[list[str], Any]:
    """Words drawn from 3,000, some 5 to 60 a text, most of them few."""
    random = np.random.default_rng(0)
    words = [f"w{number}" for number in range(3000)]
    found = [" ".join(random.choice(words, 5 + min(55, int(random.exponential(12))))) for _ in range(rows)]
    modality = MODALITIES["text"](MODALITIES["text"].Options(max_length=64, vocabulary=4000))
    learnt = Ragged.of([np.frombuffer(text.encode(), np.uint8) for text in found[:1000]], np.uint8)
    return found, modality.spec(["a", "b", "c"], modality.statistics([learnt]))


def eager(model: Any, batches: list[dict[str, torch.Tensor]]) -> np.ndarray:
    with torch.inference_mode():
        return torch.cat([model(inputs) for inputs in batches]).softmax(1).numpy()


def softmax(outputs_NK: np.ndarray) -> np.ndarray:
    return torch.from_numpy(outputs_NK).softmax(1).numpy()


def rate(arm: Callable[[], np.ndarray]) -> float:
    """Rows a second."""
    began = time.perf_counter()
    rows = len(arm())
    return rows / (time.perf_counter() - began)


def figures(rounds: list[dict[str, float]], rest_seconds: list[float]) -> dict[str, dict[str, float]]:
    """Rates, and ratios within a round."""
    ratios = {
        "stored rows / torch (goal 1.3)": ("Predictor, stored rows", "torch, ready tensors"),
        "stored rows, onnx / torch (goal 1.3)": ("Predictor, stored rows, onnx", "torch, ready tensors"),
        "stored rows / torch.compile (goal 0.95)": ("Predictor, stored rows", "torch.compile, ready tensors"),
        "stored rows / onnxruntime (goal 0.95)": ("Predictor, stored rows", "onnxruntime, ready arrays"),
        "stored rows, onnx / onnxruntime (goal 0.95)": ("Predictor, stored rows, onnx", "onnxruntime, ready arrays"),
        "raw items / row by row (goal 5)": ("Predictor, raw items", "pyfunc, row by row"),
        "raw items, onnx / raw items": ("Predictor, raw items, onnx", "Predictor, raw items"),
    }
    found = {f"rows/s: {name}": median([one[name] for one in rounds]) for name in sorted(rounds[0])}
    found |= {name: median([one[ours] / one[theirs] for one in rounds]) for name, (ours, theirs) in ratios.items()}
    return found | {"ms: one row over REST": median([1000 * one for one in rest_seconds])}


def table(name: str, one: dict[str, Any]) -> str:
    """The figures of a case as Markdown."""
    lines = [f"| {name} | median | 95 % interval | n |", "| --- | ---: | --- | ---: |"]
    for figure, got in one["figures"].items():
        digits = 0 if figure.startswith("rows/s") else 2
        lines.append(f"| {figure} | {got['median']:,.{digits}f} | {got['low']:,.{digits}f} to {got['high']:,.{digits}f} | {got['n']} |")
    return "\n".join([*lines, "", f"Largest difference of probabilities: {max(one['largest_difference'].values()):.1e}.", ""])


def pack(folder: Path, kind: str, values: list[Any]) -> None:
    """The model in `folder` as MLflow serves it."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    mlflow.pyfunc.save_model(
        str(folder / "packed"),
        python_model=str(ROOT / "tasks" / "pyfunc_model.py"),
        artifacts={"model": str(folder / "model")},
        code_paths=[str(ROOT / "ml")],
        pip_requirements=["mlflow"],
        signature=ModelSignature(Schema([ColSpec(DataType.binary if kind == "image" else DataType.string, kind)])),
        input_example=pd.DataFrame({kind: values[:1]}),
    )


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Where `mlflow models serve` answers for the packed model."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder / "packed"), "--env-manager", "local", "-p", str(port), "-w", "1"]
    with server(command, folder, f"http://127.0.0.1:{port}/ping"):
        yield f"http://127.0.0.1:{port}/invocations"


def ask(url: str, kind: str, value: str) -> float:
    """Seconds of one request of one row."""
    content = json.dumps({"dataframe_split": {"columns": [kind], "data": [[value]]}}).encode()
    began = time.perf_counter()
    with urllib.request.urlopen(urllib.request.Request(url, content, {"Content-Type": "application/json"}), timeout=60) as answer:
        answer.read()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
