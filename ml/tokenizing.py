"""Tokenizers: trained on the user's texts or adopted from elsewhere, both as the JSON of the `tokenizers` library.

Token ids come without special ones: who makes a model's input adds those, by the ids that `describe` gives.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ml import vocabularies
from ml.contracts import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(len(SPECIALS))
"""The ids of SPECIALS in what is trained here; an adopted tokenizer has its own."""

Kind = Literal["wordpiece", "bpe", "unigram", "characters"]
LEAST = {"wordpiece": 16, "bpe": len(SPECIALS) + 256, "unigram": 32, "characters": len(SPECIALS) + 1}
"""The smallest vocabulary of a kind. Bytes are 256."""

NAMES = {
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>"),
    "unknown": ("[UNK]", "<unk>", "<|unk|>", "<|endoftext|>"),
    "begin": ("[CLS]", "<cls>", "<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
    "end": ("[SEP]", "<sep>", "</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
}
"""What special tokens are called, from BERT to Llama 3; GPT-2 has one for all but the mask."""


DESCRIPTIONS = ("backbone.json", "model.json")
FILES = (*DESCRIPTIONS, "tokenizer.json", "vocab.txt")
"""Where a folder's tokenizer is looked for, in this order."""


@dataclass(frozen=True)
class Adopted:
    """A tokenizer's JSON with the ids of its special tokens. `vocabulary` is one more than the greatest id.

    Ids may coincide (GPT-2 pads with what it ends with), so what is padding is known by length, not by id.
    """

    json: str
    pad: int
    unknown: int
    begin: int
    end: int
    mask: int | None
    vocabulary: int


def train(texts: Iterable[str], kind: Kind, size: int, lowercase: bool) -> str:
    """The JSON of a tokenizer with at most `size` tokens, SPECIALS first; a function of the texts and their order alone.

    `texts` are gone through once. "bpe" is of bytes and loses nothing, "characters" only what is beyond `size`.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if size < LEAST[kind]:
        raise InputError(f"a vocabulary of {size} is too small for {kind}: at least {LEAST[kind]} are needed")
    lower = normalizers.Lowercase() if lowercase else None
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer, tokenizer.decoder = lower, decoders.ByteLevel()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        letters = pre_tokenizers.ByteLevel.alphabet()
        options = {"vocab_size": size, "initial_alphabet": letters, "special_tokens": list(SPECIALS), "show_progress": False}
        tokenizer.train_from_iterator(texts, trainers.BpeTrainer(**options))
        return tokenizer.to_str()
    if kind == "characters":
        found = vocabularies.characters(texts if lower is None else map(lower.normalize_str, texts), size - len(SPECIALS))
        tokenizer = Tokenizer(models.BPE(_numbered(found), [], unk_token=SPECIALS[UNK]))  # without merges: three times as fast as a split
        tokenizer.normalizer, tokenizer.decoder = lower, decoders.Fuse()
    elif kind == "wordpiece":
        normalizer, splitter = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False), pre_tokenizers.BertPreTokenizer()
        words = vocabularies.words(map(normalizer.normalize_str, texts), splitter)
        found = vocabularies.wordpiece(words, size - len(SPECIALS))
        tokenizer = Tokenizer(models.WordPiece(_numbered(found), unk_token=SPECIALS[UNK]))
        tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, splitter, decoders.WordPiece()
    else:
        words = vocabularies.words(texts if lower is None else map(lower.normalize_str, texts))
        # The special ones are so unlikely that no text is cut into them, all their letters being known.
        found = vocabularies.unigram(words, size - len(SPECIALS), also="".join(SPECIALS))
        scores = dict.fromkeys(SPECIALS, -1000.0) | {piece: score for piece, score in found.items() if piece not in SPECIALS}
        tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=UNK))
        tokenizer.normalizer, tokenizer.decoder = lower, decoders.Metaspace()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    if not found:
        raise InputError("there is no text to train a tokenizer on: all texts are blank")
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer.to_str()


def load(json_text: str) -> Tokenizer:
    """The tokenizer of a JSON text, made to add, cut and pad nothing and to read "[SEP]" in a text as any other word."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(json_text)
    except Exception as error:  # the library raises nothing more special
        raise InputError(f"not the JSON of a tokenizer: {error}; expected a tokenizer.json as the library tokenizers writes it") from None
    tokenizer.post_processor = None
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def adopt(path: str) -> Adopted:
    """The tokenizer in a file, or in a folder that has one of FILES, with the ids of its special tokens."""
    return describe(read(path))


