"""From tables and files of text to a store: what stays, what goes, what is learnt from it, and what a kill costs."""

import io
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ml import tokenizing
from ml.contracts import UNLABELLED, InputError
from ml.modalities.text import texts
from ml.overview import overview
from ml.preprocess import preprocess, summary
from ml.recipe import Data
from ml.store import Store

WORDS = {
    "a": ["harbour", "sail", "mast", "storm", "anchor", "tide", "crew", "deck"],
    "b": ["flour", "oven", "sugar", "butter", "pinch", "bowl", "whisk", "bake"],
}
COMMON = ["the", "and", "with", "of", "in", "on", "a", "then", "quickly", "slowly", "never", "always", "some", "many"]


def sentence(label: str, seed: int, words: int = 14) -> str:
    """Words of which some tell the class."""
    draw = random.Random(f"{label}{seed}")
    return " ".join(draw.choice(WORDS[label] if draw.random() < 0.4 else COMMON) for _ in range(words))


def frame(rows: int = 60, **columns) -> pd.DataFrame:
    labels = ["ab"[row % 2] for row in range(rows)]
    return pd.DataFrame({"text": [sentence(label, row) for row, label in enumerate(labels)], "label": labels, **columns})


def run(where: Path, path: Path, source: str = "text-table", **data) -> Store:
    options = {"path": str(path), **data.pop("source_options", {})}
    modality = {"name": "text", "options": data.pop("options", {"max_length": 32, "vocabulary": 300})}
    recipe = Data.model_validate({"source": {"name": source, "options": options}, "modality": modality, "workers": 2, **data})
    return preprocess(recipe.source.make(), recipe.modality.make(), recipe, where / "work", where / "stores")


def written(path: Path, rows: pd.DataFrame) -> Path:
    rows.to_parquet(path)
    return path


def stored(store: Store) -> list[str]:
    return list(texts(store.arrays["text"]))


def parts(store: Store) -> dict[int, str]:
    """The part of each row of the table that was read, by its number."""
    return {int(key.rpartition(":")[2]): part for key, part in zip(store.table["key"], store.table["part"], strict=True)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Path, Store]:
    folder = tmp_path_factory.mktemp("plain")
    path = written(folder / "rows.parquet", frame())
    return path, run(folder, path)


def test_a_table_becomes_a_store(plain):
    store = plain[1]
    store.verify()
    table = store.table
    assert list(table.columns) == ["row_id", "key", "label", "split", "part", "group", "slice", "characters"]
    assert stored(store) == frame()["text"].tolist()
    assert table["characters"].tolist() == frame()["text"].str.len().tolist()
    assert [store.spec.classes[label] for label in store.labels] == frame()["label"].tolist()
    assert store.manifest["parts"].keys() == {"train", "test"} and store.manifest["parts"]["test"] >= 6
    marks, tokenizer = store.spec.statistics["tokens"], tokenizing.load(store.spec.statistics["tokenizer"])
    for ids, text in zip(store.array, stored(store), strict=True):
        assert ids.tolist() == [marks["begin"], *tokenizing.encode(tokenizer, [text])[0], marks["end"]]


def test_the_result_depends_on_the_data_alone(plain, tmp_path):
    path, store = plain
    assert run(tmp_path, path, workers=1).digest == store.digest


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_the_same_texts_in_another_table_are_the_same_rows(plain, tmp_path, suffix):
    path, rows = tmp_path / f"rows.{suffix}", frame()
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows.to_dict("records")))
    elif suffix == "parquet":
        rows.to_parquet(path)
    else:
        rows.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    store = run(tmp_path, path)
    assert stored(store) == stored(plain[1]) and store.labels.tolist() == plain[1].labels.tolist()
    assert store.spec == plain[1].spec


