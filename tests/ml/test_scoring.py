"""Batch scoring: every item gets its row, whatever it is, and a kill costs no finished part."""

import base64
import fcntl
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image as Pillow

from ml import scoring
from ml.backbones import BACKBONES
from ml.choice import choice
from ml.contracts import InputError
from ml.heads import HEADS
from ml.modalities import MODALITIES
from ml.model import Model, save_model
from ml.predictor import Predictor

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("cat", "dog")
SCORE = """
import sys
from pathlib import Path
from ml.predictor import Predictor
from ml.scoring import score
print(score(Predictor.load(sys.argv[1]), "models:/m/1", sys.argv[3:], Path(sys.argv[2]), 4, part_rows=5))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small model with random weights."""
    torch.manual_seed(0)
    modality = MODALITIES["image"](MODALITIES["image"].Options(size=16, channels=3))
    spec = modality.spec(CLASSES, {"mean": [0.5] * 3, "std": [0.25] * 3})
    backbone, head = choice("backbone", BACKBONES)(name="small-cnn", options={"width": 0.25}), choice("head", HEADS)(name="classification")
    model = Model.build(backbone, head, spec)
    torch.nn.init.normal_(model.head.linear.weight)
    folder = tmp_path_factory.mktemp("model")
    save_model(model, folder, backbone, head, spec)
    return folder


@pytest.fixture(scope="module")
def predictor(model) -> Predictor:
    return Predictor.load(model)


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    found = []
    for array in np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8):
        file = io.BytesIO()
        Pillow.fromarray(array).save(file, "PNG")
        found.append(file.getvalue())
    return found


@pytest.fixture
def pictures(tmp_path, files) -> Path:
    """A folder with a folder in it, one bad picture and a file that is none."""
    folder = tmp_path / "pictures"
    (folder / "inner").mkdir(parents=True)
    for number, data in enumerate(files):
        (folder / ("inner" if number > 7 else ".") / f"{number:02d}.png").write_bytes(data)
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not to be scored")
    return folder


def run(predictor, inputs, output, **more) -> pd.DataFrame:
    summary = scoring.score(predictor, "models:/m/1", [str(one) for one in inputs], output, 4, **more)
    frame = pd.read_parquet(output)
    assert (summary["rows"], summary["failed"]) == (len(frame), int(frame["error"].notna().sum()))
    assert summary["scored"] + summary["failed"] == summary["rows"]
    assert not output.with_name(output.name + ".parts").exists()
    return frame


def assert_same_scores(frame: pd.DataFrame, predictor: Predictor, files: list[bytes]) -> None:
    expected = predictor.predict(files)
    assert frame["label"].tolist() == expected["label"].tolist()
    np.testing.assert_allclose(frame[["p_cat", "p_dog"]], expected[["p_cat", "p_dog"]], atol=1e-6)


def test_a_folder(predictor, pictures, files, tmp_path):
    frame = run(predictor, [pictures], tmp_path / "scores.parquet")
    assert list(frame.columns) == ["source", "key", "label", "probability", "p_cat", "p_dog", "error"]
    assert frame["source"].is_unique and frame["key"].nunique() == 13
    bad = frame[frame["key"] == "bad.png"].iloc[0]
    assert bad["error"] and pd.isna(bad["label"]) and pd.isna(bad["p_cat"])
    assert_same_scores(frame[frame["key"] != "bad.png"].sort_values("key"), predictor, files)


def test_single_files_in_the_order_given(predictor, pictures, files, tmp_path):
    frame = run(predictor, [pictures / "02.png", pictures / "00.png"], tmp_path / "scores.parquet")
    assert_same_scores(frame, predictor, [files[2], files[0]])


@pytest.mark.parametrize("column", ["", "bild"])
def test_parquet_of_bytes_of_dicts_and_of_paths(predictor, pictures, files, tmp_path, column):
    values = [files[0], None, b"no picture", {"bytes": files[1], "path": "x"}]
    frame = pd.DataFrame({column or "image": [value if isinstance(value, dict) else {"bytes": value, "path": None} for value in values]})
    frame.to_parquet(tmp_path / "dicts.parquet")
    pd.DataFrame({column or "image": values[:3]}).to_parquet(tmp_path / "bytes.parquet")
    pd.DataFrame({column or "path": ["pictures/02.png", "pictures/none.png", ""]}).to_parquet(tmp_path / "paths.parquet")
    scored = run(
        predictor, [tmp_path / f"{kind}.parquet" for kind in ("dicts", "bytes", "paths")], tmp_path / "scores.parquet", column=column
    )
    assert scored["error"].isna().tolist() == [True, False, False, True, True, False, False, True, False, False]
    assert_same_scores(scored[scored["error"].isna()], predictor, [files[0], files[1], files[0], files[2]])
    assert scored["key"].tolist() == ["0", "1", "2", "3", "0", "1", "2", "0", "1", "2"]


