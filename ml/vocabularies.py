"""Vocabularies of subwords, the same in every process.

The trainers of `tokenizers` for WordPiece and Unigram walk through hash tables whose order changes from process to process, with
any number of threads: the same texts give another vocabulary each time. Its trainer of byte pairs sorts first and does not. So both
are made here from byte pairs of counted words; counts are whole numbers, and ties go by the alphabet.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

START = "▁"
"""Marks the start of a word, as SentencePiece does."""

WORDS = 1_000_000
"""From twice as many different words on, the rarest are forgotten: memory stays below half a gigabyte, whatever the corpus."""
WORD = re.compile(r"\S{1,32}")
CHUNK = 20_000

SEEDS, SHRINK, ROUNDS = 3, 0.75, 2
"""Unigram starts with 3 times the pieces wanted, keeps three quarters each time, and is fitted twice more at the end."""


def words(texts: Iterable[str], splitter: Any = None) -> Counter[str]:
    """How often each word occurs; `splitter` is a pre-tokenizer that cuts a word further, at punctuation say."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(WORD.findall(text))
        if len(counts) > 2 * WORDS:
            counts = Counter(dict(counts.most_common(WORDS)))
    if splitter is None:
        return counts
    parts: Counter[str] = Counter()
    for word, count in counts.items():
        for part, _ in splitter.pre_tokenize_str(word):
            parts[part] += count
    return parts


def characters(texts: Iterable[str], size: int) -> list[str]:
    """The `size` most frequent characters, the most frequent first."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return _ranked(counts)[:size]


def wordpiece(words: Mapping[str, int], size: int) -> list[str]:
    """At most `size` pieces: each letter as a word's start and, after "##", as its continuation; then merged pieces."""
    letters, words = _alphabet(words, size // 4)
    ids = _byte_pairs(words, size).get_vocab()
    merged = [piece for piece in sorted(ids, key=ids.get) if len(piece.removeprefix(START)) > 1]
    pieces = [piece[1:] if piece.startswith(START) else f"##{piece}" for piece in merged]
    return list(dict.fromkeys([*letters, *(f"##{letter}" for letter in letters), *pieces]))[:size]


def unigram(words: Mapping[str, int], size: int, also: str = "") -> dict[str, float]:
    """At most `size` pieces with the logarithms of their probabilities (Kudo 2018, arXiv:1804.10959), the letters in `also` among them.

    Fitted to the best segmentation of each word instead of all, so that counts are whole and their order does not matter.
    """
    from tokenizers import Tokenizer, models

    letters, words = _alphabet(words, (size - len(set(also))) // 2)
    if not words:
        return {}
    always = {START, *letters, *also}
    tokenizer, goal, rounds = _byte_pairs(words, SEEDS * size), SEEDS * size, ROUNDS
    tokenizer.pre_tokenizer = None
    while True:
        counts = _uses(tokenizer, words)
        goal = max(size, int(goal * SHRINK))
        kept = [piece for piece in _ranked(counts) if piece in always or counts[piece]]
        rest = [piece for piece in kept if piece not in always][: max(goal - len(always), 0)]
        counts = {piece: max(counts[piece], 0.5) for piece in _ranked({piece: counts[piece] for piece in (*always, *rest)})}
        total = sum(counts.values())
        scores = {piece: round(math.log(count / total), 6) for piece, count in counts.items()}
        rounds -= goal == size
        if rounds < 0:
            return scores
        tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=0))


def _alphabet(words: Mapping[str, int], most: int) -> tuple[list[str], dict[str, int]]:
    """The most frequent letters, and the words that need no other, with their start marked."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word:
            counts[letter] += count
    letters = sorted(letter for letter in _ranked(counts)[:most] if letter != START)
    known = set(letters)
    return letters, {START + word: count for word, count in words.items() if known.issuperset(word)}


def _byte_pairs(words: Mapping[str, int], size: int) -> Any:
    """A tokenizer with the letters of `words` and their most frequent merges, `size` together, numbered in that order."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(_repeated(words), trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False))
    return tokenizer


def _repeated(words: Mapping[str, int]) -> Iterator[str]:
    for word in sorted(words):
        for start in range(0, words[word], CHUNK):
            yield " ".join([word] * min(CHUNK, words[word] - start))


def _uses(tokenizer: Any, words: Mapping[str, int]) -> Counter[str]:
    """How often each piece is used in the tokenizer's segmentation of all words."""
    listed, uses = sorted(words), np.zeros(tokenizer.get_vocab_size(), np.int64)
    for start in range(0, len(listed), CHUNK):
        part = listed[start : start + CHUNK]
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(part, add_special_tokens=False)]
        times = np.repeat([words[word] for word in part], [len(one) for one in ids])
        np.add.at(uses, np.concatenate(ids).astype(np.int64), times)
    return Counter({piece: int(uses[number]) for piece, number in tokenizer.get_vocab().items()})


def _ranked(counts: Mapping[str, float]) -> list[str]:
    """The most frequent first; of equals, by the alphabet."""
    return sorted(counts, key=lambda item: (-counts[item], item))
