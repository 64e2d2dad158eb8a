"""Text: decoded, cleaned, kept apart by MinHash, tokenized by what the training part teaches, read in batches of like length.

Shapes in names: B batch, T tokens of the longest text in a batch, at most `max_length`.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ml import contracts, minhash, text_augment, text_cleaning, tokenizing
from ml.contracts import DataSpec, Decoded, InputError, Mix, Raw
from ml.ragged import Ragged
from ml.text_classical import Classical, classical

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEARNT_FROM = 64 * 2**20
"""Bytes of text that a tokenizer is trained on at most: more changes its tokens little, and costs memory."""
LENGTHS = (32, 64, 128, 256)
"""What `max_length` is chosen from: the first that holds nine texts of ten, by words and TOKENS_A_WORD, else the last."""
TOKENS_A_WORD = 1.4
VOCABULARY = (2_000, 30_000)
"""Least and most tokens of a vocabulary whose size nobody set: two for each row in between."""


class Form(enum.StrEnum):
    NFC = "NFC"
    NFKC = "NFKC"
    none = "none"


class Kind(enum.StrEnum):
    wordpiece = "wordpiece"
    bpe = "bpe"
    unigram = "unigram"
    characters = "characters"


class Text:
    """Texts in any common encoding, from a sentence to some pages; longer ones are read from their beginning."""

    class Options(contracts.Options):
        max_length: int | None = Field(None, ge=4, le=8192, description="Most tokens of a text that a model reads, with its two marks; unset, chosen by the data.")
        tokenizer: Kind = Field(Kind.wordpiece, description="How a tokenizer is trained on the training part.")
        tokenizer_path: str = Field("", description="A tokenizer.json, or a folder with one or with a vocab.txt, to use instead of training one.")
        vocabulary: int | None = Field(None, ge=1, le=500_000, description="Most tokens of a trained vocabulary; unset, two for each row within 2,000 and 30,000.")
        lowercase: bool = Field(True, description="Makes letters small, in what models read.")
        form: Form = Field(Form.NFC, description="Unicode normal form.")
        markup: bool = Field(True, description="Takes HTML tags out and reads its entities.")
        mask_private: bool = Field(False, description="Puts [EMAIL], [PHONE] and [CARD] in place of what looks like one, and counts them.")
        max_bytes: int = Field(8 * 2**20, ge=1, description="A text of more bytes is refused.")
        max_characters: int = Field(200_000, ge=1, description="A text of more characters, once cleaned, is refused.")

    Augmentation = text_augment.Augmentation
    presets = text_augment.PRESETS
    noun = "texts"
    column_type = "string"
    columns = ("text", "sentence", "review", "content", "document", "utterance", "question")
    suffixes = frozenset({".txt", ".md", ".text"})
    signature_bits = 64
    item_shape = None
    requires = ("tokenizers",)

    def __init__(self, options: Text.Options) -> None:
        self.options = options

    @property
    def planned(self) -> bool:
        return self.options.max_length is not None and (self.options.vocabulary is not None or bool(self.options.tokenizer_path))

    def plan(self, sample: Sequence[Raw], rows: int) -> Text.Options:
        """The options with the length and the size of the vocabulary resolved from a sample of the data, of which there are `rows`."""
        sizes = [self._tokens(text) for text in map(self._readable, sample) if text]
        wanted = np.quantile(sizes, 0.9) if sizes else 0
        length = next((one for one in LENGTHS if one >= wanted), LENGTHS[-1])
        vocabulary = min(max(2 * rows, VOCABULARY[0]), VOCABULARY[1])
        return self.options.model_copy(update={"max_length": self.options.max_length or length, "vocabulary": self.options.vocabulary or vocabulary})

    def decode(self, raw: Raw) -> Decoded:
        """The cleaned text as UTF-8, or the reason why not."""
        try:
            text, facts = self._cleaned(raw)
        except text_cleaning.Unreadable as error:
            return Decoded(None, reason=str(error))
        if not text:
            return Decoded(None, reason="empty")
        if len(text) > self.options.max_characters:
            return Decoded(None, reason=f"{len(text):,} characters, above the limit of {self.options.max_characters:,}")
        data = text.encode()
        return Decoded(np.frombuffer(data, np.uint8), hashlib.sha256(data).hexdigest(), minhash.signature(text), facts)

    def same(self, a: Ragged, b: Ragged) -> np.ndarray:
        """Whether the texts of two lists of equal length are near duplicates, one by one."""
        return np.array([minhash.same(one, other) for one, other in zip(texts(a), texts(b), strict=True)], dtype=bool)

    def statistics(self, chunks: Iterable[Ragged]) -> dict[str, Any]:
        """The tokenizer, which learns from chunks of cleaned texts unless one is given, the ids of its marks, and for each token
        how rare it is: the logarithm of the share of texts without it (inverse document frequency, Spärck Jones 1972)."""
        if self.options.tokenizer_path:
            known = tokenizing.adopt(self.options.tokenizer_path)
        else:
            taught = _within(LEARNT_FROM, chunks)
            known = tokenizing.describe(tokenizing.train(taught, self.options.tokenizer.value, self.options.vocabulary, self.options.lowercase))
        marks = {"pad": known.pad, "unknown": known.unknown, "begin": known.begin, "end": known.end, "mask": known.mask}
        rarity = _rarity(_tokenizer(known.json), chunks, known.vocabulary)
        return {"tokenizer": known.json, "tokens": marks, "vocabulary": known.vocabulary, "rarity": rarity}

    def spec(self, classes: Sequence[str], statistics: Mapping[str, Any]) -> DataSpec:
        options = {**self.options.model_dump(mode="json"), "vocabulary": statistics["vocabulary"]}
        return DataSpec("text", options, (self.options.max_length,), tuple(classes), dict(statistics))

    def pack(self, rows: Ragged, spec: DataSpec) -> dict[str, Ragged]:
        """The ids of each text between its marks, and the text itself."""
        marks, tokenizer = spec.statistics["tokens"], _tokenizer(spec.statistics["tokenizer"])
        found = tokenizing.encode(tokenizer, list(texts(rows)))
        ids = [np.concatenate([[marks["begin"]], one, [marks["end"]]]) for one in found]
        return {"tokens": Ragged.of(ids, np.int32), "text": Ragged(np.asarray(rows.values), rows.offsets)}

    def artifacts(self, spec: DataSpec) -> dict[str, str]:
        """The tokenizer, as its library reads it."""
        return {"tokenizer.json": spec.statistics["tokenizer"]}

    def reader(self, spec: DataSpec) -> Callable[[Sequence[int]], str]:
        """A function from token ids to text."""
        return partial(tokenizing.decode, _tokenizer(spec.statistics["tokenizer"]))

    def collate(self, rows: Ragged | np.ndarray, spec: DataSpec, augmentation: Any = None, generator: torch.Generator | None = None) -> np.ndarray:
        """(B, T) int32 ids, padded; a text that is cut short still has its marks. Blocks of a packed stream are a batch already.

        What is read of a longer text is its beginning, or where `augmentation` crops a run of it that `generator` draws.
        """
        if isinstance(rows, np.ndarray):
            return rows
        marks, (limit,) = spec.statistics["tokens"], spec.shape
        if augmentation is not None and augmentation.crop:
            spare = np.maximum(rows.lengths - limit, 0)
            starts = (torch.rand(len(rows), generator=generator).numpy() * (spare + 1)).astype(np.int64)
            array_BT = rows.padded(limit, text_augment.PADDING, starts)
            array_BT[:, 0] = marks["begin"]
        else:
            array_BT = rows.padded(limit, text_augment.PADDING)
        array_BT[rows.lengths > limit, -1] = marks["end"]
        return array_BT

    def encode(self, array_BT: Tensor, spec: DataSpec) -> dict[str, Tensor]:
        """{"tokens": (B, T) int64, "mask": (B, T) bool, true where there is text}."""
        mask_BT = array_BT != text_augment.PADDING
        return {"tokens": array_BT.long().where(mask_BT, spec.statistics["tokens"]["pad"]), "mask": mask_BT}

    def augment(self, array_BT: Tensor, spec: DataSpec, augmentation: Any, generator: torch.Generator) -> tuple[dict[str, Tensor], Mix | None]:
        """As `encode`, altered by `augmentation` with a draw of its own for each text."""
        return self.encode(text_augment.augment(array_BT, spec, augmentation, generator), spec), None

    def alternative(self, store: Any, train: np.ndarray, validation: np.ndarray, test: np.ndarray, seed: int) -> Classical:
        """Logistic regression on TF-IDF."""
        return classical(lambda rows: list(texts(store.arrays["text"][rows])), store.labels, train, validation, test, len(store.spec.classes), seed)

    def overview(self, store: Any) -> dict[str, Figure]:
        """Lengths, and a sample."""
        from ml import text_pictures  # imported where it is used: a served model draws nothing

        return text_pictures.overview(store)

    def mistakes(self, items: Sequence[Mapping[str, Any]], store: Any, rows: np.ndarray) -> Figure:
        """The texts in the rows of `items`, which are as `Evaluation.mistakes`."""
        from ml import text_pictures

        return text_pictures.mistakes(items, list(texts(store.arrays["text"][rows])))

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

    def request(self, raw: bytes) -> str:
        """A source's item as a user would send it."""
        return text_cleaning.decode_text(raw, self.options.max_bytes)

    def _tokens(self, text: str) -> float:
        """About how many tokens a text will have. Scripts without blanks between words take one a character."""
        if self.options.tokenizer is Kind.characters and not self.options.tokenizer_path:
            return len(text) + 2
        return len(text.split()) * TOKENS_A_WORD + len(minhash.UNSPACED.findall(text))

    def _cleaned(self, raw: Raw) -> tuple[str, dict[str, int]]:
        if raw.data is None:
            raise text_cleaning.Unreadable(raw.reason or "no data")
        # Letters keep their case here: the tokenizer makes them small, so that what people are shown stays as it was written.
        text = text_cleaning.clean(
            text_cleaning.decode_text(raw.data, self.options.max_bytes), form=self.options.form.value, markup=self.options.markup, lowercase=False
        )
        text, private = text_cleaning.mask_private(text) if self.options.mask_private else (text, {})
        return text, {"characters": len(text), **private}

    def _readable(self, raw: Raw) -> str:
        try:
            return self._cleaned(raw)[0]
        except text_cleaning.Unreadable:
            return ""


def texts(rows: Ragged) -> Iterator[str]:
    """The rows of UTF-8 bytes as strings."""
    return (bytes(row).decode() for row in rows)


def _rarity(tokenizer: Any, chunks: Iterable[Ragged], vocabulary: int) -> list[float]:
    seen, rows = np.zeros(vocabulary, np.int64), 0
    for chunk in chunks:
        for ids in tokenizing.encode(tokenizer, list(texts(chunk))):
            seen[np.unique(ids)] += 1
        rows += len(chunk)
    return np.log((rows + 1) / (seen + 1)).round(4).tolist()


def _within(limit: int, chunks: Iterable[Ragged]) -> Iterator[str]:
    """Every so-manieth text, so that all parts of the data are taken from and about `limit` bytes together."""
    step = max(1, -(-sum(chunk.nbytes for chunk in chunks) // limit))
    return islice((text for chunk in chunks for text in texts(chunk)), 0, None, step)


@cache
def _tokenizer(json: str) -> Any:
    return tokenizing.load(json)
