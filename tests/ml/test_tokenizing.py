"""Tokenizers are trained the same in every process, adopted from elsewhere, and add nothing of their own."""

import hashlib
import json
import os
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.contracts import InputError
from ml.tokenizing import CLS, LEAST, MASK, PAD, SEP, SPECIALS, UNK, adopt, decode, describe, difference, encode, load, read, train

KINDS = ("wordpiece", "bpe", "unigram", "characters")
STORY = "the film was a long and rather slow story of two brothers who leave home to find gold in the far north but find only snow"
WORDS = STORY.split()
TEXTS = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 12)).capitalize() + ". Größe 日本 [SEP]!" for i in range(200)]
PROGRAM = """
import hashlib, sys
from ml.tokenizing import train
texts = sys.stdin.read().split("\\0")
print([hashlib.sha256(train(iter(texts), kind, 300, True).encode()).hexdigest() for kind in ("wordpiece", "bpe", "unigram", "characters")])
"""


@pytest.fixture(scope="module")
def trained():
    return {kind: train(TEXTS, kind, 500, False) for kind in KINDS}


@pytest.mark.parametrize("threads", ["false", "true"])
def test_equal_texts_make_equal_tokenizers_in_every_process(threads):
    mine = str([hashlib.sha256(train(TEXTS, kind, 300, True).encode()).hexdigest() for kind in KINDS])
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": threads}
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], input="\0".join(TEXTS), env=environment, cwd=root, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == mine


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_have_fixed_ids_and_never_come_from_a_text(trained, kind):
    made = describe(trained[kind])
    assert (made.pad, made.unknown, made.begin, made.end, made.mask) == (PAD, UNK, CLS, SEP, MASK)
    assert made.vocabulary <= 500
    assert not {PAD, CLS, SEP, MASK} & set(encode(load(trained[kind]), [" ".join(SPECIALS) + " ".join(TEXTS)])[0].tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_known_words_come_back(trained, kind):
    tokenizer = load(trained[kind])
    ids = encode(tokenizer, [*TEXTS[:3], ""])
    assert all(one.dtype == np.int32 for one in ids)
    assert [len(one) > 0 for one in ids] == [True, True, True, False]
    assert decode(tokenizer, encode(tokenizer, ["The film was long"])[0]) == "The film was long"
    assert decode(tokenizer, [CLS, *encode(tokenizer, ["the far north"])[0], SEP, PAD]) == "the far north"


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_kept_to(kind):
    small, large = (train(TEXTS, kind, size, True) for size in (LEAST[kind], 400))
    assert describe(small).vocabulary <= LEAST[kind]
    assert describe(large).vocabulary <= 400
    assert describe(large).vocabulary > describe(small).vocabulary
    with pytest.raises(InputError, match=f"too small for {kind}: at least {LEAST[kind]}"):
        train(TEXTS, kind, LEAST[kind] - 1, True)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "characters"])
def test_blank_texts_train_nothing(kind):
    with pytest.raises(InputError, match="no text to train"):
        train(iter(["", ""]), kind, 300, False)


def test_subwords_are_fewer_than_letters_and_leave_few_unknown(trained):
    text = ["two brothers leave home to find gold"]
    for kind in ("wordpiece", "bpe", "unigram"):
        ids = encode(load(trained[kind]), text)[0]
        assert UNK not in ids
        assert len(ids) < len(text[0]) / 2
    assert len(encode(load(trained["characters"]), text)[0]) == len(text[0])
    assert encode(load(trained["characters"]), ["♞♞"])[0].tolist() == [UNK, UNK]


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_byte_pairs_lose_nothing(trained, text):
    tokenizer = load(trained["bpe"])
    assert decode(tokenizer, encode(tokenizer, [text])[0]) == text


@settings(deadline=None)
@given(text=st.text(st.sampled_from("ab[CLS] \n\tÄ日"), max_size=50))
def test_a_text_is_encoded_alike_in_any_company(trained, text):
    for kind in KINDS:
        tokenizer = load(trained[kind])
        assert encode(tokenizer, [text])[0].tolist() == encode(tokenizer, [TEXTS[0] * 9, text, "x"])[1].tolist()


def roberta(**roles):
    from tokenizers import Tokenizer, models, processors

    tokenizer = Tokenizer(models.WordLevel({"hello": 7, **roles}, unk_token="<unk>"))
    tokenizer.add_special_tokens([*roles, "<later>"])
    if "<s>" in roles and "</s>" in roles:
        tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(5)
    return tokenizer.to_str()


