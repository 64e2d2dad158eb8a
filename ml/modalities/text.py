"""Text: decoded, cleaned, kept apart by MinHash, tokenized by what the training part teaches, read in batches of like length.

Shapes in names: B batch, T tokens of the longest text in a batch, at most `max_length`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ml import minhash, text_augment, text_cleaning, tokenizing
from ml.contracts import ALL, DataSpec, Decoded, Mix, Raw
from ml.language import Language, LanguageOptions, texts, tokenizer_of
from ml.ragged import Ragged
from ml.text_classical import Classical, classical

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Text(Language):
    """Texts in any common encoding, from a sentence to some pages; of longer ones `max_length` tokens are read, or all in windows, as the head has it."""

    Options = LanguageOptions
    Augmentation = text_augment.Augmentation
    presets = text_augment.PRESETS
    name = "text"
    noun = "texts"
    columns = ("text", "sentence", "review", "content", "document", "utterance", "question")

    def decode(self, raw: Raw, served: bool = False) -> Decoded:
        """The cleaned text as UTF-8, or the reason why not."""
        try:
            text, private = self._clean(self._decoded(raw))
        except text_cleaning.Unreadable as error:
            return Decoded(None, reason=str(error))
        reason = self._too_long(text) if text else "empty"
        if reason:
            return Decoded(None, reason=reason)
        data = text.encode()
        if served:
            return Decoded(np.frombuffer(data, np.uint8))
        facts = {"characters": len(text), **private}
        return Decoded(np.frombuffer(data, np.uint8), hashlib.sha256(data).hexdigest(), minhash.signature(text), facts)

    @staticmethod
    def written(rows: Ragged) -> Iterator[str]:
        return texts(rows)

    def same(self, a: Ragged, b: Ragged) -> np.ndarray:
        """Whether the texts of two lists of equal length are near duplicates, one by one."""
        return np.array([minhash.same(one, other) for one, other in zip(texts(a), texts(b), strict=True)], dtype=bool)

    def pack(self, rows: Ragged, spec: DataSpec) -> dict[str, Ragged]:
        """The ids of each text between its marks, and the text itself."""
        marks, tokenizer = spec.statistics["tokens"], tokenizer_of(spec.statistics["tokenizer"])
        found = tokenizing.encode(tokenizer, list(texts(rows)))
        ids = [np.concatenate([[marks["begin"]], one, [marks["end"]]]) for one in found]
        return {"tokens": Ragged.of(ids, np.int32), "text": Ragged(np.asarray(rows.values), rows.offsets)}

    def collate(
        self, rows: Ragged | np.ndarray, spec: DataSpec, augmentation: Any = None, generator: torch.Generator | None = None, whole: bool = False
    ) -> np.ndarray:
        """(B, T) int32 ids, padded; a text that is cut short still has its marks. Blocks of a packed stream are a batch already.

        What is read of a longer text is its beginning, or where `augmentation` crops a run of it that `generator` draws; all where it is `whole`.
        """
        if isinstance(rows, np.ndarray):
            return rows
        marks, limit = spec.statistics["tokens"], int(rows.lengths.max(initial=1)) if whole else spec.shape[0]
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

    def augment(self, array_BT: Tensor, spec: DataSpec, augmentation: Any, generator: torch.Generator, part: slice = ALL) -> tuple[dict[str, Tensor], Mix | None]:
        """As `encode`, altered by `augmentation` with a draw of its own for each text."""
        return self.encode(text_augment.augment(array_BT, spec, augmentation, generator)[part], spec), None

    def alternative(self, store: Any, train: np.ndarray, validation: np.ndarray, test: np.ndarray, seed: int) -> Classical:
        """Logistic regression on TF-IDF."""
        return classical(lambda rows: list(texts(store.arrays["text"][rows])), store.targets, train, validation, test, len(store.spec.classes), seed)

    def overview(self, store: Any) -> dict[str, Figure]:
        """Lengths, and a sample."""
        from ml import text_pictures  # imported where it is used: a served model draws nothing

        return text_pictures.overview(store)

    def mistakes(self, items: Sequence[Mapping[str, Any]], store: Any, rows: np.ndarray) -> Figure:
        """The texts in the rows of `items`, which are as `Evaluation.mistakes`."""
        from ml import text_pictures

        return text_pictures.mistakes(items, list(texts(store.arrays["text"][rows])))

    def request(self, raw: bytes) -> str:
        """A source's item as a user would send it."""
        return text_cleaning.decode_text(raw, self.options.max_bytes)

    def _sizes(self, raw: Raw) -> list[float]:
        try:
            text, _ = self._clean(self._decoded(raw))
        except text_cleaning.Unreadable:
            return []
        return [self._tokens(text)] if text else []
