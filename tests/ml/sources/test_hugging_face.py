"""Data sets that Hugging Face's `datasets` loads or has saved. They are made here; nothing is fetched."""

import builtins
import socket

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml.contracts import InputError
from ml.modalities import MODALITIES
from ml.preprocess import preprocess
from ml.recipe import Data
from ml.sources import SOURCES, hugging_face
from ml.sources.hugging_face import HuggingFace

datasets = pytest.importorskip("datasets")
ROWS = {
    "train": [(f"gold {n} and sail, oven and mast of row {n * n}", ("sea", "salt")[n % 2]) for n in range(90)],
    "test": [(f"harbour {n} with flour, row {n * n + 3}", ("sea", "salt")[n % 2]) for n in range(30)],
}


@pytest.fixture(autouse=True)
def _own_cache_and_no_network(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{port}")  # where nobody listens


def source(path, **options) -> HuggingFace:
    return HuggingFace(HuggingFace.Options(path=str(path), **options))


def write(folder, suffix="jsonl", rows=ROWS):
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in rows.items():
        frame = pd.DataFrame(part, columns=["text", "label"])
        if suffix == "jsonl":
            frame.to_json(folder / f"{split}.jsonl", orient="records", lines=True)
        elif suffix == "csv":
            frame.to_csv(folder / f"{split}.csv", index=False)
        else:
            frame.to_parquet(folder / f"{split}.parquet", row_group_size=20)
    return folder


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_folder_of_tables(tmp_path, suffix):
    one = source(write(tmp_path / "texts", suffix))
    frame = one.scan()
    assert frame["split"].value_counts().to_dict() == {"train": 90, "test": 30}
    assert frame.iloc[1].to_dict() == {"key": "test:1", "label": "salt", "split": "test", "group": None, "slice": None}
    jumping = ["train:89", "test:3", "train:3", "train:3", "test:30", "test:x", "dev:0"]
    told = list(source(tmp_path / "texts").read(jumping))
    assert [raw.data for raw in told[:4]] == [ROWS[split][row][0].encode() for split, row in (("train", 89), ("test", 3), ("train", 3), ("train", 3))]
    assert [raw.reason for raw in told[4:]] == ["the split has no row 30", "the split has no row -1", "the data set has no split 'dev'"]


def test_splits_as_they_are_called(tmp_path):
    rows = {"train": ROWS["train"][:4], "validation": ROWS["test"][:2], "test": [("a text", None)], "unsupervised": [("b", None), (None, None)], "extra": ROWS["test"][:1]}
    tables = {name: datasets.Dataset.from_pandas(pd.DataFrame(part, columns=["text", "label"], dtype=object), preserve_index=False) for name, part in rows.items()}
    datasets.DatasetDict({name: table.cast_column("label", datasets.Value("string")) for name, table in tables.items()}).save_to_disk(tmp_path / "set")
    one = source(tmp_path / "set")
    frame = one.scan()
    assert frame["split"].tolist() == ["train", "test"] + ["train"] * 4 + ["unlabelled"] * 2 + ["validation"] * 2
    assert frame["label"].isna().tolist() == [False, True] + [False] * 4 + [True] * 2 + [False] * 2
    assert [raw.reason for raw in one.read(["unsupervised:0", "unsupervised:1"])] == ["", "the text is missing"]


def test_one_table_alone_has_no_official_split(tmp_path):
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]}, split="test").save_to_disk(tmp_path / "set")
    for path, key in ((tmp_path / "set", "rows:0"), (write(tmp_path / "texts", rows={"train": ROWS["train"]}), "train:0")):
        frame = source(path).scan()
        assert frame["split"].isna().all() and frame["key"][0] == key


def test_pictures_in_folders_of_classes(tree, png):
    root = tree(*(f"{split}/{name}/{n}.png" for split in ("train", "test") for name in ("cat", "dog") for n in range(3)))
    one = source(root)
    frame = one.scan()
    assert frame.groupby(["split", "label"]).size().to_dict() == {(split, name): 3 for split in ("train", "test") for name in ("cat", "dog")}
    assert {raw.data for raw in one.read(frame["key"].tolist())} == {png(number) for number in range(12)}
    gone = root / "test" / "dog" / "2.png"
    gone.unlink()
    assert [raw.reason for raw in one.read(frame["key"].tolist()) if raw.data is None] == ["cannot be read: No such file or directory"]


