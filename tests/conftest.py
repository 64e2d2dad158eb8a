"""What all tests share: real data where it is at hand; and the command in processes of its own, on tiny pictures.

All commands of a session use one Prefect server, and those that look at a finished run look at one.
Importing what a command needs takes seconds. So its processes are forked from one that has done that, where a test does not ask
for the installed command itself.
"""

import multiprocessing
import multiprocessing.forkserver
import secrets
import subprocess
import sys
import uuid
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # processes and tests import flow_processes, made and toy by their names

import flow_processes
from commands import COMMAND, Done, Running, clean_environment
from made import HEADS_WITHOUT_CLASSES, TEXT, draw, write_recipe, write_texts

from flows.session import QUIET
from ml.engines import ENGINES

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
PRELOADED = ["flows.pipeline", "flows.predict", "flows.check", "flows.console", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store"]
PRELOADED += ["sklearn.svm", "accelerate", "torch._dynamo", "torch.onnx"]
SERVER = """
import os, sys
from tasks.prefect_server import start
handle = start()
handle.wait()
print(os.environ["PREFECT_API_URL"], os.environ["PREFECT_API_AUTH_STRING"], flush=True)
sys.stdin.read()
handle.close()
"""


CLUSTER = """
import ray, sys
node = ray.init("local", num_cpus=2, object_store_memory=10**8, include_dashboard=False, logging_level="error", _temp_dir=sys.argv[1])
print(node.address_info["gcs_address"], flush=True)
sys.stdin.read()
ray.shutdown()
"""


S3_SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True, scope="module")
def _no_tracking_left():
    """MLflow keeps the database that a module used for the whole process: the next module starts without one."""
    yield
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)


