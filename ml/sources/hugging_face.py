"""Data sets of Hugging Face, of the Hub or in a folder, as the library `datasets` loads them. Needs the extra `datasets`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pydantic import Field

from ml import contracts
from ml.contracts import InputError, Raw
from ml.files import Folder, Item, digest, folder_at, is_remote, listing_digest, short
from ml.label_sets import label_columns, labels_of
from ml.labels import LABELS, TEXTS, class_names, label_texts, split_from_path
from ml.table_files import is_list, picture_of, text_of, undecoded
from ml.table_folder import first

BATCH_ROWS = 64
"""Rows of pictures or texts in memory at a time."""
SECONDS = 10
"""How long the Hub may take to answer at all; the library itself would wait for minutes."""
SAVED = ("dataset_dict.json", "state.json")
"""What tells a folder that `save_to_disk` wrote."""
WHOLE = "rows"
"""What keys call the one table of a data set that was saved without splits."""


class HuggingFace:
    """A data set of the Hub by its name, or a folder that `datasets` can load or has saved: a column of texts or pictures, and a label.

    Its own splits are honoured where there are several, and names of classes are used, of which -1 means none. What was fetched once is found without a
    network. A data set runs no code here, and pictures are read from its own folder and from the library's cache alone.
    """

    class Options(contracts.Options):
        path: str = Field("", description="Name on the Hub, such as owner/name, or folder that datasets can load or has saved.")
        name: str = Field("", description="Configuration of the data set, where it has several; unset, its default.")
        revision: str = Field("", description="Commit, tag or branch on the Hub; unset, the newest.")
        column: str = Field("", description=f"Column of texts or pictures; unset, the first of pictures, else the first there is of {', '.join(TEXTS)}.")
        label: str = Field("", description=f"Column of labels, or columns of 0 and 1, with commas between; unset, the first of {', '.join(LABELS)}, else the first of classes.")
        separator: str = Field("", description="What stands between the labels of a row, where an empty text then means that no class applies; unset, a text is one label.")
        group: str = Field("", description="Column of what must stay on one side of a split (author, patient ...); unset, none.")
        slice: str = Field("", description="Column to report scores by (language, site ...); unset, none.")

    argument = "path"

    def __init__(self, options: HuggingFace.Options) -> None:
        self.options = options

    def scan(self) -> pd.DataFrame:
        label = self._label()
        found = pd.concat([self._scan(name, table, label) for name, table in self._tables.items()], ignore_index=True)
        if len(self._tables) == 1:
            found["split"] = None  # there is nothing else that its rows could be kept apart from
        elif found["split"].notna().any():
            found["split"] = found["split"].where(found["split"].notna(), "train")
        return found.astype(object)

    def read(self, keys: Sequence[str]) -> Iterator[Raw]:
        for name, part in groupby(keys, key=lambda key: key.rpartition(":")[0]):
            rows = [int(row) if row.isdecimal() else -1 for row in (key.rpartition(":")[2] for key in part)]
            for start in range(0, len(rows), BATCH_ROWS):
                yield from self._read(name, rows[start : start + BATCH_ROWS])

    def fingerprint(self) -> str:
        """Of a folder from its files, of the Hub from the commit."""
        state = listing_digest(self._folder, self._files) if self._folder else self._builder.hash
        return digest("hugging-face", self.options.model_dump_json(), state)

    @cached_property
    def _folder(self) -> Folder | None:
        """Where the data set lies on this machine; None for one of the Hub."""
        path = self.options.path
        if is_remote(path):
            raise InputError(f"{path!r} is a URL; hugging-face expects a name on the Hub, or a folder. Tables behind URLs are read by text-table and parquet")
        if path and path[0] not in "./~" and not Path(path).exists():
            return None
        folder = folder_at(path)
        if self.options.revision:
            raise InputError(f"{path!r} is a folder, and only data sets of the Hub have a revision: leave data.source.options.revision unset")
        return folder

    @cached_property
    def _files(self) -> list[Item]:
        """The folder's files; InputError where one cannot be read, or is a link that leads out."""
        items = self._folder.list()[0]
        for item in items:
            if item.reason:
                raise InputError(f"cannot read {item.path!r} in {self.options.path!r}: {item.reason}")
        return items

    @cached_property
    def _builder(self) -> Any:
        library, options = _library(), self.options
        with _in_words(options.path, self._folder):
            if self._folder is not None:
                return library.load_dataset_builder(self._folder.root, options.name or None)
            with _offline_where_out_of_reach(library):
                made = library.load_dataset_builder(options.path, options.name or None, revision=options.revision or None)
        if made.repo_id is None:
            raise InputError(f"{options.path!r} is a kind of files to datasets and no data set: give a name on the Hub, or the folder that holds such files")
        if options.revision and made.name == "cache" and made.hash != options.revision:
            raise InputError(f"revision {options.revision!r} of {options.path!r} cannot be fetched, and what was fetched before is {made.hash}: check the network, or name that one")
        return made

    @cached_property
    def _tables(self) -> dict[str, Any]:
        """The data set's tables by the splits' names, on disk and mapped into memory."""
        library, folder = _library(), self._folder
        if folder is not None and any(item.path in SAVED for item in self._files):
            with _in_words(self.options.path, folder):
                found = library.load_from_disk(folder.root)
        else:
            builder = self._builder
            with _in_words(self.options.path, folder):
                builder.download_and_prepare()
                found = builder.as_dataset()
        return dict(sorted(found.items())) if isinstance(found, dict) else {WHOLE: found}

    @cached_property
    def _column(self) -> str:
        """The column of what is to be read, which all the tables have; InputError where it holds something else."""
        fields = next(iter(self._tables.values())).features.arrow_schema
        pictures = (field.name for field in fields if _is_file(field.type))
        column = self.options.column or next(pictures, "") or first(TEXTS, fields.names)
        for name, table in self._tables.items():
            if column not in table.column_names:
                raise InputError(self._lacks(name, table, column or ", ".join(TEXTS), "column"))
            kind = table.features.arrow_schema.field(column).type
            if not _is_file(kind) and undecoded(pa.array([], kind)).type not in (pa.binary(), pa.large_binary()):
                raise InputError(f"{column!r} of {self.options.path!r} holds {kind}; texts or pictures are expected. Set data.source.options.column")
        return column

    def _label(self) -> str:
        """The column of labels, "" where there is none."""
        tables = [table for name, table in self._tables.items() if split_from_path(name) != "unlabelled"]
        features = tables[0].features if tables else {}
        classes = (name for name, feature in features.items() if isinstance(feature, _library().ClassLabel))
        return self.options.label or first(LABELS, list(features)) or next(classes, "")

    def _scan(self, name: str, table: Any, label: str) -> pd.DataFrame:
        part, there = split_from_path(name) if name != WHOLE else None, table.column_names
        labels = [column for column in label_columns(label, there) if column and (column in there or part != "unlabelled")]
        others = {option: column for option in ("group", "slice") if (column := getattr(self.options, option))}
        for option, column in (("column", self._column), *(("label", column) for column in labels), *others.items()):
            if column not in there:
                raise InputError(self._lacks(name, table, column, option))
        chosen = table.select_columns(list(dict.fromkeys([*labels, *others.values()])))
        values = {column: self._values(chosen, column, column in labels) for column in chosen.column_names}
        found = pd.DataFrame({"key": [f"{name}:{row}" for row in range(len(table))]}, dtype=object)
        found["label"] = labels_of(pd.DataFrame({column: values[column] for column in labels}), self.options.separator) if labels else None
        found["split"] = part
        for option in ("group", "slice"):
            found[option] = label_texts(values[others[option]]) if option in others else None
        return found.astype(object)

    def _values(self, table: Any, column: str, listed: bool) -> pd.Series:
        schema = table.features.arrow_schema
        kind = schema.field(column).type
        if pa.types.is_nested(kind) and not (listed and is_list(kind)):
            raise InputError(f"{self.options.path!r} holds {kind} as {column!r}; a text or a number is expected{', or a list of those' * listed}")
        return class_names(table.with_format("arrow")[:].column(column).to_pandas(), column, schema.metadata)

    def _read(self, name: str, rows: list[int]) -> Iterator[Raw]:
        if name not in self._tables:
            yield from [Raw(None, f"the data set has no split {name!r}")] * len(rows)
            return
        table = self._tables[name].select_columns([self._column]).with_format("arrow")  # as it is stored: no picture is decoded
        there = [row for row in rows if 0 <= row < len(table)]
        try:
            found = undecoded(table[there].column(0).combine_chunks()).to_pylist() if there else []
        except (pa.ArrowException, OSError) as error:
            yield from [Raw(None, f"its part of the data set is damaged: {short(error)}")] * len(rows)
            return
        pictures = _is_file(table.features.arrow_schema.field(0).type)
        values = dict(zip(there, found, strict=True))
        for row in rows:
            if row not in values:
                yield Raw(None, f"the split has no row {row}")
            else:
                yield picture_of(values[row], self._file) if pictures else text_of(values[row])

    def _file(self, path: str) -> Raw:
        """A picture that stands beside the table."""
        from huggingface_hub.constants import HF_HUB_CACHE

        kept = [Folder(_library().config.HF_DATASETS_CACHE), Folder(HF_HUB_CACHE)]
        found = [next(place.read([path])) for place in ([self._folder, *kept] if self._folder else kept)]
        return next((raw for raw in found if raw.data is not None), found[0])

    def _lacks(self, name: str, table: Any, column: str, option: str) -> str:
        there = ", ".join(f"{one!r:.40}" for one in table.column_names[:20])
        return f"split {name!r} of {self.options.path!r} has no column {column!r} for `{option}`; it has {there}. Set data.source.options.{option}"


