"""What modalities of written language have in common: options, cleaning, a tokenizer that the training part teaches, what users hand in.

A modality says in `written` which texts a row has, and in `_sizes` how many tokens an item will have.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from ml import contracts, minhash, text_cleaning, tokenizing
from ml.contracts import DataSpec, InputError, Raw
from ml.ragged import Ragged

LEARNT_FROM = 64 * 2**20
"""Bytes of text that a tokenizer is trained on at most: more changes its tokens little, and costs memory."""
LENGTHS = (32, 64, 128, 256)
"""What `max_length` is chosen from: the first that holds nine texts of ten, by words and TOKENS_A_WORD, else the last."""
TOKENS_A_WORD = 1.4


class Form(enum.StrEnum):
    NFC = "NFC"
    NFKC = "NFKC"
    none = "none"


class Kind(enum.StrEnum):
    wordpiece = "wordpiece"
    bpe = "bpe"
    unigram = "unigram"
    characters = "characters"


class LanguageOptions(contracts.Options):
    max_length: int | None = Field(None, ge=4, le=8192, description="Most tokens of a text that a model reads, with its two marks; unset, chosen by the data.")
    tokenizer: Kind = Field(Kind.wordpiece, description="How a tokenizer is trained on the training part.")
    tokenizer_path: str = Field("", description="A tokenizer.json, or a folder with one, with a vocab.txt or with a model of ours, to use instead of training one.")
    vocabulary: int | None = Field(None, ge=1, le=500_000, description="Most tokens of a trained vocabulary; unset, two for each row within 2,000 and 30,000.")
    lowercase: bool = Field(True, description="Makes letters small, in what models read.")
    form: Form = Field(Form.NFC, description="Unicode normal form.")
    markup: bool = Field(True, description="Takes HTML tags out and reads its entities.")
    mask_private: bool = Field(False, description="Puts [EMAIL], [PHONE] and [CARD] in place of what looks like one, and counts them.")
    max_bytes: int = Field(8 * 2**20, ge=1, description="A text of more bytes is refused.")
    max_characters: int = Field(200_000, ge=1, description="A text of more characters, once cleaned, is refused.")


class Language(ABC):
    """Base of Text, TextPair, Question and Tagged."""

    name: ClassVar[str]
    least, most, tokens_a_row = 2_000, 30_000, 2.0
    """Tokens of a vocabulary whose size nobody set: so many for each row, within these."""
    fields = ("text",)
    column_type = "string"
    suffixes = frozenset({".txt", ".md", ".text"})
    signature_bits = 64
    item_shape = None
    requires = ("tokenizers",)

    def __init__(self, options: LanguageOptions) -> None:
        self.options = options

    @staticmethod
    @abstractmethod
    def written(rows: Ragged) -> Iterator[str]:
        """The text of each decoded row, from which the tokenizer learns."""

    @abstractmethod
    def _sizes(self, raw: Raw) -> list[float]:
        """About how many tokens each text of an item will have; none where it cannot be read."""

    @property
    def planned(self) -> bool:
        return self.options.max_length is not None and (self.options.vocabulary is not None or bool(self.options.tokenizer_path))

    def plan(self, sample: Sequence[Raw], rows: int) -> LanguageOptions:
        """The options with the length and the size of the vocabulary resolved from a sample of the data, of which there are `rows`."""
        sizes = [size for raw in sample for size in self._sizes(raw)]
        wanted = np.quantile(sizes, 0.9) if sizes else 0
        length = next((one for one in LENGTHS if one >= wanted), LENGTHS[-1])
        vocabulary = min(max(int(self.tokens_a_row * rows), self.least), self.most)
        return self.options.model_copy(update={"max_length": self.options.max_length or length, "vocabulary": self.options.vocabulary or vocabulary})

    def statistics(self, chunks: Iterable[Ragged]) -> dict[str, Any]:
        """The tokenizer, which learns from chunks of decoded rows unless one is given, the ids of its marks, and for each token
        how rare it is: the logarithm of the share of texts without it (inverse document frequency, Spärck Jones 1972)."""
        if self.options.tokenizer_path:
            known = tokenizing.adopt(self.options.tokenizer_path)
        else:
            taught = self._within(LEARNT_FROM, chunks)
            known = tokenizing.describe(tokenizing.train(taught, self.options.tokenizer.value, self.options.vocabulary, self.options.lowercase))
        marks = {"pad": known.pad, "unknown": known.unknown, "begin": known.begin, "end": known.end, "mask": known.mask}
        rarity = self._rarity(tokenizer_of(known.json), chunks, known.vocabulary)
        return {"tokenizer": known.json, "tokens": marks, "vocabulary": known.vocabulary, "rarity": rarity}

    def spec(self, classes: Sequence[str], statistics: Mapping[str, Any]) -> DataSpec:
        options = {**self.options.model_dump(mode="json"), "vocabulary": statistics["vocabulary"]}
        return DataSpec(self.name, options, (self.options.max_length,), tuple(classes), dict(statistics))

    def artifacts(self, spec: DataSpec) -> dict[str, str]:
        """The tokenizer, as its library reads it."""
        return {"tokenizer.json": spec.statistics["tokenizer"]}

    def reader(self, spec: DataSpec) -> Callable[[Sequence[int]], str]:
        """A function from token ids to text."""
        return partial(tokenizing.decode, tokenizer_of(spec.statistics["tokenizer"]))

    def serve(self, value: Any, files: bool = True) -> Raw:
        """What a user hands to a model, as raw bytes: a string, bytes or, where `files`, a Path."""
        if isinstance(value, str):
            return Raw(value.encode("utf-8", "replace"))
        if isinstance(value, bytes | bytearray | memoryview):
            return Raw(bytes(value))
        if not isinstance(value, Path):
            raise InputError(f"a text is a string or bytes; found {type(value).__name__}")
        if not files or not value.is_file():
            return Raw(None, "not a file that exists" if files else "paths are not accepted here")
        try:
            with value.open("rb") as file:
                return Raw(file.read(self.options.max_bytes + 1))
        except OSError as error:
            return Raw(None, f"cannot be read: {error.strerror}")

    def cell(self, value: Any, folder: Path) -> Any:
        """What a table holds is the text itself; what it lacks is None, or NaN."""
        return "" if value is None or value != value else value

    def _tokens(self, text: str) -> float:
        """About how many tokens a text will have. Scripts without blanks between words take one a character."""
        if self.options.tokenizer is Kind.characters and not self.options.tokenizer_path:
            return len(text) + 2
        return len(text.split()) * TOKENS_A_WORD + len(minhash.UNSPACED.findall(text))

    def _decoded(self, raw: Raw) -> str:
        """The item's text as it was written; raises Unreadable."""
        if raw.data is None:
            raise text_cleaning.Unreadable(raw.reason or "no data")
        return text_cleaning.decode_text(raw.data, self.options.max_bytes)

    def _clean(self, text: str) -> tuple[str, dict[str, int]]:
        """The text, cleaned, and how much was masked in it."""
        # Letters keep their case here: the tokenizer makes them small, so that what people are shown stays as it was written.
        text = text_cleaning.clean(text, form=self.options.form.value, markup=self.options.markup, lowercase=False)
        return text_cleaning.mask_private(text) if self.options.mask_private else (text, {})

    def _too_long(self, text: str) -> str:
        """Why a text is refused for its length, "" where it is not."""
        most = self.options.max_characters
        return f"{len(text):,} characters, above the limit of {most:,}" if len(text) > most else ""

    def _rarity(self, tokenizer: Any, chunks: Iterable[Ragged], vocabulary: int) -> list[float]:
        seen, rows = np.zeros(vocabulary, np.int64), 0
        for chunk in chunks:
            for ids in tokenizing.encode(tokenizer, list(self.written(chunk))):
                seen[np.unique(ids)] += 1
            rows += len(chunk)
        return np.log((rows + 1) / (seen + 1)).round(4).tolist()

    def _within(self, limit: int, chunks: Iterable[Ragged]) -> Iterator[str]:
        """Every so-manieth text, so that all parts of the data are taken from and about `limit` bytes together."""
        step = max(1, -(-sum(chunk.nbytes for chunk in chunks) // limit))
        return islice((text for chunk in chunks for text in self.written(chunk)), 0, None, step)


@cache
def tokenizer_of(json: str) -> Any:
    """The tokenizer of a JSON text, made once."""
    return tokenizing.load(json)


def texts(rows: Ragged) -> Iterator[str]:
    """The rows of UTF-8 bytes as strings."""
    return (bytes(row).decode() for row in rows)
