"""The registered model behind a real server, over real HTTP, says what the training code says."""

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from PIL import Image as Pillow

from ml.backbones import BACKBONES
from ml.choice import choice
from ml.heads import HEADS
from ml.modalities import MODALITIES
from ml.model import Model, save_model
from ml.predictor import Predictor
from ml.ragged import Ragged
from tasks.tracking.versions import signature

# MLflow warns about its own types while it is imported, and pandas about MLflow's way with examples.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Saved:
    """A folder with a model and the same packed for MLflow, what its users may send, and what is stored of that."""

    folder: Path
    column: str
    values: list
    arrays: object
    bad: object

    def expected(self) -> np.ndarray:
        return Predictor.load(self.folder / "model").answers({"array": self.arrays})

    def pack(self, kind: DataType) -> None:
        mlflow.pyfunc.save_model(
            self.folder / "packed",
            python_model=str(ROOT / "tasks" / "pyfunc_model.py"),
            artifacts={"model": str(self.folder / "model")},
            code_paths=[str(ROOT / "ml")],
            pip_requirements=["mlflow"],
            signature=ModelSignature(Schema([ColSpec(kind, self.column)])),
            input_example=pd.DataFrame({self.column: self.values[:1]}),
        )


def image_model(folder: Path) -> Saved:
    arrays = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    files = []
    for array in arrays:
        file = io.BytesIO()
        Pillow.fromarray(array).save(file, "PNG")
        files.append(file.getvalue())
    torch.manual_seed(0)
    modality = MODALITIES["image"](MODALITIES["image"].Options(size=16, channels=3))
    spec = modality.spec(("cat", "dog"), {"mean": [0.5] * 3, "std": [0.25] * 3})
    backbone, head = choice("backbone", BACKBONES)(name="small-cnn"), choice("head", HEADS)(name="classification")
    model = Model.build(backbone, head, spec)
    torch.nn.init.normal_(model.head.linear.weight)
    save_model(model, folder / "model", backbone, head, spec, temperature=1.7)
    return Saved(folder, "image", files, arrays, b"not a picture")


@pytest.fixture(scope="module", params=["image", "text"])
def saved(request, tmp_path_factory) -> Saved:
    folder = tmp_path_factory.mktemp("serving")
    if request.param == "text":
        given = request.getfixturevalue("text_model")
        shutil.copytree(given.folder / "model", folder / "model")
        made = Saved(folder, "text", given.lines, given.tokens, "\u200b<br>")
    else:
        made = image_model(folder)
    made.pack(DataType.binary if request.param == "image" else DataType.string)
    return made


