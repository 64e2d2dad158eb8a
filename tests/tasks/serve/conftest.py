"""A registry with a small model of random weights for each modality, and servers of it in processes of their own."""

import base64
import http.client
import io
import json
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from ml.backbones import BACKBONES
from ml.choice import choice
from ml.contracts import Raw
from ml.heads import HEADS
from ml.modalities import MODALITIES
from ml.model import Model, save_backbone, save_model
from ml.predictor import Embedder, Predictor, frame_of
from ml.ragged import Ragged
from tasks.tracking import database, registry, runs
from tasks.tracking.versions import signature

ROOT = Path(__file__).resolve().parents[3]
TEXTS = ["gold", "A quiet film about two brothers who leave home.", "<b>Größe</b>, naïve café — 日本 ☃", "sail and mast " * 20]
CONTEXT = "The old mill stands at the river. A miller named Anna has run it since 1987."
LEARNT = {"tagged": [json.dumps({"words": ["Anna", "left", "Rome"], "tags": ["B-PER", "O", "B-LOC"]}).encode()]}
"""Training items of modalities whose statistics need more than what users send."""


def pictures(count: int, seed: int = 0) -> list[bytes]:
    found = []
    for pixels in np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8):
        file = io.BytesIO()
        Pillow.fromarray(pixels).save(file, "PNG")
        found.append(file.getvalue())
    return found


# For each modality: its options, a backbone and a head with theirs, classes with markup in their names, and what users send.
KINDS = {
    "image": ({"size": 16, "channels": 3}, ("small-cnn", {"width": 0.25}), ("classification", {}), ("<b>cat</b>", '"><script>alert(1)</script>'), pictures(6)),
    "text": ({"max_length": 16, "vocabulary": 200}, ("text-cnn", {"width": 16}), ("classification", {}), ("<u>cat</u>", "<i>dog"), TEXTS),
    "question": ({"max_length": 32, "vocabulary": 300}, ("bert", {"size": "tiny"}), ("answering", {"unanswerable": False}), (), [{"question": f"{word}?", "context": CONTEXT} for word in ("Who", "Since when", "Where")]),
    "tagged": ({"max_length": 16, "vocabulary": 200}, ("bert", {"size": "tiny"}), ("tagging", {}), (), TEXTS[:2]),
    "text-pair": ({"max_length": 12, "vocabulary": 300}, ("text-cnn", {"width": 16}), ("embedding", {}), (), TEXTS[:3]),
}  # fmt: skip


@dataclass(frozen=True)
class Registered:
    """A model of the registry: what users send, and the folders of its versions."""

    name: str
    values: list
    folders: dict[str, Path]
    modality: Any

    def expected(self, version: str = "1") -> Predictor:
        return Predictor.load(self.folders[version])

    def rows(self, *values) -> list[dict]:
        """The request's records in JSON."""
        frame = frame_of(values or self.values, self.modality)
        return [{name: base64.b64encode(value).decode() if isinstance(value, bytes) else value for name, value in row.items()} for row in frame.to_dict("records")]


@dataclass(frozen=True)
class Registry:
    """A working folder with MLflow's records, in which servers are started."""

    folder: Path
    models: dict[str, Registered]
    backbone: Path

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")

    def point(self, name: str, version: str, alias: str = "champion") -> None:
        self.client.set_registered_model_alias(name, alias, version)


def _save(kind: str, folder: Path, seed: int) -> Any:
    options, (backbone_name, sizes), (head_name, head_options), classes, values = KINDS[kind]
    modality = MODALITIES[kind](MODALITIES[kind].Options(**options))
    items = [Raw(data) for data in LEARNT.get(kind, [])] or [modality.serve(value) for value in values]
    arrays = [modality.decode(item).array for item in items]
    statistics = {"mean": [0.5] * 3, "std": [0.25] * 3} if modality.item_shape else modality.statistics([Ragged.of(arrays, np.uint8)])
    spec = modality.spec(classes, statistics)
    backbone, head = choice("backbone", BACKBONES)(name=backbone_name, options=sizes), choice("head", HEADS)(name=head_name, options=head_options)
    torch.manual_seed(seed)
    model = Model.build(backbone, head, spec)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter)
    save_model(model, folder / "model", backbone, head, spec, temperature=1.7)
    save_backbone(model.backbone, folder / "backbone", backbone, spec)
    return modality