def read(path: str) -> str:
    """The JSON of the tokenizer in a tokenizer.json, in BERT's vocab.txt, in the description of a model of ours, or in a folder that has one of them."""
    file = Path(path)
    if file.is_dir():
        files = [file / name for name in FILES if (file / name).is_file()]
        if not files:
            names = ", ".join(sorted(entry.name for entry in file.iterdir())[:10]) or "nothing"
            raise InputError(f"no tokenizer in the folder {path}: expected one of {', '.join(FILES)}, found {names}")
        file = files[0]
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read a tokenizer from {path}: {error}; expected one of {', '.join(FILES)} or their folder") from None
    if file.name in DESCRIPTIONS:
        text = _described(text, file)
    return load(_from_vocabulary(text, file.parent) if file.suffix == ".txt" else text).to_str()


def difference(one: str, other: str) -> str:
    """How the vocabulary of `other` differs from that of `one`, in words; "" where every id means the same token."""
    if one == other:
        return ""
    ours, theirs = ({number: token for token, number in load(text).get_vocab(with_added_tokens=True).items()} for text in (one, other))
    differing = sorted(number for number in ours.keys() | theirs.keys() if ours.get(number) != theirs.get(number))
    if not differing:
        return ""
    example = next((number for number in differing if number in ours and number in theirs), differing[0])
    here, there = (repr(vocabulary[example]) if example in vocabulary else "nothing" for vocabulary in (ours, theirs))
    return f"{len(differing):,} of {len(ours.keys() | theirs.keys()):,} ids mean another token, {example} for example {here} here and {there} there"


def describe(json_text: str) -> Adopted:
    """The ids of a tokenizer's special tokens, by their usual names; raises InputError where one is missing."""
    ids = load(json_text).get_vocab(with_added_tokens=True)
    found = {role: next((ids[name] for name in names if name in ids), None) for role, names in NAMES.items()}
    missing = [role for role, token in found.items() if token is None and role != "mask"]
    if missing:
        known = ", ".join(name for name in dict.fromkeys(sum(NAMES.values(), ())) if name in ids) or "none of the usual names"
        wanted = "; ".join(f"{role}: one of {' '.join(NAMES[role])}" for role in missing)
        raise InputError(f"the tokenizer lacks special tokens; found {known}; expected {wanted}; add what is missing to its tokenizer.json")
    return Adopted(json_text, **found, vocabulary=max(ids.values()) + 1)


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """The ids of each text, int32, without special tokens."""
    return [np.array(encoding.ids, np.int32) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def decode(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> str:
    """The text of ids, without special tokens."""
    return tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=True)


def _numbered(tokens: Iterable[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate((*SPECIALS, *tokens))}


def _described(text: str, file: Path) -> str:
    """The tokenizer that stands in the description of a backbone or model of ours."""
    try:
        found = json.loads(text)["spec"]["statistics"]["tokenizer"]
    except (ValueError, LookupError, TypeError):
        found = None
    if not isinstance(found, str):
        raise InputError(f"{file} does not describe a model of texts: it holds no tokenizer")
    return found


def _from_vocabulary(text: str, folder: Path) -> str:
    """BERT's vocab.txt as JSON. Whether it is lower-cased stands in tokenizer_config.json, or shows in its tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    ids = {token.rstrip("\r"): number for number, token in enumerate(text.removesuffix("\n").split("\n"))}
    missing = [name for name in SPECIALS[:MASK] if name not in ids]
    if missing:
        raise InputError(f"not a vocabulary of BERT's: {', '.join(missing)} missing among {len(ids):,} lines, expected one token a line")
    try:
        lowercase = bool(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["do_lower_case"])
    except (OSError, ValueError, LookupError, TypeError):
        lowercase = not any(token != token.lower() for token in ids if not token.startswith("["))
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=SPECIALS[UNK]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    tokenizer.add_special_tokens([name for name in SPECIALS if name in ids])
    return tokenizer.to_str()
