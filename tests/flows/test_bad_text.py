"""What is wrong with texts, for each head and the files that it learns from: one message that says what to do, or a row set aside with a reason.

Most is asked of the stage's own function; the command that a user types is run for each kind of file, and where more than one stage takes part.
"""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from PIL import Image

from ml.answer_spans import FIRST, LAST
from ml.contracts import InputError
from ml.preprocess import preprocess
from ml.recipe import load

SOURCE = "data.source.options.path"
BIG = "wort " * 2_000_000


def picture(data: bytes) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    return file.getvalue()


def without_mark(data: bytes) -> bytes:
    """In UTF-16, and nothing says so."""
    return data.decode().encode("utf-16-le")


def broken(data: bytes) -> bytes:
    return data[:40] + b"\xff\xfe\x81" + data[40:]


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3 - 1]


def emptied(*columns: str):
    return lambda data: pd.read_csv(io.BytesIO(data)).assign(**dict.fromkeys(columns, "")).to_csv(index=False).encode()


def objects(change):
    """Changes each line of JSON."""
    return lambda data: b"".join(json.dumps(json.loads(line) | change).encode() + b"\n" for line in data.splitlines())


def one_column(data: bytes) -> bytes:
    return b"\n".join(line.split(b" ")[0] for line in data.splitlines()) + b"\n"


ZERO, UTF8 = ["is a binary file", "zero bytes", "UTF-8"], ["no UTF-8 in line 1", "save it as UTF-8"]
NONE = "items can be read"
# By recipe, one for each kind of file: the file that is changed. Then by recipe and fault: the change, and what the message must hold.
FILES = {"text": "rows.csv", "language-model": "train.csv", "translation": "pairs.csv", "answering": "questions.jsonl", "tagging": "sentences.conll"}
FAULTS = {
    ("text", "another encoding"): (without_mark, ZERO),
    ("text", "a picture"): (picture, ZERO),
    ("text", "an empty column"): (emptied("text"), [NONE, "the text is missing", "name other data"]),
    ("text", "empty labels"): (emptied("label"), ["no labelled row", "at least two"]),
    ("language-model", "another encoding"): (without_mark, ZERO),
    ("language-model", "a picture"): (picture, ZERO),
    ("language-model", "an empty column"): (emptied("text"), ["60 of 80", "the text is missing", "data.quarantine_limit"]),
    ("translation", "another encoding"): (without_mark, ZERO),
    ("translation", "a picture"): (picture, ZERO),
    ("translation", "an empty column"): (emptied("source"), [NONE, "the source is missing"]),
    ("translation", "an empty target"): (emptied("target"), [NONE, "the target is missing"]),
    ("translation", "lines of unequal length"): (cut, ["has 1 fields", "2 in its header", "cut short"]),
    ("translation", "texts of unequal length"): (
        lambda data: b"source,target\n" + b"".join(b"one,%s\n" % b" ".join([b"zwei"] * (40 + row)) for row in range(20)),
        [NONE, "1 words in the source and", "no translation of one another"],
    ),
    ("answering", "another encoding"): (without_mark, UTF8),
    ("answering", "a damaged letter"): (broken, UTF8),
    ("answering", "a picture"): (picture, UTF8),
    ("answering", "cut short"): (cut, ["damaged in line", "Mend or remove that line"]),
    ("answering", "an empty column"): (objects({"context": "", "answers": None}), [NONE, "empty context"]),
    ("answering", "answers from elsewhere"): (
        objects({"answers": {"text": ["Atlantis"], "answer_start": [3]}}),
        [NONE, "'Atlantis' does not stand in the context"],
    ),
    ("answering", "an offset that is a word"): (
        objects({"answers": {"text": ["smith"], "answer_start": ["first"]}}),
        ["line 1", '"answer_start": number of a character'],
    ),
    ("tagging", "another encoding"): (without_mark, [NONE, "binary, not text"]),
    ("tagging", "a picture"): (picture, [NONE, "binary, not text"]),
    ("tagging", "an empty column"): (one_column, [NONE, "its lines have 1 columns", "expected a tag"]),
}
SET_ASIDE = {
    "text": [({"text": BIG, "label": "sea"}, "10,000,000 bytes, above the limit"), ({"text": "\1\2" * 40, "label": "sea"}, "binary, not text")],
    "translation": [
        ({"source": BIG, "target": "eins"}, "bytes, above the limit"),
        ({"source": "one", "target": BIG}, "bytes, above the limit"),
        ({"source": "one and two", "target": "eins " * 60}, "3 words in the source and 60 in the target"),
        ({"source": "one", "target": ""}, "the target is missing"),
        ({"source": "", "target": "eins"}, "the source is missing"),
    ],
    "answering": [
        ({"question": "Who?", "context": BIG, "answers": {"text": ["wort"], "answer_start": [0]}}, "bytes, above the limit"),
        ({"question": "Who?", "context": "Anna, and Anna " + "again " * 30, "answers": {"text": ["Anna"], "answer_start": [150]}}, "within 50 characters at 150"),
        ({"question": "Who?", "context": "A tale of Otto.", "answers": {"text": ["Anna"], "answer_start": [10]}}, "'Anna' does not stand in the context"),
        ({"question": "", "context": "A tale of Otto.", "answers": {"text": ["Otto"], "answer_start": [10]}}, "empty question"),
    ],
    "tagging": [
        ({"lines": f"{'wort' * 2_500_000} O"}, "bytes, above the limit"),
        ({"lines": "Anna B-PER\nsaw O O"}, "2 to 3 columns"),
    ],
}
SET_ASIDE["language-model"] = [({"text": row["text"]}, reason) for row, reason in SET_ASIDE["text"]]


