"""Text files in folders named after their classes, or without classes; or the paragraphs of such files."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import groupby
from typing import BinaryIO

import numpy as np
import pandas as pd
from pydantic import Field

from ml import contracts
from ml.class_folders import Kind, Place, as_frame, check_classes, list_without
from ml.contracts import InputError, Raw
from ml.files import Folder, Item, digest, folder_at, listing_digest, locate
from ml.labels import SPLITS, split_from_path

EXTENSIONS = (".txt", ".md", ".text")
TEXTS = Kind("texts", EXTENSIONS, ", ".join(EXTENSIONS))
LONGEST = 2**16
"""Bytes of a paragraph; a longer one is cut at the end of a line, or at a space."""


class Unit(StrEnum):
    FILE = "file"
    PARAGRAPH = "paragraph"


class TextFolder:
    """Texts in `root/class/**`, or in `root/{train,val,test}/class/**`, whose official test is then honoured; or in no class folders.

    Without class folders nothing has a label, and names tell the parts (validation.txt, test/x.txt). Nor has a label what lies in a folder or
    class `unlabelled` or `unsup` beside others. Files beside class folders, such as a README, are no data. `scan().attrs["ignored"]` counts
    the files passed over.
    """

    class Options(contracts.Options):
        path: str = Field("", description="Folder of class folders, of train/val/test folders with them, or of plain texts; or one text file.")
        unlabelled: str | None = Field(None, description="Further folder of texts without labels, for pretraining only; it may stand alone.")
        unit: Unit = Field(Unit.FILE, description="What a row of unlabelled text is: a file, or a paragraph, which ends at a blank line.")

    def __init__(self, options: TextFolder.Options) -> None:
        self.options = options
        self._texts: dict[str, Place] = {}
        self._ranges: dict[str, np.ndarray] = {}

    def scan(self) -> pd.DataFrame:
        (folder, items, folders), (further, extra, _) = self._folders()
        texts, ignored = _texts(self.options.path, folder, items, folders) if folder else ([], 0)
        if folder and not texts:
            raise InputError(f"{self.options.path!r} holds no texts: found {len(items)} files, none of them {TEXTS.listed}")
        if further:
            found, strange = TEXTS.further(further, extra, self.options.unlabelled)
            texts, ignored = texts + found, ignored + strange
        if self.options.unit is Unit.PARAGRAPH and all(text.label is not None for text in texts):
            raise InputError(
                f"unit=paragraph is for texts without classes, but {self.options.path!r} holds class folders. Set data.source.options.unit=file; "
                f"or, if these are no classes, give the folder as data.source.options.unlabelled and leave `path` empty"
            )
        self._texts, self._ranges = {text.key: text for text in texts}, {}
        return as_frame([row for text in texts for row in self._rows(text)], ignored)

    def read(self, keys: Sequence[str]) -> Iterator[Raw]:
        if not self._texts:
            self.scan()
        for run, part in groupby(keys, key=self._run):
            if isinstance(run, Folder):  # whole files, as a remote folder fetches many at once
                yield from map(_present, run.read([self._texts[key].item.path for key in part]))
            elif run is None:
                yield from (Raw(None, f"there is no text {key!r}") for key in part)
            else:
                yield from self._paragraphs(run, [int(key.rpartition(":")[2]) for key in part])

    def fingerprint(self) -> str:
        listings = [listing_digest(folder, items) for folder, items, _ in self._folders() if folder]
        return digest("text-folder", self.options.model_dump_json(), *listings)

    def _folders(self) -> tuple[tuple[Folder | None, list[Item], list[str]], tuple[Folder | None, list[Item], list[str]]]:
        """The folder `path` with its files and folders, less those of an unlabelled folder within it; and that one with its own."""
        further = (None, [], [])
        if self.options.unlabelled:
            inner = folder_at(self.options.unlabelled)
            further = (inner, *inner.list())
            if not self.options.path:
                return (None, [], []), further
        folder, name = locate(self.options.path)
        if name is not None:
            return (folder, [item for item in folder.list()[0] if item.path == name], []), further
        return (folder, *list_without(folder, further[0])), further

    def _rows(self, text: Place) -> list[dict]:
        if text.label is not None or self.options.unit is Unit.FILE:
            return [text.row]
        count = max(1, len(self._found(text)))  # a file without any gives one row, and a reason when that is read
        return [{"key": f"{text.key}:{number}", "label": None, "split": text.split} for number in range(count)]

    def _run(self, key: str) -> Folder | Place | None:
        """What keys that follow one another are read from together: a folder of whole files, or a file of paragraphs."""
        if key in self._texts:
            return self._texts[key].folder
        name, _, number = key.rpartition(":")
        return self._texts.get(name) if number.isdecimal() else None

    def _found(self, text: Place) -> np.ndarray:
        """Where the file's paragraphs begin and end, in bytes; none where it cannot be opened."""
        if text.key not in self._ranges:
            self._ranges[text.key] = np.empty((0, 2), np.int64)
            if text.item.size and not text.item.reason:  # nothing is opened that could be a pipe, or lies outside
                try:
                    with text.folder.open(text.item.path) as file:
                        self._ranges[text.key] = _ranges(file)
                except (InputError, OSError):
                    pass  # reading it will tell why
        return self._ranges[text.key]

    def _paragraphs(self, text: Place, numbers: list[int]) -> Iterator[Raw]:
        found = self._found(text)
        if not len(found):
            yield from (_present(raw) for raw in text.folder.read([text.item.path] * len(numbers)))
            return
        try:
            with text.folder.open(text.item.path) as file:
                while numbers:
                    if numbers[0] < len(found):
                        start, end = found[numbers[0]].tolist()
                        file.seek(start)
                        raw = _present(Raw(file.read(end - start).strip(b"\r\n")))
                    else:
                        raw = Raw(None, f"the file has no paragraph {numbers[0]}")
                    numbers = numbers[1:]
                    yield raw
        except (InputError, OSError) as error:
            yield from [Raw(None, str(error))] * len(numbers)


