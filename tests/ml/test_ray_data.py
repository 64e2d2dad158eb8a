"""On a Ray cluster, decoding and scoring give what one process gives, to the byte; killed, they go on where they were; what nodes do not see is told."""

import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest

from ml import decoding, progress, scoring
from ml.contracts import Decoded
from ml.engines import ENGINES, data
from ml.launch import RanksFailed
from ml.modalities import MODALITIES
from ml.onnx_graph import GRAPHS, Graph, export, quantise
from ml.predictor import Predictor
from ml.preprocess import preprocess
from ml.ray_workers import Decoder, Scorer, described, packed, parts, row, state, unpacked
from ml.recipe import Compute, load
from ml.sources import SOURCES

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs ray")
ROOT = Path(__file__).resolve().parents[2]
SCORE = """
import os, signal, sys
from pathlib import Path
from ml import progress
from ml.engines import data
from ml.recipe import Compute

class Killed:
    def update(self, stage, done, total, facts):
        os.kill(os.getpid(), signal.SIGKILL)

progress.listen(Killed())
compute = Compute(engine="ray", workers=2, address=sys.argv[1])
data(compute).score(Path(sys.argv[2]), "torch", "models:/m/1", sys.argv[4:], Path(sys.argv[3]), 4, "", compute, 1)
"""


class Told:
    """Hears of progress, and when a file was written."""

    def __init__(self, path: Path):
        self.path, self.done, self.written = path, [], set()

    def update(self, stage, done, total, facts):
        self.done.append(done)
        self.written.add(self.path.stat().st_mtime_ns)


@pytest.fixture
def two(cluster) -> Compute:
    return Compute(engine="ray", workers=2, address=cluster)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(decoding, "CHUNK_ROWS", 16)
    monkeypatch.setattr(decoding, "RAGGED_ROWS", 32)


def store(recipe, folder: Path, compute: Compute | None = None):
    fill = partial(data(compute).fill, compute=compute) if compute else None
    head = recipe.finetuning.head.chosen
    return preprocess(recipe.data.source.make(), recipe.data.modality.make(), recipe.data, folder / "work", folder / "stores", head.labels, head.several, fill)


def assert_same_files(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert sorted(path.name for path in other.iterdir()) == names
    assert filecmp.cmpfiles(one, other, names, shallow=False)[0] == names


def test_killed_within_pictures_it_goes_on_to_the_same_store(two, tiny, small_chunks, tmp_path, monkeypatch):
    recipe, first = load(tiny, []), tmp_path / "ray" / "work" / "decoded" / "facts-000000000000.parquet"
    with monkeypatch.context() as patch, pytest.raises(RanksFailed, match="goes on with what is done"):
        patch.setenv("WARMSTART_TESTING", "1")
        patch.setenv("WARMSTART_CRASH_AT", "preprocess.chunk")
        store(recipe, tmp_path / "ray", two)
    before, told = first.stat().st_mtime_ns, Told(first)
    progress.listen(told)
    try:
        found = store(recipe, tmp_path / "ray", two)
    finally:
        progress.listen(None)
    assert told.done[0] == 16 and told.done[-1] == 120
    assert told.written == {before}, "the chunk that was done is not decoded again"
    assert_same_files(store(recipe, tmp_path / "local").path, found.path)


def test_pieces_that_take_longer_keep_their_place(two, drawn, tiny, small_chunks, tmp_path):
    drawn(drawn(tmp_path / "pictures", each=16, side=16) / "class0", classes=1, each=8, side=1500)  # the first piece is of large ones
    recipe = load(tiny, [f"data.source.options.path={tmp_path / 'pictures'}"])
    assert_same_files(store(recipe, tmp_path / "local").path, store(recipe, tmp_path / "ray", two).path)


def test_texts_make_the_same_store(two, tiny_text, small_chunks, tmp_path):
    recipe = load(tiny_text, [])
    assert_same_files(store(recipe, tmp_path / "local").path, store(recipe, tmp_path / "ray", two).path)


def test_a_killed_scoring_leaves_no_process_and_goes_on_to_the_same_file(two, text_model, tmp_path):
    lines = [json.dumps({"text": line}) for line in [*text_model.lines, ""] * 240]  # one a part: more than are scored before the end is noticed
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    folder, inputs, output = text_model.folder / "model", [str(tmp_path / "rows.jsonl")], tmp_path / "ray.parquet"
    command = [sys.executable, "-c", SCORE, two.address, str(folder), str(output), *inputs]
    killed, below = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}), []
    while killed.poll() is None:
        with suppress(psutil.NoSuchProcess):
            below = psutil.Process(killed.pid).children(recursive=True) or below
        time.sleep(0.1)
    assert killed.returncode == -signal.SIGKILL and below
    assert psutil.wait_procs(below, 60)[1] == []
    assert not output.exists() and (tmp_path / "ray.parquet.parts" / "part-000000.parquet").exists()
    summary = data(two).score(folder, "torch", "models:/m/1", inputs, output, 4, "", two, 1)
    expected = scoring.score(Predictor.load(folder), "models:/m/1", inputs, tmp_path / "local.parquet", 4, part_rows=1)
    assert summary["resumed_parts"] >= 1
    assert {name: summary[name] for name in ("rows", "scored", "failed")} == {name: expected[name] for name in ("rows", "scored", "failed")}
    assert filecmp.cmp(output, tmp_path / "local.parquet", shallow=False)


