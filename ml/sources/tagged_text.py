"""Words with a tag each: names, parts of speech, chunks. CoNLL's files, or tables with a column of lists of words and one of lists of tags."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pandas as pd
from pydantic import Field

from ml import conll, contracts
from ml.conll import Conll
from ml.contracts import InputError, Raw
from ml.files import Folder
from ml.labels import split_from_path
from ml.table_files import Table, open_table
from ml.table_folder import Chunks, TableFolder, first, frame, lacks

TABLES = (".jsonl", ".jsonl.gz", ".parquet", ".pq")
WORDS = ("tokens", "words")
TAGS = ("ner_tags", "tags", "labels", "ner", "pos_tags", "upos", "chunk_tags", "pos")


class TaggedText:
    """A file of CoNLL's kind, JSON-lines or Parquet, or a folder of them: sentences whose words have a tag each.

    A file named after a part (train.conll, dev.txt, test.parquet) is that part; files named unlabelled-* need no tags and serve pretraining
    alone. Sentences of a document (-DOCSTART-, "# newdoc") stay on one side of a split.
    """

    class Options(contracts.Options):
        path: str = Field("", description=f"File ({', '.join((*conll.SUFFIXES[: len(conll.SUFFIXES) // 2], *TABLES))}), folder of such files, or fsspec URL of either.")
        word_column: int | None = Field(None, ge=-100, le=100, description="Column of the word in CoNLL's files, from 0, or from -1 backwards; unset, 0 (.conllu: 1).")
        tag_column: int | None = Field(None, ge=-100, le=100, description="Column of the tag in CoNLL's files; unset, the last (.conllu: 3, the part of speech).")
        words: str = Field("", description=f"Column of lists of words in tables; unset, the first there is of {', '.join(WORDS)}.")
        tags: str = Field("", description=f"Column of lists of tags in tables; unset, the first there is of {', '.join(TAGS)}.")
        names: tuple[str, ...] = Field((), description="The tags' names, in order, where a table has numbers; unset, those that Hugging Face's Parquet files bring.")
        split: str = Field("", description="Column of tables that says train, validation, test or unlabelled; unset, the files' names tell.")
        group: str = Field("", description="Column of tables of what must stay on one side of a split (document ...); unset, none.")
        slice: str = Field("", description="Column of tables to report scores by (domain, site ...); unset, none.")

    def __init__(self, options: TaggedText.Options) -> None:
        self.options = options
        self._folder = TableFolder(options.path, (*conll.SUFFIXES, *TABLES), self._opened)

    def scan(self) -> pd.DataFrame:
        found = pd.concat([self._scan_file(table) for table in self._folder.tables().values()], ignore_index=True)
        if not len(found):
            raise InputError(f"there is no sentence in {self.options.path!r}: expected a word and its tag a line, and a blank line between sentences")
        if found["split"].notna().any():
            found["split"] = found["split"].where(found["split"].notna(), "train")
        return found

    def read(self, keys: Sequence[str]) -> Iterator[Raw]:
        """JSON, {"words": [...], "tags": [...]}, of each sentence."""
        yield from self._folder.read(keys, self._items)

    def fingerprint(self) -> str:
        return self._folder.fingerprint("tagged-text", self.options.model_dump_json())

    def _opened(self, folder: Folder, path: str) -> Table:
        if path.lower().endswith(TABLES):
            return open_table(folder, path)
        return Conll(folder, path, self.options.word_column, self.options.tag_column)

    def _scan_file(self, table: Table) -> pd.DataFrame:
        if isinstance(table, Conll):
            return frame(table, {"group": conll.DOCUMENT})
        self._columns(table)  # before anything else is missed in it
        return frame(table, {name: column for name in ("split", "group", "slice") if (column := getattr(self.options, name))})

    def _columns(self, table: Table) -> dict[str, str]:
        """The columns of words and tags; of words alone where tags are neither there nor needed."""
        found = {}
        for name, names in (("words", WORDS), ("tags", TAGS)):
            column = getattr(self.options, name) or first(names, table.columns)
            if column in table.columns:
                found[name] = column
            elif name == "words" or _tagged(table):
                raise InputError(lacks(table, column or ", ".join(names), name))
        return found

    def _items(self, table: Table, row: int) -> Chunks:
        if isinstance(table, Conll):
            yield from table.sentences(_tagged(table))
            return
        columns = self._columns(table)
        for start, raws in table.objects(list(columns.values()), row):
            yield start, [self._item(raw, columns) for raw in raws]

    def _item(self, raw: Raw, columns: dict[str, str]) -> Raw:
        if raw.data is None:
            return raw
        content = json.loads(raw.data)
        found = {name: content[column] for name, column in columns.items()}
        missing = [name for name, values in found.items() if values is None]
        if missing:
            return Raw(None, f"the {' and the '.join(missing)} are missing")
        if isinstance(found.get("tags"), list):
            found["tags"] = [self._named(tag) for tag in found["tags"]]
        return Raw(json.dumps(found, ensure_ascii=False).encode())

    def _named(self, tag: object) -> object:
        """A tag's name, where it is a number."""
        if not isinstance(tag, int) or isinstance(tag, bool):
            return tag
        return self.options.names[tag] if 0 <= tag < len(self.options.names) else None if self.options.names else str(tag)


def _tagged(table: Table) -> bool:
    return split_from_path(table.path) != "unlabelled"
