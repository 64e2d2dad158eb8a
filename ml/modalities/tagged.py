"""Words with tags: names, parts of speech. Cleaned word by word, tokenized so that each word's first token is known, read in windows.

Shapes in names: B batch, T tokens of the longest row in a batch.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ml import contracts, minhash, text_augment, text_cleaning
from ml.contracts import ALL, DataSpec, Decoded, InputError, Mix, Raw
from ml.labels import natural_order
from ml.language import Language, LanguageOptions, tokenizer_of
from ml.losses import NOT_ASKED
from ml.ragged import Ragged
from ml.tagged_words import IDS, MOST_TAGS, SHIFT, TAGGED, role_of, split_words, window_of
from ml.text_augment import PADDING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNSEEN = "\N{REPLACEMENT CHARACTER}"
"""What a word becomes of which cleaning leaves nothing: it keeps its place and its tag."""


class Augmentation(contracts.Options):
    drop: float = Field(0.0, ge=0, lt=1, description="Share of the tokens that are hidden; their words keep their tags.")


PRESETS: Mapping[str, Callable[[DataSpec], Augmentation]] = {
    "none": lambda spec: Augmentation(),
    "light": lambda spec: Augmentation(drop=0.05),
    "standard": lambda spec: Augmentation(drop=0.1),
    "contrastive": lambda spec: Augmentation(drop=0.2),
}


class Tagged(Language):
    """Sentences or texts as words with a tag each; what exceeds `max_length` tokens is read in overlapping windows."""

    class Options(LanguageOptions):
        max_length: int | None = Field(None, ge=4, le=8192, description="Most tokens that a model reads at once, with their two marks; unset, chosen by the data.")
        markup: bool = Field(False, description="Takes HTML tags out and reads its entities.")
        max_characters: int = Field(50_000, ge=1, description="A row of more characters is refused.")

    name = "tagged"
    Augmentation = Augmentation
    presets = PRESETS
    noun = "texts"
    columns = ("text", "sentence", "tokens", "words", "content", "document")

    @staticmethod
    def written(rows: Ragged) -> Iterator[str]:
        return (" ".join(one["words"]) for one in _parts(rows))

    def decode(self, raw: Raw, served: bool = False) -> Decoded:
        """JSON of the text, its words once cleaned, the characters of each, and the tags where there are any; or the reason why not."""
        try:
            row = self._row(raw)
        except text_cleaning.Unreadable as error:
            return Decoded(None, reason=str(error))
        reason = self._too_long(row["text"])
        if reason:
            return Decoded(None, reason=reason)
        array = np.frombuffer(json.dumps(row, ensure_ascii=False).encode(), np.uint8)
        if served:
            return Decoded(array)
        content = hashlib.sha256(json.dumps(row["words"]).encode()).hexdigest()
        facts = {"characters": len(row["text"]), "words": len(row["words"])}
        return Decoded(array, content, minhash.signature(" ".join(row["words"])), facts)

    def same(self, a: Ragged, b: Ragged) -> np.ndarray:
        """Whether the words of two lists of equal length are near duplicates, one by one."""
        return np.array([minhash.same(one, other) for one, other in zip(self.written(a), self.written(b), strict=True)], dtype=bool)

    def statistics(self, chunks: Iterable[Ragged]) -> dict[str, Any]:
        """As of other texts, and the tags that there are with how many words bear each."""
        known = super().statistics(chunks)
        if known["vocabulary"] > IDS:
            raise InputError(f"the tokenizer has {known['vocabulary']:,} tokens; at most {IDS:,} can be stored. Use another one")
        counts = Counter(tag for chunk in chunks for one in _parts(chunk) for tag in one["tags"])
        if not counts:
            raise InputError("no word of the training part has a tag: the modality tagged learns from words with tags, as the source tagged-text reads them")
        if len(counts) > MOST_TAGS:
            raise InputError(f"the training part has {len(counts):,} different tags, at most {MOST_TAGS:,} can be told apart. Is that the column of tags?")
        tags = natural_order(counts)
        return known | {"tags": tags, "tag_counts": [counts[tag] for tag in tags]}

    def pack(self, rows: Ragged, spec: DataSpec) -> dict[str, Ragged]:
        """begin, the tokens of all words with the roles of ml.tagged_words, end of each row; the text as UTF-8; the characters (start, end) of each
        word, one pair after the other; the tags as a JSON list, empty where there are none."""
        marks, tokenizer, parts = spec.statistics["tokens"], tokenizer_of(spec.statistics["tokenizer"]), list(_parts(rows))
        ids = _word_ids(tokenizer, {word for one in parts for word in one["words"]}, marks["unknown"])
        number = {tag: place for place, tag in enumerate(spec.statistics["tags"])}
        tokens = []
        for one in parts:
            words = [ids[word] for word in one["words"]]
            row = np.concatenate([[marks["begin"]], *words, [marks["end"]]]).astype(np.int32)
            first = np.cumsum([1, *map(len, words[:-1])])
            row[first] |= [role_of(number.get(tag)) for tag in one["tags"] or [None] * len(words)]
            tokens.append(row)
        return {
            "tokens": Ragged.of(tokens, np.int32),
            "text": _bytes(one["text"] for one in parts),
            "spans": Ragged.of([np.ravel(one["spans"]) for one in parts], np.int32),
            "tags": _bytes(json.dumps(one["tags"], ensure_ascii=False) for one in parts),
        }

    def collate(self, rows: Ragged | np.ndarray, spec: DataSpec, augmentation: Any = None, generator: torch.Generator | None = None, whole: bool = False) -> np.ndarray:
        """(B, T) int32 tokens with their roles, padded. Blocks of a packed stream are a batch already.

        A longer row is its first window, or all where it is `whole`. With a generator, for training, it is a window drawn anywhere.
        """
        if isinstance(rows, np.ndarray):
            return rows
        if not whole:
            places = [0.0] * len(rows) if generator is None else torch.rand(len(rows), generator=generator).tolist()
            rows = Ragged.of([window_of(row, spec.shape[0], place) for row, place in zip(rows, places, strict=True)], np.int32)
        return rows.padded(int(rows.lengths.max(initial=1)), PADDING)

    def encode(self, array_BT: Tensor, spec: DataSpec) -> dict[str, Tensor]:
        """{"tokens": (B, T) int64, "mask": (B, T) bool, true where there is text, "first": (B, T) bool, true for each word's first token,
        "tags": (B, T) int64, its tag's number, NOT_ASKED where there is none}."""
        mask_BT = array_BT != PADDING
        array_BT = array_BT.where(mask_BT, 0)
        role_BT = (array_BT >> SHIFT).long()
        return {
            "tokens": (array_BT & IDS).long().where(mask_BT, spec.statistics["tokens"]["pad"]),
            "mask": mask_BT,
            "first": role_BT > 0,
            "tags": (role_BT - TAGGED).masked_fill(role_BT < TAGGED, NOT_ASKED),
        }

    def augment(self, array_BT: Tensor, spec: DataSpec, augmentation: Any, generator: torch.Generator, part: slice = ALL) -> tuple[dict[str, Tensor], Mix | None]:
        """As `encode`, with tokens hidden by a draw of its own for each row; the tags stay where they are."""
        mask_BT = array_BT != PADDING
        ids_BT = (array_BT & IDS).where(mask_BT, PADDING)
        changed_BT = text_augment.augment(ids_BT, spec, text_augment.Augmentation(drop=augmentation.drop), generator)
        return self.encode((changed_BT | (array_BT & ~IDS)).where(mask_BT, PADDING)[part], spec), None

    def overview(self, store: Any) -> dict[str, Figure]:
        """Lengths, how often each tag occurs, and a sample."""
        from ml import tag_pictures  # imported where it is used: a served model draws nothing

        return tag_pictures.overview(store)

    def serve(self, value: Any, files: bool = True) -> Raw:
        """What a user hands to a model, as raw bytes: a text, which is split into words, as a string, bytes or, where `files`, a Path; or its
        words as a list, as {"words": [...]} or as JSON text of that."""
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, list | tuple):
            value = {"words": list(value)}
        if isinstance(value, Mapping) and isinstance(value.get("words"), list):
            odd = [word for word in value["words"] if not isinstance(word, str)]
            if odd:
                raise InputError(f"a list of words holds texts alone; found {odd[0]!r:.60}")
            value = json.dumps({"words": value["words"]})
        return super().serve(value, files)

    def cell(self, value: Any, folder: Any) -> Any:
        """As of other texts; a table may also hold lists of words."""
        return value if isinstance(value, list | np.ndarray) else super().cell(value, folder)

    def request(self, raw: bytes) -> str:
        """A source's item as a user would send it: words without their tags, as JSON."""
        found = _read(text_cleaning.decode_text(raw, self.options.max_bytes))
        return found if isinstance(found, str) else json.dumps({"words": found["words"]}, ensure_ascii=False)

    def _row(self, raw: Raw) -> dict[str, Any]:
        """{"text", "words", "spans", "tags"}; raises Unreadable."""
        found = _read(self._decoded(raw))
        if isinstance(found, str):
            text = self._clean(found)[0] if self.options.markup or self.options.mask_private else found
            spans = split_words(text)
            words = [self._clean(text[start:end])[0] for start, end in spans]
            kept = [place for place, word in enumerate(words) if word]
            if not kept:
                raise text_cleaning.Unreadable("empty")
            return {"text": text, "words": [words[place] for place in kept], "spans": [spans[place] for place in kept], "tags": []}
        given, tags = _checked(found)
        words = [self._clean(word)[0] or UNSEEN for word in given]
        ends = np.cumsum([len(word) + 1 for word in words]) - 1  # a blank between two
        spans = [[int(end) - len(word), int(end)] for word, end in zip(words, ends, strict=True)]
        return {"text": " ".join(words), "words": words, "spans": spans, "tags": tags}

    def _sizes(self, raw: Raw) -> list[float]:
        try:
            return [self._tokens(" ".join(self._row(raw)["words"])) + 2]
        except text_cleaning.Unreadable:
            return []