def _is_file(kind: pa.DataType) -> bool:
    """Whether a column of this type holds {bytes, path}, as those of pictures do."""
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _library() -> Any:
    try:
        import datasets  # imported where it is used: it costs seconds
    except ImportError:
        raise InputError("source hugging-face needs the datasets library: install the extra with `pip install 'warmstart[datasets]'`") from None
    datasets.disable_progress_bars()
    return datasets


@contextlib.contextmanager
def _offline_where_out_of_reach(library: Any) -> Iterator[None]:
    """Has the library look at what it fetched before, where the Hub does not answer."""
    from huggingface_hub import get_session

    asked = library.config.HF_HUB_OFFLINE
    try:
        get_session().head(library.config.HF_ENDPOINT, timeout=SECONDS)
    except Exception:  # whatever its transport raises
        library.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        library.config.HF_HUB_OFFLINE = asked


@contextlib.contextmanager
def _in_words(path: str, folder: Folder | None) -> Iterator[None]:
    """What goes wrong in the library as an InputError: its own errors, its transports' and its parsers' are many."""
    try:
        yield
    except Exception as error:
        remedy = "" if folder else ". Check the name, and the network: what was fetched once is found without it"
        raise InputError(f"datasets cannot load {path!r}: {short(error.__cause__ or error)}{remedy}") from None
