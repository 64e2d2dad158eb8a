"""Rows of several labels: how tables write them, and what stands for them.

Sources give such a row's labels as a tuple of distinct texts. An empty one is a row to which no class applies, None a row without labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ml.contracts import InputError
from ml.labels import label_texts

NOTHING = "(none)"
"""How a row is shown to which no class applies."""
APPLIES = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
"""What a column of one class holds."""


def label_columns(option: str, there: Sequence[str]) -> list[str]:
    """The columns that the option names: one, or several with commas between them."""
    return [option] if option in there or "," not in option else [name.strip() for name in option.split(",") if name.strip()]


def labels_of(values: pd.DataFrame, separator: str = "") -> pd.Series:
    """The label of each row as text, or the tuple of its labels; None where it is unlabelled.

    Several columns are a class each, of which 1 says that it applies, 0 that it does not. One column gives tuples where it holds lists, or
    texts of labels with `separator` between them: then an empty text is a row of no class.
    """
    if values.shape[1] > 1:
        return _flags(values)
    column = values.iloc[:, 0].astype(object)
    listed = column.map(_is_list)
    if not listed.any() and not separator:
        return label_texts(values.iloc[:, 0])
    missing = column.map(lambda value: not _is_list(value) and (value is None or value != value))
    if separator:
        column = column.map(lambda value: value.split(separator) if isinstance(value, str) else value)
    else:
        missing |= column.map(lambda value: isinstance(value, str) and not value.strip())
    rows = [list(value) if _is_list(value) else [value] for value in column[~missing]]
    nested = next((one for row in rows for one in row if isinstance(one, list | tuple | dict | np.ndarray)), None)
    if nested is not None:
        raise InputError(f"the column {values.columns[0]!r} holds {nested!r:.60} within a list; expected lists of texts or numbers")
    names = iter(label_texts(pd.Series([one for row in rows for one in row], dtype=object)))
    sets = _shared([next(names) for _ in row] for row in rows)
    found = pd.Series([None] * len(column), index=values.index, dtype=object)
    found[~missing] = pd.Series(sets, index=values.index[~missing], dtype=object)
    return found


def as_sets(labels: pd.Series) -> pd.Series:
    """Labels that are one text as tuples of it."""
    return _mapped(labels, lambda one: (one,) if isinstance(one, str) else one)


def ordered(sets: pd.Series, classes: Sequence[str]) -> pd.Series:
    """The tuples with their names in the order of `classes`, so that equal sets are equal."""
    number = {name: k for k, name in enumerate(classes)}
    known = {one: tuple(sorted(set(one), key=number.__getitem__)) for one in sets.dropna().unique()}
    return _mapped(sets, known.get)


def rarest(labels: pd.Series) -> pd.Series:
    """What rows are stratified by: the label, or of several the one that the fewest rows have; NOTHING where no class applies, None where unlabelled."""
    counts = labels.explode().value_counts()
    known = {one: one if isinstance(one, str) else min(one, key=counts.__getitem__, default=NOTHING) for one in labels.dropna().unique()}
    return _mapped(labels, known.get)


def shown(label: str | tuple[str, ...]) -> str:
    """A label, or a row's labels, in words."""
    return label if isinstance(label, str) else ", ".join(label) or NOTHING


def _mapped(values: pd.Series, change: Callable[[Any], Any]) -> pd.Series:
    """As `Series.map`, which would make texts and what is missing another type."""
    return pd.Series([change(one) for one in values], index=values.index, dtype=object)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _shared(rows: Iterable[list[str | None]]) -> list[tuple[str, ...]]:
    """The distinct names of each row; rows of the same ones share a tuple, as there are few of those."""
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    found = []
    for row in rows:
        names = tuple(dict.fromkeys(name for name in row if name is not None))
        found.append(known.setdefault(names, names))
    return found


def _flags(values: pd.DataFrame) -> pd.Series:
    """A row is unlabelled where a column is empty, or holds the −1 of what was not judged."""
    texts = pd.DataFrame({name: label_texts(values[name]) for name in values})
    for name in texts:
        strange = sorted({text for text in texts[name].dropna() if text.lower() not in APPLIES and text != "-1"})
        if strange:
            raise InputError(f"the column {name!r} of a class holds {strange[0]!r:.60}; expected 1 where it applies, 0 where it does not, nothing or -1 where that is not known")
    applies = texts.map(lambda text: APPLIES.get(text.lower()) if text is not None else None)
    known = applies.notna().all(axis=1)
    sets = _shared([name for name, one in zip(values.columns, row, strict=True) if one] for row in applies[known].itertuples(index=False))
    found = pd.Series([None] * len(values), index=values.index, dtype=object)
    found[known] = pd.Series(sets, index=values.index[known], dtype=object)
    return found