def test_names_of_classes_and_of_none(tmp_path, png):
    features = datasets.Features({"image": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])})
    values = {"image": [{"bytes": png(n), "path": f"{n}.png"} for n in range(4)], "kind": [1, 0, -1, 1]}
    datasets.Dataset.from_dict(values, features=features).save_to_disk(tmp_path / "set")
    one = source(tmp_path / "set")
    frame = one.scan()
    assert frame["label"].tolist() == ["dog", "cat", None, "dog"]
    assert [raw.data for raw in one.read(frame["key"].tolist())] == [png(n) for n in range(4)]


def test_several_labels_a_row(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "labels": datasets.List(datasets.ClassLabel(names=["a", "b", "c"]))})
    datasets.Dataset.from_dict({"text": ["x", "y", "z"], "labels": [[0, 2], [], [1]]}, features=features).save_to_disk(tmp_path / "set")
    assert source(tmp_path / "set").scan()["label"].tolist() == [("a", "c"), (), ("b",)]


def test_groups_and_slices(tmp_path):
    columns = {"text": ["a", "b"], "label": ["x", "y"], "author": [7, 8], "site": ["north", None]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "set")
    frame = source(tmp_path / "set", group="author", slice="site").scan()
    assert frame["group"].tolist() == ["7", "8"] and frame["slice"].tolist() == ["north", None]


