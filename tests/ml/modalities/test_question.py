"""Questions with contexts: answers keep their place through cleaning, tokens and windows."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.answer_metrics import normalise
from ml.contracts import InputError, Raw
from ml.feed import Blocks
from ml.modalities.question import Augmentation, Question
from ml.ragged import Ragged
from ml.sources.squad import Squad

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "small" / "squad_v2_dev_half"
CONTEXT = "Größe matters: the Normans — a people of the 10th century — gave their name to Normandy, in France."
LONG = " ".join(f"word{number}" for number in range(60))


def raw(question, context, *answers):
    return Raw(json.dumps({"question": question, "context": context, "answers": [{"text": text, "start": context.find(text)} for text in answers]}).encode())


RAWS = [
    raw("Where is Normandy?", CONTEXT, "France", "in France"),
    raw("Who gave their name to Normandy?", CONTEXT, "the Normans"),
    raw("What is the capital of Spain?", CONTEXT),
    raw("Which word comes after 41?", LONG, "word42 word43"),
    raw("Which word comes last?", LONG, "word59"),
]


def modality(max_length=48, vocabulary=400, **options):
    return Question(Question.Options(max_length=max_length, vocabulary=vocabulary, **options))


def built(one=None, raws=RAWS):
    """A modality, what describes the rows, and the rows as they are stored."""
    one = one or modality()
    rows = Ragged.of([one.decode(row).array for row in raws], np.uint8)
    spec = one.spec((), json.loads(json.dumps(one.statistics([rows[:2], rows[2:]]))))
    return one, spec, one.pack(rows, spec)


def span(packed, row, start, end):
    """The text between two tokens of a row."""
    offsets = packed["offsets"][row].reshape(-1, 2)
    before = len(packed["tokens"][row]) - 1 - len(offsets)
    return bytes(packed["text"][row]).decode()[offsets[start - before, 0] : offsets[end - before, 1]]


def test_options_follow_the_data():
    plan = Question(Question.Options()).plan([*RAWS, Raw(b"{"), Raw(None, "gone")], 5000)
    assert (plan.max_length, plan.vocabulary) == (128, 10_000)
    long = raw("Why?", "word " * 3000)
    assert Question(Question.Options(vocabulary=500)).plan([long], 10).max_length == 256
    assert modality().planned and not Question(Question.Options(max_length=48)).planned


def test_cleaning_keeps_answers_in_their_place():
    context = "\u200b  Two  spaces,\r\n\r\n\r\n\r\nthen   cafe\u0301 twice: cafe\u0301 \u200band  more "
    place = context.rfind("cafe\u0301")
    item = {"question": " Where? ", "context": context, "answers": [{"text": "cafe\u0301 \u200band  more ", "start": place}]}
    found = json.loads(bytes(modality().decode(Raw(json.dumps(item).encode())).array))
    assert found["question"] == "Where?" and found["context"] == "Two spaces,\n\nthen café twice: café and more"
    assert found["answers"] == [{"text": "café and more", "start": found["context"].rfind("café")}]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (Raw(None, "a broken pipe"), "a broken pipe"),
        (Raw(b""), "not {"),
        (Raw(b"Where is Normandy?"), "as JSON"),
        (Raw(b"[1]"), "as JSON with two texts"),
        (Raw(b'{"question": "Where?"}'), "'context'"),
        (Raw(b'{"question": "Where?", "context": 3}'), "two texts"),
        (Raw(b'{"question": " ", "context": "Here."}'), "empty question"),
        (Raw(b'{"question": "Where?", "context": "\\u200b"}'), "empty context"),
        (Raw(b'{"question": "Where?", "context": "Here.", "answers": [3]}'), "answer 3"),
        (Raw(b'{"question": "Where?", "context": "Here.", "answers": [{"text": "There", "start": 0}]}'), "does not stand in the context"),
        (Raw(b"\x89PNG\r\n\x1a\n\0\0"), "binary"),
        (raw("Where?", "x" * 300), "306 characters, above the limit of 200"),
        (raw("Where?", "x" * 600), "above the limit of 500"),
    ],
)
def test_what_is_no_question_has_a_reason(given, reason):
    found = modality(max_bytes=500, max_characters=200).decode(given)
    assert found.array is None and reason in found.reason


@settings(deadline=None)
@given(st.binary(max_size=60) | st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["question", "context", "answers", "text", "start"]), x), max_leaves=8).map(lambda value: json.dumps(value).encode()))
def test_whatever_the_bytes_decoding_never_raises(data):
    found = modality().decode(Raw(data))
    assert (found.array is None) == bool(found.reason)


def test_content_is_that_of_question_and_context():
    one = modality()
    first, answerless, other = one.decode(RAWS[0]), one.decode(raw("Where is Normandy?", CONTEXT)), one.decode(RAWS[1])
    assert first.content == answerless.content != other.content and first.signature == answerless.signature
    assert (first.facts["answerable"], answerless.facts["answerable"]) == (1, 0)
    rows = Ragged.of([first.array, other.array, one.decode(RAWS[3]).array], np.uint8)
    assert one.same(rows[[0, 0]], rows[[0, 2]]).tolist() == [True, False]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram", "characters"])
def test_answers_keep_their_characters_whatever_the_tokenizer(kind):
    one, spec, packed = built(modality(tokenizer=kind))
    assert list(packed) == ["tokens", "text", "question", "answers", "offsets"]
    inputs = one.encode(torch.from_numpy(one.collate(packed["tokens"], spec, whole=True)), spec)
    for row, one_raw in enumerate(RAWS):
        content = json.loads(one_raw.data)
        assert bytes(packed["text"][row]).decode() == content["context"] and bytes(packed["question"][row]).decode() == content["question"]
        truths = [answer["text"] for answer in content["answers"]]
        assert json.loads(bytes(packed["answers"][row])) == truths
        start, end = int(inputs["start"][row]), int(inputs["end"][row])
        if truths:
            assert span(packed, row, start, end).removesuffix(".") == truths[0]  # which unigram may join with its full stop
        else:
            assert (start, end) == (0, 0)


def test_rows_are_question_and_context_between_their_marks():
    one, spec, packed = built()
    inputs = one.encode(torch.from_numpy(one.collate(packed["tokens"], spec, whole=True)), spec)
    marks, read = spec.statistics["tokens"], one.reader(spec)
    for row, length in enumerate(packed["tokens"].lengths.tolist()):
        ids = inputs["tokens"][row].tolist()
        question = int((inputs["mask"][row] & (inputs["segments"][row] == 0)).sum())
        assert inputs["mask"][row].tolist() == [place < length for place in range(len(ids))]
        assert [place for place, token in enumerate(ids[:length]) if token in (marks["begin"], marks["end"])] == [0, question - 1, length - 1]
        assert read(ids[1 : question - 1]).replace(" ", "") == bytes(packed["question"][row]).decode().lower().replace(" ", "")
        assert ids[length:] == [marks["pad"]] * (len(ids) - length) and length - 1 - question == len(packed["offsets"][row]) // 2


def drawn(one, spec, tokens, seed, preset="none", part=slice(None)):
    random = torch.Generator().manual_seed(seed)
    augmentation = one.presets[preset](spec) if isinstance(preset, str) else preset
    return one.augment(torch.from_numpy(one.collate(tokens, spec, augmentation, random)), spec, augmentation, random, part)[0]


@pytest.mark.parametrize("preset", Question.presets)
def test_a_part_is_drawn_as_it_is_in_the_whole(preset):
    one, spec, packed = built(modality(56))
    whole, part = (drawn(one, spec, packed["tokens"], 1, preset, rows) for rows in (slice(None), slice(1, 3)))
    assert all(len(part[name]) == 2 and torch.equal(part[name], value[1:3]) for name, value in whole.items())


def test_what_a_model_reads_at_once_of_a_longer_row_is_its_first_window():
    one, spec, packed = built(modality(56))
    cut, whole = (one.encode(torch.from_numpy(one.collate(packed["tokens"], spec, whole=flag)), spec) for flag in (False, True))
    assert cut["tokens"].shape[1] == 56 < whole["tokens"].shape[1]
    for row, length in enumerate(packed["tokens"].lengths.tolist()):
        ids, all_ids = (inputs["tokens"][row][inputs["mask"][row]].tolist() for inputs in (cut, whole))
        assert ids == all_ids if length <= 56 else (len(ids) == 56 and ids[:-1] == all_ids[:55] and ids[-1] == spec.statistics["tokens"]["end"])


def test_training_reads_windows_that_know_whether_the_answer_is_within():
    one, spec, packed = built(modality(56))
    whole = one.encode(torch.from_numpy(one.collate(packed["tokens"], spec, whole=True)), spec)
    assert whole["tokens"].shape[1] == packed["tokens"].lengths.max() > 56
    answered = np.zeros(len(RAWS))
    for seed in range(60):
        inputs = drawn(one, spec, packed["tokens"], seed)
        assert inputs["tokens"].shape[1] <= 56
        for row in range(len(RAWS)):
            start, end = int(inputs["start"][row]), int(inputs["end"][row])
            length, marks = int(inputs["mask"][row].sum()), spec.statistics["tokens"]
            assert inputs["tokens"][row, 0] == marks["begin"] and inputs["tokens"][row, length - 1] == marks["end"]
            answered[row] += start > 0
            if start:
                truth = whole["tokens"][row, whole["start"][row] : whole["end"][row] + 1]
                assert inputs["tokens"][row, start : end + 1].tolist() == truth.tolist()
                assert inputs["segments"][row, start] == 1
            else:
                assert end == 0
    assert answered[:3].tolist() == [60, 60, 0]  # short rows are whole
    assert answered[3] > 40 and 35 < answered[4] < 60
    assert all(torch.equal(drawn(one, spec, packed["tokens"], 3)[name], drawn(one, spec, packed["tokens"], 3)[name]) for name in whole)


def test_a_question_longer_than_a_third_of_a_window_is_cut():
    one, spec, packed = built(raws=[raw(LONG + "?", CONTEXT + LONG, "France"), raw("Why?", LONG, LONG)])
    inputs = drawn(one, spec, packed["tokens"], 0)
    assert (inputs["mask"] & (inputs["segments"] == 0)).sum(1).tolist()[0] == 16 and inputs["tokens"].shape[1] == 48
    assert (inputs["start"][1], inputs["end"][1]) == (0, 0)  # an answer longer than a window is in none


@pytest.mark.parametrize("preset", [*Question.presets, Augmentation(drop=0.9)], ids=str)
def test_hidden_tokens_leave_marks_and_answers_in_place(preset):
    one, spec, packed = built()
    short = packed["tokens"][:3]
    plain, inputs = drawn(one, spec, short, 0), drawn(one, spec, short, 0, preset)
    assert all(torch.equal(plain[name], inputs[name]) for name in ("mask", "segments", "start", "end"))
    changed = plain["tokens"] != inputs["tokens"]
    assert set(inputs["tokens"][changed].tolist()) <= {spec.statistics["tokens"]["mask"]}
    marks = (plain["tokens"] == spec.statistics["tokens"]["begin"]) | (plain["tokens"] == spec.statistics["tokens"]["end"])
    assert not changed[marks].any() and bool(changed.any()) == (preset != "none")


def test_a_stream_of_rows_holds_tokens_alone():
    from types import SimpleNamespace

    one, spec, packed = built()
    blocks = Blocks.of(SimpleNamespace(array=packed["tokens"], spec=spec), np.arange(len(RAWS)))
    read = one.encode(torch.from_numpy(one.collate(blocks.array[np.arange(len(blocks.array))], spec)), spec)
    assert read["tokens"].shape[1] == 48 and read["mask"].all()
    whole = one.encode(torch.from_numpy(one.collate(packed["tokens"], spec, whole=True)), spec)
    assert read["tokens"].flatten().tolist() == whole["tokens"][whole["mask"]].tolist()[: read["tokens"].numel()]


def test_a_tokenizer_given_by_its_path_is_used(tmp_path):
    words = sorted({word for given in RAWS for text in json.loads(given.data).values() if isinstance(text, str) for word in text.lower().replace("?", " ?").replace(".", " .").split()})
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]), encoding="utf-8")
    one, spec, packed = built(modality(tokenizer_path=str(tmp_path)))
    assert spec.options["vocabulary"] == spec.statistics["vocabulary"] == len(words) + 5
    inputs = one.encode(torch.from_numpy(one.collate(packed["tokens"], spec, whole=True)), spec)
    assert span(packed, 3, int(inputs["start"][3]), int(inputs["end"][3])) == "word42 word43"
    assert Question.Options(**spec.options).stride == 128  # a served model builds its modality of these


@pytest.mark.parametrize(
    "value", [{"question": "Where?", "context": CONTEXT, "id": 3}, json.dumps({"question": "Where?", "context": CONTEXT}), json.dumps({"question": "Where?", "context": CONTEXT}).encode()]
)
def test_users_send_objects_or_json(value):
    one = modality()
    assert one.decode(one.serve(value)).content == one.decode(raw("Where?", CONTEXT)).content
    assert one.decode(one.serve(one.cell(value, Path()))).array is not None


def test_users_may_name_files_where_that_is_allowed(tmp_path):
    one, path = modality(), tmp_path / "x.json"
    path.write_bytes(RAWS[0].data)
    assert one.serve(path).data == RAWS[0].data
    assert "not accepted" in one.serve(path, files=False).reason and "exists" in one.serve(tmp_path / "y.json").reason
    with pytest.raises(InputError, match="found an object with 'question'; expected"):
        one.serve({"question": "Where?"})
    with pytest.raises(InputError, match="found int"):
        one.serve(3)
    assert one.decode(one.serve(one.cell(float("nan"), Path()))).reason


def test_a_request_does_not_tell_the_answer():
    assert modality().request(RAWS[0].data) == {"question": "Where is Normandy?", "context": CONTEXT}


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the shared sample of SQuAD is not at {DATA}")
def test_every_answer_of_the_shared_sample_is_found_in_its_tokens():
    source = Squad(Squad.Options(path=str(DATA)))
    raws = list(source.read(source.scan()["key"].tolist()))
    one, spec, packed = built(modality(256, 5000), raws)
    inputs = one.encode(torch.from_numpy(one.collate(packed["tokens"], spec, whole=True)), spec)
    same = []
    for row, one_raw in enumerate(raws):
        content = json.loads(bytes(one.decode(one_raw).array))
        for answer in content["answers"]:
            assert content["context"].startswith(answer["text"], answer["start"])
        if content["answers"]:
            found = span(packed, row, int(inputs["start"][row]), int(inputs["end"][row]))
            assert content["answers"][0]["text"] in found
            same.append(normalise(found) == normalise(content["answers"][0]["text"]))
        else:
            assert inputs["start"][row] == inputs["end"][row] == 0
    assert len(same) > 50 and np.mean(same) > 0.99
