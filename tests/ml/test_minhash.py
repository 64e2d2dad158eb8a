"""Near copies share a band, others do not; and a signature is the same everywhere."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.minhash import same, signature

STORY = "the film was a long and rather slow story of two brothers who leave home to find gold in the far north but find only snow and each other"
WORDS = STORY.split()


def shared_bands(a, b):
    both = signature(a) ^ signature(b)
    return sum((both >> shift) & 0xFFFF == 0 for shift in (0, 16, 32, 48))


def test_a_signature_does_not_change_with_the_machine_or_the_version():
    assert signature("The quick brown fox jumps over the lazy dog") == 0xD77CBBEE6B5B568C
    assert signature("Größe 日本") == 0x3FA81BEE22AF6060
    assert signature("") == signature(" \n") == 0


@given(st.text(st.characters() | st.just("\ud800")))
def test_any_text_has_one_of_64_bits_and_is_its_own_copy(text):
    assert 0 <= signature(text) < 2**64
    assert same(text, text)
    assert shared_bands(text, text.lower()) == 4


@pytest.mark.parametrize("similarity", [0.3, 0.6, 0.8, 0.9])
def test_the_chance_of_a_shared_band_is_as_promised(similarity):
    draw = random.Random(1)
    common, trials, found = round(200 * similarity / (1 + similarity)), 1000, 0
    for _ in range(trials):
        start = [f"w{draw.getrandbits(40)}" for _ in range(common + 2)]
        a, b = (" ".join(start + [f"{name}{draw.getrandbits(40)}" for _ in range(100 - common)]) for name in "ab")
        found += shared_bands(a, b) > 0
    jaccard = common / (200 - common)
    assert found / trials == pytest.approx(1 - (1 - jaccard**4) ** 4, abs=0.05)


def test_copies_are_same_and_other_texts_are_not():
    text = " ".join(WORDS * 3 + ["unlike", "any"] + WORDS[::-1] * 2)
    assert same(text, text.upper().replace(" ", "\n") + "!")
    assert same(text, text.replace("unlike any", "unlike some"))
    assert not same(" ".join(WORDS), " ".join(WORDS[::2]))
    assert not same(" ".join(WORDS), " ".join(sorted(WORDS)))


def test_short_texts_are_compared_by_words_or_characters():
    assert same("Great!", "great")
    assert not same("great", "awful")
    assert not same("😀", "😡")
    assert signature("😀") != signature("😡") != 0
    assert not same("", "great")


def test_scripts_without_blanks_are_compared_within_sentences():
    text = "这部电影讲述了两个兄弟离开家乡去遥远的北方寻找黄金的故事但他们只找到了雪和彼此"
    assert same(text, text[:-1])
    assert not same(text, text[::-1])