def test_csv_of_paths_and_of_longer_text(predictor, pictures, files, tmp_path):
    paths = ["pictures/00.png", str(pictures / "01.png"), base64.b64encode(files[2]).decode(), "pictures/none.png", "x" * 5000, "=1+1"]
    pd.DataFrame({"id": range(6), "image": paths}).to_csv(tmp_path / "list.csv", index=False)
    scored = run(predictor, [tmp_path / "list.csv"], tmp_path / "scores.parquet")
    assert scored["error"].isna().tolist() == [True, True, True, False, False, False]
    assert_same_scores(scored[:3], predictor, files[:3])


def test_parts_change_nothing(predictor, pictures, tmp_path):
    whole = run(predictor, [pictures], tmp_path / "whole.parquet")
    parts = run(predictor, [pictures], tmp_path / "parts.parquet", part_rows=5)
    pd.testing.assert_frame_equal(whole, parts, check_exact=False, atol=1e-6)


def test_killed_it_goes_on_with_the_parts_that_are_done(predictor, model, pictures, tmp_path):
    command = [sys.executable, "-c", SCORE, str(model), str(tmp_path / "scores.parquet"), str(pictures)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WARMSTART_TESTING": "1", "WARMSTART_CRASH_AT": "predict.part:1"}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "scores.parquet").exists()
    parts = tmp_path / "scores.parquet.parts"
    (parts / ".part-000002.parquet").write_bytes(b"half a part")
    summary = scoring.score(predictor, "models:/m/1", [str(pictures)], tmp_path / "scores.parquet", 4, part_rows=5)
    assert summary["resumed_parts"] == 2
    frame = pd.read_parquet(tmp_path / "scores.parquet")
    pd.testing.assert_frame_equal(frame, run(predictor, [pictures], tmp_path / "whole.parquet"), check_exact=False, atol=1e-6)


@pytest.mark.parametrize("change", ["model", "input", "column"])
def test_parts_of_another_scoring_are_not_taken(predictor, pictures, files, tmp_path, change, monkeypatch):
    def stop(name):
        if name == "predict.part:0":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scoring, "crash_point", stop)
        scoring.score(predictor, "models:/m/1", [str(pictures)], tmp_path / "scores.parquet", 4, part_rows=5)
    if change == "input":
        (pictures / "00.png").write_bytes(files[5])
    summary = scoring.score(
        predictor,
        "models:/m/2" if change == "model" else "models:/m/1",
        [str(pictures)],
        tmp_path / "scores.parquet",
        4,
        "image" if change == "column" else "",
        part_rows=5,
    )
    assert (summary["resumed_parts"], summary["rows"]) == (0, 13)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: [str(root / "none")], ["nothing at", "none"]),
        (lambda root: [str(root)], ["holds no images", ".png"]),
        (lambda root: [_written(root / "cut.parquet", b"PAR1 not whole")], ["cut.parquet", "not a whole Parquet file"]),
        (lambda root: [_written(root / "empty.csv", b"")], ["empty.csv", "has no column image or path", "it has none"]),
        (lambda root: [_written(root / "none.csv", b"image\n")], ["nothing to score"]),
        (lambda root: [_written(root / "other.csv", b"name,age\nx,1\n")], ["has no column image or path", "name, age", "--column"]),
        (lambda root: [_written(root / "odd.csv", b"image\n\0\xfe\n")], ["odd.csv", "binary file"]),
    ],
)
def test_inputs_that_cannot_be_scored(predictor, tmp_path, make, words):
    with pytest.raises(InputError) as refused:
        scoring.score(predictor, "models:/m/1", make(tmp_path), tmp_path / "scores.parquet", 4)
    for word in words:
        assert word in str(refused.value)
    assert str(refused.value).count("has no column") <= 1 and not (tmp_path / "scores.parquet").exists()