def _read(text: str) -> str | dict[str, Any]:
    """{"words": [...], "tags": [...]} where the text is JSON of that, with tags or without; any other text as it stands."""
    try:
        found = json.loads(text) if text.lstrip()[:1] == "{" else None
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) and "words" in found else text


def _checked(found: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Words and tags, of which there are none or as many; raises Unreadable."""
    words, tags = found["words"], found.get("tags")
    for name, values in (("words", words), ("tags", tags)):
        if values is not None and not isinstance(values, list):
            raise text_cleaning.Unreadable(f"the {name} are {values!r:.40}; expected a list")
        odd = next((place for place, value in enumerate(values or ()) if not isinstance(value, str)), None)
        if odd is not None:
            raise text_cleaning.Unreadable(f"of the {name}, number {odd + 1} is {values[odd]!r:.40}; expected a text")
    if not words or not any(map(str.strip, words)):
        raise text_cleaning.Unreadable("empty")
    if tags is not None and len(tags) != len(words):
        raise text_cleaning.Unreadable(f"{len(words)} words, but {len(tags)} tags")
    if tags is not None and not all(map(str.strip, tags)):
        raise text_cleaning.Unreadable(f"word {[bool(tag.strip()) for tag in tags].index(False) + 1} has an empty tag")
    return words, tags or []


def _word_ids(tokenizer: Any, words: Iterable[str], unknown: int) -> dict[str, np.ndarray]:
    """The tokens of each word as it stands behind a blank, without those of the blank itself; a word has one at least."""
    words = sorted(words)
    found = {}
    for word, one in zip(words, tokenizer.encode_batch([f" {word}" for word in words], add_special_tokens=False), strict=True):
        ids = [token for token, (_, end) in zip(one.ids, one.offsets, strict=True) if end > 1]
        found[word] = np.array(ids or [unknown], np.int32)
    return found


def _parts(rows: Ragged) -> Iterator[dict[str, Any]]:
    return (json.loads(bytes(row)) for row in rows)


def _bytes(texts: Iterable[str]) -> Ragged:
    return Ragged.of([np.frombuffer(text.encode(), np.uint8) for text in texts], np.uint8)
