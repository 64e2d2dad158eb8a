"""Which tokens of a vocabulary go on with the word before them, as a tokenizer's JSON tells: what whole words are hidden by.

A word is a run of letters, digits and marks on letters without a blank, whatever the kind of tokenizer; where a script writes none between words
each character is one, and so is each piece of punctuation. V vocabulary.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np

from ml.contracts import InputError
from ml.minhash import UNSPACED

BLANK = "\u2581"
"""What SentencePiece writes for a blank."""


def word_pieces(json_text: str, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """(V,) bool each: whether a token goes on with a word that the one before leaves open, and whether it leaves its own open.

    So token t belongs to the word of the one before where joins[t] and open[t - 1]. Raises InputError where the JSON does not tell.
    """
    content = json.loads(json_text)
    model = content["model"]
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    read, marked = _written(content)
    if not (prefix or suffix or marked or content.get("pre_tokenizer") is None):
        raise InputError(
            f"the tokenizer ({model['type']}) does not say which tokens go on with a word, which whole_words needs: expected WordPiece's ##, a "
            "byte-level BPE, SentencePiece's mark for a blank, or blanks among its tokens. Use another one, or set whole_words to false"
        )
    joins_V, open_V = np.zeros(vocabulary, bool), np.zeros(vocabulary, bool)
    for token, number in _entries(model):
        if number >= vocabulary:
            continue
        if prefix:
            joins_V[number], open_V[number] = token.startswith(prefix), True
            continue
        text = read(token.removesuffix(suffix) if suffix else token)
        joins_V[number] = bool(text) and _inner(text[0])
        open_V[number] = not (suffix and token.endswith(suffix)) and bool(text) and (_inner(text[-1]) or (marked and text == " "))
    return joins_V, open_V


def _written(content: Mapping[str, Any]) -> tuple[Callable[[str], str], bool]:
    """A function from a token to the text it stands for, and whether tokens that begin a word are marked, by a blank before it."""
    kinds = {part.get("type") for name in ("normalizer", "pre_tokenizer", "decoder") for part in _parts(content.get(name))}
    if "ByteLevel" in kinds:
        return _bytes_read, True
    if "Metaspace" in kinds or BLANK in json.dumps(content.get("normalizer"), ensure_ascii=False):
        return lambda token: token.replace(BLANK, " "), True
    return str, False


def _parts(component: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """A component, and those that it is a sequence of."""
    if component:
        yield component
        for name in ("normalizers", "pretokenizers", "decoders"):
            for one in component.get(name) or ():
                yield from _parts(one)


def _entries(model: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The model's tokens and their ids: a mapping, or of Unigram a list with scores."""
    found = model["vocab"]
    yield from found.items() if isinstance(found, dict) else ((token, number) for number, (token, _) in enumerate(found))


def _inner(letter: str) -> bool:
    """Whether a word goes on before and after this character. A byte that is part of a character counts as one of a letter."""
    return (unicodedata.category(letter)[0] in "LNM" and not UNSPACED.match(letter)) or "\udc80" <= letter <= "\udcff"


def _bytes_read(token: str) -> str:
    """The text of a byte-level token; bytes that make no whole character as lone surrogates."""
    table = _byte_of()
    return bytes(table[letter] for letter in token).decode("utf-8", "surrogateescape") if all(letter in table for letter in token) else token


@cache
def _byte_of() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for (GPT-2's table): printable ones for themselves, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