@contextmanager
def served(folder: Path):
    """Where a server of the model packed in the folder answers; it is started outside the repository, so that only packed code is found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        str(folder / "packed"),
        "--env-manager",
        "local",
        "-p",
        str(port),
        "-w",
        "1",
    ]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "WARMSTART_ALLOW_PATHS")}
    # The server starts its workers as `uvicorn`, which stands beside this interpreter.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    log = (folder / "server.log").open("w")
    server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the server did not come up: {(folder / 'server.log').read_text()[-3000:]}")
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        log.close()


@pytest.fixture(scope="module")
def url(saved):
    with served(saved.folder) as address:
        yield address


def post(url: str, content: dict) -> list[dict]:
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"]


def sent(*values) -> list:
    """The values as JSON has them."""
    return [base64.b64encode(value).decode() if isinstance(value, bytes) else value for value in values]


def test_the_server_agrees_with_the_training_code(url, saved):
    rows = post(url, {"dataframe_split": {"columns": [saved.column], "data": [[value] for value in sent(*saved.values)]}})
    expected = saved.expected()
    np.testing.assert_allclose([[row["p_cat"], row["p_dog"]] for row in rows], expected, atol=1e-6)
    assert [row["label"] for row in rows] == [("cat", "dog")[k] for k in expected.argmax(1)]
    assert [row["error"] for row in rows] == [None] * 4


def test_the_server_keeps_scoring_beside_a_bad_item(url, saved):
    rows = post(url, {"dataframe_records": [{saved.column: value} for value in sent(saved.values[0], saved.bad)]})
    assert rows[0]["error"] is None and rows[0]["label"] in ("cat", "dog")
    assert rows[1]["error"] and rows[1]["label"] is None and rows[1]["p_cat"] is None


def test_the_server_reads_no_file_of_its_own(url, saved):
    path = saved.folder / "secret"
    path.write_bytes(saved.values[0] if isinstance(saved.values[0], bytes) else saved.values[0].encode())
    (row,) = post(url, {"dataframe_records": [{saved.column: sent(str(path).encode() if saved.column == "image" else str(path))[0]}]})
    if saved.column == "image":
        assert row["error"] and row["label"] is None
    else:  # a path is a text like any other
        expected = Predictor.load(saved.folder / "model").predict([str(path).encode()])
        assert row["error"] is None and row["p_cat"] == pytest.approx(expected["p_cat"].item(), abs=1e-6)


@pytest.mark.parametrize("record", [{"picture": "AAAA"}, {}], ids=str)
def test_what_is_not_as_the_signature_says_is_the_callers_error(url, record):
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(url, {"dataframe_records": [record]})
    assert refused.value.code == 400
    refused.value.close()


def test_a_missing_value_is_a_row_with_a_reason(url, saved):
    """Of texts alone: MLflow itself refuses a picture that is null."""
    if saved.column == "text":
        for content in (
            {"dataframe_records": [{"text": saved.values[0]}, {"text": None}]},
            {"dataframe_split": {"columns": ["text"], "data": [["gold"], [None]]}},
        ):
            rows = post(url, content)
            assert rows[0]["error"] is None
            assert rows[1]["error"] and rows[1]["label"] is None and rows[1]["p_cat"] is None


def test_in_process_agrees_too(saved):
    frame = mlflow.pyfunc.load_model(str(saved.folder / "packed")).predict(pd.DataFrame({saved.column: saved.values}))
    np.testing.assert_allclose(frame[["p_cat", "p_dog"]], saved.expected(), atol=1e-6)


def test_questions_with_their_contexts_are_answered(tmp_path):
    """Two columns in; texts, numbers and places out."""
    context = "The old mill stands at the river. A miller named Anna has run it since 1987."
    asked = [{"question": "Who runs the mill?", "context": context}, {"question": "Since when?", "context": context}]
    made = MODALITIES["question"]
    modality = made(made.Options(max_length=32, vocabulary=300))
    rows = Ragged.of([modality.decode(modality.serve(one)).array for one in asked], np.uint8)
    spec = modality.spec((), modality.statistics([rows]))
    backbone, head = choice("backbone", BACKBONES)(name="bert"), choice("head", HEADS)(name="answering", options={"unanswerable": False})
    torch.manual_seed(0)
    save_model(Model.build(backbone, head, spec), tmp_path / "model", backbone, head, spec)
    expected = Predictor.load(tmp_path / "model").predict(asked)
    mlflow.pyfunc.save_model(
        tmp_path / "packed",
        python_model=str(ROOT / "tasks" / "pyfunc_model.py"),
        artifacts={"model": str(tmp_path / "model")},
        code_paths=[str(ROOT / "ml")],
        pip_requirements=["mlflow"],
        signature=signature(modality.fields, modality.column_type, expected),
        input_example=pd.DataFrame(asked[:1]),
    )
    with served(tmp_path) as url:
        rows = post(url, {"dataframe_records": [*asked, {"question": "Who?", "context": ""}]})
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(url, {"dataframe_records": [{"question": "Who?"}]})
    assert refused.value.code == 400
    refused.value.close()
    assert [row["answer"] for row in rows[:2]] == expected["answer"].tolist() and all(row["error"] is None for row in rows[:2])
    assert [(row["start"], row["end"]) for row in rows[:2]] == list(zip(expected["start"], expected["end"], strict=True))
    np.testing.assert_allclose([row["score"] for row in rows[:2]], expected["score"], rtol=1e-4)
    assert rows[2]["error"] and rows[2]["answer"] is None