def test_pictures_elsewhere_are_not_read(tmp_path, png):
    (tmp_path / "secret.png").write_bytes(png(1))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "own.png").write_bytes(png(2))
    paths = [tmp_path / "secret.png", tmp_path / "set" / ".." / "secret.png", tmp_path / "set" / "own.png", None]
    values = pa.array([{"bytes": None, "path": path and str(path)} for path in paths], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    schema = pa.schema([("image", values.type)], metadata={"huggingface": '{"info": {"features": {"image": {"_type": "Image"}}}}'})
    pq.write_table(pa.table({"image": values}, schema=schema), tmp_path / "set" / "x.parquet")
    (tmp_path / "set" / "own.png").rename(tmp_path / "own.png")  # beside pictures, the library would not look at the table
    one = source(tmp_path / "set")
    keys = one.scan()["key"].tolist()
    (tmp_path / "own.png").rename(tmp_path / "set" / "own.png")
    raws = list(one.read(keys))
    assert raws[2].data == png(2)
    assert [raw.reason for raw in (raws[0], raws[1], raws[3])] == ["a path that leads out of the folder"] * 2 + ["no picture in this row"]


def store(name, modality, tmp_path, **options):
    chosen = SOURCES[name]
    kind, data = MODALITIES[modality], Data(source={"name": name, "options": options}, modality=modality, workers=1)
    return preprocess(chosen(chosen.Options(**options)), kind(kind.Options()), data, tmp_path / f"work-{name}", tmp_path / "stores")


def same(first, second) -> None:
    """The stores hold the same but for what the sources call their rows."""
    assert first.spec == second.spec
    pd.testing.assert_frame_equal(first.table.drop(columns="key"), second.table.drop(columns="key"))
    rows = np.arange(len(first.table))
    for (name, one), (other, two) in zip(first.rows(rows).items(), second.rows(rows).items(), strict=True):
        assert name == other
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_texts_make_the_store_that_a_text_table_makes(tmp_path):
    path = str(write(tmp_path / "texts"))
    same(store("hugging-face", "text", tmp_path, path=path), store("text-table", "text", tmp_path, path=path))


def test_pictures_make_the_store_that_parquet_makes(tmp_path, png):
    (tmp_path / "pictures").mkdir()
    for split, numbers in (("train", range(20)), ("test", range(20, 30))):
        frame = pd.DataFrame({"image": [{"bytes": png(n, 16), "path": None} for n in numbers], "label": [n % 2 for n in numbers]})
        frame.to_parquet(tmp_path / "pictures" / f"{split}.parquet")
    path = str(tmp_path / "pictures")
    same(store("hugging-face", "image", tmp_path, path=path), store("parquet", "image", tmp_path, path=path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column": "body"}, "split 'train' of .* has no column 'body' for `column`; it has 'text', 'label', 'stars', 'parts'. Set data.source.options.column"),
        ({"column": "stars"}, "'stars' of .* holds int64; texts or pictures are expected"),
        ({"label": "target"}, "no column 'target' for `label`"),
        ({"group": "author"}, "no column 'author' for `group`"),
        ({"slice": "parts"}, "holds list<.*> as 'parts'; a text or a number is expected"),
        ({"revision": "main"}, "is a folder, and only data sets of the Hub have a revision"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"], "label": ["x"], "stars": [1], "parts": [["p"]]})}).save_to_disk(tmp_path / "set")
    with pytest.raises(InputError, match=message):
        source(tmp_path / "set", **options).scan()


def test_places_that_hold_no_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path / "texts", "csv"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("raise SystemExit('ran')")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "train.parquet").write_bytes(b"PAR1" + b"x" * 100)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "train.txt").symlink_to("/etc/passwd")
    for path, message in {
        "": "`path` is empty",
        str(tmp_path / "nowhere"): "nothing at",
        "texts.csv": "datasets cannot load 'texts.csv'.*network",
        "s3://bucket/set": "is a URL",
        "csv": "is a kind of files to datasets and no data set",
        str(tmp_path / "empty"): "datasets cannot load .*empty",
        str(tmp_path / "script"): "scripts are no longer supported",
        str(tmp_path / "damaged"): "datasets cannot load .*damaged",
        str(tmp_path / "linked"): "'train.txt' .* a link that leads out",
    }.items():
        with pytest.raises(InputError, match=message):
            source(path).scan()


def test_configurations(tmp_path):
    for name, split in (("small", "train"), ("large", "test")):
        write(tmp_path / "set" / name, rows={"train": ROWS[split]})
    (tmp_path / "set" / "README.md").write_text("---\nconfigs:\n- config_name: small\n  data_files: small/*.jsonl\n- config_name: large\n  data_files: large/*.jsonl\n---\n")
    assert [len(source(tmp_path / "set", name=name).scan()) for name in ("small", "large")] == [90, 30]
    with pytest.raises(InputError, match=r"Config name is missing.*\['small', 'large'\]"):
        source(tmp_path / "set").scan()
    assert source(tmp_path / "set", name="small").fingerprint() != source(tmp_path / "set", name="large").fingerprint()


def test_what_changes_is_seen(tmp_path):
    folder = write(tmp_path / "texts")
    before, count = source(folder).fingerprint(), len(source(folder).scan())
    assert source(folder).fingerprint() == before
    write(folder, rows={"test": ROWS["test"][:10]})
    assert source(folder).fingerprint() != before
    assert len(source(folder).scan()) == count - 20


def test_out_of_the_hub_s_reach_what_was_fetched_is_found(tmp_path, monkeypatch):
    fetched = source(write(tmp_path / "elsewhere" / "reviews"))
    frame = fetched.scan()
    monkeypatch.chdir(tmp_path)
    one = source("reviews")
    pd.testing.assert_frame_equal(one.scan(), frame)
    assert one.fingerprint() == source("reviews").fingerprint()
    assert len(source("reviews", revision=fetched._builder.hash).scan()) == len(frame)
    with pytest.raises(InputError, match="revision 'v2' of 'reviews' cannot be fetched"):
        source("reviews", revision="v2").scan()
    with pytest.raises(InputError, match=r"cannot load 'nobody/nothing'.*Check the name, and the network"):
        source("nobody/nothing").fingerprint()
    assert not datasets.config.HF_HUB_OFFLINE


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch):
    """It takes connections, and says nothing: the library would try six times, a minute each."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hugging_face, "SECONDS", 0.2)
        with pytest.raises(InputError, match="cannot load 'nobody/nothing'"):
            source("nobody/nothing").scan()
        silent.settimeout(0)
        silent.accept()[0].close()  # it was asked, once
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_without_the_library_it_says_how_to_install_it(tmp_path, monkeypatch):
    def refuse(name, *rest, real=builtins.__import__):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"warmstart\[datasets\]"):
        source(write(tmp_path / "texts")).scan()
