"""What all tests share: real data where it is at hand; and the command in processes of its own, on tiny pictures.

All commands of a session use one Prefect server, and those that look at a finished run look at one.
Importing what a command needs takes seconds. So its processes are forked from one that has done that, where a test does not ask
for the installed command itself.
"""

import json
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # the processes import flow_processes by its name

import flow_processes

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
    """The slowest test comes last."""
    items.sort(key=lambda item: item.path.name == "test_eight_at_once.py")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; a test that needs it is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data, which this machine does not have")
    return SHARED


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict:
        """What it printed, which must be one JSON object, as `run --json` does."""
        assert self.code == 0, self.err
        return json.loads(self.out, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))

    def refused(self, words: list[str]) -> None:
        """Checks that it ended with exit code 2 and one message that holds the words."""
        assert self.code == 2, (self.code, self.err)
        assert self.out == ""
        assert "Traceback" not in self.err
        assert [line[:6] for line in self.err.splitlines() if "error" in line.lower()[:20]] == ["error:"], self.err
        for word in words:
            assert word in self.err[self.err.index("error:") :], (word, self.err)


class Running:
    """A command that runs in a process of its own, or has ended."""

    def __init__(self, process, output: Path, errors: Path):
        self.process, self._output, self._errors = process, output, errors

    @property
    def err(self) -> str:
        return self._errors.read_text() if self._errors.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 240) -> Done:
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            pytest.fail(f"the command did not end in {seconds} s; it said:\n{self.err}")
        return Done(self.process.exitcode, self._output.read_text() if self._output.exists() else "", self.err)


def clean_environment() -> dict[str, str]:
    """This process's environment without what configures servers, and with one thread for each computation."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "WARMSTART_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "", "COLUMNS": "80"}


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


COMMAND = str(Path(sys.executable).parent / "warmstart")


@pytest.fixture(scope="session")
def installed(environment):
    """The same as a user's shell does it: the installed command, its libraries imported anew."""

    def run(folder, *arguments, **more) -> Done:
        command = [COMMAND, *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, env={**environment, **more}, capture_output=True, text=True, timeout=300, check=False)
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


def draw(folder: Path, classes: int = 3, each: int = 40, side: int = 16, seed: int = 0) -> Path:
    """Noise in `folder`/class*/, of a colour that tells the class."""
    random = np.random.default_rng(seed)
    for k in range(classes):
        (folder / f"class{k}").mkdir(parents=True, exist_ok=True)
        for number in range(each):
            pixels = random.integers(0, 128, (side, side, 3))
            pixels[..., k % 3] += random.integers(60, 110)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"class{k}" / f"{number:03d}.png")
    return folder


def write_recipe(path: Path, data: Path, /, **changes) -> Path:
    """A recipe that trains for seconds."""
    content = {
        "name": "tiny",
        "data": {"source": {"name": "image-folder", "options": {"path": str(data)}}, "workers": 1},
        "backbone": {"name": "small-cnn", "options": {"width": 0.25}},
        "pretraining": {"objective": "denoising", "fit": {"epochs": 3, "batch_size": 32}},
        "finetuning": {"fit": {"epochs": 8, "batch_size": 32, "learning_rate": 0.01}},
        "evaluation": {"bootstrap": 100, "mistakes": 4},
        "compute": {"threads": 1},
    }
    path.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))
    return path


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


TEXT = {
    "backbone": {"name": "text-cnn", "options": {"width": 16}},
    "pretraining": {"objective": "masked-language", "fit": {"epochs": 3, "batch_size": 32}},
    "finetuning": {"fit": {"epochs": 8, "batch_size": 32, "learning_rate": 0.02}},
}