def pytest_collection_modifyitems(items) -> None:
    """The slowest test comes last; what needs a Ray cluster is one of the long ones."""
    items.sort(key=lambda item: item.path.name == "test_eight_at_once.py")
    for item in items:
        engine = item.callspec.params.get("engine") if hasattr(item, "callspec") else None
        if "cluster" in item.fixturenames or engine == "ray":
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; a test that needs it is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data, which this machine does not have")
    return SHARED


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """What commands of these tests are run with: a Prefect server that answers, MLflow in the working folder."""
    plain = {**clean_environment(), "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect"))}
    server = subprocess.Popen([sys.executable, "-c", SERVER], env=plain, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        url, auth = server.stdout.readline().split()
        yield {**plain, **QUIET, "PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": auth}
    finally:
        server.communicate()


@pytest.fixture(scope="session")
def start(environment, tmp_path_factory):
    """Starts `warmstart ARGUMENTS` in a folder, to be killed at the point `crash` where that is given; gives a Running."""
    outputs = tmp_path_factory.mktemp("outputs")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    started = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():  # Prefect reads its settings when it is imported
            patch.setenv(name, value)
        multiprocessing.forkserver.ensure_running()

    def start(folder, *arguments, crash="", **more) -> Running:
        given = {**environment, **more} | ({"WARMSTART_TESTING": "1", "WARMSTART_CRASH_AT": crash} if crash else {})
        output, errors = (outputs / f"{uuid.uuid4().hex}.{kind}" for kind in ("out", "err"))
        process = context.Process(
            target=flow_processes.enter, args=([str(one) for one in arguments], str(folder), given, str(output), str(errors))
        )
        process.start()
        started.append(process)
        return Running(process, output, errors)

    yield start
    for process in started:
        if process.is_alive():
            process.kill()
            process.join()


@pytest.fixture(scope="session")
def warmstart(start):
    """Runs `warmstart ARGUMENTS` in a folder to its end; gives a Done."""
    return lambda folder, *arguments, **more: start(folder, *arguments, **more).wait()


@pytest.fixture(scope="session")
def s3() -> dict[str, str]:
    """The environment for an S3 server on loopback, of a process of its own, which this process has too."""
    server = subprocess.Popen([sys.executable, "-c", S3_SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with pytest.MonkeyPatch.context() as patch:
        found = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.stdout.readline().strip()}",
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "never-to-be-seen",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for name, value in found.items():
            patch.setenv(name, value)
        yield found
    server.communicate()


@pytest.fixture(scope="session")
def bucket(s3) -> str:
    """The URL of a bucket there."""
    import fsspec

    fsspec.filesystem("s3").mkdir("warmstart")
    return "s3://warmstart"


@pytest.fixture(scope="session")
def installed(environment):
    """The same as a user's shell does it: the installed command, its libraries imported anew."""

    def run(folder, *arguments, **more) -> Done:
        command = [COMMAND, *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, env={**environment, **more}, capture_output=True, text=True, timeout=300, check=False)
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def outside():
    """The installed command with no server configured: those of the folder, if there are some."""

    def run(folder, *arguments) -> Done:
        command = [COMMAND, *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=400, check=False)
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def eight(tmp_path):
    """Starts the installed command eight times in one empty folder, with no server configured; gives how each ended."""

    def run(*arguments) -> list[Done]:
        environment = {**clean_environment(), "PREFECT_HOME": str(tmp_path / "prefect")}
        command = [COMMAND, *map(str, arguments)]
        (tmp_path / "work").mkdir()
        processes = [
            subprocess.Popen(command, cwd=tmp_path / "work", env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(8)
        ]
        ended = [process.communicate(timeout=500) for process in processes]
        return [Done(process.returncode, *said) for process, said in zip(processes, ended, strict=True)]

    return run


SEVERAL = [
    pytest.param(name, marks=pytest.mark.skipif(bool(engine.needs) and find_spec(engine.needs) is None, reason=f"needs {engine.needs}"))
    for name, engine in ENGINES.items()
    if engine.several
]


@pytest.fixture(scope="module", params=SEVERAL)
def engine(request) -> str:
    """Each engine that trains in several processes."""
    return request.param


@pytest.fixture(scope="module")
def cluster():
    """The address of a Ray cluster of this machine, of two cores, which this process may use."""
    with TemporaryDirectory(prefix="ray-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        process = subprocess.Popen([sys.executable, "-c", CLUSTER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            yield process.stdout.readline().strip()
        finally:
            process.communicate()


@pytest.fixture(scope="session")
def drawn():
    """Draws pictures in a folder: `drawn(folder, classes, each, side, seed)`."""
    return draw


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Three classes that differ in colour, 40 pictures of 16 pixels each."""
    return draw(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, pictures) -> Path:
    """The path of a recipe on `pictures`."""
    return write_recipe(tmp_path_factory.mktemp("recipes") / "tiny.yaml", pictures)


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory) -> Path:
    """The path of a recipe on texts, of the same name as `tiny`."""
    folder = tmp_path_factory.mktemp("text-recipes")
    source = {"name": "text-table", "options": {"path": str(write_texts(folder / "rows.csv"))}}
    modality = {"name": "text", "options": {"max_length": 16, "vocabulary": 200}}
    return write_recipe(folder / "tiny.yaml", folder, data={"source": source, "modality": modality, "workers": 1}, **TEXT)


@pytest.fixture(scope="session")
def tiny_heads(tmp_path_factory) -> dict[str, Path]:
    """The paths of recipes for heads without classes, of the same name as `tiny`."""
    found = {}
    for head, (write, modality, backbone, size, objective, options) in HEADS_WITHOUT_CLASSES.items():
        folder = tmp_path_factory.mktemp(f"{head}-data")
        fit = {"epochs": 2, "batch_size": 16}
        changes = {
            "data": {"source": write(folder), "modality": modality, "near_duplicates": False, "workers": 1},
            "backbone": {"name": backbone, "options": size},
            "pretraining": {"objective": objective, "probe": False, "fit": fit},
            "finetuning": {"head": {"name": head, "options": options}, "baseline": False, "classical": False, "fit": fit},
        }
        found[head] = write_recipe(tmp_path_factory.mktemp(f"{head}-recipe") / "tiny.yaml", folder, **changes)
    return found


@dataclass(frozen=True)
class TextModel:
    """A folder with a small text model of random weights and its backbone, some lines, and the tokens that are stored of them."""

    folder: Path
    lines: list[str]
    tokens: object


@pytest.fixture(scope="session")
def text_model(tmp_path_factory) -> TextModel:
    import torch

    from ml.backbones import BACKBONES
    from ml.choice import choice
    from ml.contracts import Raw
    from ml.heads import HEADS
    from ml.modalities import MODALITIES
    from ml.model import Model, save_backbone, save_model
    from ml.ragged import Ragged

    lines = [
        "gold",
        "A quiet film about two brothers who leave home to find gold.",
        "<b>Größe</b>, naïve café — 日本 ☃",
        "sail and mast " * 20,
    ]
    modality = MODALITIES["text"](MODALITIES["text"].Options(max_length=16, vocabulary=200))
    rows = Ragged.of([modality.decode(Raw(line.encode())).array for line in lines], np.uint8)
    spec = modality.spec(("cat", "dog"), modality.statistics([rows]))
    backbone, head = choice("backbone", BACKBONES)(name="text-cnn", options={"width": 16}), choice("head", HEADS)(name="classification")
    torch.manual_seed(0)
    model = Model.build(backbone, head, spec)
    torch.nn.init.normal_(model.backbone.embedding.weight)
    torch.nn.init.normal_(model.head.linear.weight)
    folder = tmp_path_factory.mktemp("text-model")
    save_model(model, folder / "model", backbone, head, spec, temperature=1.7)
    save_backbone(model.backbone, folder / "backbone", backbone, spec)
    return TextModel(folder, lines, modality.pack(rows, spec)["tokens"])


@dataclass(frozen=True)
class Finished:
    """A folder in which the recipe `tiny` was run once, and what that printed.

    Tests look at it, or run further in it under other names: those that move the champion have a folder of their own.
    """

    folder: Path
    done: Done

    @property
    def result(self) -> dict:
        return self.done.result

    def stages(self) -> dict[str, str]:
        return {stage["name"]: stage["run_id"] for stage in self.result["stages"]}


@pytest.fixture(scope="session")
def finish(tmp_path_factory, warmstart, tiny):
    """Runs the recipe `tiny` once in a new folder."""

    def finish() -> Finished:
        folder = tmp_path_factory.mktemp("finished")
        return Finished(folder, warmstart(folder, "run", tiny, "--json"))

    return finish


@pytest.fixture(scope="session")
def finished(finish) -> Finished:
    """What all tests of a session share."""
    return finish()


@pytest.fixture(scope="session")
def finished_text(tmp_path_factory, warmstart, tiny_text) -> Finished:
    """The same for the recipe `tiny_text`."""
    folder = tmp_path_factory.mktemp("finished-text")
    return Finished(folder, warmstart(folder, "run", tiny_text, "--json"))


@pytest.fixture(scope="session")
def finished_heads(tmp_path_factory, warmstart, tiny_heads):
    """The same for one of the recipes `tiny_heads`, named by its head."""

    @cache
    def finish(head: str) -> Finished:
        folder = tmp_path_factory.mktemp(f"finished-{head}")
        return Finished(folder, warmstart(folder, "run", tiny_heads[head], "--json"))

    return finish
