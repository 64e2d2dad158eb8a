"""Input that is cut, flipped, spliced and planted by chance: it is read, or refused in words; no code runs, no other file is read, nothing unforeseen is raised."""

import io
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from made import write_pairs, write_questions, write_tagged, write_texts
from often import times
from PIL import Image
from safetensors.torch import save_file

from ml.contracts import InputError, Raw
from ml.modalities import MODALITIES
from ml.model import load_model
from ml.predictor import Predictor
from ml.recipe import load
from ml.sources import SOURCES
from ml.weights import load_weights
from tasks.tracking import scoring_protocol

pytestmark = pytest.mark.chaos
ROOT = Path(__file__).resolve().parents[2]
EACH = times(12, 25)
"""Inputs of each of 28 kinds, 500 in `make chaos`; some have twice as many."""
PLANTED = [b"\0", b"\xff\xfe", b"\xf0\x9f\x92\xa9", b"\x80\x04\x95", b"../../etc/passwd", b"/etc/passwd", b"!!python/object/apply:os.system [touch CANARY]", b"${jndi:ldap://x}", b"=cmd|' /C calc'!A0",
           b"1e999", b"-1", b"99999999999999999999", b"NaN", b"null", b"[" * 200, b"{" * 200, b'"' * 7, b"'", b"\r\n\r\n", b",,,,,,", b"\t" * 30, b"&a [*a,*a]", b"<script>", b"A" * 70_000]  # fmt: skip


def damaged(good: bytes, random: np.random.Generator) -> bytes:
    """`good`, with one to four changes."""
    data = bytearray(good)
    for _ in range(random.integers(1, 5)):
        where = int(random.integers(0, len(data) + 1))
        match random.integers(0, 6):
            case 0:
                del data[where:]
            case 1 if where < len(data):
                data[where] ^= 1 << int(random.integers(0, 8))
            case 2:
                data[where:where] = PLANTED[random.integers(0, len(PLANTED))]
            case 3:
                del data[where : where + int(random.integers(1, 40))]
            case 4:
                data[where:where] = data[where : where + int(random.integers(1, 200))]
            case _:
                data[where : where + 8] = random.bytes(8)
    return bytes(data)