def test_a_tokenizer_from_elsewhere_is_adopted_with_its_own_ids(tmp_path):
    (tmp_path / "tokenizer.json").write_text(roberta(**{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        made = adopt(str(path))
        assert (made.begin, made.pad, made.end, made.unknown, made.mask) == (0, 1, 2, 3, 4)
        assert made.vocabulary == 8  # ids leave holes
        assert encode(load(made.json), ["hello"])[0].tolist() == [7]  # neither padded nor marked
        assert describe(made.json) == made


def test_one_token_may_play_all_roles(tmp_path):
    (tmp_path / "tokenizer.json").write_text(roberta(**{"<|endoftext|>": 0, "<unk>": 3}))
    made = adopt(str(tmp_path))
    assert (made.pad, made.begin, made.end, made.unknown, made.mask) == (0, 0, 0, 3, None)


@pytest.mark.parametrize(
    ("words", "config", "expected"), [(["hello"], None, "hello"), (["Hello"], None, "Hello"), (["hello"], False, "[UNK]")]
)
def test_the_vocabulary_of_bert_is_adopted(tmp_path, words, config, expected):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, "##s"]) + "\n")
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": config}))
    for path in (tmp_path, tmp_path / "vocab.txt"):
        made = adopt(str(path))
        assert (made.pad, made.unknown, made.begin, made.end, made.mask, made.vocabulary) == (0, 2, 3, 4, 5, 8)
        tokenizer = load(made.json)
        assert [tokenizer.id_to_token(i) for i in encode(tokenizer, ["Hello"])[0]] == [expected]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no tokenizer in the folder .* found nothing"),
        ({"model.bin": "x"}, "found model.bin"),
        ({"tokenizer.json": "{}"}, "not the JSON of a tokenizer"),
        ({"tokenizer.json": "\ud800"}, "cannot read a tokenizer"),
        ({"vocab.txt": "hello\nworld\n"}, "\\[PAD\\], \\[UNK\\], \\[CLS\\], \\[SEP\\] missing among 2 lines"),
        ({"tokenizer.json": None}, "found <unk>, <s>; expected pad: one of \\[PAD\\] .*; end: one of"),
    ],
)
def test_what_cannot_be_adopted_is_said(tmp_path, content, message):
    for name, text in content.items():
        text = roberta(**{"<s>": 0, "<unk>": 3}) if text is None else text
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=message):
        adopt(str(tmp_path))
    with pytest.raises(InputError, match="cannot read"):
        adopt(str(tmp_path / "absent"))


def vocabulary(words: list[str]) -> str:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({token: place for place, token in enumerate(["<unk>", *words])}, unk_token="<unk>")).to_str()


@given(words=st.lists(st.sampled_from("abcdefgh"), unique=True), others=st.lists(st.sampled_from("abcdefgh"), unique=True))
def test_vocabularies_differ_where_an_id_means_another_token(words, others):
    found = difference(vocabulary(words), vocabulary(others))
    count = sum(one != other for one, other in zip_longest(words, others))
    assert found.startswith(f"{count} of ") if count else found == ""


def test_the_description_of_a_model_holds_its_tokenizer(tmp_path):
    text = vocabulary(["a"])
    (tmp_path / "vocab.txt").write_text("of something else")
    (tmp_path / "backbone.json").write_text(json.dumps({"spec": {"statistics": {"tokenizer": text}}}))
    assert difference(read(str(tmp_path)), text) == "" == difference(read(str(tmp_path / "backbone.json")), text)
    for content in ("{}", "[", "[1]", '{"spec": {"statistics": {"mean": [0.5]}}}'):
        (tmp_path / "backbone.json").write_text(content)
        with pytest.raises(InputError, match="does not describe a model of texts"):
            read(str(tmp_path))


def test_real_reviews(shared_data):
    import pandas as pd

    texts = pd.read_parquet(shared_data / "small" / "imdb" / "train.parquet")["text"].head(400).tolist()
    for kind in ("wordpiece", "bpe", "unigram"):
        json_text = train(iter(texts), kind, 2000, True)
        ids = encode(load(json_text), texts[-100:])
        assert 1900 <= describe(json_text).vocabulary <= 2000
        assert sum(map(len, texts[-100:])) / sum(map(len, ids)) > 3  # letters a token
        assert np.mean(np.concatenate(ids) == UNK) < 0.001
