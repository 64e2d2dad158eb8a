"""Texts decoded as they come, and what the model is given of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ml import tokenizing
from ml.contracts import InputError, Raw
from ml.modalities.text import Text, texts
from ml.ragged import Ragged
from ml.text_augment import Augmentation

LINES = [
    "The storm broke the old mast, and the crew sang all night.",
    "A quiet film about two brothers who leave home to find gold.",
    "My card was charged twice; please send the money back.",
    "Größe, naïve café — and a pinch of salt.",
]


def modality(max_length=16, vocabulary=200, **options):
    return Text(Text.Options(max_length=max_length, vocabulary=vocabulary, **options))


def decoded(one, lines):
    return Ragged.of([one.decode(Raw(line.encode())).array for line in lines], np.uint8)


def built(one=None, lines=LINES):
    """A modality, what describes the lines, and the lines as they are stored."""
    one = one or modality()
    rows = decoded(one, lines)
    spec = one.spec(("a", "b"), json.loads(json.dumps(one.statistics([rows[:2], rows[2:]]))))
    return one, spec, one.pack(rows, spec)


def endoftext(folder):
    """A tokenizer of words, as GPT-2's: one token plays all roles."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [word for line in LINES for word in line.split()]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(dict.fromkeys(["<|endoftext|>", *words]))}, "<|endoftext|>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    return modality(tokenizer_path=str(folder))


@pytest.mark.parametrize(
    ("words", "rows", "expected"), [(5, 100, (32, 2000)), (30, 8000, (64, 16_000)), (150, 10**7, (256, 30_000)), (5000, 0, (256, 2000))]
)
def test_length_and_vocabulary_follow_the_data(words, rows, expected):
    plan = Text(Text.Options()).plan([Raw(("word " * words).encode()), Raw(b"\0\1binary"), Raw(None, "gone")], rows)
    assert (plan.max_length, plan.vocabulary) == expected


def test_scripts_without_blanks_and_letters_as_tokens_are_longer():
    chinese = Raw(("这是一个中文文本" * 20).encode())
    assert Text(Text.Options()).plan([chinese], 10).max_length == 256
    assert Text(Text.Options(tokenizer="characters")).plan([Raw(b"twenty words or so, a hundred letters, " * 3)], 10).max_length == 128


def test_options_that_are_set_stand():
    assert modality(48, 300).planned and not Text(Text.Options(max_length=48)).planned
    assert Text(Text.Options(max_length=48, tokenizer_path="x")).planned
    plan = Text(Text.Options(max_length=48)).plan([Raw(b"a b c")], 10)
    assert (plan.max_length, plan.vocabulary) == (48, 2000)
    assert Text(Text.Options()).plan([], 10).max_length == 32


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings(encoding):
    text = "I don’t know — a “really” good café"
    found = modality().decode(Raw(text.encode(encoding)))
    assert bytes(found.array).decode() == text and found.reason == ""
    assert found.facts == {"characters": len(text)}
    assert found.content == modality().decode(Raw(text.encode())).content
    assert found.signature == modality().decode(Raw(text.encode())).signature


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (Raw(None, "a broken pipe"), "a broken pipe"),
        (Raw(None), "no data"),
        (Raw(b""), "empty"),
        (Raw(b" \n\t "), "empty"),
        (Raw("\u200b<br/>\ufeff".encode()), "empty"),
        (Raw(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), "binary"),
        (Raw(b"x" * 101), "101 bytes, above the limit of 100"),
        (Raw(b"many words " * 8), "87 characters, above the limit of 80"),
    ],
)
def test_what_is_no_text_has_a_reason(raw, reason):
    found = modality(max_bytes=100, max_characters=80).decode(raw)
    assert found.array is None and reason in found.reason