@pytest.fixture(scope="session")
def registered(tmp_path_factory) -> Registry:
    """Two versions of a model for each modality, the first one champion, and a backbone."""
    folder, models = tmp_path_factory.mktemp("registry"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
        database.prepare()
        run = runs.create_run(database.experiment("serving"), "register", {}).info.run_id
        for kind in MODALITIES:
            values, folders = KINDS[kind][4], {}
            for number in ("1", "2"):
                modality = _save(kind, folder / kind / number, int(number))
                folders[number] = folder / kind / number / "model"
                frame = frame_of(values, modality)
                registry.register(
                    kind,
                    run_id=run,
                    key=number,
                    model_folder=folders[number],
                    pyfunc_file=ROOT / "tasks" / "pyfunc_model.py",
                    code_paths=[ROOT / "ml"],
                    signature=signature(frame.columns, modality.column_type, Predictor.load(folders[number]).predict(values)),
                    example=frame[:1],
                    pip_requirements=["mlflow"],
                )
            registry.promote(kind, 1, None, {})
            models[kind] = Registered(kind, values, folders, modality)
        database.client().log_artifacts(run, str(folder / "image" / "1" / "backbone"), "backbone")
        registry.register_backbone("image-backbone", run_id=run, key="1")
        mlflow.set_tracking_uri(None)
    return Registry(folder, models, folder / "image" / "1" / "backbone")


@pytest.fixture(scope="session", params=list(MODALITIES))
def model(request, registered) -> Registered:
    return registered.models[request.param]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))


@dataclass(frozen=True)
class Server:
    """A server that answers, and its process."""

    host: str
    port: int
    running: Any

    def ask(self, path: str, content: Any = None, headers: dict | None = None, method: str = "") -> Answer:
        """One request of a connection of its own; content that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        try:
            body = content if isinstance(content, bytes) or content is None else json.dumps(content).encode()
            connection.request(method or ("GET" if body is None else "POST"), path, body, {"Content-Type": "application/json"} | (headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def predictions(self, records: list[dict], **more) -> list[dict]:
        answer = self.ask("/invocations", {"dataframe_records": records}, **more)
        assert answer.status == 200, answer.body
        return answer.json["predictions"]

    def metric(self, line: str) -> float:
        """The value of the metric whose line begins so."""
        found = [one.rpartition(" ")[2] for one in self.ask("/metrics").body.decode().splitlines() if one.startswith(f"{line} ")]
        return float(found[0]) if found else 0.0

    def until(self, holds) -> None:
        """Returns when `holds()`; fails where that takes two minutes."""
        deadline = time.monotonic() + 120
        while not holds():
            assert time.monotonic() < deadline and self.running.process.is_alive(), self.running.err
            time.sleep(0.02)


@pytest.fixture(scope="session")
def serving(start, registered):
    """Starts `warmstart serve ARGUMENTS`; in its block the server answers."""

    @contextmanager
    def serve(*arguments, folder: Path | None = None, **environment):
        running = start(folder or registered.folder, "serve", *arguments, "--port", 0, "--threads", 1, **environment)
        try:
            deadline = time.monotonic() + 120
            while "\n" not in running.out:
                assert time.monotonic() < deadline and running.process.is_alive(), running.err
                time.sleep(0.02)
            host, _, port = running.out.strip().rpartition("http://")[2].rpartition(":")
            yield Server(host, int(port), running)
        finally:
            if running.process.is_alive():
                running.signal(signal.SIGKILL)

    return serve


@pytest.fixture(scope="session")
def server(serving, model):
    """One for each modality, with nothing set."""
    with serving(f"{model.name}@champion") as found:
        yield found


@pytest.fixture
def here(registered, monkeypatch):
    """This process uses the registry too; gives the address of its records."""
    monkeypatch.chdir(registered.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    yield database.prepare()
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="session")
def embedder(registered) -> Embedder:
    return Embedder.load(registered.backbone)
