"""Pairs of texts, a source and its translation: cleaned, checked for lengths that fit together, tokenized by one vocabulary for both.

Shapes in names: B batch, T tokens of the longest text in a batch, on either side, at most `max_length`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ml import contracts, minhash, text_augment, text_cleaning, tokenizing
from ml.contracts import ALL, DataSpec, Decoded, Mix, Raw
from ml.language import Kind, Language, LanguageOptions, tokenizer_of
from ml.ragged import Ragged
from ml.text_augment import PADDING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATIO, SLACK = 9, 5
"""One side may have this many times the words of the other where nothing else is set (as Moses' clean-corpus-n has it), and some more: short texts vary."""


class Augmentation(contracts.Options):
    drop: float = Field(0.0, ge=0, lt=1, description="Share of the source's tokens that are hidden; the target is never changed.")


PRESETS: Mapping[str, Callable[[DataSpec], Augmentation]] = {
    "none": lambda spec: Augmentation(),
    "light": lambda spec: Augmentation(drop=0.05),
    "standard": lambda spec: Augmentation(drop=0.1),
    "contrastive": lambda spec: Augmentation(drop=0.2),
}


class TextPair(Language):
    """Sentences or short texts with their translations; longer ones are read from their beginning."""

    class Options(LanguageOptions):
        max_length: int | None = Field(None, ge=4, le=8192, description="Most tokens of either side, with its two marks; unset, chosen by the data.")
        tokenizer: Kind = Field(Kind.bpe, description="How a tokenizer is trained on both sides of the training part together.")
        vocabulary: int | None = Field(
            None, ge=1, le=500_000, description="Most tokens of a trained vocabulary; unset, one for four rows within 2,000 and 32,000."
        )
        lowercase: bool = Field(False, description="Makes letters small, in what models read and write.")
        markup: bool = Field(False, description="Takes HTML tags out and reads its entities.")
        max_bytes: int = Field(8 * 2**20, ge=1, description="A pair of more bytes is refused.")
        max_characters: int = Field(200_000, ge=1, description="A pair with a side of more characters, once cleaned, is refused.")
        ratio: int = Field(RATIO, ge=0, description=f"Most words of one side to a word of the other, and {SLACK} more; other pairs are refused as no translations. 0 takes all.")

    Augmentation = Augmentation
    presets = PRESETS
    name = "text-pair"
    noun = "pairs"
    fields = ("source",)
    columns = ("source", "text", "sentence", "src", "input", "utterance", "content")
    least, most, tokens_a_row = 2_000, 32_000, 0.25

    def decode(self, raw: Raw, served: bool = False) -> Decoded:
        """The cleaned pair as JSON, {"source": ..., "target": ...}, or the reason why not. What is no such JSON is a source alone."""
        try:
            sides, private = self._sides(raw)
        except text_cleaning.Unreadable as error:
            return Decoded(None, reason=str(error))
        reason = self._unfit(sides)
        if reason:
            return Decoded(None, reason=reason)
        data = json.dumps(sides, ensure_ascii=False).encode()
        if served:
            return Decoded(np.frombuffer(data, np.uint8))
        facts = {"characters": len(sides["source"]), "target_characters": len(sides.get("target", "")), **private}
        return Decoded(np.frombuffer(data, np.uint8), hashlib.sha256(data).hexdigest(), minhash.signature(sides["source"]), facts)

    @staticmethod
    def written(rows: Ragged) -> Iterator[str]:
        return ("\n".join(json.loads(bytes(row)).values()) for row in rows)

    def same(self, a: Ragged, b: Ragged) -> np.ndarray:
        """Whether the sources of two lists of equal length are near duplicates, one by one."""
        pairs = zip(_parts(a), _parts(b), strict=True)
        return np.array([minhash.same(one["source"], other["source"]) for one, other in pairs], dtype=bool)

    def pack(self, rows: Ragged, spec: DataSpec) -> dict[str, Ragged]:
        """The ids of both sides, each between its marks and at most `max_length` long, those of the target as −2 − id behind those of
        the source; and the texts, that of a missing target empty."""
        marks, tokenizer, pairs = spec.statistics["tokens"], tokenizer_of(spec.statistics["tokenizer"]), list(_parts(rows))
        sources, targets = ([one.get(side, "") for one in pairs] for side in ("source", "target"))
        most = spec.shape[0] - 2

        def marked(texts: list[str]) -> list[np.ndarray]:
            return [np.concatenate([[marks["begin"]], ids[:most], [marks["end"]]]) for ids in tokenizing.encode(tokenizer, texts)]

        joined = zip(pairs, marked(sources), marked(targets), strict=True)
        return {
            "tokens": Ragged.of([np.concatenate([source, -2 - target]) if "target" in pair else source for pair, source, target in joined], np.int32),
            "text": _bytes(sources),
            "target": _bytes(targets),
        }

    def collate(
        self, rows: Ragged | np.ndarray, spec: DataSpec, augmentation: Any = None, generator: torch.Generator | None = None, whole: bool = False
    ) -> np.ndarray:
        """(B, 2, T) int32 ids of sources and targets, padded. Blocks of a packed stream, source and target in turn, are (B, T) ids of either."""
        if isinstance(rows, np.ndarray):
            return np.where(rows < PADDING, -2 - rows, rows)
        length_B = target_lengths(rows)
        sources = Ragged.of([row[: len(row) - length] for row, length in zip(rows, length_B, strict=True)], np.int32)
        targets = Ragged.of([-2 - row[len(row) - length :] for row, length in zip(rows, length_B, strict=True)], np.int32)
        sides = [side.padded(spec.shape[0], PADDING) for side in (sources, targets)]
        width = max(side.shape[1] for side in sides)
        return np.stack([np.pad(side, ((0, 0), (0, width - side.shape[1])), constant_values=PADDING) for side in sides], axis=1)

    def encode(self, array_B2T: Tensor, spec: DataSpec) -> dict[str, Tensor]:
        """{"tokens": (B, T) int64 of the source, "mask": (B, T) bool, true where there is text, and "target", "target_mask" alike}; of blocks the first two."""
        if array_B2T.ndim == 2:
            return {"tokens": array_B2T.long(), "mask": torch.ones_like(array_B2T, dtype=torch.bool)}
        mask_B2T = array_B2T != PADDING
        ids_B2T = array_B2T.long().where(mask_B2T, spec.statistics["tokens"]["pad"])
        return {"tokens": ids_B2T[:, 0], "mask": mask_B2T[:, 0], "target": ids_B2T[:, 1], "target_mask": mask_B2T[:, 1]}

    def augment(self, array_B2T: Tensor, spec: DataSpec, augmentation: Any, generator: torch.Generator, part: slice = ALL) -> tuple[dict[str, Tensor], Mix | None]:
        """As `encode`, with tokens of the source, or of a block, hidden by a draw of its own for each pair."""
        blocks = array_B2T.ndim == 2
        hidden_BT = text_augment.augment(array_B2T if blocks else array_B2T[:, 0], spec, text_augment.Augmentation(drop=augmentation.drop), generator)
        return self.encode((hidden_BT if blocks else torch.stack([hidden_BT, array_B2T[:, 1]], 1))[part], spec), None

    def overview(self, store: Any) -> dict[str, Figure]:
        """Lengths of both sides, and a sample."""
        from ml import pair_pictures  # imported where it is used: a served model draws nothing

        return pair_pictures.overview(store)

    def serve(self, value: Any, files: bool = True) -> Raw:
        """What a user hands to a model, as raw bytes: a source as a string, bytes or, where `files`, a Path; or {"source": ...}."""
        if isinstance(value, Mapping) and isinstance(value.get("source"), str):
            value = json.dumps({side: value[side] for side in ("source", "target") if side in value})
        return super().serve(value, files)

    def request(self, raw: bytes) -> str:
        """A source's item as a user would send it: without its translation."""
        return _read(raw.decode("utf-8", "replace"))["source"]

    def _sides(self, raw: Raw) -> tuple[dict[str, str], dict[str, int]]:
        """Both sides, cleaned, and how much was masked in them; raises Unreadable."""
        sides, masked = {}, {}
        for side, text in _read(self._decoded(raw)).items():
            sides[side], private = self._clean(text)
            masked = {kind: masked.get(kind, 0) + count for kind, count in private.items()}
        return sides, masked

    def _unfit(self, sides: Mapping[str, str]) -> str:
        """Why a pair cannot be used, "" where it can. A target is looked at where there is one to learn from."""
        for side, text in sides.items():
            if not text:
                return f"the {side} is empty"
            if self._too_long(text):
                return f"the {side} has {self._too_long(text)}"
        words = {side: len(minhash.WORDS.findall(text)) for side, text in sides.items()}
        if self.options.ratio and max(words.values()) > self.options.ratio * min(words.values()) + SLACK:
            return f"{words['source']} words in the source and {words['target']} in the target: no translation of one another"
        return ""

    def _sizes(self, raw: Raw) -> list[float]:
        try:
            sides, _ = self._sides(raw)
        except text_cleaning.Unreadable:
            return []
        return [self._tokens(text) + 2 for text in sides.values() if text]


def target_lengths(rows: Ragged) -> np.ndarray:
    """(N,) how many of each row's stored ids are the target's, which are those below PADDING."""
    before = np.concatenate([[0], np.cumsum(np.asarray(rows.values) < PADDING)])
    return before[rows.offsets[1:]] - before[rows.offsets[:-1]]


def _parts(rows: Ragged) -> Iterator[dict[str, str]]:
    return (json.loads(bytes(row)) for row in rows)


def _bytes(texts: Sequence[str]) -> Ragged:
    return Ragged.of([np.frombuffer(text.encode(), np.uint8) for text in texts], np.uint8)


def _read(text: str) -> dict[str, str]:
    """What the text says by JSON; all of it, where it is none of ours, as a source alone."""
    try:
        found = json.loads(text) if text.lstrip()[:1] == "{" else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("source"), str) or not isinstance(found.get("target", ""), str):
        return {"source": text}
    return {side: found[side] for side in ("source", "target") if side in found}
