"""Train and validation rows out of what is not reserved for the test: stratified, by group, stable."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ml.contracts import UNLABELLED, InputError
from ml.feed import seed_of
from ml.recipe import Splitting


@dataclass(frozen=True)
class Split:
    """Row numbers into the store, ascending. `train` may be fewer rows than the training part holds (few labels)."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @property
    def digest(self) -> str:
        """A digest of the three lists of rows."""
        parts = b"|".join(np.asarray(rows, dtype="<i8").tobytes() for rows in (self.train, self.validation, self.test))
        return hashlib.sha256(parts).hexdigest()


def split(table: pd.DataFrame, classes: tuple[str, ...], options: Splitting, seed: int) -> Split:
    """Divides the labelled rows, by classes or where rows have several by strata. An official validation part is kept; otherwise each gives
    its share, whole groups at a time, in an order that depends on the seed and the group alone."""
    classes = classes or ("",)  # data without labels are all of one kind
    label, part, group = (table[name].to_numpy() for name in ("label", "part", "group"))
    labelled = label != UNLABELLED
    test = np.flatnonzero((part == "test") & labelled)
    rest = np.flatnonzero((part == "train") & labelled)
    validation = np.flatnonzero((part == "validation") & labelled)
    rest = rest[np.argsort([seed_of(seed, "split", row_id) for row_id in _group_ids(table, rest)], kind="stable")]
    if len(validation) == 0:
        validation, rest = _take_validation(rest, label, group, options.validation_fraction, len(classes))
    train = _few(rest, label, classes, options)
    if len(validation) == 0:
        raise InputError("no labelled row is left for validation. Give more labelled data or a larger splitting.validation_fraction.")
    return Split(np.sort(train), np.sort(validation), test)


def _group_ids(table: pd.DataFrame, rows: np.ndarray) -> list[str]:
    """The smallest row id of each row's group: unlike a group's number, it is the same in any order of the data."""
    smallest = table.groupby("group")["row_id"].min()
    return smallest.loc[table["group"].to_numpy()[rows]].tolist()


def _take_validation(rest: np.ndarray, label: np.ndarray, group: np.ndarray, fraction: float, classes: int) -> tuple[np.ndarray, np.ndarray]:
    counts = np.bincount(label[rest], minlength=classes)
    # A class of two rows or more gives at least one and keeps at least one.
    quota = np.minimum(np.maximum(np.round(counts * fraction), 1), counts - 1)
    # Whole groups may overshoot it, up to half of a class: better than a validation part without that class.
    limit = np.minimum(np.maximum(quota, counts // 2), counts - 1)
    taken = np.zeros(classes)
    members: dict[int, list[int]] = {}
    for row in rest:
        members.setdefault(int(group[row]), []).append(int(row))
    chosen: list[int] = []
    for rows in members.values():
        add = np.bincount(label[rows], minlength=classes)
        if np.any((taken < quota) & (add > 0)) and np.all((taken + add <= limit) | (add == 0)):
            taken += add
            chosen.extend(rows)
    inside = np.isin(rest, chosen)
    return rest[inside], rest[~inside]


def _few(rest: np.ndarray, label: np.ndarray, classes: tuple[str, ...], options: Splitting) -> np.ndarray:
    counts = np.bincount(label[rest], minlength=len(classes))
    there = counts > 0  # some strata may be in an official test or validation part alone
    if options.labels_per_class is not None:
        short = [f"{classes[k]} has {counts[k]}" for k in np.flatnonzero(there & (counts < options.labels_per_class))]
        if short:
            raise InputError(
                f"splitting.labels_per_class asks for {options.labels_per_class} training labels of each class, but {'; '.join(short[:5])}"
                f"{' and others' if len(short) > 5 else ''}. Ask for at most {counts[there].min()}."
            )
        wanted = np.full(len(classes), options.labels_per_class)
    elif options.label_fraction is not None:
        wanted = np.maximum(1, np.round(counts * options.label_fraction)).astype(int)
    else:
        return rest
    return np.concatenate([rest[label[rest] == k][: wanted[k]] for k in range(len(classes))])