@pytest.fixture
def canary(tmp_path, monkeypatch) -> Iterator[Path]:
    """A working folder, in which nothing that was planted may leave a trace."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "CANARY"
    assert not (tmp_path / "CANARY").exists() and not list((tmp_path / "here").iterdir())


def tried(number: int, call: Callable[[np.random.Generator], object]) -> int:
    """Calls with `number` seeds; gives how many were refused. Whatever is raised but an InputError fails, and says for which seed."""
    refused = 0
    for seed in range(number):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call(np.random.default_rng(seed))
        except InputError as error:
            assert str(error).strip() and "Traceback" not in str(error)
            refused += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    return refused


def test_recipes(canary, tmp_path):
    good = sorted((ROOT / "conf").rglob("*.yaml"))

    def one(random):
        (tmp_path / "recipe.yaml").write_bytes(damaged(good[random.integers(0, len(good))].read_bytes(), random))
        load(tmp_path / "recipe.yaml")

    assert tried(2 * EACH, one) > EACH / 2


def test_values_of_a_recipe(canary, tmp_path):
    values = [None, True, -1, 0, 1e308, float("nan"), float("inf"), 10**30, "", "x", "../..", "\0", "a\nb", [], [[]], {}, {"name": "x"}, {"name": None}, {"options": 3}, [1, 2], "*", "é" * 300]
    good = sorted((ROOT / "conf").rglob("*.yaml"))

    def one(random):
        content = yaml.safe_load(good[random.integers(0, len(good))].read_text())
        for _ in range(random.integers(1, 3)):
            place = content
            while True:
                key = list(place)[random.integers(0, len(place))]
                if not isinstance(place[key], dict) or not place[key] or random.random() < 0.3:
                    place[key] = values[random.integers(0, len(values))]
                    break
                place = place[key]
            if random.random() < 0.3:
                content[f"k{random.integers(0, 9)}"] = 1
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
        load(tmp_path / "recipe.yaml", [f"finetuning.fit.epochs={values[random.integers(0, len(values))]}"] if random.random() < 0.3 else [])

    assert tried(2 * EACH, one) > EACH


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures(canary, kind):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(pixels).resize((40, 30)).save(file, kind)
    modality = MODALITIES["image"](MODALITIES["image"].Options(size=16, channels=3))
    reasons = []

    def one(random):
        found = modality.decode(Raw(damaged(file.getvalue(), random)))
        assert (found.array is None) == bool(found.reason)
        assert found.array is None or (found.array.shape == (16, 16, 3) and found.array.dtype == np.uint8)
        reasons.append(found.reason)

    assert tried(EACH, one) == 0, "a picture goes to the quarantine and is not refused"
    assert any(reasons)


def _csv_of_pictures(folder: Path) -> dict:
    for number in range(6):
        Image.fromarray(np.full((8, 8, 3), number * 40, np.uint8)).save(folder / f"{number}.png")
    (folder / "rows.csv").write_text("path,label\n" + "".join(f"{number}.png,{'ab'[number % 2]}\n" for number in range(6)))
    return {"name": "csv", "options": {"path": str(folder / "rows.csv")}}


def _parquet_of_pictures(folder: Path) -> dict:
    _csv_of_pictures(folder)
    (folder / "rows.csv").unlink()
    pictures = [path.read_bytes() for path in sorted(folder.glob("*.png"))]
    pd.DataFrame({"image": pictures, "label": list("ababab")}).to_parquet(folder / "rows.parquet")
    return {"name": "parquet", "options": {"path": str(folder / "rows.parquet")}}


def _csv_of_texts(folder: Path) -> dict:
    return {"name": "text-table", "options": {"path": str(write_texts(folder / "rows.csv", 30))}}


def _jsonl_of_texts(folder: Path) -> dict:
    pd.read_csv(write_texts(folder / "rows.csv", 30)).to_json(folder / "rows.jsonl", orient="records", lines=True)
    (folder / "rows.csv").unlink()
    return {"name": "text-table", "options": {"path": str(folder / "rows.jsonl")}}


def _parquet_of_texts(folder: Path) -> dict:
    pd.read_csv(write_texts(folder / "rows.csv", 30)).to_parquet(folder / "rows.parquet")
    (folder / "rows.csv").unlink()
    return {"name": "text-table", "options": {"path": str(folder / "rows.parquet")}}


def _files_of_texts(folder: Path) -> dict:
    for number in range(6):
        (folder / "texts" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "texts" / "ab"[number % 2] / f"{number}.txt").write_text(f"Größe {number}, a text of some words.\n" * 5)
    return {"name": "text-folder", "options": {"path": str(folder / "texts")}}


@pytest.mark.parametrize(
    "write", [_csv_of_pictures, _parquet_of_pictures, _csv_of_texts, _jsonl_of_texts, _parquet_of_texts, _files_of_texts, write_pairs, write_questions, write_tagged], ids=lambda write: write.__name__.strip("_")
)
def test_files_of_a_source(canary, tmp_path, write):
    (tmp_path / "good").mkdir()
    (tmp_path / "secret.png").write_bytes(b"not of the folder")
    given = write(tmp_path / "good")
    kind = SOURCES[given["name"]]
    path = given["options"]["path"]
    files = sorted(one for one in (tmp_path / "good").rglob("*") if one.is_file() and (one.suffix != ".png" or not Path(path).is_file()))

    def one(random):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "data")
        chosen = files[random.integers(0, len(files))]
        (tmp_path / "data" / chosen.relative_to(tmp_path / "good")).write_bytes(damaged(chosen.read_bytes(), random))
        source = kind(kind.Options(path=path.replace(str(tmp_path / "good"), str(tmp_path / "data"))))
        source.fingerprint()
        keys = source.scan()["key"].tolist()
        assert len(set(keys)) == len(keys)
        for raw in source.read(keys):
            assert (raw.data is None) == bool(raw.reason)
            assert raw.data is None or (b"not of the folder" not in raw.data and b"root:" not in raw.data)

    tried(EACH, one)


@pytest.mark.parametrize("name", [name for name in MODALITIES if name != "image"])
def test_items_of_texts(canary, name):
    modality = MODALITIES[name](MODALITIES[name].Options(max_length=16, vocabulary=200))
    good = {
        "text": "Größe and some words".encode(),
        "question": json.dumps({"question": "Who?", "context": "It was Anna.", "answers": [{"text": "Anna", "start": 7}]}).encode(),
        "tagged": json.dumps({"words": ["Anna", "left"], "tags": ["B-PER", "O"]}).encode(),
        "text-pair": json.dumps({"source": "one", "target": "eins"}).encode(),
    }[name]

    def one(random):
        found = modality.decode(Raw(damaged(good, random)))
        assert (found.array is None) == bool(found.reason)

    assert tried(2 * EACH, one) == 0


class Trap:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pkl.pt"])
def test_weights(canary, tmp_path, suffix):
    from ml.backbones import BACKBONES
    from ml.choice import choice
    from ml.contracts import DataSpec

    chosen = choice("backbone", BACKBONES)(name="small-cnn", options={"width": 0.125})
    backbone = chosen.make(DataSpec("image", {}, (3, 16, 16), ("a", "b"), {"mean": [0.5] * 3, "std": [0.25] * 3}))
    tensors = backbone.state_dict()
    if suffix == ".safetensors":
        save_file(tensors, tmp_path / "good")
    elif suffix == ".pt":
        torch.save(tensors, tmp_path / "good")
    else:
        (tmp_path / "good").write_bytes(pickle.dumps({**{name: value.tolist() for name, value in list(tensors.items())[:2]}, "trap": Trap(canary)}))
    good = (tmp_path / "good").read_bytes()

    def one(random):
        (tmp_path / f"weights{suffix}").write_bytes(damaged(good, random))
        load_weights(backbone, tmp_path / f"weights{suffix}", chosen)

    assert tried(EACH, one) > EACH / 4


def test_models(canary, tmp_path, text_model):
    files = sorted(path for path in (text_model.folder / "model").rglob("*") if path.is_file())

    def one(random):
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(text_model.folder / "model", folder)
        chosen = files[random.integers(0, len(files))]
        (folder / chosen.relative_to(text_model.folder / "model")).write_bytes(damaged(chosen.read_bytes(), random))
        load_model(folder)

    assert tried(EACH, one) > EACH / 4


@pytest.mark.parametrize("content_type", scoring_protocol.TYPES)
def test_requests(canary, content_type):
    schema = scoring_protocol.schema(["text"], "string")
    bodies = {
        "application/json": [json.dumps(body).encode() for body in (
            {"dataframe_split": {"columns": ["text"], "data": [["a"], ["b"]]}}, {"dataframe_records": [{"text": "a"}, {"text": None}]}, {"instances": ["a", "b"]}, {"inputs": {"text": ["a"]}},
        )],
        "text/csv": [b"text\na\nb\n", b'text,other\n"a, b",1\n'],
    }[content_type]  # fmt: skip

    def one(random):
        assert list(scoring_protocol.parsed(damaged(bodies[random.integers(0, len(bodies))], random), content_type, schema).columns) == ["text"]

    assert tried(2 * EACH, one) > EACH / 4


def test_rows_to_be_scored(canary, text_model):
    predictor = Predictor.load(text_model.folder / "model")
    values = [None, float("nan"), 3, True, b"", b"\xff\xfe", "", " ", "\0" * 5, "a" * 100_000, [], ["x"], {}, {"text": 1}, ("a",), object(), np.zeros(3), pd.NaT, Path("/etc/passwd"), "../../etc/passwd"]

    def one(random):
        rows = ["a good row", *(values[number] for number in random.integers(0, len(values), 5))]
        frame = predictor.predict(rows)
        assert len(frame) == 6 and pd.isna(frame["error"].iloc[0]) and frame["label"].iloc[0] in ("cat", "dog")

    assert tried(EACH, one) == 0