@pytest.mark.skipif(find_spec("onnxruntime") is None or find_spec("onnxscript") is None, reason="needs the extra onnx")
@pytest.mark.parametrize("engine", GRAPHS)
def test_exported_graphs_score_on_it_too(two, text_model, tmp_path, engine):
    folder = Path(shutil.copytree(text_model.folder / "model", tmp_path / "model"))
    export(folder)
    quantise(folder)
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in [*text_model.lines, ""]))
    given = f"models:/m/1 {engine}", [str(tmp_path / "rows.jsonl")]
    data(two).score(folder, engine, *given, tmp_path / "ray.parquet", 4, "", two)
    with Graph(folder, 1, engine) as graph:
        scoring.score(Predictor.load(folder, graph=graph), *given, tmp_path / "local.parquet", 4)
    assert filecmp.cmp(tmp_path / "ray.parquet", tmp_path / "local.parquet", shallow=False)


def test_a_node_that_sees_other_data_is_an_error_and_no_quarantine(tiny, tmp_path):
    recipe = load(tiny, []).data
    source, modality = described(recipe.source.make(), SOURCES), ("image", {"size": 16, "channels": 3})
    keys = row(json.dumps(["class0/000.png"]).encode())
    right, other = (Decoder("/nowhere", source, modality, seen) for seen in (recipe.source.make().fingerprint(), "another"))
    assert right(keys)["error"].to_pylist() == [None]
    assert "sees other data" in other(keys)["error"][0].as_py() and "share under the same path" in other(keys)["error"][0].as_py()
    blind = Decoder("/nowhere", (source[0], {"path": str(tmp_path / "none")}), modality, "another")
    assert "there is nothing at" in blind(keys)["error"][0].as_py()


def test_a_node_that_sees_other_inputs_or_no_model_is_an_error(text_model, tmp_path):
    (tmp_path / "rows.csv").write_text("text\ngold\n")
    modality = described(Predictor.load(text_model.folder / "model").modality, MODALITIES)
    reading = scoring.Reading([tmp_path / "rows.csv"], "", 3)
    (work,) = parts("/nowhere", modality, reading, state(reading))
    assert Scorer("/nowhere", str(text_model.folder / "model"), "torch", "cpu", 4)(work)["error"].to_pylist() == [None]
    assert "cannot load the model" in Scorer("/nowhere", str(tmp_path), "torch", "cpu", 4)(work)["error"][0].as_py()
    (other,) = parts("/nowhere", modality, reading, "another")
    assert "sees other inputs" in other["error"][0].as_py()
    (tmp_path / "rows.csv").unlink()
    (gone,) = parts("/nowhere", modality, reading, "another")
    assert "cannot read" in gone["error"][0].as_py()


def test_results_travel_whole():
    found = [(7, Decoded(np.arange(3, dtype=np.uint8), "c0", 2**64 - 1, {"width": np.int64(3)})), (0, Decoded(None, reason="not a picture")), (1, Decoded(np.zeros(0, np.uint8)))]
    back = list(unpacked(packed(found)))
    assert [size for size, _ in back] == [7, 0, 1]
    for (_, one), (_, other) in zip(found, back, strict=True):
        assert (one.content, one.signature, one.facts, one.reason) == (other.content, other.signature, other.facts, other.reason)
        assert (one.array is None) == (other.array is None) and (one.array is None or np.array_equal(one.array, other.array))


@pytest.mark.parametrize("name", [name for name, engine in ENGINES.items() if not engine.data])
def test_other_engines_decode_and_score_in_this_process(name):
    assert data(Compute(engine=name)) is None