@pytest.fixture
def copied(tmp_path, tiny_text, tiny_heads):
    """The override that names a copy of a recipe's data, and the file in it that is to be changed."""

    def copy(name: str) -> tuple[Path, str, Path]:
        path = {"text": tiny_text, **tiny_heads}[name]
        source = Path(load(path).data.source.parsed().path)
        folder = tmp_path / "data"
        shutil.copytree(source if source.is_dir() else source.parent, folder, ignore=shutil.ignore_patterns("*.yaml"))
        return path, f"{SOURCE}={folder}", folder / FILES[name]

    return copy


def stored(path: Path, tmp_path: Path, *overrides: str):
    recipe = load(path, overrides)
    head = recipe.finetuning.head.chosen
    source, modality = recipe.data.source.make(), recipe.data.modality.make()
    return preprocess(source, modality, recipe.data, tmp_path / "work", tmp_path / "stores", head.labels, head.several)


def test_every_kind_of_file_has_its_faults(tiny_text, tiny_heads):
    sources = {name: load(path).data.source.name for name, path in {"text": tiny_text, **tiny_heads}.items()}
    assert set(sources.values()) == {sources[name] for name in FILES}
    assert set(FILES) == set(SET_ASIDE) == {name for name, _ in FAULTS}
    for name in FILES:
        assert {"another encoding", "a picture", "an empty column"} <= {fault for one, fault in FAULTS if one == name}


@pytest.mark.parametrize(("name", "fault"), [pytest.param(*key, id="-".join(key)) for key in FAULTS])
def test_a_file_that_cannot_be_used_is_an_error_that_says_why(name, fault, copied, tmp_path):
    change, words = FAULTS[name, fault]
    path, override, file = copied(name)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(InputError) as found:
        stored(path, tmp_path, override)
    for word in words:
        assert word in str(found.value)
    assert not list((tmp_path / "stores").glob("*/"))


@pytest.mark.parametrize("name", FILES)
def test_the_command_says_it_too(name, copied, warmstart, finished_text):
    path, override, file = copied(name)
    file.write_bytes(picture(b""))
    warmstart(finished_text.folder, "run", path, override, "--json").refused(FAULTS[name, "a picture"][1])


def with_more(file: Path, rows: list[dict]) -> None:
    if file.suffix == ".csv":
        pd.concat([pd.read_csv(file), pd.DataFrame(rows)]).to_csv(file, index=False)
    elif file.suffix == ".jsonl":
        file.write_text(file.read_text() + "".join(json.dumps(row) + "\n" for row in rows))
    else:
        file.write_text(file.read_text() + "\n" + "\n\n".join(row["lines"] for row in rows) + "\n")


@pytest.mark.parametrize("name", SET_ASIDE)
def test_a_row_that_cannot_be_used_is_set_aside_with_its_reason(name, copied, tmp_path):
    path, override, file = copied(name)
    whole = stored(path, tmp_path / "whole", override)
    with_more(file, [row for row, _ in SET_ASIDE[name]])
    store = stored(path, tmp_path, override, "data.quarantine_limit=0.3")
    assert sorted(store.table["row_id"]) == sorted(whole.table["row_id"])
    assert len(store.quarantine) == len(SET_ASIDE[name])
    for reason, (_, words) in zip(store.quarantine["reason"], SET_ASIDE[name], strict=True):
        assert words in reason


