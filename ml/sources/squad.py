"""Questions with a context and the spans of it that answer them: the format of SQuAD v1.1 and v2 (Rajpurkar et al. 2016, 2018).

    {"version": ..., "data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [{"id": ..., "question": ..., "is_impossible": ...,
        "answers": [{"text": ..., "answer_start": ...}]}]}]}]}

JSON-lines hold an object for each question: question, context, answers ({"text": [...], "answer_start": [...]}), and perhaps id and title.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pydantic import Field

from ml import contracts
from ml.answer_spans import NotInContext, answers_of, item, locate_answer
from ml.contracts import InputError, Raw
from ml.files import MAX_ITEM_BYTES, Folder, Item, digest, listing_digest, locate, short
from ml.labels import split_from_path
from ml.table_files import JsonLines

SUFFIXES = (".json", ".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class Question:
    """One question as a file has it; contexts are shared by those that are about them."""

    question: str
    context: str
    answers: list[tuple[str, int]]
    group: str
    split: str | None


class Squad:
    """Questions whose answer is a span of a given context, or that it does not answer: SQuAD's JSON, or JSON-lines.

    A file is the part that its name tells (train.json, dev-v2.0.json, test.jsonl). All questions about an article stay on one side of a split.
    """

    class Options(contracts.Options):
        path: str = Field("", description=f"File ({', '.join(SUFFIXES)}), folder of such files, or fsspec URL of either.")
        unanswerable: bool = Field(True, description="Keep the questions that have no answer in their context; false leaves them out.")

    def __init__(self, options: Squad.Options) -> None:
        self.options = options
        self._known: dict[str, Question] = {}
        self._ignored = 0

    def scan(self) -> pd.DataFrame:
        known = self._questions()
        unanswerable = any(not one.answers for one in known.values())
        slices = [("answerable" if one.answers else "unanswerable") if unanswerable else None for one in known.values()]
        parts = {one.split for one in known.values()} - {None}
        official = len(parts) > 1 or parts == {"train"} or parts == {"unlabelled"}  # the one part there is may be called dev, and is divided
        splits = [(one.split or "train") if official else None for one in known.values()]
        columns = {"key": list(known), "label": None, "split": splits, "group": [one.group for one in known.values()], "slice": slices}
        frame = pd.DataFrame(columns, dtype=object)
        frame = frame.where(frame.notna(), None)
        frame.attrs["ignored"] = self._ignored
        return frame

    def read(self, keys: Sequence[str]) -> Iterator[Raw]:
        known = self._questions()
        return (_raw(known.get(key)) for key in keys)

    def fingerprint(self) -> str:
        folder, items = self._files()
        return digest("squad", self.options.model_dump_json(), listing_digest(folder, items))

    def _files(self) -> tuple[Folder, list[Item]]:
        folder, name = locate(self.options.path)
        items = folder.list()[0]
        if name is not None:
            items = [one for one in items if one.path == name]
        else:
            items = [one for one in items if not any(part[0] in "._" for part in one.path.split("/"))]
        items = [one for one in items if one.path.lower().endswith(SUFFIXES)]
        if not items:
            found = f"there is no file of questions in {self.options.path!r}" if name is None else f"{self.options.path!r} is no such file by its name"
            raise InputError(f"{found}: expected {', '.join(SUFFIXES)}")
        for one in items:
            reason = one.reason or (f"{one.size:,} bytes, above the limit of {MAX_ITEM_BYTES:,}" if one.size > MAX_ITEM_BYTES else "")
            if reason:
                raise InputError(f"cannot read {one.path!r} in {self.options.path!r}: {reason}")
        return folder, items

    def _questions(self) -> dict[str, Question]:
        """By key, in the order of the files. A file whose questions all stand in others (a set beside the parts made of it) is passed over."""
        if self._known:
            return self._known
        folder, items = self._files()
        files = {one.path: list(_file(folder, one.path)) for one in items}
        times = Counter(key for found in files.values() for key in {key for key, _ in found})
        for path in sorted(files, key=lambda path: (-len(files[path]), path)):
            own = {key for key, _ in files[path]}
            if own and all(times[key] > 1 for key in own):
                times.subtract(own)
                del files[path]
                self._ignored += 1
        seen: Counter[str] = Counter()
        for found in files.values():
            for key, question in found:
                seen[key] += 1
                unique = key if seen[key] == 1 else f"{key}#{seen[key]}"
                while unique in self._known:
                    unique += "#"
                self._known[unique] = question
        if not self.options.unanswerable:
            self._known = {key: question for key, question in self._known.items() if question.answers}
        if not self._known:
            kind = "question" if self.options.unanswerable else "question with an answer"
            raise InputError(f"there is no {kind} in {', '.join(repr(one.path) for one in items[:5])}: expected at least one")
        return self._known


def _raw(one: Question | None) -> Raw:
    if one is None:
        return Raw(None, "there is no such question in the files")
    try:
        answers = [(text, locate_answer(one.context, text, start)) for text, start in one.answers]
    except NotInContext as error:
        return Raw(None, str(error))
    return Raw(item(one.question, one.context, answers))


def _file(folder: Folder, path: str) -> Iterator[tuple[str, Question]]:
    """The questions of one file with what each is called there."""
    split = split_from_path(path)
    if not path.lower().endswith(".json"):
        for line, row in JsonLines(folder, path).rows():
            where = f"{path!r}, line {line}"
            context = _text(row, "context", where)
            group = row.get("title") or f"context-{hashlib.sha256(context.encode('utf-8', 'replace')).hexdigest()[:16]}"
            yield str(row.get("id") or f"{path}:{line}"), _question(row, context, str(group), split, where)
        return
    for number, article in enumerate(_articles(folder, path), 1):
        title = str(article.get("title") or f"{path}:{number}") if isinstance(article, Mapping) else ""
        where = f"{path!r}, article {number} ({title:.60})"
        for place, paragraph in enumerate(_list(article, "paragraphs", where), 1):
            inside = f"{where}, paragraph {place}"
            context = _text(paragraph, "context", inside)
            for turn, row in enumerate(_list(paragraph, "qas", inside), 1):
                question = _question(row, context, title, split, f"{inside}, question {turn}")
                yield str(row.get("id") or f"{path}:{number}:{place}:{turn}"), question


def _articles(folder: Folder, path: str) -> list[Any]:
    (raw,) = folder.read([path])
    if raw.data is None:
        raise InputError(f"cannot read {path!r} in {folder.root}: {raw.reason}")
    try:
        content = json.loads(raw.data.decode("utf-8-sig"))
    except UnicodeError:
        raise InputError(f"{path!r} in {folder.root} is no UTF-8, which JSON is written in, or no text at all: save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path!r} in {folder.root} is no JSON: {short(error)}. Fetch it again, or name a file of one object a line .jsonl") from None
    if not isinstance(content, Mapping) or not isinstance(content.get("data"), list):
        found = f"an object with {', '.join(map(repr, list(content)[:8])) or 'nothing'}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise InputError(f'{path!r} in {folder.root} is not in SQuAD\'s format: it holds {found}; expected {{"data": [articles]}}')
    return content["data"]


def _question(row: Any, context: str, group: str, split: str | None, where: str) -> Question:
    question = _text(row, "question", where)
    try:
        answers = [] if row.get("is_impossible") is True else answers_of(row.get("answers"))
    except ValueError as error:
        raise InputError(f"{where} has {error}") from None
    return Question(question, context, answers, group, split)


def _text(found: Any, name: str, where: str) -> str:
    return _field(found, name, str, where)


def _list(found: Any, name: str, where: str) -> list[Any]:
    return _field(found, name, list, where)


def _field(found: Any, name: str, kind: type, where: str) -> Any:
    """What stands under a name, of the kind that it must be."""
    if isinstance(found, Mapping) and isinstance(found.get(name), kind):
        return found[name]
    there = f"an object with {', '.join(map(repr, list(found)[:8])) or 'nothing'}" if isinstance(found, Mapping) else f"{found!r:.60}"
    raise InputError(f"{where} holds {there}; expected {name!r}, a {'text' if kind is str else 'list'}, as SQuAD has it")