@settings(deadline=None)
@given(st.binary(max_size=80) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_whatever_the_bytes_decoding_never_raises(data):
    found = modality().decode(Raw(data))
    assert (found.array is None) == bool(found.reason)
    if found.array is not None:
        assert bytes(found.array).decode().strip()


def test_content_and_signature_are_those_of_the_clean_text():
    one = modality()
    plain, other = one.decode(Raw(LINES[0].encode())), one.decode(Raw(LINES[1].encode()))
    dressed = one.decode(Raw(f"<p>{LINES[0].replace(' ', '  ')}</p>\r\n".encode()))
    assert dressed.content == plain.content != other.content
    assert dressed.signature == plain.signature
    assert one.decode(Raw(LINES[0].lower().encode())).content != plain.content  # what is shown keeps its case


def test_private_data_are_masked_and_counted_on_request():
    raw = Raw(b"Write to jane@example.org or jo@example.org, or call (212) 555-0123")
    found = modality(mask_private=True).decode(raw)
    assert bytes(found.array).decode() == "Write to [EMAIL] or [EMAIL], or call [PHONE]"
    assert found.facts == {"characters": 44, "email": 2, "phone": 1, "card": 0}
    assert b"jane@" in bytes(modality().decode(raw).array)


def test_near_copies_are_told_from_others():
    one = modality()
    long = " ".join(f"word{number}" for number in range(60))
    left = decoded(one, [long, long, LINES[0]])
    right = decoded(one, [long.replace("word30 ", ""), LINES[0], LINES[0].upper()])
    assert one.same(left, right).tolist() == [True, False, True]
    assert one.same(left[:0], right[:0]).tolist() == []


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram", "characters"])
def test_statistics_are_json_and_do_not_depend_on_the_chunks(kind):
    one = modality(vocabulary=300, tokenizer=kind)
    rows = decoded(one, LINES)
    whole = one.statistics([rows])
    assert whole == one.statistics([rows[:1], rows[1:3], rows[3:]]) == json.loads(json.dumps(whole))
    assert set(whole["tokens"]) == {"pad", "unknown", "begin", "end", "mask"}
    spec = one.spec(("a", "b"), whole)
    assert spec.shape == (16,) and spec.options["vocabulary"] == whole["vocabulary"] <= 300
    assert Text.Options(**spec.options).tokenizer == kind  # a served model builds its modality of these
    assert one.artifacts(spec)["tokenizer.json"] == whole["tokenizer"]


def test_what_is_stored_holds_the_whole_text_between_its_marks():
    one, spec, packed = built()
    assert list(packed) == ["tokens", "text"]
    assert list(texts(packed["text"])) == LINES
    read, marks = one.reader(spec), spec.statistics["tokens"]
    for ids, line in zip(packed["tokens"], LINES, strict=True):
        assert (ids[0], ids[-1]) == (marks["begin"], marks["end"])
        assert read(ids).replace(" ", "") == line.lower().replace(" ", "")


def test_collated_texts_are_padded_and_cut_before_their_mark():
    one, spec, packed = built(modality(max_length=8), ["gold", "gold and salt", *LINES])
    marks, tokens = spec.statistics["tokens"], packed["tokens"]
    array = one.collate(tokens, spec)
    inputs = one.encode(torch.from_numpy(array), spec)
    assert inputs["tokens"].shape == (6, 8) and inputs["tokens"].dtype == torch.int64
    for row, ids in enumerate(tokens):
        expected = ids if len(ids) <= 8 else [*ids[:7], marks["end"]]
        assert inputs["tokens"][row][inputs["mask"][row]].tolist() == list(expected)
        assert inputs["mask"][row].tolist() == [place < len(expected) for place in range(8)]
        assert set(inputs["tokens"][row][~inputs["mask"][row]].tolist()) <= {marks["pad"]}
    assert one.collate(tokens[:1], spec).shape[1] == len(tokens[0])  # no wider than the longest
    blocks = np.arange(32, dtype=np.int32).reshape(2, 16)
    assert one.collate(blocks, spec) is blocks


def test_padding_is_known_by_length_where_one_token_plays_all_roles(tmp_path):
    one, spec, packed = built(endoftext(tmp_path), [LINES[0], "A quiet film"])
    assert len(set(spec.statistics["tokens"].values()) - {None}) == 1
    inputs = one.encode(torch.from_numpy(one.collate(packed["tokens"], spec)), spec)
    assert inputs["mask"].sum(1).tolist() == packed["tokens"].lengths.tolist() == [14, 5]
    assert inputs["tokens"].min() >= 0
    stream = one.encode(torch.zeros(2, 4, dtype=torch.int32), spec)  # nothing in a block of a stream is padding
    assert stream["mask"].all()


def variants():
    return [*Text.presets, Augmentation(drop=0.9), Augmentation(crop=0.95, crop_least=0.9, drop=0.9)]


@pytest.mark.parametrize("roles", ["own", "one"])
@pytest.mark.parametrize("preset", variants(), ids=str)
def test_augmentation_keeps_the_marks_and_some_text(preset, roles, tmp_path):
    one, spec, packed = built(modality() if roles == "own" else endoftext(tmp_path), ["storm", *LINES * 8])
    augmentation = one.presets[preset](spec) if isinstance(preset, str) else preset
    marks = spec.statistics["tokens"]
    hidden = marks["unknown"] if marks["mask"] is None else marks["mask"]

    def augmented(seed):
        random = torch.Generator().manual_seed(seed)
        array = torch.from_numpy(one.collate(packed["tokens"], spec, augmentation, random))
        before = array.clone()
        inputs, mix = one.augment(array, spec, augmentation, random)
        assert mix is None and torch.equal(array, before)
        return inputs

    inputs, again, other = augmented(3), augmented(3), augmented(4)
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)
    plain = one.encode(torch.from_numpy(one.collate(packed["tokens"], spec)), spec)
    if preset == "none":
        assert all(torch.equal(inputs[name], plain[name]) for name in inputs)
        return
    assert inputs["tokens"].shape != other["tokens"].shape or not torch.equal(inputs["tokens"], other["tokens"])
    copies = {}
    for row, whole in enumerate(packed["tokens"]):
        ids = inputs["tokens"][row][inputs["mask"][row]].tolist()
        assert (ids[0], ids[-1]) == (marks["begin"], marks["end"]) and len(ids) > 2
        assert inputs["mask"][row].tolist() == sorted(inputs["mask"][row].tolist(), reverse=True)
        inside = [token for token in ids[1:-1] if token != hidden]
        assert inside and set(inside) <= set(whole[1:-1].tolist())
        copies.setdefault(bytes(whole), set()).add(tuple(ids))
    assert max(map(len, copies.values())) > 1  # equal texts of a batch are changed each in its own way


