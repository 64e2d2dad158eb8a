"""SQuAD's files: v1.1 and v2, Hugging Face's lines, offsets that are off, and files that are something else."""

import json
from pathlib import Path

import pytest

from ml.contracts import InputError
from ml.files import MAX_ITEM_BYTES
from ml.sources.squad import Squad

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "small" / "squad_v2_dev_half"
CONTEXT = "The Normans gave their name to Normandy, a region in France. France is in Europe."


def qa(name, question="Where is Normandy?", text="France", start=53, **more):
    return {"id": name, "question": question, "answers": [{"text": text, "answer_start": start}], **more}


def squad(*questions, title="Normans", context=CONTEXT):
    return {"version": "x", "data": [{"title": title, "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def source(path):
    return Squad(Squad.Options(path=str(path)))


def read(path):
    one = source(path)
    return list(one.read(one.scan()["key"].tolist()))


def test_answerable_and_unanswerable_are_told_apart(tmp_path):
    impossible = {"id": "b", "question": "Who is Rollo?", "answers": [], "is_impossible": True, "plausible_answers": [{"text": "The", "answer_start": 0}]}
    path = write(tmp_path / "x.json", squad(qa("a"), impossible))
    frame = source(path).scan()
    assert frame.to_dict("list") == {
        "key": ["a", "b"],
        "label": [None, None],
        "split": [None, None],
        "group": ["Normans", "Normans"],
        "slice": ["answerable", "unanswerable"],
    }
    (only,) = Squad(Squad.Options(path=str(path), unanswerable=False)).scan().to_dict("records")
    assert (only["key"], only["slice"]) == ("a", None)
    first, second = (json.loads(raw.data) for raw in read(path))
    assert first == {"question": "Where is Normandy?", "context": CONTEXT, "answers": [{"text": "France", "start": 53}]}
    assert second["answers"] == []


def test_version_1_has_no_slices(tmp_path):
    assert source(write(tmp_path / "x.json", squad(qa("a"), qa("b")))).scan()["slice"].tolist() == [None, None]


def test_files_are_the_parts_that_their_names_tell(tmp_path):
    for name in ("train-v2.0", "dev-v2.0", "test"):
        write(tmp_path / f"{name}.json", squad(qa(name), title=name))
    frame = source(tmp_path).scan()
    assert dict(zip(frame["key"], frame["split"], strict=True)) == {"train-v2.0": "train", "dev-v2.0": "validation", "test": "test"}
    assert source(tmp_path / "dev-v2.0.json").scan()["split"].tolist() == [None]  # alone it is all there is, and is divided


def test_a_file_whose_questions_all_stand_in_others_is_passed_over(tmp_path):
    write(tmp_path / "train.json", squad(qa("a"), title="A"))
    write(tmp_path / "test.json", squad(qa("b"), title="B"))
    both = {"data": squad(qa("a"), title="A")["data"] + squad(qa("b"), title="B")["data"]}
    write(tmp_path / "dev.json", both)
    frame = source(tmp_path).scan()
    assert frame["split"].tolist() == ["test", "train"] and frame.attrs["ignored"] == 1


def test_keys_are_unique_where_ids_are_not(tmp_path):
    assert source(write(tmp_path / "x.json", squad(qa("a"), qa("a"), qa("a#2"), qa("")))).scan()["key"].tolist() == ["a", "a#2", "a#2#", "x.json:1:1:4"]


@pytest.mark.parametrize(
    ("text", "start", "found"),
    [
        ("France", 53, 53),
        ("France", 61, 61),
        ("France", 54, 53),
        ("France", 60, 61),
        ("Normandy", 0, 31),  # far away, but there is one only
        ("Normandy", -5, 31),
        ("in", 10, 50),
    ],
)
def test_offsets_that_are_off_are_mended(tmp_path, text, start, found):
    (raw,) = read(write(tmp_path / "x.json", squad(qa("a", text=text, start=start))))
    assert json.loads(raw.data)["answers"] == [{"text": text, "start": found}]


@pytest.mark.parametrize(("text", "start", "reason"), [("Spain", 3, "'Spain' does not stand in the context at 3"), ("France", 500, "within 50"), ("", 0, "empty")])
def test_answers_that_cannot_be_found_are_set_aside(tmp_path, text, start, reason):
    (raw,) = read(write(tmp_path / "x.json", squad(qa("a", text=text, start=start))))
    assert raw.data is None and reason in raw.reason


def test_lines_as_hugging_face_writes_them(tmp_path):
    rows = [
        {"id": "a", "title": "Normans", "context": CONTEXT, "question": "Where?", "answers": {"text": ["France"], "answer_start": [53]}},
        {"context": CONTEXT, "question": "Who?", "answers": {"text": [], "answer_start": []}},
        {"context": CONTEXT, "question": "Why?"},
    ]
    path = write(tmp_path / "train.jsonl", "\n".join(map(json.dumps, rows)))
    frame = source(path).scan()
    assert frame["key"].tolist() == ["a", "train.jsonl:2", "train.jsonl:3"]
    assert frame["slice"].tolist() == ["answerable", "unanswerable", "unanswerable"]
    assert frame["group"][0] == "Normans" and frame["group"][1] == frame["group"][2] != "Normans"
    assert [json.loads(raw.data)["answers"] for raw in read(path)] == [[{"text": "France", "start": 53}], [], []]


def test_a_key_that_is_not_there_has_a_reason(tmp_path):
    (raw,) = source(write(tmp_path / "x.json", squad(qa("a")))).read(["b"])
    assert raw.data is None and "no such question" in raw.reason


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "'x.json' in .* is no JSON"),
        ("[1]", "not in SQuAD's format: it holds a list"),
        ({"rows": []}, "it holds an object with 'rows'; expected"),
        ({"data": []}, "no question in 'x.json'"),
        ({"data": [3]}, "article 1 .* holds 3; expected 'paragraphs', a list"),
        ({"data": [{"title": "A", "paragraphs": [{"qas": []}]}]}, r"article 1 \(A\), paragraph 1 holds an object with 'qas'; expected 'context', a text"),
        (squad({"id": "a"}), "question 1 holds an object with 'id'; expected 'question'"),
        (squad({"question": "Who?", "answers": "Rollo"}), "question 1 has answers 'Rollo'; expected a list"),
        (squad({"question": "Who?", "answers": [{"text": "Rollo"}]}), "has answer {'text': 'Rollo'}; expected"),
    ],
)
def test_what_is_not_in_the_format_is_refused_with_one_message(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        source(write(tmp_path / "x.json", content)).scan()


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_json_in_another_encoding_is_refused(tmp_path, encoding):
    (tmp_path / "x.json").write_bytes(json.dumps(squad(qa("é")), ensure_ascii=False).encode(encoding))
    with pytest.raises(InputError, match=r"'x.json' in .* is no UTF-8, .* save it as UTF-8"):
        source(tmp_path / "x.json").scan()


def test_places_without_questions_are_refused(tmp_path):
    (tmp_path / "x.txt").write_text("text")
    with pytest.raises(InputError, match="no file of questions"):
        source(tmp_path).scan()
    with pytest.raises(InputError, match="no such file by its name"):
        source(tmp_path / "x.txt").scan()
    with (tmp_path / "big.json").open("wb") as file:
        file.truncate(MAX_ITEM_BYTES + 1)
    with pytest.raises(InputError, match="above the limit"):
        source(tmp_path).scan()


def test_the_fingerprint_follows_the_file(tmp_path):
    path = write(tmp_path / "x.json", squad(qa("a")))
    before = source(path).fingerprint()
    assert source(path).fingerprint() == before
    write(path, squad(qa("a"), qa("b")))
    assert source(path).fingerprint() != before


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the shared sample of SQuAD is not at {DATA}")
def test_every_answer_of_the_shared_sample_stands_at_its_offset():
    one = source(DATA)
    frame = one.scan()
    assert set(frame["split"]) == {"train", "test"} and set(frame["slice"]) == {"answerable", "unanswerable"}
    assert not set(frame.loc[frame["split"] == "train", "group"]) & set(frame.loc[frame["split"] == "test", "group"])
    for raw, kind in zip(one.read(frame["key"].tolist()), frame["slice"], strict=True):
        content = json.loads(raw.data)
        assert bool(content["answers"]) == (kind == "answerable")
        for answer in content["answers"]:
            assert content["context"].startswith(answer["text"], answer["start"])