def test_an_answer_is_found_again_where_its_offset_is_off(copied, tmp_path):
    path, override, file = copied("answering")
    context = "It rained. " * 4 + "In the evening Otto came."
    with_more(file, [{"id": "off", "question": "Who came?", "context": context, "answers": {"text": ["Otto"], "answer_start": [3]}}])
    store = stored(path, tmp_path, override)
    row = store.table.index[store.table["key"] == "off"].item()
    tokens, offsets = np.asarray(store.array[row]), np.asarray(store.arrays["offsets"][row]).reshape(-1, 2)
    first, last = (int(np.flatnonzero(tokens & role)[0]) - (len(tokens) - 1 - len(offsets)) for role in (FIRST, LAST))
    assert context[offsets[first, 0] : offsets[last, 1]] == "Otto" and len(store.quarantine) == 0


FEW = ["pretraining.fit.epochs=1", "finetuning.fit.epochs=1", "finetuning.baseline=false", "finetuning.classical=false"]


def test_a_run_goes_on_past_bad_rows_and_tells_of_them(copied, warmstart, tmp_path):
    path, override, file = copied("translation")
    with_more(file, [row for row, _ in SET_ASIDE["translation"]])
    done = warmstart(tmp_path, "run", path, override, "data.quarantine_limit=0.3", *FEW, "--json")
    assert done.result["metrics"]["bleu"]["n"] > 0 and "Traceback" not in done.err
    page = Path(done.result["report"]).read_text(encoding="utf-8")
    assert "no translation of one another" in page and "the target is missing" in page


def with_classes(root: Path, column: str, values: list) -> list[str]:
    """A Parquet file with Hugging Face's map of classes, and a label that it lacks."""
    table = pa.table({column: values, "label": [0, 1] * (len(values) // 2 - 1) + [0, 7]})
    names = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["salt", "sea"]}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), root / "rows.parquet")
    return [f"{SOURCE}={root / 'rows.parquet'}"]


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_label_that_is_not_in_the_class_map(kind, finished_text, warmstart, tiny, tiny_text, tmp_path):
    values = [picture(b"") for _ in range(12)] if kind == "image" else [f"text number {row} of a few" for row in range(12)]
    overrides = (["data.source.name=parquet"] if kind == "image" else []) + with_classes(tmp_path, kind, values)
    done = warmstart(finished_text.folder, "run", tiny if kind == "image" else tiny_text, *overrides, "--json")
    done.refused(["'label' holds '7'", "map of classes lacks", "expected 0 to 1 (salt, sea)", "Mend those rows"])


def test_a_class_that_training_lacks(copied, tmp_path):
    path, override, file = copied("text")
    rows = pd.read_csv(file)
    file.unlink()
    rows[:100].to_csv(file.parent / "train.csv", index=False)
    rows[100:].assign(label="harbour").to_csv(file.parent / "test.csv", index=False)
    with pytest.raises(InputError, match=r"no training row is left of class 'harbour' \(20 readable rows\).*add"):
        stored(path, tmp_path, override)


def test_weights_that_read_another_vocabulary(copied, finished_text, warmstart, tmp_path):
    """Of equal size, so that every tensor would fit; what the message says to do is enough."""
    path, override, file = copied("text")
    rows = pd.read_csv(file)
    letters = "abcdefghijklmnopqrstuvwxyz"
    rows["text"] = rows["text"].map(lambda text: text.translate(str.maketrans(letters, letters[1:] + letters[:1])))
    rows.to_csv(file, index=False)
    run = MlflowClient(f"sqlite:///{finished_text.folder / 'mlflow.db'}").get_run(finished_text.stages()["pretrain"])
    weights = [f"weights=runs:/{run.info.run_id}", "pretraining.enabled=false", "finetuning.fit.epochs=1", "finetuning.baseline=false", "finetuning.classical=false"]
    done = warmstart(finished_text.folder, "run", path, override, *weights, "--json")
    done.refused(["another tokenizer", "ids mean another token", "data.modality.options.tokenizer_path="])
    folder = done.err.partition("tokenizer_path=")[2].partition(", so")[0].replace("\n", "").strip()
    again = warmstart(finished_text.folder, "run", path, override, *weights, f"data.modality.options.tokenizer_path={folder}", "--json")
    assert again.result["metrics"]["accuracy"]["n"] > 0