def _written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def test_outputs_that_cannot_be_written(predictor, pictures, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.parquet").mkdir()
    taken = tmp_path / "taken.parquet.parts"
    taken.mkdir()
    (taken / "mine.txt").touch()
    rows = tmp_path / "rows.parquet"
    pd.DataFrame({"image": [b"x"]}).to_parquet(rows)
    cases = [
        ("scores.csv", [pictures], ".parquet file"),
        ("folder.parquet", [pictures], ".parquet file"),
        ("file/scores.parquet", [pictures], "cannot score into"),
        ("taken.parquet", [pictures], "in the way"),
        ("rows.parquet", [rows], "one of the inputs"),
    ]
    for name, inputs, words in cases:
        with pytest.raises(InputError, match=words):
            scoring.score(predictor, "models:/m/1", [str(one) for one in inputs], tmp_path / name, 4)
    assert (taken / "mine.txt").exists()


def test_two_at_once_into_one_output(predictor, pictures, tmp_path):
    parts = tmp_path / "scores.parquet.parts"
    parts.mkdir()
    with (parts / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process"):
            scoring.score(predictor, "models:/m/1", [str(pictures)], tmp_path / "scores.parquet", 4)


@pytest.fixture
def reader(text_model) -> Predictor:
    return Predictor.load(text_model.folder / "model")


def test_texts_in_tables_and_files(reader, text_model, tmp_path):
    """However they come, also those without any text: each has its row, and the same scores."""
    texts = [*text_model.lines, "", 'A "quoted, odd" one;\twith a tab\nand a line', "123"]
    frame = pd.DataFrame({"id": range(len(texts)), "Text": texts})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "b.tsv", index=False, sep="\t")
    frame.to_csv(tmp_path / "c.csv.gz", index=False)
    frame.to_csv(tmp_path / "d.csv", index=False, encoding="utf-16")
    frame.to_json(tmp_path / "e.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "f.parquet")
    frame.assign(Text=[text.encode() for text in texts]).to_parquet(tmp_path / "g.parquet")
    (tmp_path / "h" / "inner").mkdir(parents=True)
    for number, text in enumerate(texts):
        (tmp_path / "h" / ("inner" if number > 4 else ".") / f"{number}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "h" / "picture.png").write_bytes(b"not to be scored")
    found = [tmp_path / name for name in ("a.csv", "b.tsv", "c.csv.gz", "d.csv", "e.jsonl", "f.parquet", "g.parquet", "h")]
    scored = run(reader, found, tmp_path / "scores.parquet")
    expected = reader.predict(texts)
    assert len(scored) == len(found) * len(texts)
    for name, part in scored.groupby(np.repeat([path.name for path in found], len(texts))):
        assert part["label"].fillna("").tolist() == expected["label"].fillna("").tolist(), name
        np.testing.assert_allclose(part[["p_cat", "p_dog"]], expected[["p_cat", "p_dog"]], atol=1e-6)
        assert part["error"].fillna("").tolist() == expected["error"].fillna("").tolist(), name


def test_texts_that_are_missing_or_something_else(reader, text_model, tmp_path):
    gold = text_model.lines[0]
    (tmp_path / "a.jsonl").write_text(f'{{"text": "{gold}"}}\n{{"text": null}}\n{{"other": 1}}\n\n{{"text": 5}}\n{{"text": ["x"]}}\n')
    pd.DataFrame({"text": [gold, None]}).to_parquet(tmp_path / "b.parquet")
    binary = pa.array([gold.encode(), b"caf\xe9 au lait", b"\0"], pa.binary())
    pq.write_table(
        pa.table({"text": pa.Array.from_buffers(pa.string(), 3, binary.buffers())}), tmp_path / "c.parquet"
    )  # strings in no UTF-8
    frame = run(reader, [tmp_path / name for name in ("a.jsonl", "b.parquet", "c.parquet")], tmp_path / "scores.parquet")
    assert frame["error"].fillna("").tolist() == [
        *("", "empty", "empty", "a text is a string or bytes; found int", "a text is a string or bytes; found list"),
        *("", "empty", "", "", "binary, not text"),
    ]
    assert_same_text(frame.iloc[[0, 5, 7, 8]], reader, [gold, gold, gold, "café au lait"])


def assert_same_text(frame: pd.DataFrame, predictor: Predictor, texts: list[str]) -> None:
    np.testing.assert_allclose(frame[["p_cat", "p_dog"]], predictor.predict(texts)[["p_cat", "p_dog"]], atol=1e-6)


def test_quotes_between_tabs_mean_nothing(reader, tmp_path):
    """As in training: a quote at a text's start takes no later rows with it."""
    (tmp_path / "a.tsv").write_text('text\tid\n"Great film\t1\nnext\t2\n"both" here\t3\n')
    assert_same_text(run(reader, [tmp_path / "a.tsv"], tmp_path / "scores.parquet"), reader, ['"Great film', "next", '"both" here'])


def test_an_old_encoding_is_read_as_in_training(reader, tmp_path):
    texts = ["Größe und Maß, schön und übel", "ein naïver Café-Besucher für fünf Franken"]
    (tmp_path / "a.csv").write_bytes(pd.DataFrame({"text": texts}).to_csv(index=False).encode("cp1252"))
    assert_same_text(run(reader, [tmp_path / "a.csv"], tmp_path / "scores.parquet"), reader, texts)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', ["a.jsonl", "line 2"]),
        ("a.csv", b"name,age\nx,1\n", ["no column text or sentence", "name, age", "--column"]),
        ("a.parquet", b"PAR1 cut", ["not a whole Parquet file"]),
        ("a.csv.gz", b"\x1f\x8b\x08 cut", ["a.csv.gz"]),
    ],
)
def test_tables_of_texts_that_cannot_be_scored(reader, tmp_path, name, data, words):
    with pytest.raises(InputError) as refused:
        scoring.score(reader, "models:/m/1", [_written(tmp_path / name, data)], tmp_path / "scores.parquet", 4)
    for word in words:
        assert word in str(refused.value)