def test_a_text_without_any_token_stays_what_it_is():
    one, spec, packed = built()
    marks = spec.statistics["tokens"]
    bare = Ragged.of([np.array([marks["begin"], marks["end"]]), packed["tokens"][0]], np.int32)
    for preset in one.presets:
        random = torch.Generator().manual_seed(0)
        augmentation = one.presets[preset](spec)
        inputs, _ = one.augment(torch.from_numpy(one.collate(bare, spec, augmentation, random)), spec, augmentation, random)
        assert inputs["tokens"][0][inputs["mask"][0]].tolist() == [marks["begin"], marks["end"]]


def test_a_run_is_read_anywhere_in_a_long_text_when_it_is_cropped():
    one, spec, packed = built(modality(max_length=8), [" ".join(LINES)] * 500)
    array = one.collate(packed["tokens"], spec, Augmentation(crop=0.01), torch.Generator().manual_seed(0))
    assert array.shape == (500, 8)
    assert set(array[:, 0]) == {spec.statistics["tokens"]["begin"]} and set(array[:, -1]) == {spec.statistics["tokens"]["end"]}
    assert set(array.ravel()) == set(packed["tokens"][0])


def test_a_tokenizer_is_adopted_by_its_path(tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "gold", "and", "salt"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    for path in (tmp_path, tmp_path / "vocab.txt"):
        _one, spec, packed = built(Text(Text.Options(max_length=8, tokenizer_path=str(path))), ["Gold and salt", "gold or salt"])
        assert [ids.tolist() for ids in packed["tokens"]] == [[2, 5, 6, 7, 3], [2, 5, 1, 7, 3]]
        assert spec.options["vocabulary"] == len(vocabulary)
        assert tokenizing.describe(spec.statistics["tokenizer"]).pad == 0
    with pytest.raises(InputError, match="cannot read a tokenizer"):
        built(modality(tokenizer_path=str(tmp_path / "none")))


def test_serving_takes_strings_bytes_and_paths(tmp_path):
    one, text = modality(max_bytes=100), "Größe ☃ 日本"
    (tmp_path / "x.txt").write_text(text, encoding="utf-8")
    for value in (text, text.encode(), bytearray(text.encode()), memoryview(text.encode()), tmp_path / "x.txt"):
        assert one.serve(value) == Raw(text.encode())
    assert one.serve(str(tmp_path / "x.txt")).data == str(tmp_path / "x.txt").encode()  # a string is the text, whatever it says
    assert one.decode(one.serve("half \ud83d of a pair")).array is not None
    assert one.serve(tmp_path / "none.txt").data is None
    assert one.serve(tmp_path / "x.txt", files=False).data is None
    (tmp_path / "x.txt").write_text("x" * 1000)
    assert len(one.serve(tmp_path / "x.txt").data) == 101  # enough to be refused by decode
    for value in (3, None, ["a"], {"text": "a"}, float("nan")):
        with pytest.raises(InputError, match="a text is a string or bytes"):
            one.serve(value)


def test_cells_and_requests():
    one = modality()
    assert one.cell("a text", Path()) == "a text"
    for missing in (None, float("nan")):
        assert one.decode(one.serve(one.cell(missing, Path()))).reason == "empty"
    text = "I don’t know — a “really” good café"
    assert one.request(text.encode("cp1252")) == text
    assert one.decode(one.serve(one.request(text.encode("utf-16")))).content == one.decode(Raw(text.encode())).content
