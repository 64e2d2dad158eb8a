"""Words with tags: each keeps its tag through cleaning, tokens, windows and hidden tokens."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.contracts import InputError, Raw
from ml.feed import Blocks
from ml.losses import NOT_ASKED
from ml.modalities import tagged
from ml.modalities.tagged import Augmentation, Tagged
from ml.ragged import Ragged

ROWS = [
    (["Größe", "matters", "to", "Ann", "Lee", "."], ["O", "O", "O", "B-PER", "I-PER", "O"]),
    (["10 000", "people", "saw", "BRUSSELS-NORTH", "\u200b", "☃"], ["O", "O", "O", "B-LOC", "O", "O"]),
    ([f"word{number}" for number in range(60)], ["B-PER" if number % 7 == 0 else "O" for number in range(60)]),
]


def raw(words, tags=None):
    return Raw(json.dumps({"words": words} if tags is None else {"words": words, "tags": tags}).encode())


RAWS = [raw(*row) for row in ROWS]


def modality(max_length=32, vocabulary=400, **options):
    return Tagged(Tagged.Options(max_length=max_length, vocabulary=vocabulary, **options))


def built(one=None, raws=RAWS):
    """A modality, what describes the rows, and the rows as they are stored."""
    one = one or modality()
    rows = Ragged.of([one.decode(row).array for row in raws], np.uint8)
    spec = one.spec((), json.loads(json.dumps(one.statistics([rows[:2], rows[2:]]))))
    return one, spec, one.pack(rows, spec)


def read(one, spec, tokens, **how):
    return one.encode(torch.from_numpy(one.collate(tokens, spec, **how)), spec)


def tags_of(spec, inputs, row):
    names = spec.statistics["tags"]
    return [names[tag] if tag != NOT_ASKED else None for tag in inputs["tags"][row][inputs["first"][row]].tolist()]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram", "characters"])
def test_each_word_has_its_tag_and_its_place_whatever_the_tokenizer(kind):
    one, spec, packed = built(modality(tokenizer=kind))
    assert list(packed) == ["tokens", "text", "spans", "tags"] and spec.statistics["tags"] == ["B-LOC", "B-PER", "I-PER", "O"]
    assert spec.statistics["tag_counts"] == [1, 10, 1, 60]
    inputs = read(one, spec, packed["tokens"], whole=True)
    for row, (words, tags) in enumerate(ROWS):
        text = bytes(packed["text"][row]).decode()
        found = [text[start:end] for start, end in packed["spans"][row].reshape(-1, 2)]
        assert found == [word if word != "\u200b" else tagged.UNSEEN for word in words] and text == " ".join(found)
        assert json.loads(bytes(packed["tags"][row])) == tags == tags_of(spec, inputs, row)
        assert int(inputs["mask"][row].sum()) == len(packed["tokens"][row])
    assert not (inputs["tags"] != NOT_ASKED)[~inputs["first"]].any()


def test_rows_are_their_words_between_two_marks():
    one, spec, packed = built()
    inputs, marks = read(one, spec, packed["tokens"], whole=True), spec.statistics["tokens"]
    for row, length in enumerate(packed["tokens"].lengths.tolist()):
        ids = inputs["tokens"][row].tolist()
        assert (ids[0], ids[length - 1], ids[length:]) == (marks["begin"], marks["end"], [marks["pad"]] * (len(ids) - length))
        assert inputs["first"][row, 1] and not inputs["first"][row, [0, length - 1]].any()
    assert one.reader(spec)(inputs["tokens"][0].tolist()) == "größe matters to ann lee."


def test_a_tag_that_training_lacks_is_the_truth_still():
    one, spec, _ = built()
    packed = one.pack(Ragged.of([one.decode(raw(["new", "words"], ["B-NEW", "O"])).array], np.uint8), spec)
    assert json.loads(bytes(packed["tags"][0])) == ["B-NEW", "O"] and tags_of(spec, read(one, spec, packed["tokens"]), 0) == [None, "O"]


def test_content_is_that_of_the_words_alone():
    one = modality()
    first, other, text = one.decode(RAWS[0]), one.decode(raw(ROWS[0][0], ["O"] * 6)), one.decode(Raw("Größe  matters to Ann Lee.".encode()))
    assert first.content == other.content == text.content and first.signature == text.signature
    assert first.facts == {"characters": 26, "words": 6}
    rows = Ragged.of([first.array, one.decode(RAWS[2]).array], np.uint8)
    assert one.same(rows[[0, 0]], rows[[0, 1]]).tolist() == [True, False]


WORDS = ["Ann", "'", "s", "café", ",", "2", "of", "them"]


@pytest.mark.parametrize(
    "value",
    ["Ann's   café, 2 of\n them", "Ann's café, 2 of them".encode(), WORDS, np.array(WORDS, dtype=object), {"words": WORDS}, json.dumps({"words": WORDS})],
    ids=["text", "bytes", "list", "array", "object", "json"],
)
def test_users_send_texts_or_words(value):
    one, spec, _ = built()
    decoded = one.decode(one.serve(one.cell(value, Path())))
    packed = one.pack(Ragged.of([decoded.array], np.uint8), spec)
    text = bytes(packed["text"][0]).decode()
    assert [text[start:end] for start, end in packed["spans"][0].reshape(-1, 2)] == WORDS
    if isinstance(value, str) and value[0] != "{":
        assert text == value  # so that places are those in what was sent
    assert tags_of(spec, read(one, spec, packed["tokens"]), 0) == [None] * 8


def test_private_words_are_masked_before_they_are_stored():
    one = modality(mask_private=True)
    rows = [json.loads(bytes(one.decode(given).array)) for given in (raw(["mail", "ann@example.com"], ["O", "B-MAIL"]), Raw(b"mail ann@example.com"))]
    assert [row["text"] for row in rows] == ["mail [EMAIL]", "mail [EMAIL]"]


def test_users_may_name_files_where_that_is_allowed(tmp_path):
    one = modality()
    (tmp_path / "x.txt").write_text("Ann Lee")
    assert one.serve(tmp_path / "x.txt").data == b"Ann Lee" and "not accepted" in one.serve(tmp_path / "x.txt", files=False).reason
    for bad, words in ((["Ann", 3], "found 3"), (3, "found int"), ({"word": "x"}, "found dict")):
        with pytest.raises(InputError, match=words):
            one.serve(bad)
    assert one.decode(one.serve(one.cell(float("nan"), Path()))).reason == "empty"
    assert json.loads(one.request(RAWS[0].data)) == {"words": ROWS[0][0]} and one.request(b"Ann Lee") == "Ann Lee"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (Raw(None, "a broken pipe"), "a broken pipe"),
        (Raw(b""), "empty"),
        (Raw("\u200b \ufeff".encode()), "empty"),
        (Raw(b"\x89PNG\r\n\x1a\n\0\0"), "binary"),
        (raw(["x" * 300]), "300 characters, above the limit of 200"),
        (raw(["a"], ["O", "O"]), "1 words, but 2 tags"),
        (raw([], []), "empty"),
        (raw("a"), "the words are 'a'; expected a list"),
    ],
)
def test_what_has_no_words_has_a_reason(given, reason):
    found = modality(max_characters=200).decode(given)
    assert found.array is None and reason in found.reason


VALUES = st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3), max_leaves=6)
OBJECTS = st.fixed_dictionaries({"words": VALUES}, optional={"tags": VALUES}).map(lambda value: json.dumps(value).encode())


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode) | OBJECTS)
def test_whatever_the_bytes_decoding_never_raises(data):
    found = modality().decode(Raw(data))
    assert (found.array is None) == bool(found.reason)


KNOWN = built()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.text(max_size=6).filter(str.strip), st.sampled_from(["O", "B-PER", "I-PER"])), min_size=1, max_size=30))
def test_any_words_keep_their_tags(pairs):
    one, spec, _ = KNOWN
    words, tags = map(list, zip(*pairs, strict=True))
    packed = one.pack(Ragged.of([one.decode(raw(words, tags)).array], np.uint8), spec)
    assert tags_of(spec, read(one, spec, packed["tokens"], whole=True), 0) == tags and len(packed["spans"][0]) == 2 * len(words)


def test_longer_rows_are_read_in_windows():
    one, spec, packed = KNOWN
    whole, cut = (read(one, spec, packed["tokens"], whole=flag) for flag in (True, False))
    assert whole["tokens"].shape[1] == packed["tokens"].lengths.max() > cut["tokens"].shape[1] == 32
    assert cut["tokens"][2, :31].tolist() == whole["tokens"][2, :31].tolist() and cut["tokens"][2, 31] == spec.statistics["tokens"]["end"]
    starts = set()
    for seed in range(40):
        inputs = read(one, spec, packed["tokens"], generator=torch.Generator().manual_seed(seed))
        run = inputs["tokens"][2, 1:31].tolist()
        starts |= {place for place in range(1, whole["tokens"].shape[1] - 30) if whole["tokens"][2, place : place + 30].tolist() == run}
        assert inputs["tokens"][2, 0] == spec.statistics["tokens"]["begin"] and inputs["tokens"][0].tolist() == cut["tokens"][0].tolist()
    assert len(starts) > 15 and min(starts) < 10


@pytest.mark.parametrize("preset", [*Tagged.presets, Augmentation(drop=0.9)], ids=str)
def test_hidden_tokens_leave_words_and_tags_in_place(preset):
    one, spec, packed = KNOWN
    augmentation = one.presets[preset](spec) if isinstance(preset, str) else preset
    plain = read(one, spec, packed["tokens"])
    inputs, _ = one.augment(torch.from_numpy(one.collate(packed["tokens"], spec)), spec, augmentation, torch.Generator().manual_seed(0))
    assert all(torch.equal(plain[name], inputs[name]) for name in ("mask", "first", "tags"))
    part, _ = one.augment(torch.from_numpy(one.collate(packed["tokens"], spec)), spec, augmentation, torch.Generator().manual_seed(0), slice(1, 3))
    assert all(torch.equal(part[name], value[1:3]) for name, value in inputs.items())
    changed = plain["tokens"] != inputs["tokens"]
    assert set(inputs["tokens"][changed].tolist()) <= {spec.statistics["tokens"]["mask"]} and bool(changed.any()) == (preset != "none")


def test_a_stream_of_rows_holds_tokens_alone():
    one, spec, packed = KNOWN
    blocks = Blocks.of(SimpleNamespace(array=packed["tokens"], spec=spec), np.arange(len(RAWS)))
    inputs = read(one, spec, blocks.array[np.arange(len(blocks.array))])
    whole = read(one, spec, packed["tokens"], whole=True)
    assert inputs["tokens"].flatten().tolist() == whole["tokens"][whole["mask"]].tolist()[: inputs["tokens"].numel()] and inputs["mask"].all()


def test_what_cannot_be_told_apart_is_refused(monkeypatch):
    with pytest.raises(InputError, match="no word of the training part has a tag"):
        built(raws=[raw(["a", "b"]), Raw(b"a b c"), raw(["d"])])
    monkeypatch.setattr(tagged, "MOST_TAGS", 3)
    with pytest.raises(InputError, match="4 different tags, at most 3"):
        built()


def test_options_follow_the_data():
    plan = Tagged(Tagged.Options()).plan([*RAWS, raw([]), Raw(None, "gone")], 5000)
    assert (plan.max_length, plan.vocabulary) == (128, 10_000) and modality().planned