def test_the_tokenizer_learns_from_training_rows_alone(tmp_path):
    rows = frame(120, split=["test" if row % 3 == 0 else "validation" if row % 3 == 1 else "train" for row in range(120)])
    rows.loc[rows["split"] == "test", "text"] += " zebra"
    rows.loc[rows["split"] == "validation", "text"] += " yonder"
    rows.loc[rows["split"] == "train", "text"] += " xylophone"
    options = {"max_length": 32, "vocabulary": 1000}
    further = pd.DataFrame({"text": [f"{sentence('a', 900 + row)} wigwam" for row in range(20)], "label": None, "split": "train"})
    store = run(tmp_path, written(tmp_path / "x.parquet", pd.concat([rows, further])), options=options, source_options={"split": "split"})
    tokenizer = tokenizing.load(store.spec.statistics["tokenizer"])
    words = ("xylophone", "wigwam", "zebra", "yonder", "the")
    assert [word for word in words if word in tokenizer.get_vocab()] == ["xylophone", "wigwam", "the"]
    assert "z" not in "".join(tokenizer.get_vocab())
    changed = rows.assign(text=rows["text"].str.replace("zebra", "yak").str.replace("yonder", "yeti"))
    other = run(
        tmp_path, written(tmp_path / "y.parquet", pd.concat([changed, further])), options=options, source_options={"split": "split"}
    )
    assert other.spec == store.spec and other.digest != store.digest


@pytest.mark.parametrize("label", ["a", None])
def test_a_near_copy_of_a_test_row_leaves_training(tmp_path, label):
    rows = frame(60, split=["test" if row < 20 else "train" for row in range(60)])
    long = " ".join(sentence("a", 500 + part) for part in range(5))
    rows.loc[0, "text"] = long
    copies = pd.DataFrame({"text": [f"{long} indeed.", f"<b>{long.upper()}</b>", long], "label": label, "split": "train"})
    store = run(tmp_path, written(tmp_path / "x.parquet", pd.concat([rows, copies], ignore_index=True)), source_options={"split": "split"})
    assert not {60, 61, 62} & set(parts(store)) and parts(store)[0] == "test"
    assert store.manifest["leakage"] == {"exact": 1, "near": 2} and store.manifest["test"] == "official"


def test_near_copies_stay_on_one_side_of_a_drawn_test(tmp_path):
    rows = frame(80)
    rows["text"] = [
        f"{text} {sentence(label, 7000 + row, 30)}" for row, (text, label) in enumerate(zip(rows["text"], rows["label"], strict=True))
    ]
    again = rows.assign(text=rows["text"] + "!")
    store = run(tmp_path, written(tmp_path / "x.parquet", pd.concat([rows, again.assign(text=again["text"] + " yes")], ignore_index=True)))
    found, groups = parts(store), dict(zip(store.table["key"].str.rpartition(":")[2].astype(int), store.table["group"], strict=True))
    assert len(found) == 160 and set(found.values()) == {"train", "test"}
    assert all(found[row] == found[row + 80] and groups[row] == groups[row + 80] for row in range(80))
    assert store.manifest["largest_group"] == 2


def test_exact_copies_go_and_conflicts_are_flagged(tmp_path):
    rows = frame(40)
    more = pd.DataFrame({"text": [f"  {rows['text'][0]}\r\n", rows["text"][1]], "label": [rows["label"][0], "a"]})
    store = run(tmp_path, written(tmp_path / "x.parquet", pd.concat([rows, more], ignore_index=True)))
    assert set(range(42)) - set(parts(store)) == {1, 40, 41}
    assert store.manifest["duplicates"]["exact"] == 1
    assert store.manifest["conflicts"] == {
        "items": 1,
        "rows": 2,
        "examples": [{"keys": ["x.parquet:1", "x.parquet:41"], "labels": ["a", "b"]}],
    }


