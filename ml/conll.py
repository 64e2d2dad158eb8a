"""CoNLL's files: a word and its tags a line, in columns between tabs or blanks, and a blank line between sentences.

Lines before a sentence that begin with "# " are comments; -DOCSTART- and "# newdoc" begin a document. In CoNLL-U, lines whose number is a range
("1-2", a contraction) or a fraction ("1.1", an empty node) are no words.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator

import pandas as pd

from ml.contracts import InputError, Raw
from ml.files import MAX_ITEM_BYTES, Folder
from ml.table_files import CHUNK_ROWS, LONGEST, Lines
from ml.text_cleaning import Unreadable, decode_text

SUFFIXES = (".conll", ".conllu", ".conll03", ".conll2003", ".iob", ".iob2", ".bio", ".bioes", ".txt", ".tsv")
SUFFIXES += tuple(f"{one}.gz" for one in SUFFIXES)
DOCUMENT = "document"
MOST_LINES = 50_000
"""Lines of a sentence that are kept: what has more without a blank one is another kind of file."""

_DOCUMENT = re.compile(rb"-DOCSTART-(\s|$)|#\s*newdoc\b")
_COMMENT = re.compile(rb"#( |$)")


class Conll(Lines):
    """One file as a table of sentences, whose one column is the document that each belongs to. Columns of a line count from 0, or from −1 backwards."""

    columns = (DOCUMENT,)

    def __init__(self, folder: Folder, path: str, word: int | None = None, tag: int | None = None) -> None:
        super().__init__(folder, path)
        self._universal = path.lower().removesuffix(".gz").endswith(".conllu")
        self._word = word if word is not None else 1 if self._universal else 0
        self._tag = tag if tag is not None else 3 if self._universal else -1

    def values(self, columns: list[str], listed: tuple[str, ...] = ()) -> pd.DataFrame:
        documents = [f"{self.path}:{number}" if number else None for _, _, number in self._sentences()]
        return pd.DataFrame({DOCUMENT: documents}, dtype=object)[columns]

    def sentences(self, tagged: bool = True) -> Iterator[tuple[int, list[Raw]]]:
        """Chunks of JSON, {"words": [...], "tags": [...]}, each with the number of its first sentence; without tags unless `tagged`."""
        start, chunk = 0, []
        for line, lines, _ in self._sentences():
            chunk.append(self._item(line, lines, tagged))
            if len(chunk) == CHUNK_ROWS:
                yield start, chunk
                start, chunk = start + len(chunk), []
        yield start, chunk

    def _sentences(self) -> Iterator[tuple[int, list[bytes], int]]:
        """(number of the first line, lines, number of the document, 0 before any begins) of each sentence."""
        lines, first, document = [], 0, 0
        with self._opened() as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), 1):
                if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise InputError(f"{self.path!r} in {self.folder.root} is UTF-16, of which no line can be told: save it as UTF-8")
                line = line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
                begins = _DOCUMENT.match(line) is not None
                if (begins or not line.strip()) and lines:
                    yield first, lines, document
                    lines = []
                document += begins
                if not line.strip() or begins or len(lines) > MOST_LINES or (not lines and _COMMENT.match(line)):
                    continue
                first = first if lines else number
                lines.append(line)
        if lines:
            yield first, lines, document

    def _item(self, first: int, lines: list[bytes], tagged: bool) -> Raw:
        if len(lines) > MOST_LINES:
            return Raw(None, f"from line {first} on there are more than {MOST_LINES:,} lines without a blank one between sentences")
        try:
            rows = [_fields(line) for line in decode_text(b"\n".join(lines), MAX_ITEM_BYTES).split("\n")]
        except Unreadable as error:
            return Raw(None, str(error))
        if self._universal:
            rows = [row for row in rows if row[0].isdecimal()]
        widths = {len(row) for row in rows}
        if len(widths) > 1:
            return Raw(None, f"its lines have {min(widths)} to {max(widths)} columns; expected as many in each")
        width = max(widths, default=0)
        wanted = (self._word, self._tag) if tagged else (self._word,)
        missing = [column for column in wanted if not -width <= column < width]
        if missing or (tagged and width and self._word % width == self._tag % width):
            return Raw(None, f"its lines have {width} columns; expected {'a word' if missing == [self._word] else 'a tag'} in column {(missing or [self._tag])[0]}")
        found = {name: [row[column] for row in rows] for name, column in zip(("words", "tags"), wanted, strict=False)}
        return Raw(json.dumps(found, ensure_ascii=False).encode())


def _fields(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
