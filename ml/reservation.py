"""Which rows are the test, decided once, before any statistic and any training.

An official test part is honoured. Otherwise whole groups are drawn by a hash of their identity, without a seed: the test stays
the same over seeds, and mostly the same when data are added.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from ml.contracts import InputError

LARGEST_SHARE = 0.5
"""A group with more than this share of the rows wanted for the test stays in training: one draw must not decide all."""


def reserve_test(table: pd.DataFrame, fraction: float) -> np.ndarray:
    """The part of each row, with about `fraction` of the labelled training rows turned into "test".

    `table` has part, label (what to stratify by, None unlabelled), group (int), content and named (the user's group or None). Each class
    with two groups or more gets a test row and keeps a training row.
    """
    part = table["part"].to_numpy(object).copy()
    labelled = (part == "train") & table["label"].notna().to_numpy()
    group = table["group"].to_numpy()
    barred = set(group[part == "validation"].tolist())  # an official validation group stays there
    eligible = labelled & ~np.isin(group, list(barred))
    numbers = np.unique(group[eligible])
    if not len(numbers):
        return part
    draws = _draws(table)
    sizes = pd.Series(group[eligible]).value_counts()
    largest = max(1.0, LARGEST_SHARE * fraction * eligible.sum())
    chosen = {number for number in numbers.tolist() if draws[number] < fraction and sizes[number] <= largest}
    labels = table["label"].to_numpy(object)
    holders = {label: sorted(set(group[eligible & (labels == label)].tolist()), key=draws.__getitem__) for label in sorted(set(labels[labelled]))}
    training = {label: set(group[labelled & (labels == label)].tolist()) for label in holders}
    for label in holders:  # what a class must keep in training comes first ...
        if training[label] <= chosen:
            chosen.discard(max(training[label], key=draws.__getitem__))
    for label, groups in holders.items():  # ... then what it must show in the test
        if len(training[label]) >= 2 and not chosen & set(groups):
            for number in sorted(groups, key=lambda one: (sizes[one] > largest, draws[one])):
                if not any(others <= chosen | {number} for others in training.values()):
                    chosen.add(number)
                    break
    part[labelled & np.isin(group, list(chosen))] = "test"
    return part


def keep_groups_apart(table: pd.DataFrame) -> np.ndarray:
    """Mask of rows that must go because their group reaches into the test, or into an official validation part."""
    part, group = table["part"].to_numpy(object), table["group"].to_numpy()
    tested, validated = (np.isin(group, group[part == name]) for name in ("test", "validation"))
    return (tested & (part != "test")) | (validated & ~tested & (part != "validation"))


def check_classes(table: pd.DataFrame, classes: list[str], usable: pd.DataFrame) -> None:
    """InputError naming the classes that have no training row left, and where theirs went."""
    left = set(table.loc[table["part"] == "train", "label"].explode())
    lost = [name for name in classes if name not in left]
    if lost:
        was = [f"{name!r} ({int((usable['label'].explode() == name).sum())} readable rows)" for name in lost[:10]]
        raise InputError(
            f"no training row is left of class {', '.join(was)} after removing unreadable items, conflicting labels and copies of test rows: "
            "add rows of that class, or remove the class"
        )


def _draws(table: pd.DataFrame) -> dict[int, float]:
    """A number in [0, 1) for each group, by its identity: the least of its users' group names and of its rows' contents."""
    identity = table["named"].map(lambda name: "group:" + str(name), na_action="ignore").astype(object)
    identity = identity.where(identity.notna(), table["content"])
    hashes = identity.map(lambda text: hashlib.sha256(f"test:{text}".encode()).hexdigest())
    least = hashes.groupby(table["group"].to_numpy()).min()
    return {int(number): int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 2**64 for number, text in least.items()}
