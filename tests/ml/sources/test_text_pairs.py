"""Pairs of texts in tables: the columns, the parts and slices, and rows that lack a side."""

import json
import os

import pandas as pd
import pyarrow.parquet as pq
import pytest

from ml.contracts import InputError
from ml.sources.text_pairs import TextPairs

PAIRS = pd.DataFrame({"source": ["A dog.", 'said "yes"', "naïve 🙂"], "target": ["Ein Hund.", "sagte ja", "naiv 🙂"]})


def source(path, **options):
    return TextPairs(TextPairs.Options(path=str(path), **options))


def pairs(one, keys=None):
    return [raw.data and json.loads(raw.data) for raw in one.read(one.scan()["key"].tolist() if keys is None else keys)]


def save(frame, path):
    """The table in the format that the path's name tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        frame.to_json(path, orient="records", lines=True)
    elif name.endswith(".parquet"):
        frame.to_parquet(path, row_group_size=100)
    else:
        frame.to_csv(path, index=False, sep="\t" if name.endswith(".tsv") else ",")
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "csv.gz", "parquet"])
def test_every_format_gives_the_same_pairs(tmp_path, suffix):
    rows = PAIRS.assign(part=["train", "dev", "test"], who=[1, 1, 2])
    one = source(save(rows, tmp_path / f"x.{suffix}"), split="part", group="who", slice="who")
    frame = one.scan()
    assert pairs(one) == PAIRS.to_dict("records")
    assert frame.iloc[1].to_dict() == {"key": f"x.{suffix}:1", "label": None, "split": "validation", "group": "1", "slice": "1"}
    assert pairs(one, [f"x.{suffix}:{row}" for row in (2, 0, 2, 7)]) == [*PAIRS.iloc[[2, 0, 2]].to_dict("records"), None]


@pytest.mark.parametrize("columns", [("src", "tgt"), ("Input", "Output"), ("text", "Translation")])
def test_columns_are_found_by_their_usual_names(tmp_path, columns):
    save(PAIRS.set_axis(columns, axis=1), tmp_path / "x.csv")
    assert pairs(source(tmp_path)) == PAIRS.to_dict("records")


def test_files_named_after_parts_and_slices_of_the_test(tmp_path):
    for name in ("train.tsv", "val.tsv", "test_2016.tsv", "test_2017.tsv"):
        save(PAIRS.iloc[:1], tmp_path / name)
    frame = source(tmp_path).scan()
    assert frame.groupby("split")["key"].first().to_dict() == {"test": "test_2016.tsv:0", "train": "train.tsv:0", "validation": "val.tsv:0"}
    assert frame["slice"].tolist() == ["test_2016", "test_2017", None, None]
    (tmp_path / "test_2017.tsv").unlink()
    assert source(tmp_path).scan()["slice"].tolist() == [None] * 3  # one file is no slice of itself
    for name in ("test/de.csv", "a/test.csv", "b/test.csv"):
        save(PAIRS.iloc[:1], tmp_path / "more" / name)
    assert source(tmp_path / "more").scan()["slice"].tolist() == ["a/test.csv", "b/test.csv", "test/de.csv"]


def test_texts_without_translations_serve_pretraining(tmp_path):
    save(PAIRS, tmp_path / "train.csv")
    save(PAIRS[["source"]], tmp_path / "unlabelled.csv")
    one = source(tmp_path)
    assert one.scan()["split"].tolist() == ["train"] * 3 + ["unlabelled"] * 3
    assert pairs(one, ["unlabelled.csv:0"]) == [{"source": "A dog."}]


def test_rows_that_lack_a_side(tmp_path):
    rows = [{"source": "a", "target": ""}, {"source": None, "target": "b"}, {"source": "c"}, {"source": "d", "target": 5}, {"source": "e", "target": "f"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    raws = list(source(tmp_path).read([f"x.jsonl:{row}" for row in range(5)]))
    missing = [f"the {side} is missing" for side in ("target", "source", "target")]
    assert [raw.reason for raw in raws] == [*missing, "expected a text, found int", ""]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (("a", "b"), {}, "no column 'source, src.* for `source`; it has 'a', 'b'. Set data.source.options.source"),
        (("source", "b"), {}, "no column 'target, tgt.* for `target`"),
        (("a", "b"), {"source": "a", "target": "c"}, "no column 'c' for `target`"),
        (("a", "b"), {"source": "a", "target": "a"}, "'a' of 'x.csv' cannot be source and target"),
        (("source", "target"), {"slice": "site"}, "no column 'site' for `slice`"),
    ],
)
def test_columns_that_cannot_work(tmp_path, columns, options, message):
    save(PAIRS.set_axis(columns, axis=1), tmp_path / "x.csv")
    with pytest.raises(InputError, match=message):
        source(tmp_path, **options).scan()


def test_places_without_tables(tmp_path):
    with pytest.raises(InputError, match="there is no table in"):
        source(tmp_path).scan()


def test_a_damaged_side_spoils_its_rows_alone(tmp_path):
    rows = pd.DataFrame({"source": [f"{row} " * 50 for row in range(900)], "target": [f"{row} " * 50 for row in range(900)]})
    rows.to_parquet(tmp_path / "x.parquet", row_group_size=300, compression="zstd")
    column = pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(1).column(1)
    with (tmp_path / "x.parquet").open("r+b") as file:
        file.seek(column.dictionary_page_offset or column.data_page_offset)
        file.write(os.urandom(column.total_compressed_size // 2))
    one = source(tmp_path)
    for order in (range(900), range(899, -1, -1), range(350, 900)):
        raws = list(one.read([f"x.parquet:{row}" for row in order]))
        for row, raw in zip(order, raws, strict=True):
            assert (raw.data is None) == (300 <= row < 600)
            assert raw.data is None or json.loads(raw.data)["target"].split()[0] == str(row)


def test_the_fingerprint_sees_files_and_options(tmp_path):
    save(PAIRS, tmp_path / "x.csv")
    seen = [source(tmp_path).fingerprint(), source(tmp_path, source="source").fingerprint()]
    assert source(tmp_path).fingerprint() == seen[0]
    save(PAIRS, tmp_path / "y.csv")
    assert len({*seen, source(tmp_path).fingerprint()}) == 3


def test_real_pairs(shared_data):
    one = source(shared_data / "multi30k_en_de_fr", source="en", target="de")
    frame = one.scan()
    assert frame["split"].value_counts().to_dict() == {"train": 29_000, "test": 2461, "validation": 1014}
    assert frame["slice"].value_counts().to_dict() == {"test_2016_flickr": 1000, "test_2017_flickr": 1000, "test_2017_mscoco": 461}
    assert all(pairs(one, frame["key"].tolist()[::50]))
