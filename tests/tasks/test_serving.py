"""The registered model behind a real server, over real HTTP, says what the training code says."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
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

# MLflow warns about its own types while it is imported, and pandas about MLflow's way with examples.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def golden():
    """Picture files and the arrays that they decode to."""
    arrays = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    files = []
    for array in arrays:
        file = io.BytesIO()
        Pillow.fromarray(array).save(file, "PNG")
        files.append(file.getvalue())
    return arrays, files


@pytest.fixture(scope="module")
def saved(tmp_path_factory, golden):
    """A model's folder, and the same packed for MLflow."""
    folder = tmp_path_factory.mktemp("serving")
    torch.manual_seed(0)
    modality = MODALITIES["image"](MODALITIES["image"].Options(size=16, channels=3))
    spec = modality.spec(("cat", "dog"), {"mean": [0.5] * 3, "std": [0.25] * 3})
    backbone, head = choice("backbone", BACKBONES)(name="small-cnn"), choice("head", HEADS)(name="classification")
    model = Model.build(backbone, head, spec)
    torch.nn.init.normal_(model.head.linear.weight)
    save_model(model, folder / "model", backbone, head, spec, temperature=1.7)
    mlflow.pyfunc.save_model(
        folder / "packed",
        python_model=str(ROOT / "tasks" / "pyfunc_model.py"),
        artifacts={"model": str(folder / "model")},
        code_paths=[str(ROOT / "ml")],
        pip_requirements=["mlflow"],
        signature=ModelSignature(Schema([ColSpec(DataType.binary, "image")])),
        input_example=pd.DataFrame({"image": golden[1][:1]}),
    )
    return folder


@pytest.fixture(scope="module")
def url(saved):
    """Where a server of the packed model answers; it is started outside the repository, so that only packed code is found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(saved / "packed"), "--env-manager", "local", "-p", str(port), "-w", "1"]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "WARMSTART_ALLOW_PATHS")}
    # The server starts its workers as `uvicorn`, which stands beside this interpreter.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    log = (saved / "server.log").open("w")
    server = subprocess.Popen(command, cwd=saved, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the server did not come up: {(saved / 'server.log').read_text()[-3000:]}")
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        log.close()


def post(url: str, content: dict) -> list[dict]:
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"]


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_the_server_agrees_with_the_training_code(url, saved, golden):
    arrays, files = golden
    expected = Predictor.load(saved / "model").predict_arrays(arrays)
    rows = post(url, {"dataframe_split": {"columns": ["image"], "data": [[encoded(file)] for file in files]}})
    np.testing.assert_allclose([[row["p_cat"], row["p_dog"]] for row in rows], expected, atol=1e-5)
    assert [row["label"] for row in rows] == [("cat", "dog")[k] for k in expected.argmax(1)]
    assert [row["error"] for row in rows] == [None] * 4


def test_the_server_keeps_scoring_beside_a_bad_item(url, golden):
    rows = post(url, {"dataframe_records": [{"image": encoded(golden[1][0])}, {"image": encoded(b"not a picture")}]})
    assert rows[0]["error"] is None and rows[0]["label"] in ("cat", "dog")
    assert rows[1]["error"] and rows[1]["label"] is None and rows[1]["p_cat"] is None


def test_the_server_reads_no_file_of_its_own(url, saved, golden):
    path = saved / "secret.png"
    path.write_bytes(golden[1][0])
    rows = post(url, {"dataframe_records": [{"image": encoded(str(path).encode())}]})
    assert rows[0]["error"] and rows[0]["label"] is None


def test_a_wrong_column_is_the_callers_error(url):
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(url, {"dataframe_records": [{"picture": "AAAA"}]})
    assert refused.value.code == 400
    refused.value.close()


def test_in_process_agrees_too(saved, golden):
    arrays, files = golden
    frame = mlflow.pyfunc.load_model(str(saved / "packed")).predict(pd.DataFrame({"image": files}))
    np.testing.assert_allclose(frame[["p_cat", "p_dog"]], Predictor.load(saved / "model").predict_arrays(arrays), atol=1e-5)