def write_texts(path: Path, rows: int = 120, seed: int = 0) -> Path:
    """A CSV of texts in which some words tell the class, of two."""
    random = np.random.default_rng(seed)
    words = {"salt": ["flour", "oven", "sugar", "butter", "bowl"], "sea": ["harbour", "sail", "mast", "storm", "crew"]}
    common = ["the", "and", "with", "of", "in", "on", "a", "then", "quickly", "slowly", "never", "always", "some", "many"]
    lines = ["text,label"]
    for row in range(rows):
        label = ("salt", "sea")[row % 2]
        lines.append(" ".join(random.choice(words[label] if random.random() < 0.4 else common) for _ in range(15)) + f",{label}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory) -> Path:
    """The path of a recipe on texts, of the same name as `tiny`."""
    folder = tmp_path_factory.mktemp("text-recipes")
    source = {"name": "text-table", "options": {"path": str(write_texts(folder / "rows.csv"))}}
    modality = {"name": "text", "options": {"max_length": 16, "vocabulary": 200}}
    return write_recipe(folder / "tiny.yaml", folder, data={"source": source, "modality": modality, "workers": 1}, **TEXT)


def write_stories(folder: Path) -> dict:
    """Texts without labels in files named after their parts."""
    random = np.random.default_rng(0)
    words = ["the", "sun", "moon", "sea", "rises", "sets", "over", "under", "a", "hill", "and", "then"]
    for name, rows in (("train", 60), ("validation", 10), ("test", 10)):
        lines = [" ".join(random.choice(words, random.integers(4, 30))) for _ in range(rows)]
        (folder / f"{name}.csv").write_text("\n".join(["text", *lines]) + "\n")
    return {"name": "text-table", "options": {"path": str(folder)}}


def write_pairs(folder: Path) -> dict:
    """Numbers in words of two languages."""
    numbers = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf", "six": "sechs"}
    rows = [f"{a} and {b} or {a},{x} und {y} oder {x}" for a, x in numbers.items() for b, y in numbers.items()]
    (folder / "pairs.csv").write_text("\n".join(["source,target", *rows]) + "\n")
    return {"name": "text-pairs", "options": {"path": str(folder)}}


def write_questions(folder: Path) -> dict:
    """Questions about who lives where, some about somebody who is not told of; contexts longer than a model reads at once."""
    lines = []
    for number in range(40):
        context = " ".join(f"The {one} lives in house{(number * 7 + place) % 50}." for place, one in enumerate(("smith", "miller", "baker", "tailor", "cook")))
        name = ("smith", "miller", "baker", "tailor", "cook", "king")[number % 6]
        start = context.find(f"The {name} lives in ")
        answer = context[start:].split(".")[0].rpartition(" ")[2] if start >= 0 else ""
        answers = {"text": [answer], "answer_start": [context.index(answer, start)]} if answer else {"text": [], "answer_start": []}
        lines.append(json.dumps({"id": f"q{number}", "question": f"Where does the {name} live?", "context": context, "answers": answers}))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return {"name": "squad", "options": {"path": str(folder)}}


def write_tagged(folder: Path) -> dict:
    """Sentences with a tag for each word, by which names can be told."""
    random, lines = np.random.default_rng(0), []
    tags = {"Anna": "B-PER", "Otto": "B-PER", "Rome": "B-LOC", "Oslo": "B-LOC"} | dict.fromkeys(["saw", "left", "and", "then", "slowly", "for", "again"], "O")
    for _ in range(50):
        lines += [f"{word} {tags[word]}" for word in random.choice(list(tags), random.integers(3, 14))] + [""]
    (folder / "sentences.conll").write_text("\n".join(lines) + "\n")
    return {"name": "tagged-text", "options": {"path": str(folder)}}


# For each head without classes: what writes its data, and what a recipe changes for it.
HEADS_WITHOUT_CLASSES = {
    "language-model": (write_stories, {"name": "text", "options": {"max_length": 16, "vocabulary": 60}}, "gpt", {}, "causal-language", {"written": 4}),
    "translation": (write_pairs, {"name": "text-pair", "options": {"max_length": 12, "vocabulary": 300}}, "bart", {}, "span-corruption", {}),
    "answering": (write_questions, {"name": "question", "options": {"max_length": 24, "stride": 8, "vocabulary": 200}}, "bert", {"size": "tiny"}, "masked-language", {}),
    "embedding": (write_pairs, {"name": "text-pair", "options": {"max_length": 12, "vocabulary": 300}}, "text-cnn", {"width": 16}, "pairs", {}),
    "tagging": (write_tagged, {"name": "tagged", "options": {"max_length": 16, "vocabulary": 100}}, "bert", {"size": "tiny"}, "masked-language", {}),
}


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
    """A folder in which the recipe `tiny` was run once, and what that printed. Tests look at it, or run further in it."""

    folder: Path
    done: Done

    @property
    def result(self) -> dict:
        return self.done.result

    def stages(self) -> dict[str, str]:
        return {stage["name"]: stage["run_id"] for stage in self.result["stages"]}


@pytest.fixture(scope="session")
def finished(tmp_path_factory, warmstart, tiny) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    return Finished(folder, warmstart(folder, "run", tiny, "--json"))


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