def test_what_cannot_be_used_is_set_aside_with_its_reason(tmp_path):
    rows = frame(60)
    bad = ["", None, "\u200b <br>", "x " * 5_000_000, "\0\1\2" * 50]
    rows = pd.concat([rows, pd.DataFrame({"text": bad, "label": "a"})], ignore_index=True)
    path = written(tmp_path / "x.parquet", rows)
    with pytest.raises(InputError, match=r"5 of 65 items cannot be used \(7.7%, the limit is 5.0%\).*data.quarantine_limit to 0.08"):
        run(tmp_path, path)
    store = run(tmp_path, path, quarantine_limit=0.1)
    assert stored(store) == rows["text"][:60].tolist()
    reasons = store.quarantine.set_index("key")["reason"]
    assert reasons.index.tolist() == [f"x.parquet:{row}" for row in range(60, 65)]
    for reason, words in zip(
        reasons, ["the text is missing", "the text is missing", "empty", "10,000,000 bytes, above the limit", "binary"], strict=True
    ):
        assert words in reason
    assert store.quarantine["bytes"].tolist()[3:] == [10_000_000, 150]


def test_ten_million_characters_that_fit_the_bytes_are_one_bad_row_too(tmp_path):
    rows = pd.concat([frame(60), pd.DataFrame({"text": ["wort " * 2_000_000], "label": "a"})], ignore_index=True)
    options = {"max_length": 32, "vocabulary": 300, "max_bytes": 2**28}
    store = run(tmp_path, written(tmp_path / "x.parquet", rows), options=options)
    assert "9,999,999 characters, above the limit of 200,000" in store.quarantine["reason"].item() and len(store.table) == 60


def test_a_csv_in_another_encoding(tmp_path):
    rows = frame(40)
    rows["text"] = ["Żółw zjadł źdźbło trawy — „" + text + "” i świeży chléb" for text in rows["text"]]
    (tmp_path / "x.csv").write_bytes(rows.to_csv(index=False).encode("cp1250"))
    (tmp_path / "y.csv").write_bytes(rows.to_csv(index=False).encode("utf-16"))
    assert stored(run(tmp_path, tmp_path / "y.csv")) == rows["text"].tolist()
    assert stored(run(tmp_path, tmp_path / "x.csv")) == rows["text"].tolist()


def test_a_binary_file_among_texts(tmp_path):
    for row, (text, label) in enumerate(frame(40).itertuples(index=False)):
        (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / label / f"{row:02d}.txt").write_text(text)
    picture = io.BytesIO()
    Image.effect_noise((32, 32), 50).save(picture, "PNG")
    (tmp_path / "data" / "a" / "picture.txt").write_bytes(picture.getvalue())
    store = run(tmp_path, tmp_path / "data", source="text-folder")
    assert store.quarantine[["key", "reason"]].to_numpy().tolist() == [["a/picture.txt", "binary, not text"]]
    assert sorted(stored(store)) == sorted(frame(40)["text"])


@pytest.mark.parametrize("text", ["", None, " ", "\u200b"])
def test_a_column_without_any_text(tmp_path, text):
    with pytest.raises(InputError, match=r"none of the 20 items can be read: 20 x (the text is missing|empty)"):
        run(tmp_path, written(tmp_path / "x.parquet", frame(20).assign(text=text)), quarantine_limit=1.0, options={})


@pytest.mark.parametrize(("labels", "message"), [("a", "one class only: 'a'"), (None, "no labelled row")])
def test_too_few_classes(tmp_path, labels, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path, written(tmp_path / "x.parquet", frame(20).assign(label=labels)))


def test_rows_without_label_serve_pretraining_but_not_the_test(tmp_path):
    rows = frame(90).assign(part=["test" if row < 30 else "train" for row in range(90)])
    rows.loc[rows.index % 3 == 0, "label"] = None
    store = run(tmp_path, written(tmp_path / "x.parquet", rows), source_options={"split": "part"})
    assert store.manifest["parts"] == {"test": 20, "train": 40, "unlabelled": 20}
    assert ((store.labels == UNLABELLED) == (store.table["part"] == "unlabelled")).all()


def test_length_and_vocabulary_are_planned_from_the_data(tmp_path):
    rows = frame(60).assign(text=[sentence("ab"[row % 2], row, 60) for row in range(60)])
    store = run(tmp_path, written(tmp_path / "x.parquet", rows), options={})
    assert store.spec.shape == (128,) and store.spec.options["vocabulary"] <= 2000


