"""Pictures listed in a CSV file: paths and labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
from pydantic import Field

from ml import contracts
from ml.contracts import InputError, Raw
from ml.files import Folder, digest, folder_at, listing_digest, locate
from ml.label_sets import label_columns, labels_of
from ml.labels import label_texts, split_column


class Csv:
    """A CSV file of paths and labels. Paths are relative to its folder, or to `root`, and may not lead out of it."""

    class Options(contracts.Options):
        path: str = Field("", description="CSV file with a header; fsspec URLs work.")
        image: str = Field("path", description="Column of paths to pictures.")
        label: str = Field("label", description="Column of labels, where an empty one makes a row unlabelled; or columns of 0 and 1, with commas between.")
        label_separator: str = Field("", description="What stands between the labels of a row, where an empty field then means that no class applies; unset, a field is one label.")
        split: str | None = Field(None, description="Column that says train, validation, test or unlabelled.")
        group: str | None = Field(None, description="Column of what must stay on one side of a split (patient, video ...).")
        slice: str | None = Field(None, description="Column to report scores by (site, camera ...).")
        root: str | None = Field(None, description="Folder that the paths are relative to; unset, that of the CSV file.")
        separator: str = Field(",", min_length=1, max_length=1, description="What stands between two fields.")

    def __init__(self, options: Csv.Options) -> None:
        self.options = options

    def scan(self) -> pd.DataFrame:
        folder, name = self._file()
        try:
            with folder.open(name) as file:
                # All as text, and only empty fields and NaN missing: "NA" and "None" are fine names for a class.
                table = pd.read_csv(file, sep=self.options.separator, dtype=str, keep_default_na=False, na_values=["", "nan", "NaN"])
        except (ValueError, pd.errors.ParserError) as error:
            raise InputError(f"{self.options.path!r} cannot be read as CSV: {' '.join(str(error).split())}") from None
        labels = label_columns(self.options.label, list(table.columns))
        others = {name: getattr(self.options, name) for name in ("image", "split", "group", "slice")}
        for option, column in (*(("label", column) for column in labels), *others.items()):
            if column is not None and column not in table:
                raise InputError(
                    f"{self.options.path!r} has no column {column!r} for `{option}`; it has {', '.join(map(repr, table.columns))}. "
                    f"Set data.source.options.{option}"
                )
        if table[self.options.image].isna().any():
            row = int(table[self.options.image].isna().to_numpy().argmax())
            raise InputError(f"{self.options.path!r} has no path in its row {row + 2}: complete or remove that line")
        told = table[labels].fillna("") if self.options.label_separator else table[labels]
        frame = pd.DataFrame({"key": _unique(table[self.options.image]), "label": labels_of(told, self.options.label_separator)}, dtype=object)
        frame["split"] = split_column(table[self.options.split], self.options.split) if self.options.split else None
        for name in ("group", "slice"):
            column = getattr(self.options, name)
            frame[name] = label_texts(table[column]) if column else None
        return frame.astype(object)

    def read(self, keys: Sequence[str]) -> Iterator[Raw]:
        yield from self._root().read([key.partition(REPEATED)[0] for key in keys])

    def fingerprint(self) -> str:
        folder, name = self._file()
        paths = set(self.scan()["key"].map(lambda key: key.partition(REPEATED)[0]))
        listed = {item.path: item for item in folder.list()[0]}
        pictures = {item.path: item for item in self._root().list()[0]}
        return digest(
            "csv",
            self.options.model_dump_json(),
            listing_digest(folder, [listed[name]]),
            listing_digest(self._root(), [pictures[path] for path in sorted(paths & pictures.keys())]),
        )

    def _file(self) -> tuple[Folder, str]:
        folder, name = locate(self.options.path)
        if name is None:
            raise InputError(f"{self.options.path!r} is a folder; the source csv expects a file. For folders of classes use image-folder")
        return folder, name

    def _root(self) -> Folder:
        return folder_at(self.options.root) if self.options.root else self._file()[0]


REPEATED = "\n#"
"""Between a path and the number of its repetition in the file: no path in a line of CSV holds this by chance."""


def _unique(paths: pd.Series) -> pd.Series:
    """The paths as keys: those that come again are numbered."""
    times = paths.groupby(paths).cumcount()
    return paths.where(times == 0, paths + REPEATED + (times + 1).astype(str))
