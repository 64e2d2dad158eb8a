"""Pairs of texts decoded, refused where the sides do not fit, stored in one array, and read as two."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.contracts import InputError, Raw
from ml.language import texts
from ml.modalities.text_pair import TextPair, target_lengths
from ml.ragged import Packed, Ragged

PAIRS = [
    ("Two dogs run over the green grass.", "Zwei Hunde rennen über das grüne Gras."),
    ("A man sleeps on a sofa.", "Ein Mann schläft auf einem Sofa."),
    ("Gold", "Gold"),
    ("A quiet film about two brothers who leave home to find gold.", "Ein leiser Film über zwei Brüder, die ausziehen, um Gold zu finden."),
]


def modality(max_length=32, vocabulary=330, **options):
    return TextPair(TextPair.Options(max_length=max_length, vocabulary=vocabulary, **options))


def raw(source, target=None):
    return Raw(json.dumps({"source": source} | ({} if target is None else {"target": target})).encode())


def decoded(one, pairs):
    return Ragged.of([one.decode(raw(*pair)).array for pair in pairs], np.uint8)


def built(one=None, pairs=PAIRS):
    """A modality, what describes the pairs, and the pairs as they are stored."""
    one = one or modality()
    rows = decoded(one, pairs)
    spec = one.spec((), json.loads(json.dumps(one.statistics([rows[:2], rows[2:]]))))
    return one, spec, one.pack(rows, spec)


@pytest.mark.parametrize(("words", "rows", "expected"), [(5, 100, (32, 2000)), (30, 40_000, (64, 10_000)), (5000, 10**7, (256, 32_000))])
def test_length_and_vocabulary_follow_the_data(words, rows, expected):
    plan = TextPair(TextPair.Options()).plan([raw("word " * 3, "word " * words), Raw(b"\0\1"), Raw(None, "gone")], rows)
    assert (plan.max_length, plan.vocabulary) == expected


def test_a_pair_is_cleaned_on_both_sides():
    found = modality().decode(raw(" Two\u200b  dogs. ", "Zwei\r\nHunde."))
    assert json.loads(bytes(found.array)) == {"source": "Two dogs.", "target": "Zwei\nHunde."}
    assert found.facts == {"characters": 9, "target_characters": 11}
    assert found.content == modality().decode(raw("Two dogs.", "Zwei\nHunde.")).content != modality().decode(raw("Two dogs.", "Zwei Hunde!")).content
    assert found.signature == modality().decode(raw("Two dogs.", "Anders.")).signature != 0
    private = modality(mask_private=True).decode(raw("Write to jane@example.org", "Schreib an jane@example.org"))
    assert json.loads(bytes(private.array))["target"] == "Schreib an [EMAIL]" and private.facts["email"] == 2


@pytest.mark.parametrize("data", [b"A plain text.", b'{"text": "not ours"}', b'{"source": 5}', b'{"source": "a", "target": 5}', b'{ "source": "broken', b"[1]"])
def test_what_is_no_pair_is_a_source(data):
    assert json.loads(bytes(modality().decode(Raw(data)).array)) == {"source": data.decode()}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (Raw(None, "a broken pipe"), "a broken pipe"),
        (Raw(b""), "the source is empty"),
        (raw(" ", "Hund"), "the source is empty"),
        (raw("dog", "\u200b"), "the target is empty"),
        (raw("dog", "Hund " * 15), "1 words in the source and 15 in the target"),
        (raw("dog " * 60, "Hund " * 6), "60 words in the source and 6 in the target"),
        (raw("x" * 81, "y"), "the source has 81 characters, above the limit of 80"),
        (Raw(b"x" * 501), "501 bytes, above the limit of 500"),
        (Raw(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), "binary"),
    ],
)
def test_what_cannot_be_used_has_a_reason(given, reason):
    found = modality(max_bytes=500, max_characters=80 if b"x" in (given.data or b"") else 1000).decode(given)
    assert found.array is None and reason in found.reason


@pytest.mark.parametrize(("ratio", "words", "kept"), [(0, 500, True), (30, 35, True), (30, 36, False)])
def test_how_unlike_the_sides_may_be_is_an_option(ratio, words, kept):
    found = modality(ratio=ratio).decode(raw("query", "passage " * words))
    assert (found.array is not None) == kept


@pytest.mark.parametrize("pair", [("OK", "In Ordnung, so machen wir das, ganz bestimmt, ja."), ("dog " * 20, "Hund " * 3), ("这是一个中文句子", "This is a Chinese sentence."), ("a source alone", None)])
def test_what_may_well_be_a_translation_stays(pair):
    assert modality().decode(raw(*pair)).array is not None


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.tuples(st.text(max_size=20), st.text(max_size=20)).map(lambda pair: raw(*pair).data))
def test_whatever_the_bytes_decoding_never_raises(data):
    found = modality().decode(Raw(data))
    assert (found.array is None) == bool(found.reason)


def test_near_copies_are_told_by_the_source():
    one, words = modality(), [f"word{number}" for number in range(60)]
    left = decoded(one, [(" ".join(words), "a " * 30), PAIRS[0]])
    right = decoded(one, [(" ".join(words[1:]), "b " * 40), (PAIRS[1][0], PAIRS[0][1])])
    assert one.same(left, right).tolist() == [True, False]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram", "characters"])
def test_statistics_are_json_learnt_from_both_sides_and_do_not_depend_on_the_chunks(kind):
    one = modality(tokenizer=kind)
    rows = decoded(one, PAIRS * 3)
    whole = one.statistics([rows])
    assert whole == one.statistics([rows[:1], rows[1:3], rows[3:]]) == json.loads(json.dumps(whole))
    assert ("ü" in whole["tokenizer"]) or ("Ã¼" in whole["tokenizer"])
    spec = one.spec((), whole)
    assert (spec.modality, spec.shape) == ("text-pair", (32,)) and spec.options["vocabulary"] == whole["vocabulary"] <= 330
    assert TextPair.Options(**spec.options).tokenizer == kind  # a served model builds its modality of these


def test_what_is_stored_is_what_is_read():
    one, spec, packed = built()
    assert list(packed) == ["tokens", "text", "target"]
    assert list(zip(texts(packed["text"]), texts(packed["target"]), strict=True)) == PAIRS
    inputs, read, marks = one.encode(torch.from_numpy(one.collate(packed["tokens"], spec)), spec), one.reader(spec), spec.statistics["tokens"]
    assert {name: value.dtype for name, value in inputs.items()} == {"tokens": torch.int64, "mask": torch.bool, "target": torch.int64, "target_mask": torch.bool}
    for row, pair in enumerate(PAIRS):
        for (ids, mask), text in zip((("tokens", "mask"), ("target", "target_mask")), pair, strict=True):
            found = inputs[ids][row][inputs[mask][row]].tolist()
            assert (found[0], found[-1]) == (marks["begin"], marks["end"])
            assert text.startswith(read(found).strip()) and (len(found) == 32 or read(found) == text)
            assert set(inputs[ids][row][~inputs[mask][row]].tolist()) <= {marks["pad"]}
            assert inputs[mask][row].tolist() == sorted(inputs[mask][row].tolist(), reverse=True)


def test_both_sides_are_cut_before_their_marks():
    one, spec, packed = built(modality(max_length=8))
    end, lengths = spec.statistics["tokens"]["end"], target_lengths(packed["tokens"])
    assert packed["tokens"].lengths.max() == 16 and lengths.max() == 8
    assert all(row[-1] == -2 - end and row[len(row) - length - 1] == end for row, length in zip(packed["tokens"], lengths, strict=True))
    assert one.collate(packed["tokens"], spec).shape == (4, 2, 8)


def test_a_source_alone_has_no_target():
    one, spec, _ = built()
    packed = one.pack(decoded(one, [("Two dogs.", None), PAIRS[0]]), spec)
    assert target_lengths(packed["tokens"]).tolist()[0] == 0 and list(texts(packed["target"])) == ["", PAIRS[0][1]]
    inputs = one.encode(torch.from_numpy(one.collate(packed["tokens"], spec)), spec)
    assert inputs["target_mask"].any(1).tolist() == [False, True]
    assert one.collate(packed["tokens"][:1], spec).shape[:2] == (1, 2)


@pytest.mark.parametrize("preset", TextPair.presets)
def test_augmentation_hides_tokens_of_the_source_alone(preset):
    one, spec, packed = built(pairs=PAIRS * 8)
    augmentation, marks = one.presets[preset](spec), spec.statistics["tokens"]
    array = torch.from_numpy(one.collate(packed["tokens"], spec, augmentation, torch.Generator().manual_seed(0)))
    plain = one.encode(array, spec)
    found, again = (one.augment(array, spec, augmentation, torch.Generator().manual_seed(1))[0] for _ in range(2))
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert all(torch.equal(found[name], plain[name]) for name in ("mask", "target", "target_mask"))
    part, _ = one.augment(array, spec, augmentation, torch.Generator().manual_seed(1), slice(1, 3))
    assert all(torch.equal(part[name], value[1:3]) for name, value in found.items())
    changed = found["tokens"] != plain["tokens"]
    assert changed.any() == (preset != "none") and set(found["tokens"][changed].tolist()) <= {marks["mask"]}


def test_serving_takes_sources_and_pairs(tmp_path):
    one = modality()
    (tmp_path / "x.txt").write_text("Größe ☃", encoding="utf-8")
    for value in ("Größe ☃", "Größe ☃".encode(), tmp_path / "x.txt", {"source": "Größe ☃"}):
        assert json.loads(bytes(one.decode(one.serve(value)).array)) == {"source": "Größe ☃"}
    assert json.loads(bytes(one.decode(one.serve({"source": "a", "target": "b"})).array)) == {"source": "a", "target": "b"}
    assert one.serve(tmp_path / "x.txt", files=False).data is None
    for value in (3, None, ["a"], {"text": "a"}):
        with pytest.raises(InputError, match="a text is a string or bytes"):
            one.serve(value)
    assert one.decode(one.serve(one.cell(None, Path()))).reason == "the source is empty"
    assert one.request(raw("Größe", "size").data) == "Größe" == one.request("Größe".encode())


def test_blocks_of_a_stream_are_the_texts_of_both_sides_in_turn():
    one, spec, packed = built()
    stream = Packed(packed["tokens"], np.arange(len(PAIRS)), spec.shape[0])
    array_BT = one.collate(stream[np.arange(len(stream))], spec)
    expected = np.concatenate([np.where(row < -1, -2 - row, row) for row in packed["tokens"]])
    assert len(stream) > 1 and array_BT.ravel().tolist() == expected[: array_BT.size].tolist()
    inputs = one.encode(torch.from_numpy(array_BT), spec)
    assert set(inputs) == {"tokens", "mask"} and inputs["mask"].all() and inputs["tokens"].tolist() == array_BT.tolist()
    drawn, mix = one.augment(torch.from_numpy(array_BT), spec, one.presets["contrastive"](spec), torch.Generator().manual_seed(0))
    changed = drawn["tokens"] != inputs["tokens"]
    assert mix is None and changed.any() and (drawn["tokens"][changed] == spec.statistics["tokens"]["mask"]).all()
