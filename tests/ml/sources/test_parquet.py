"""Parquet files with pictures in a column."""

import os

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml.contracts import InputError
from ml.sources.parquet import Parquet


def source(path, **options):
    return Parquet(Parquet.Options(path=str(path), **options))


@pytest.fixture
def table(png):
    return pd.DataFrame(
        {
            "image": [png(n) for n in range(300)],
            "label": [n % 3 for n in range(300)],
            "part": ["test" if n % 10 == 0 else "train" for n in range(300)],
            "patient": [n // 2 for n in range(300)],
            "site": ["north" if n < 100 else "south" for n in range(300)],
        }
    )


def test_a_file_with_all_its_columns(table, tmp_path, png):
    table.to_parquet(tmp_path / "x.parquet", row_group_size=70)
    one = source(tmp_path / "x.parquet", split="part", group="patient", slice="site")
    frame = one.scan()
    assert frame.iloc[11].to_dict() == {"key": "x.parquet#11", "label": "2", "split": "train", "group": "5", "slice": "north"}
    keys = frame["key"].tolist()
    assert [raw.data for raw in one.read(keys)] == table["image"].tolist()
    jumping = [299, 3, 3, 71, 70, 140]
    assert [raw.data for raw in one.read([keys[row] for row in jumping])] == [png(row) for row in jumping]
    assert next(one.read(["x.parquet#300"])).data is None


def test_files_named_after_parts(table, tmp_path):
    (tmp_path / "set").mkdir()
    for name, rows in {"train-0.parquet": slice(0, 200), "train-1.parquet": slice(200, 250), "test.parquet": slice(250, 290)}.items():
        table.iloc[rows].to_parquet(tmp_path / "set" / name)
    table.iloc[290:].drop(columns="label").to_parquet(tmp_path / "set" / "unsupervised.parquet")
    (tmp_path / "set" / "_SUCCESS.parquet").write_text("not data")
    one = source(tmp_path / "set")
    frame = one.scan()
    assert frame["split"].value_counts().to_dict() == {"train": 250, "test": 40, "unlabelled": 10}
    assert frame["key"].is_unique
    assert frame["label"].isna().sum() == 10
    read = dict(zip(frame["key"], one.read(frame["key"].tolist()), strict=True))
    assert read["test.parquet#3"].data == table["image"][253]


def test_hugging_face_structs_and_class_names(table, tmp_path):
    values = pa.array([{"bytes": image, "path": None} for image in table["image"][:6]])
    schema = pa.schema(
        [("image", values.type), ("label", pa.int64())],
        metadata={"huggingface": '{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'},
    )
    pq.write_table(pa.table({"image": values, "label": [0, 1, -1, 1, 0, 1]}, schema=schema), tmp_path / "x.parquet")
    one = source(tmp_path / "x.parquet")
    assert one.scan()["label"].tolist() == ["cat", "dog", None, "dog", "cat", "dog"]
    assert next(one.read(["x.parquet#4"])).data == table["image"][4]


def test_paths_stay_in_the_folder(tmp_path, png):
    (tmp_path / "set" / "pictures").mkdir(parents=True)
    (tmp_path / "set" / "pictures" / "1.png").write_bytes(png(1))
    (tmp_path / "secret.png").write_bytes(png(2))
    paths = ["pictures/1.png", "../secret.png", str(tmp_path / "secret.png"), "http://localhost/x.png", None, ""]
    pd.DataFrame({"image": paths, "label": list("ababab")}).to_parquet(tmp_path / "set" / "x.parquet")
    raws = list(source(tmp_path / "set" / "x.parquet").read([f"x.parquet#{row}" for row in range(6)]))
    assert raws[0].data == png(1)
    assert [raw.data for raw in raws[1:]] == [None] * 5
    assert all(raw.reason for raw in raws[1:])


def test_a_readable_name_for_classes(table, tmp_path):
    table.assign(name=table["label"].map({0: "x", 1: "y", 2: "z"})).to_parquet(tmp_path / "x.parquet")
    assert set(source(tmp_path / "x.parquet", label_name="name").scan()["label"]) == {"x", "y", "z"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "target"}, "no column 'target' for `label`; it has 'image', 'label', 'part'"),
        ({"image": "picture"}, "no column 'picture' for `image`"),
        ({"group": "family"}, "no column 'family' for `group`"),
        ({"split": "site"}, "split column 'site' holds 'north'"),
    ],
)
def test_columns_that_are_missing_or_strange(table, tmp_path, options, message):
    table.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=message):
        source(tmp_path / "x.parquet", **options).scan()


def test_files_that_are_no_parquet(table, tmp_path):
    table.to_parquet(tmp_path / "x.parquet")
    data = (tmp_path / "x.parquet").read_bytes()
    for damaged in (b"", data[:-100], b"PAR1" + b"x" * 100):
        (tmp_path / "x.parquet").write_bytes(damaged)
        with pytest.raises(InputError, match="not a whole Parquet file"):
            source(tmp_path / "x.parquet").scan()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no Parquet file"):
        source(tmp_path / "empty").scan()


def test_a_damaged_page_spoils_its_rows_alone(table, tmp_path, png):
    table.to_parquet(tmp_path / "x.parquet", row_group_size=100, compression="zstd")
    column = pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(1).column(0)
    with (tmp_path / "x.parquet").open("r+b") as file:
        file.seek(column.dictionary_page_offset or column.data_page_offset)
        file.write(os.urandom(column.total_compressed_size // 2))
    one = source(tmp_path / "x.parquet")
    raws = list(one.read(one.scan()["key"].tolist()))
    assert len(raws) == 300
    assert [raw.data for raw in raws[:100]] == [png(row) for row in range(100)]
    assert [raw.data for raw in raws[200:]] == [png(row) for row in range(200, 300)]
    assert all("damaged" in raw.reason for raw in raws[100:200])


def test_a_file_behind_a_url(table, tmp_path):
    table.to_parquet(tmp_path / "x.parquet")
    files = fsspec.filesystem("memory")
    files.pipe("/sets/x.parquet", (tmp_path / "x.parquet").read_bytes())
    for path in ("memory://sets/x.parquet", "memory://sets"):
        one = source(path)
        assert len(one.scan()) == 300
        assert next(one.read(["x.parquet#7"])).data == table["image"][7]
    files.rm("/sets", recursive=True)
    with pytest.raises(InputError, match="nothing at"):
        source("memory://sets/x.parquet").scan()
    with pytest.raises(InputError, match="cannot use the URL"):
        source("nosuchprotocol://x/y.parquet").scan()
