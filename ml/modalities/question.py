"""Questions with a context that may hold the answer: cleaned without losing the answer's place, tokenized as one row, read in windows.

Shapes in names: B batch, T tokens of the longest row in a batch, C tokens of a context.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ml import contracts, minhash, text_augment, text_cleaning, tokenizing
from ml.answer_spans import CONTEXT, FIRST, IDS, LAST, NotInContext, answers_of, item, locate_answer, token_span, window, window_index
from ml.contracts import ALL, DataSpec, Decoded, InputError, Mix, Raw
from ml.language import Language, LanguageOptions, tokenizer_of
from ml.ragged import Ragged
from ml.text_augment import PADDING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANYWHERE = 1 / 3
"""Share of the windows of long rows that are drawn without regard to the answer, so that a model learns that it may not be there."""


class Augmentation(contracts.Options):
    drop: float = Field(0.0, ge=0, lt=1, description="Share of the tokens that are hidden.")


PRESETS: Mapping[str, Callable[[DataSpec], Augmentation]] = {
    "none": lambda spec: Augmentation(),
    "light": lambda spec: Augmentation(drop=0.05),
    "standard": lambda spec: Augmentation(drop=0.1),
    "contrastive": lambda spec: Augmentation(drop=0.2),
}


class Question(Language):
    """Questions, each with a context from a sentence to some pages long; what exceeds `max_length` tokens is read in overlapping windows."""

    class Options(LanguageOptions):
        max_length: int | None = Field(None, ge=16, le=8192, description="Most tokens of question and context that a model reads at once; unset, chosen by the data.")
        stride: int = Field(128, ge=1, le=8192, description="Tokens from the start of one window of a longer context to that of the next.")
        markup: bool = Field(False, description="Takes HTML tags out and reads its entities.")

    name = "question"
    Augmentation = Augmentation
    presets = PRESETS
    noun = "questions"
    columns = ("squad", "question_context")
    fields = ("question", "context")
    suffixes = frozenset({".json"})

    @staticmethod
    def written(rows: Ragged) -> Iterator[str]:
        """The question and the context of each row."""
        return (_whole(_parts(row)) for row in rows)

    def decode(self, raw: Raw, served: bool = False) -> Decoded:
        """JSON of the cleaned question, context and answers, each where it stands in the cleaned context, or the reason why not."""
        try:
            question, context, answers = self._cleaned(raw)
        except (text_cleaning.Unreadable, NotInContext) as error:
            return Decoded(None, reason=str(error))
        size = len(question) + len(context)
        if size > self.options.max_characters:
            return Decoded(None, reason=f"{size:,} characters, above the limit of {self.options.max_characters:,}")
        array = np.frombuffer(item(question, context, answers), np.uint8)
        if served:
            return Decoded(array)
        content = hashlib.sha256(json.dumps([question, context]).encode()).hexdigest()
        facts = {"characters": size, "answerable": int(bool(answers))}
        return Decoded(array, content, minhash.signature(_whole({"question": question, "context": context})), facts)

    def same(self, a: Ragged, b: Ragged) -> np.ndarray:
        """Whether the questions with their contexts in two lists of equal length are near duplicates, one by one."""
        return np.array([minhash.same(one, other) for one, other in zip(self.written(a), self.written(b), strict=True)], dtype=bool)

    def statistics(self, chunks: Iterable[Ragged]) -> dict[str, Any]:
        """As of other texts, over questions with their contexts."""
        known = super().statistics(chunks)
        if known["vocabulary"] > IDS:
            raise InputError(f"the tokenizer has {known['vocabulary']:,} tokens; at most {IDS:,} can be stored. Use another one")
        return known

    def pack(self, rows: Ragged, spec: DataSpec) -> dict[str, Ragged]:
        """begin, question, end, context, end of each row, with their roles as in ml.answer_spans; the texts as UTF-8; the texts of all
        answers as a JSON list; the characters (start, end) of each token of the context, one pair after the other."""
        marks, tokenizer = spec.statistics["tokens"], tokenizer_of(spec.statistics["tokenizer"])
        parts = [_parts(row) for row in rows]
        contexts = list(dict.fromkeys(one["context"] for one in parts))  # most are asked about more than once
        found = tokenizer.encode_batch(contexts, add_special_tokens=False)
        encoded = {context: _with_offsets(one, context) for one, context in zip(found, contexts, strict=True)}
        asked = tokenizing.encode(tokenizer, [one["question"] for one in parts])
        tokens, offsets = [], []
        for one, question in zip(parts, asked, strict=True):
            context, offsets_C2 = encoded[one["context"]]
            row = np.concatenate([[marks["begin"]], question, [marks["end"]], context | CONTEXT, [marks["end"] | CONTEXT]]).astype(np.int32)
            if one["answers"] and len(context):
                answer = one["answers"][0]
                first, last = token_span(offsets_C2, answer["start"], answer["start"] + len(answer["text"]))
                row[len(question) + 2 + first] |= FIRST
                row[len(question) + 2 + last] |= LAST
            tokens.append(row)
            offsets.append(offsets_C2.ravel())
        texts = {name: [_bytes(one[name]) for one in parts] for name in ("context", "question")}
        answers = [_bytes(json.dumps([answer["text"] for answer in one["answers"]], ensure_ascii=False)) for one in parts]
        return {
            "tokens": Ragged.of(tokens, np.int32),
            "text": Ragged.of(texts["context"], np.uint8),
            "question": Ragged.of(texts["question"], np.uint8),
            "answers": Ragged.of(answers, np.uint8),
            "offsets": Ragged.of(offsets, np.int32),
        }

    def collate(
        self, rows: Ragged | np.ndarray, spec: DataSpec, augmentation: Any = None, generator: torch.Generator | None = None, whole: bool = False
    ) -> np.ndarray:
        """(B, T) int32 tokens with their roles, padded. Blocks of a packed stream are a batch already.

        A longer row is its first window, or all where it is `whole`. With a generator, for training, it is one window: of three, two that
        hold the whole answer, and one drawn anywhere.
        """
        if isinstance(rows, np.ndarray):
            return rows
        if generator is not None:
            draws_B2 = torch.rand(len(rows), 2, generator=generator).tolist()
            rows = Ragged.of([_drawn(row, spec.shape[0], *draws) for row, draws in zip(rows, draws_B2, strict=True)], np.int32)
        elif not whole:
            rows = Ragged.of([row[window_index(len(row), _asked(row), spec.shape[0], 0)] for row in rows], np.int32)
        return rows.padded(int(rows.lengths.max(initial=1)), PADDING)

    def encode(self, array_BT: Tensor, spec: DataSpec) -> dict[str, Tensor]:
        """{"tokens": (B, T) int64, "mask": (B, T) bool, true where there is text, "segments": (B, T) int64, 1 for the context and the mark
        behind it, "start", "end": (B,) int64, the answer's first and last token, both 0 where there is none}."""
        mask_BT = array_BT != PADDING
        array_BT = array_BT.where(mask_BT, 0)
        first_BT, last_BT = (array_BT & FIRST) != 0, (array_BT & LAST) != 0
        answered_B = first_BT.any(1) & last_BT.any(1)  # a window may hold a part of the answer only
        return {
            "tokens": (array_BT & IDS).long().where(mask_BT, spec.statistics["tokens"]["pad"]),
            "mask": mask_BT,
            "segments": ((array_BT & CONTEXT) != 0).long(),
            "start": first_BT.long().argmax(1) * answered_B,
            "end": last_BT.long().argmax(1) * answered_B,
        }

    def augment(self, array_BT: Tensor, spec: DataSpec, augmentation: Any, generator: torch.Generator, part: slice = ALL) -> tuple[dict[str, Tensor], Mix | None]:
        """As `encode`, with tokens hidden by a draw of its own for each row; the answer stays where it is."""
        mask_BT = array_BT != PADDING
        ids_BT = (array_BT & IDS).where(mask_BT, PADDING)
        changed_BT = text_augment.augment(ids_BT, spec, text_augment.Augmentation(drop=augmentation.drop), generator)
        return self.encode((changed_BT | (array_BT & ~IDS)).where(mask_BT, PADDING)[part], spec), None

    def overview(self, store: Any) -> dict[str, Figure]:
        """Lengths, how many can be answered, and a sample."""
        from ml import answer_pictures  # imported where it is used: a served model draws nothing

        return answer_pictures.overview(store)

    def serve(self, value: Any, files: bool = True) -> Raw:
        """What a user hands to a model, as raw bytes: {"question": ..., "context": ...}, JSON text of it or, where `files`, a Path to that."""
        if isinstance(value, Mapping):
            if not all(isinstance(value.get(name), str) for name in self.fields):
                raise InputError(f'found an object with {", ".join(map(repr, list(value)[:8])) or "nothing"}; expected the texts "question" and "context"')
            return Raw(item(value["question"], value["context"], []))
        if not isinstance(value, str | bytes | bytearray | memoryview | Path):
            raise InputError(f'expected {{"question": ..., "context": ...}} or JSON text of it; found {type(value).__name__}')
        return super().serve(value, files)

    def request(self, raw: bytes) -> dict[str, str]:
        """A source's item as a user would send it: without its answers."""
        content = json.loads(raw)
        return {name: content[name] for name in self.fields}

    def _sizes(self, raw: Raw) -> list[float]:
        found = self.decode(raw).array
        return [] if found is None else [self._tokens(_whole(_parts(found))) + 3]

    def _cleaned(self, raw: Raw) -> tuple[str, str, list[tuple[str, int]]]:
        """Question, context, and answers with their places in it."""
        try:
            content = json.loads(self._decoded(raw))
            given = {name: content[name] for name in self.fields} if isinstance(content, dict) else {}
            answers = answers_of(content.get("answers")) if given else []
        except (ValueError, KeyError, RecursionError) as error:
            raise text_cleaning.Unreadable(f'not {{"question": ..., "context": ...}} as JSON: {" ".join(str(error).split())[:120]}') from None
        if not given or not all(isinstance(text, str) for text in given.values()):
            raise text_cleaning.Unreadable('not {"question": ..., "context": ...} as JSON with two texts')
        question, context = (self._clean(given[name])[0] for name in self.fields)
        for name, text in (("question", question), ("context", context)):
            if not text:
                raise text_cleaning.Unreadable(f"empty {name}")
        if context == given["context"]:  # as nearly always
            shifted = [(self._clean(text)[0], start + len(text) - len(text.lstrip())) for text, start in answers]
        else:
            shifted = [(self._clean(text)[0], len(self._clean(given["context"][:start] + ".")[0]) - 1) for text, start in answers]
        return question, context, [(text, locate_answer(context, text, start)) for text, start in shifted]


def _parts(row: np.ndarray) -> dict[str, Any]:
    return json.loads(bytes(row))


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _whole(one: Mapping[str, Any]) -> str:
    return f"{one['question']}\n{one['context']}"


def _with_offsets(encoding: Any, text: str) -> tuple[np.ndarray, np.ndarray]:
    """The ids (C,) and the characters (C, 2) of each, without the blanks that some tokenizers count as part of a word."""
    offsets_C2 = np.array(encoding.offsets, np.int32).reshape(-1, 2)
    for place, (start, end) in enumerate(offsets_C2.tolist()):
        word = text[start:end]
        inner = word.strip()
        if inner and len(inner) < len(word):
            start += len(word) - len(word.lstrip())
            offsets_C2[place] = start, start + len(inner)
    return np.array(encoding.ids, np.int32), offsets_C2


def _asked(row: np.ndarray) -> int:
    """Tokens of the question, with its marks."""
    return int(((row & CONTEXT) == 0).sum())


def _drawn(row: np.ndarray, limit: int, place: float, kind: float) -> np.ndarray:
    """The row, or where it is longer than `limit` a window of it, by two numbers in [0, 1)."""
    if len(row) <= limit:
        return row
    question = _asked(row)
    _, room = window(len(row), question, limit)
    low, high = 0, max(0, len(row) - question - 1 - room)
    first, last = (np.flatnonzero(row & role) - question for role in (FIRST, LAST))
    if len(first) and kind >= ANYWHERE:
        high = min(high, int(first[0]))
        low = min(high, max(0, int(last[0]) - room + 1))
    return row[window_index(len(row), question, limit, low + int(place * (high - low + 1)))]
