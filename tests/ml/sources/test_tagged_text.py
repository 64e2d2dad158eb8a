"""CoNLL's files as they are found, tables of lists, and rows that are set aside with a reason."""

import gzip
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml import conll
from ml.contracts import InputError
from ml.files import Folder
from ml.modalities.tagged import Tagged
from ml.sources.tagged_text import TaggedText

CONLL2003 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
. . O O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER

-DOCSTART- -X- -X- O

BRUSSELS NNP B-NP B-LOC
"""
SENTENCES = [
    {"words": ["EU", "rejects", "."], "tags": ["B-ORG", "O", "O"]},
    {"words": ["Peter", "Blackburn"], "tags": ["B-PER", "I-PER"]},
    {"words": ["BRUSSELS"], "tags": ["B-LOC"]},
]
CONLLU = """# newdoc id = a
# sent_id = 1
# text = Vámonos al mar
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
2.1\tal\t_\tADP\t_\t_\t_\t_\t_\t_
3\t10 000\tmar\tNOUN\t_\t_\t1\tobl\t_\t_

# sent_id = 2
1\t#\t#\tSYM\t_\t_\t0\troot\t_\t_
"""


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def source(path, **options):
    return TaggedText(TaggedText.Options(path=str(path), **options))


def read(path, **options):
    one = source(path, **options)
    return list(one.read(one.scan()["key"].tolist()))


def told(path, **options):
    return [json.loads(raw.data) for raw in read(path, **options)]


@pytest.mark.parametrize("change", [str, lambda text: text.replace(" ", "\t"), lambda text: text.replace(" ", "  ").replace("\n", "\r\n"), lambda text: "\ufeff" + text.replace("\n\n", "\n \n\n")])
def test_the_columns_of_conll_2003(tmp_path, change):
    path = write(tmp_path / "x.conll", change(CONLL2003))
    assert told(path) == SENTENCES
    assert told(path, tag_column=1)[0]["tags"] == ["NNP", "VBZ", "."]
    assert told(path, tag_column=-2, word_column=0)[1]["tags"] == ["B-NP", "I-NP"]
    frame = source(path).scan()
    assert frame["key"].tolist() == ["x.conll:0", "x.conll:1", "x.conll:2"]
    assert frame["group"].tolist() == ["x.conll:1", "x.conll:1", "x.conll:2"] and frame["split"].tolist() == [None] * 3


def test_universal_dependencies(tmp_path):
    path = write(tmp_path / "x.conllu", CONLLU)
    assert told(path) == [{"words": ["Vamos", "nos", "10 000"], "tags": ["VERB", "PRON", "NOUN"]}, {"words": ["#"], "tags": ["SYM"]}]
    assert told(path, tag_column=7)[0]["tags"] == ["root", "obj", "obl"]
    assert source(path).scan()["group"].tolist() == ["x.conllu:1"] * 2


def test_a_number_sign_within_a_sentence_is_a_word(tmp_path):
    assert told(write(tmp_path / "x.txt", "# id 17\nthe O\n# O\n#rain B-X\n")) == [{"words": ["the", "#", "#rain"], "tags": ["O", "O", "B-X"]}]


def test_files_are_the_parts_that_their_names_tell(tmp_path):
    for name in ("train.conll", "dev.txt", "test.tsv", "more.bio"):
        write(tmp_path / name, f"{name}\tO\n")
    write(tmp_path / "unlabelled.txt", "only\nwords\n")
    write(tmp_path / "_notes.txt", "x")
    (tmp_path / "test.iob.gz").write_bytes(gzip.compress(b"packed B-X\n"))
    frame = source(tmp_path).scan()
    assert dict(zip(frame["key"], frame["split"], strict=True)) == {
        "dev.txt:0": "validation", "more.bio:0": "train", "test.iob.gz:0": "test", "test.tsv:0": "test", "train.conll:0": "train", "unlabelled.txt:0": "unlabelled",
    }  # fmt: skip
    rows = dict(zip(frame["key"], told(tmp_path), strict=True))
    assert rows["unlabelled.txt:0"] == {"words": ["only", "words"]} and rows["test.iob.gz:0"]["words"] == ["packed"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("EU B-ORG\nrejects\n", "its lines have 1 to 2 columns; expected as many in each"),
        ("EU\nrejects\n", "its lines have 1 columns; expected a tag in column -1"),
        (b"\0\1\0\1 O\n", "binary"),
        ("EU\t\nrejects\tO\n", "word 1 has an empty tag"),
        ("\tO\n\tO\n", "empty"),
    ],
)
def test_what_is_no_sentence_has_a_reason(tmp_path, content, reason):
    modality = Tagged(Tagged.Options())
    (bad, good) = read(write(tmp_path / "x.conll", (content if isinstance(content, bytes) else content.encode()) + b"\nFine O\n"))
    assert reason in modality.decode(bad).reason and modality.decode(good).reason == ""


def test_utf_16_is_named(tmp_path):
    with pytest.raises(InputError, match=r"'x\.conll' in .* is UTF-16, .* save it as UTF-8"):
        source(write(tmp_path / "x.conll", "EU O\n".encode("utf-16"))).scan()


def test_columns_that_are_not_there(tmp_path):
    path = write(tmp_path / "x.conll", CONLL2003)
    assert "its lines have 4 columns; expected a tag in column 7" in read(path, tag_column=7)[0].reason
    assert "expected a word in column 9" in read(path, word_column=9)[0].reason
    assert "expected a tag in column 0" in read(path, tag_column=0)[0].reason  # that of the word


def test_a_file_without_blank_lines_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(conll, "MOST_LINES", 20)
    path = write(tmp_path / "x.conll", "word O\n" * 100 + "\nnext O\n")
    kept = [len(lines) for _, lines, _ in conll.Conll(Folder(tmp_path), "x.conll")._sentences()]
    assert kept == [21, 1] and "more than 20 lines" in read(path)[0].reason


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_the_bytes_reading_never_raises(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("x")
    write(folder / "x.conllu", b"1\tgood\tx\tNOUN\n\n" + data)
    modality = Tagged(Tagged.Options())
    found = [modality.decode(raw) for raw in read(folder)]
    assert found[0].array is not None and all((one.array is None) == bool(one.reason) for one in found)


ROWS = [{"tokens": one["words"], "ner_tags": one["tags"]} for one in SENTENCES]


def lines(path, rows):
    return write(path, "\n".join(map(json.dumps, rows)))


def test_lists_in_lines(tmp_path):
    assert told(lines(tmp_path / "x.jsonl", ROWS)) == SENTENCES
    renamed = lines(tmp_path / "y.jsonl", [{"w": one["words"], "t": one["tags"], "part": part, "doc": "d"} for one, part in zip(SENTENCES, ["train", "dev", "test"], strict=True)])
    assert told(renamed, words="w", tags="t", split="part", group="doc") == SENTENCES
    assert source(renamed, words="w", tags="t", split="part", group="doc").scan()["split"].tolist() == ["train", "validation", "test"]


NAMES = ["O", "B-ORG", "B-PER", "I-PER", "B-LOC"]


def test_numbers_get_their_names(tmp_path):
    rows = [{"tokens": one["words"], "ner_tags": [NAMES.index(tag) for tag in one["tags"]]} for one in SENTENCES]
    path = lines(tmp_path / "x.jsonl", rows)
    assert told(path, names=NAMES) == SENTENCES
    assert told(path)[0]["tags"] == ["1", "0", "0"]
    reason = Tagged(Tagged.Options()).decode(read(path, names=NAMES[:3])[2]).reason
    assert reason == "of the tags, number 1 is None; expected a text"
    for feature in ({"feature": {"names": NAMES, "_type": "ClassLabel"}, "_type": "Sequence"}, {"feature": {"names": NAMES, "_type": "ClassLabel"}, "_type": "List"}):
        table = pa.Table.from_pylist(rows).replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": {"ner_tags": feature}}}).encode()})
        pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
        assert told(tmp_path / "x.parquet") == SENTENCES


def test_any_order_of_keys_and_many_rows(tmp_path):
    rows = [{"tokens": [f"w{row}", "x"], "ner_tags": ["O", "O"]} for row in range(700)]
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet", row_group_size=150)
    lines(tmp_path / "b.jsonl", rows)
    write(tmp_path / "c.conll", "\n\n".join(f"w{row} O\nx O" for row in range(700)))
    one = source(tmp_path)
    keys = np.random.default_rng(0).permutation(one.scan()["key"].tolist()).tolist()
    assert [json.loads(raw.data)["words"][0] for raw in one.read(keys)] == [f"w{key.rpartition(':')[2]}" for key in keys]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tokens": ["a", "b"], "ner_tags": ["O"]}, "2 words, but 1 tags"),
        ({"tokens": [], "ner_tags": []}, "empty"),
        ({"tokens": None, "ner_tags": ["O"]}, "the words are missing"),
        ({"tokens": ["a"], "ner_tags": None}, "the tags are missing"),
        ({"tokens": ["a", None], "ner_tags": ["O", "O"]}, "of the words, number 2 is None"),
        ({"tokens": "a b", "ner_tags": ["O", "O"]}, "the words are 'a b'; expected a list"),
        ({"tokens": ["a"], "ner_tags": [{"x": 1}]}, "of the tags, number 1 is {'x': 1}"),
        ({"tokens": ["a"], "ner_tags": [" "]}, "word 1 has an empty tag"),
    ],
)
def test_rows_that_do_not_fit_have_a_reason(tmp_path, row, reason):
    bad, good = read(lines(tmp_path / "x.jsonl", [row, ROWS[0]]))
    modality = Tagged(Tagged.Options())
    assert reason in modality.decode(bad).reason and modality.decode(good).reason == ""


def test_parquet_with_texts_that_are_not_utf_8(tmp_path):
    words = pa.StringArray.from_buffers(2, *pa.array([b"good", b"\xff\xfe"], pa.binary()).buffers()[1:])
    pq.write_table(pa.table({"tokens": pa.ListArray.from_arrays([0, 1, 2], words), "tags": [["O"], ["O"]]}), tmp_path / "x.parquet")
    good, bad = read(tmp_path / "x.parquet")
    assert json.loads(good.data)["words"] == ["good"] and "not UTF-8" in bad.reason


def test_places_without_sentences_are_refused(tmp_path):
    write(tmp_path / "x.csv", "a,b\n")
    with pytest.raises(InputError, match=r"there is no table in .*expected \.conll"):
        source(tmp_path).scan()
    with pytest.raises(InputError, match="there is no sentence in"):
        source(write(tmp_path / "train.conll", "-DOCSTART- -X- O\n\n")).scan()
    with pytest.raises(InputError, match="has no column 'ner_tags, tags"):
        source(lines(tmp_path / "y.jsonl", [{"tokens": ["a"]}])).scan()
    assert told(lines(tmp_path / "unlabelled.jsonl", [{"tokens": ["a"]}])) == [{"words": ["a"]}]


def test_the_fingerprint_follows_file_and_options(tmp_path):
    path = write(tmp_path / "x.conll", CONLL2003)
    before = source(path).fingerprint()
    assert source(path).fingerprint() == before != source(path, tag_column=1).fingerprint()
    write(path, CONLL2003 + "\nmore O\n")
    assert source(path).fingerprint() != before