def test_private_data_never_reach_the_store(tmp_path):
    rows = frame(40)
    rows["text"] += [f" mail jane{row}@example.org" for row in range(40)]
    store = run(tmp_path, written(tmp_path / "x.parquet", rows), options={"max_length": 32, "vocabulary": 300, "mask_private": True})
    assert store.table["email"].tolist() == [1] * 40
    assert not any(b"@example" in path.read_bytes() for path in store.path.iterdir())


KILLED = """
import sys
from pathlib import Path
from ml import decoding
from ml.preprocess import preprocess
from ml.recipe import Data
decoding.RAGGED_ROWS = 25
data = Data.model_validate({"source": {"name": "text-table", "options": {"path": sys.argv[1]}}, "workers": 1,
                            "modality": {"name": "text", "options": {"max_length": 32, "vocabulary": 300}}})
folder = Path(sys.argv[2])
preprocess(data.source.make(), data.modality.make(), data, folder / "work", folder / "stores")
"""


def test_killed_in_the_middle_of_decoding_it_goes_on_from_there(plain, tmp_path, monkeypatch):
    from ml import decoding
    from ml.sources.text_table import TextTable

    path, store = plain
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "WARMSTART_TESTING": "1",
        "WARMSTART_CRASH_AT": "preprocess.chunk",
    }
    done = subprocess.run([sys.executable, "-c", KILLED, path, tmp_path], env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not [one for one in (tmp_path / "stores").glob("*") if not one.name.startswith(".")]
    with (tmp_path / "work" / "decoded" / "rows.bin").open("ab") as rows:
        rows.write(b"half a row that was written when the power went")
    monkeypatch.setattr(decoding, "RAGGED_ROWS", 25)  # a chunk of the run that was killed
    read = []

    class Counted(TextTable):
        def read(self, keys):
            read.append(len(keys))
            return super().read(keys)

    data = Data.model_validate(
        {"source": "sklearn-digits", "workers": 2, "modality": {"name": "text", "options": {"max_length": 32, "vocabulary": 300}}}
    )
    again = preprocess(Counted(TextTable.Options(path=str(path))), data.modality.make(), data, tmp_path / "work", tmp_path / "stores")
    assert read == [35]
    assert again.digest == store.digest
    assert [one.name for one in (tmp_path / "stores").iterdir()] == [store.digest]


def test_chunks_of_another_plan_are_not_taken(plain, tmp_path, monkeypatch):
    from ml import decoding

    path, store = plain
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(decoding, "RAGGED_ROWS", 25)
        patch.setattr(decoding, "crash_point", lambda name: (_ for _ in ()).throw(KeyboardInterrupt))
        run(tmp_path, path, options={"max_length": 32, "vocabulary": 300, "form": "NFKC"})
    assert list((tmp_path / "work" / "decoded").glob("facts-*"))
    assert run(tmp_path, path).digest == store.digest


def test_the_summary_and_the_overview(tmp_path):
    rows = frame(40)
    rows.loc[0, "text"] = "😀 日本 $x^{ ‏שלום " + rows["text"][0]
    modality_options = {"max_length": 8, "vocabulary": 300}
    rows = pd.concat([rows, pd.DataFrame({"text": [""], "label": "a"})], ignore_index=True)
    store = run(tmp_path, written(tmp_path / "x.parquet", rows), options=modality_options)
    facts = summary(store)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["shape"] == [8] and facts["reasons"] == {"the text is missing": 1}
    recipe = Data.model_validate({"source": "sklearn-digits", "modality": {"name": "text", "options": modality_options}})
    figures = overview(store, recipe.modality.make())
    assert set(figures) == {"classes", "lengths", "sample", "quarantine"}
    mistakes = recipe.modality.make().mistakes([{"predicted": "a", "label": "b", "probability": 0.9}], store, np.array([0]))
    for figure in [*figures.values(), mistakes]:
        out = io.BytesIO()
        figure.savefig(out)
        assert Image.open(out).getextrema() != ((255, 255),) * 4


@pytest.mark.parametrize("signs", ["words", "signs"])
def test_the_classical_alternative_tells_the_classes(tmp_path, signs):
    rows = frame(120)
    if signs == "signs":  # no letter at all
        rows["text"] = [
            " ".join(random.Random(row).choices("🙂👍🎉" if label == "a" else "🙁👎💔", k=9)) for row, label in enumerate(rows["label"])
        ]
        rows = rows.drop_duplicates("text")
    store = run(tmp_path, written(tmp_path / "x.parquet", rows), near_duplicates=False)
    recipe = Data.model_validate({"source": "sklearn-digits", "modality": "text"})
    train, test = np.flatnonzero(store.table["part"] == "train"), np.flatnonzero(store.table["part"] == "test")
    found = recipe.modality.make().alternative(store, train[::2], train[1::2], test, 0)
    assert found.answers.shape == (len(test), 2) and np.allclose(found.answers.sum(1), 1)
    assert (found.answers.argmax(1) == store.labels[test]).mean() > 0.9


def without_labels(where, tmp_path, labelled=False, source="text-folder", **files):
    (tmp_path / "data").mkdir(exist_ok=True)
    for name, lines in files.items():
        if source == "text-folder":
            (tmp_path / "data" / f"{name}.txt").write_text("\n\n".join(lines))
        else:
            pd.DataFrame({"text": lines}).to_csv(tmp_path / "data" / f"{name}.csv", index=False)
    source = {"name": source, "options": {"path": str(tmp_path / "data")} | ({"unit": "paragraph"} if source == "text-folder" else {})}
    data = Data.model_validate({"source": source, "modality": {"name": "text", "options": {"max_length": 16, "vocabulary": 300}}, "near_duplicates": False})
    return preprocess(data.source.make(), data.modality.make(), data, where / "work", where / "stores", labelled)


def told(start, count):
    return [f"paragraph {number} tells of {number * 7}" for number in range(start, start + count)]


@pytest.mark.parametrize("source", ["text-folder", "text-table"])
def test_rows_without_any_label_are_of_one_kind_and_a_test_is_reserved(tmp_path, source):
    store = without_labels(tmp_path, tmp_path, source=source, book=told(0, 60))
    assert store.spec.classes == () and set(store.labels) == {0}
    assert set(store.table["part"]) == {"train", "test"} and 3 <= (store.table["part"] == "test").sum() <= 30
    assert summary(store)["imbalance"] == 1


@pytest.mark.parametrize("source", ["text-folder", "text-table"])
@pytest.mark.parametrize("training", ["train", "book"])
def test_their_files_names_tell_the_parts(tmp_path, source, training):
    files = {training: told(0, 30), "validation": told(30, 10), "test": told(40, 12), "unsup": told(52, 5)}
    store = without_labels(tmp_path, tmp_path, source=source, **files)
    assert store.table["part"].value_counts().to_dict() == {"train": 30, "test": 12, "validation": 10, "unlabelled": 5}
    assert store.manifest["test"] == "official"


@pytest.mark.parametrize("source", ["text-folder", "text-table"])
@pytest.mark.parametrize("names", [["book"], ["train", "test"]])
def test_where_labels_are_needed_their_want_is_an_error(tmp_path, source, names):
    with pytest.raises(InputError, match="no labelled row"):
        without_labels(tmp_path, tmp_path, labelled=True, source=source, **{name: told(20 * place, 20) for place, name in enumerate(names)})


@pytest.mark.parametrize("source", ["text-folder", "text-table"])
def test_nothing_but_test_and_validation_rows_is_an_error_that_knows_no_class(tmp_path, source):
    with pytest.raises(InputError, match=r"none of the 22 readable rows is left to train on.*Add rows"):
        without_labels(tmp_path, tmp_path, source=source, validation=told(30, 10), test=told(40, 12))
