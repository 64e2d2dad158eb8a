"""Words are told apart alike by every kind of tokenizer, trained here or adopted."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.contracts import InputError
from ml.tokenizing import describe, encode, load, train
from ml.word_pieces import word_pieces

KINDS = ("wordpiece", "bpe", "unigram", "characters")
STORY = "the film was a long and rather slow story of two brothers who leave home to find gold in far north but only snow größe हिन्दी"
WORDS = STORY.split()
TEXTS = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 14)).capitalize() + ". Größe (1999), don't! 日本語の" for i in range(200)]
TEXT = "Found filmstory (unsnow) brothers' gold-größen. हिन्दी"
EXPECTED = ["Found", "filmstory", "unsnow", "brothers", "gold", "größen", "हिन्दी"]


@pytest.fixture(scope="module")
def trained():
    return {kind: train(TEXTS, kind, 380, False) for kind in KINDS}


def words(json_text: str, text: str) -> list[str]:
    """The words of a text as the tokenizer's pieces are put together, without blanks."""
    tokenizer, (joins, opens) = load(json_text), word_pieces(json_text, describe(json_text).vocabulary)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    spans, before = [], None
    for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if before is not None and joins[number] and opens[before]:
            spans[-1][1] = end
        else:
            spans.append([start, end])
        before = number
    assert encode(tokenizer, [text])[0].tolist() == encoding.ids
    return [word for start, end in spans if (word := text[start:end].strip())]


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_put_together(trained, kind):
    found = words(trained[kind], TEXT)
    assert [word for word in found if word[0].isalnum()] == EXPECTED
    assert len(load(trained[kind]).encode(TEXT).ids) > len(found) + 5, "the words were in pieces"
    if kind != "bpe":  # whose pieces may be parts of characters
        assert words(trained[kind], "日本 gold")[-3:] == ["日", "本", "gold"]


@settings(deadline=None, max_examples=60)
@given(text=st.lists(st.text(st.sampled_from("abdefhilnorstuwß"), min_size=1, max_size=12), min_size=1, max_size=8))
def test_words_of_letters_are_those_between_blanks(trained, text):
    for kind in KINDS:
        assert words(trained[kind], " ".join(text)) == text


def sentencepiece() -> str:
    """As Llama's is written: the blank is replaced, and nothing splits beforehand."""
    from tokenizers import Tokenizer, models, normalizers

    tokenizer = Tokenizer(models.BPE({"<unk>": 0, "▁": 1, "a": 2, "b": 3, "▁a": 4, ".": 5}, [("▁", "a")], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer.to_str()


def test_adopted_ones_are_read_by_their_marks():
    joins, opens = word_pieces(sentencepiece(), 8)
    assert joins.tolist() == [False, False, True, True, False, False, False, False]
    assert opens.tolist() == [False, True, True, True, True, False, False, False]
    openai = {"model": {"type": "BPE", "vocab": {"lo": 0, "w</w>": 1, "er": 2, ",</w>": 3}, "end_of_word_suffix": "</w>"}, "pre_tokenizer": {"type": "BertPreTokenizer"}}
    joins, opens = word_pieces(json.dumps(openai), 4)
    assert joins.tolist() == [True, True, True, False] and opens.tolist() == [True, False, True, False]


def test_a_tokenizer_that_does_not_tell_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"hello": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(InputError, match=re.escape("the tokenizer (WordLevel) does not say which tokens go on with a word")):
        word_pieces(tokenizer.to_str(), 2)