def _ranges(file: BinaryIO) -> np.ndarray:
    """(N, 2): first byte of each paragraph and the byte after it. None in what holds zero bytes, which is no UTF-8."""
    found, begin, position = array("q"), -1, 0
    while line := file.readline(LONGEST):
        if b"\0" in line:
            return np.empty((0, 2), np.int64)
        if not line.endswith(b"\n") and (cut := line.rfind(b" ") + 1) and len(line) == LONGEST:
            line = line[:cut]
            file.seek(position + cut)
        end = position + len(line)
        if begin >= 0 and (not line.strip() or end - begin > LONGEST):
            found.extend((begin, position))
            begin = -1
        if begin < 0 and line.strip():
            begin = position
        position = end
    if begin >= 0:
        found.extend((begin, position))
    return np.array(found, np.int64).reshape(-1, 2)


def _texts(root: str, folder: Folder, items: list[Item], folders: list[str]) -> tuple[list[Place], int]:
    """The texts with labels and splits as the folders tell them, and how many files are passed over."""
    layout = TEXTS.lay_out(folder, items, folders)
    texts = []
    for place in layout.places:
        if place.split == "unlabelled" or _unlabelled(place.label or ""):
            texts.append(Place(folder, place.item))
        elif place.label is not None and (place.split or not layout.by_split):
            texts.append(place)
    labelled = [text for text in texts if text.label is not None]
    if not any(TEXTS.by_name(text.item.path) for text in labelled):
        splits = [split_from_path(place.item.path) for place in layout.places]
        rest = "train" if any(splits) else "unlabelled"
        return [Place(folder, place.item, split=split or rest) for place, split in zip(layout.places, splits, strict=True)], layout.ignored
    TEXTS.check_filled(root, labelled, [path for path in layout.class_folders if not _unlabelled(path.split("/")[-1])])
    check_classes(root, labelled, "; texts without classes are given as data.source.options.unlabelled, with `path` left empty")
    return texts, layout.ignored + len(layout.places) - len(texts)


def _unlabelled(folder: str) -> bool:
    return SPLITS.get(folder.lower()) == "unlabelled"


def _present(raw: Raw) -> Raw:
    return Raw(None, "the text is missing") if raw.data is not None and not raw.data.strip() else raw
