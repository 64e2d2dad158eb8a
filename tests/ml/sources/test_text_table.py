"""Texts in tables: CSV, TSV, JSON lines, Parquet."""

import gzip
import json
import os
import tracemalloc

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml.contracts import InputError
from ml.sources.text_table import TextTable

ODD = ['said "yes", and left', "two\nlines", "naïve 🙂", "NA", "12", "a\ttab; and | more", " spaces "]


def source(path, **options):
    return TextTable(TextTable.Options(path=str(path), **options))


def texts(one, keys=None):
    return [raw.data if raw.data is None else raw.data.decode() for raw in one.read(one.scan()["key"].tolist() if keys is None else keys)]


def save(frame, path):
    """The table in the format that the path's name tells."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        frame.to_json(path, orient="records", lines=True)
    elif name.endswith(".parquet"):
        frame.to_parquet(path, row_group_size=100)
    else:
        frame.to_csv(path, index=False, sep="\t" if name.endswith(".tsv") else ",")
    return path


@pytest.fixture(params=["csv", "tsv", "jsonl", "csv.gz", "tsv.gz", "jsonl.gz", "parquet"])
def suffix(request):
    return request.param


def test_every_format_gives_the_same_rows(tmp_path, suffix):
    rows = pd.DataFrame({"text": ODD, "label": [*"ababab", None], "part": ["train"] * 5 + ["test"] * 2, "who": [1, 1, 2, 2, 3, 3, 3]})
    one = source(save(rows, tmp_path / f"x.{suffix}"), split="part", group="who", slice="who")
    frame = one.scan()
    assert texts(one) == ODD
    assert frame.iloc[5].to_dict() == {"key": f"x.{suffix}:5", "label": "b", "split": "test", "group": "3", "slice": "3"}
    assert frame["label"].tolist()[-1] is None
    assert texts(source(tmp_path / f"x.{suffix}"), [f"x.{suffix}:{row}" for row in (3, 3, 0, 6)]) == [ODD[3], ODD[3], ODD[0], ODD[6]]
    assert [raw.data for raw in one.read([f"x.{suffix}:7", f"x.{suffix}", "y.csv:0"])] == [None] * 3


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(order=st.lists(st.integers(0, 899), min_size=1, max_size=600))
def test_any_order_of_keys(tmp_path, suffix, order):
    for name, first in (("a", 0), ("b", 500)):
        if not (tmp_path / f"{name}.{suffix}").exists():
            save(pd.DataFrame({"text": [f"row {row}" for row in range(first, first + 500)]}), tmp_path / f"{name}.{suffix}")
    keys = [f"{'a' if row < 500 else 'b'}.{suffix}:{row % 500}" for row in order]
    assert texts(source(tmp_path), keys) == [f"row {row}" for row in order]


def test_files_named_after_parts(tmp_path):
    save(pd.DataFrame({"review": ["a", "b"], "label": [0, 1], "label_name": ["bad", "good"]}), tmp_path / "train.csv")
    save(pd.DataFrame({"review": ["c"], "label_name": ["good"]}), tmp_path / "test.parquet")
    save(pd.DataFrame({"text": ["d"], "label": [-1]}), tmp_path / "unsupervised.jsonl")
    (tmp_path / "_notes.csv").write_text("not data")
    (tmp_path / "README.md").write_text("not data")
    one = source(tmp_path)
    frame = one.scan()
    assert list(zip(frame["key"], frame["label"], frame["split"], strict=True)) == [
        ("test.parquet:0", "good", "test"),
        ("train.csv:0", "bad", "train"),
        ("train.csv:1", "good", "train"),
        ("unsupervised.jsonl:0", None, "unlabelled"),
    ]
    assert texts(one) == ["c", "a", "b", "d"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["a", "b"], ["unlabelled", "unlabelled"]),
        (["train", "test"], ["train", "test"]),
        (["book", "dev"], ["train", "validation"]),
        (["book", "unsupervised"], ["train", "unlabelled"]),
    ],
)
def test_without_labels_names_still_tell_the_parts(tmp_path, names, splits):
    for name in names:
        save(pd.DataFrame({"Content": ["a"]}), tmp_path / f"{name}.csv")
    frame = source(tmp_path).scan()
    assert frame["label"].tolist() == [None, None]
    assert dict(zip(frame["key"], frame["split"], strict=True)) == {f"{name}.csv:0": split for name, split in zip(names, splits, strict=True)}


def test_a_test_part_may_lack_labels(tmp_path):
    save(pd.DataFrame({"text": ["a", "b"], "target": [0, 1]}), tmp_path / "train.csv")
    save(pd.DataFrame({"text": ["c"]}), tmp_path / "test.csv")
    assert source(tmp_path).scan()[["label", "split"]].values.tolist() == [[None, "test"], ["0", "train"], ["1", "train"]]


def test_values_that_are_no_text(tmp_path):
    rows = [{"text": ""}, {"text": None}, {}, {"text": 5}, {"text": ["a"]}, {"text": "  "}, {"text": "fine \ud800"}]
    (tmp_path / "x.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    raws = list(source(tmp_path / "x.jsonl").read([f"x.jsonl:{row}" for row in range(7)]))
    missing, number, listed = "the text is missing", "expected a text, found int", "expected a text, found list"
    assert [raw.reason for raw in raws] == [missing, missing, missing, number, listed, missing, ""]
    assert raws[-1].data == b"fine ?"


def test_bytes_and_other_types_of_text_in_parquet(tmp_path):
    values = {
        "bytes": pa.array([b"caf\xe9", b"", None], pa.binary()),
        "large": pa.array(["café", "", None], pa.large_string()),
        "coded": pa.array(["café", "", None]).dictionary_encode(),
        "view": pa.array(["café", "", None], pa.string_view()),
    }
    pq.write_table(pa.table(values), tmp_path / "x.parquet")
    for column in values:
        first, *others = source(tmp_path / "x.parquet", text=column).read([f"x.parquet:{row}" for row in range(3)])
        assert first.data == (b"caf\xe9" if column == "bytes" else "café".encode())
        assert [raw.reason for raw in others] == ["the text is missing"] * 2


def test_names_of_classes_that_hugging_face_keeps(tmp_path):
    schema = pa.schema([("text", pa.string()), ("label", pa.int64())], metadata={"huggingface": '{"info": {"features": {"label": {"names": ["neg", "pos"]}}}}'})
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": [1, 0, -1]}, schema=schema), tmp_path / "x.parquet")
    assert source(tmp_path / "x.parquet").scan()["label"].tolist() == ["pos", "neg", None]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8-sig", "naïve café"),
        ("utf-16", "naïve café"),
        ("cp1252", "un très bon dîner à la crème, c’est l’été"),
        ("cp1251", "привет мир, как дела сегодня вечером"),
        ("cp1250", "zażółć gęślą jaźń, ale wieczór był miły"),
    ],
)
def test_encodings(tmp_path, encoding, text):
    (tmp_path / "x.csv").write_bytes(f'text,label\r\n"{text}",a\r\n'.encode(encoding))
    one = source(tmp_path / "x.csv")
    assert texts(one) == [text]
    assert one.scan()["label"].tolist() == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.csv", "text;label\none, two;a\n", ["one, two"]),
        ("x.tsv", 'text\tlabel\n"quoted" it begins\ta\nand "so on\tb\n', ['"quoted" it begins', 'and "so on']),
        ("x.tsv", 'text\tlabel\n"a\ttab"\ta\n', ["a\ttab"]),
        ("x.tsv", "text\none, two\n", ["one, two"]),
        ("x.csv", 'label,text\n\na,"' + "long " * 50_000 + 'end"\n', ["long " * 50_000 + "end"]),
    ],
)
def test_separators_and_quotes(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    assert texts(source(tmp_path / name)) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "'x.csv' has no column 'text, sentence.*it has none"),
        ("x.csv", b"a,b\n1,2\n", "no column 'text, sentence.* for `text`; it has 'a', 'b'. Set data.source.options.text"),
        ("x.csv", b"text,label\na,b\nc\n", "'x.csv' has 1 fields up to line 3, but 2 in its header: the file was cut short"),
        ("x.csv", b"text,label\na,b\nc,d,e\n", "'x.csv' has 3 fields up to line 3"),
        ("x.csv", b'text,label\na,b\n"c\nd', "'x.csv' is damaged in line 4"),
        ("x.csv", b"PK\x03\x04\x00\x00text,label\n", "'x.csv' is a binary file"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "b\n', "'x.jsonl' is damaged in line 2"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "'x.jsonl' is no UTF-8 in line 2, .* save it as UTF-8"),
        ("x.jsonl", b'[{"text": "a"}]', "line 1; one JSON object a line is expected"),
        ("x.jsonl", b'{"text": "a", "label": "x"}\n{"text": "b", "label": {"x": 1}}\n', "as 'label' in line 2; a text or a number is expected, or a list"),
        ("x.jsonl", b'{"text": "a", "label": [["x"], "y"]}\n', "as 'label' in line 1; a text or a number is expected, or a list"),
        ("x.parquet", b"PAR1" + b"x" * 100, "not a whole Parquet file"),
        ("x.csv.gz", gzip.compress(b"text\n" + os.urandom(4000).hex().encode())[:-900], "cannot be read to its end"),
        ("x.jsonl.gz", b"no gzip", "cannot be read to its end"),
        ("x.txt", b"text", "no table by its name: expected .csv"),
    ],
)
def test_files_that_cannot_work_say_why(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        source(tmp_path / name).scan()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "body"}, "no column 'body' for `text`; it has 'text', 'label', 'site'"),
        ({"label": "stars"}, "no column 'stars' for `label`"),
        ({"group": "author"}, "no column 'author' for `group`"),
        ({"split": "site"}, "split column 'site' holds 'north'"),
    ],
)
def test_columns_that_are_missing_or_strange(tmp_path, suffix, options, message):
    save(pd.DataFrame({"text": ["a"], "label": ["x"], "site": ["north"]}), tmp_path / f"x.{suffix}")
    with pytest.raises(InputError, match=message):
        source(tmp_path / f"x.{suffix}", **options).scan()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"text": ["b"]}, "'more.csv' has no column 'label' for `label`.*unlabelled-"),
        ({"text": ["b"], "target": ["x"]}, r"different columns, 'target' \(more.csv\) and 'label' \(a.csv\)"),
        ({"id": [1]}, "'more.csv' has no column 'text, "),
    ],
)
def test_files_that_do_not_fit_together(tmp_path, second, message):
    save(pd.DataFrame({"text": ["a"], "label": ["x"]}), tmp_path / "a.csv")
    save(pd.DataFrame(second), tmp_path / "more.csv")
    with pytest.raises(InputError, match=message):
        source(tmp_path).scan()


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_lists_are_several_labels_a_row(tmp_path, suffix):
    rows = pd.DataFrame({"text": list("abcde"), "labels": [["x", "y"], ["y"], [], None, ["y", "", "y"]]})
    assert source(save(rows, tmp_path / f"x.{suffix}")).scan()["label"].tolist() == [("x", "y"), ("y",), (), None, ("y",)]


def test_a_separator_makes_several_labels_of_a_text(tmp_path, suffix):
    rows = pd.DataFrame({"text": list("abcd"), "tags": ["comp.sys.mac", "sci", "", "comp. mac ."]})
    found = source(save(rows, tmp_path / f"x.{suffix}"), separator=".").scan()
    assert found["label"].tolist() == [("comp", "sys", "mac"), ("sci",), (), ("comp", "mac")]
    assert source(tmp_path / f"x.{suffix}").scan()["label"].tolist() == ["comp.sys.mac", "sci", None, "comp. mac ."]


def test_columns_of_one_class_each(tmp_path, suffix):
    rows = pd.DataFrame({"text": list("abcd"), "toxic": [1, 0, 1, -1], "rude": [1, 0, 0, -1]})
    save(rows, tmp_path / f"x.{suffix}")
    assert source(tmp_path, label="toxic, rude").scan()["label"].tolist() == [("toxic", "rude"), (), ("toxic",), None]
    with pytest.raises(InputError, match="has no column 'kind' for `label`"):
        source(tmp_path, label="toxic,kind").scan()


def test_parquet_that_holds_something_else_as_labels(tmp_path):
    for label in ({"x": 1}, [["x"], ["y"]]):
        pd.DataFrame({"text": ["a"], "label": [label]}).to_parquet(tmp_path / "x.parquet")
        with pytest.raises(InputError, match="as 'label'; a text or a number is expected, or a list"):
            source(tmp_path).scan()
    pd.DataFrame({"text": ["a"], "label": ["x"], "who": [["x"]]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"as 'who'; a text or a number is expected$"):
        source(tmp_path, group="who").scan()


def test_several_labels_by_the_names_that_are_kept_beside_them(tmp_path):
    names = {"feature": {"names": ["joy", "fear"], "_type": "ClassLabel"}, "_type": "Sequence"}
    table = pa.table({"text": list("abc"), "labels": pa.array([[0, 1], [1], []], pa.list_(pa.int64()))})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {"labels": names}}})}), tmp_path / "x.parquet")
    assert source(tmp_path).scan()["label"].tolist() == [("joy", "fear"), ("fear",), ()]


def test_places_that_are_missing_or_empty(tmp_path):
    with pytest.raises(InputError, match="nothing at"):
        source(tmp_path / "nowhere").scan()
    with pytest.raises(InputError, match="there is no table in"):
        source(tmp_path).fingerprint()
    (tmp_path / "x.csv").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="leads out of the folder"):
        source(tmp_path).scan()


def test_a_damaged_page_spoils_its_rows_alone(tmp_path):
    rows = pd.DataFrame({"text": [f"{row} " * 50 for row in range(300)], "label": ["a", "b"] * 150})
    rows.to_parquet(tmp_path / "x.parquet", row_group_size=100, compression="zstd")
    column = pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(1).column(0)
    with (tmp_path / "x.parquet").open("r+b") as file:
        file.seek(column.dictionary_page_offset or column.data_page_offset)
        file.write(os.urandom(column.total_compressed_size // 2))
    one = source(tmp_path / "x.parquet")
    raws = list(one.read(one.scan()["key"].tolist()))
    assert [raw.data is None for raw in raws] == [False] * 100 + [True] * 100 + [False] * 100
    assert all("damaged" in raw.reason for raw in raws[100:200])


def test_a_file_that_is_cut_after_the_scan_gives_reasons(tmp_path, suffix):
    path = save(pd.DataFrame({"text": [f"row {row}" for row in range(2000)]}), tmp_path / f"x.{suffix}")
    keys = source(path).scan()["key"].tolist()
    path.write_bytes(path.read_bytes()[:-200])
    raws = list(source(path).read(keys))
    assert len(raws) == 2000
    assert raws[-1].data is None
    assert raws[-1].reason


def test_memory_holds_a_few_texts_at_a_time(tmp_path, suffix):
    path = save(pd.DataFrame({"text": [f"{row:06d}" * 500 for row in range(6000)]}), tmp_path / f"x.{suffix}")  # 18 MB
    keys = source(path).scan()["key"].tolist()
    tracemalloc.start()
    assert sum(len(raw.data) for raw in source(path).read(keys)) == 18_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 9_000_000


def test_the_fingerprint_sees_every_change(tmp_path):
    path = save(pd.DataFrame({"text": ["a"]}), tmp_path / "x.csv")
    seen = [source(tmp_path).fingerprint(), source(tmp_path, text="text").fingerprint()]
    assert source(tmp_path).fingerprint() == seen[0]
    os.utime(path, ns=(1, 1))
    seen.append(source(tmp_path).fingerprint())
    save(pd.DataFrame({"text": ["a"]}), tmp_path / "y.csv")
    seen.append(source(tmp_path).fingerprint())
    assert len(set(seen)) == 4


@pytest.mark.parametrize(
    ("name", "classes", "parts"),
    [
        ("imdb", 2, {"train": 800, "test": 200, "unlabelled": 1000}),
        ("newsgroups20", 20, {"train": 400, "test": 160}),
        ("clinc150", 151, {"train": 1812, "validation": 453, "test": 604}),
    ],
)
def test_real_texts(shared_data, name, classes, parts):
    one = source(shared_data / "small" / name)
    frame = one.scan()
    assert frame["split"].value_counts().to_dict() == parts
    assert frame["label"].nunique() == classes
    assert all(raw.data for raw in one.read(frame["key"].tolist()))
