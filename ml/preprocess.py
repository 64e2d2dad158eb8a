"""From a source to a store: decode, quarantine, remove copies, reserve the test, measure, write.

The test rows are reserved here, before any statistic and any training, and no copy of one stays outside the test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ml.contracts import UNLABELLED, InputError, Modality, Raw, Source
from ml.decoding import Fill, decode_all, discard, on_threads, require_space, reserved
from ml.duplicates import exact_duplicates, near_groups
from ml.heads import HEADS
from ml.label_sets import as_sets, ordered, rarest, shown
from ml.labels import natural_order
from ml.ragged import Ragged, row_bytes
from ml.recipe import Data
from ml.reservation import check_classes, keep_groups_apart, reserve_test
from ml.store import SETS, Store, disk_errors, write_store

SAMPLE_RUNS, SAMPLE_RUN = 16, 16
SLICE_BYTES = 8 * 2**20
RAGGED_BYTES = 4096
"""Room that is asked for a row whose length is known only when it is read."""
KIND = "all rows"
"""What stands for a label in data that have none, and need none."""
NAMED = 20
"""How many keys or classes the manifest or a message lists at most."""


def preprocess(
    source: Source, modality: Modality, data: Data, workdir: Path, stores: Path, labelled: bool = True, several: bool = False, fill: Fill | None = None
) -> Store:
    """Makes the store of `source` under `stores`, or finds it there. Unless it must be `labelled`, data without any label are all of one kind.

    Where a row may have `several` labels, one label is a set of one. Decoded is on threads of this process, or by `fill`.

    Killed, the same call goes on with the chunks that `workdir` holds. The result depends on the data and options alone. Raises
    InputError for data that cannot be used, and for a full or read-only disk.
    """
    scanned = source.scan()
    ignored = int(scanned.attrs.get("ignored", 0))
    scanned["label"] = scanned["label"].where(scanned["split"] != "unlabelled", None)  # whatever its column held
    classes = _classes(scanned, labelled, several)
    modality = type(modality)(modality.plan(list(_sample(source, modality, scanned["key"].tolist())), len(scanned)))
    needed = len(scanned) * int(np.prod(modality.item_shape)) if modality.item_shape else len(scanned) * RAGGED_BYTES
    with disk_errors(workdir, 2 * needed):
        require_space([(workdir, max(0, needed - reserved(workdir))), (stores, needed)])
        rows, facts = decode_all(source, modality, scanned["key"].tolist(), workdir, fill or on_threads(data.workers))
    table = pd.concat([scanned.reset_index(drop=True), facts], axis=1)
    quarantine = table.loc[table["reason"] != "", ["key", "reason", "bytes"]].reset_index(drop=True)
    _check_quarantine(quarantine, len(table), data.quarantine_limit)
    table, found = _clean(table, rows, modality, data, classes)
    positions = table.index.to_numpy()
    training = positions[table["part"].isin(["train", "unlabelled"]).to_numpy()]
    statistics = modality.statistics(_Slices(rows, training))
    spec = modality.spec([name for name in classes if name != KIND], statistics)
    manifest = {"scanned": len(scanned), "ignored": ignored, "quarantined": len(quarantine), **found, **_counts(table, classes)}
    if table["label"].map(lambda label: isinstance(label, tuple)).any():
        sizes = table["label"].dropna().map(len)
        manifest |= {"strata": natural_order(table["stratum"].dropna()), "of_no_class": int((sizes == 0).sum()), "labels_per_row": float(sizes.mean())}
    final = _final(table, classes, facts.columns, manifest)
    with disk_errors(stores, needed):
        chunks = (modality.pack(chunk, spec) for chunk in _Slices(rows, positions))
        store = write_store(stores, chunks, final, quarantine, spec, manifest)
    discard(workdir)
    return store


def summary(store: Store) -> dict[str, Any]:
    """What there is to know of a store before training on it, JSON-able: counts, classes, what was removed, bytes."""
    facts = {name: value for name, value in store.manifest.items() if name not in ("files", "spec", "version")}
    train = [counts.get("train", 0) for counts in facts["classes"].values()]
    return facts | {
        "classes": {name: facts["classes"][name] for name in store.spec.classes or facts["classes"]},  # in their order, which JSON loses
        "shape": list(store.spec.shape),
        "imbalance": max(train) / min(train),
        "bytes": sum(file["bytes"] for file in store.manifest["files"].values()),
        "reasons": {str(reason): int(count) for reason, count in store.quarantine["reason"].value_counts().items()},
    }


def _classes(scanned: pd.DataFrame, labelled: bool, several: bool) -> list[str]:
    """The classes in their order, once the labels have the form in which they are worked with."""
    listed = bool(scanned["label"].map(lambda label: isinstance(label, tuple)).any())
    if listed and labelled and not several:
        heads = ", ".join(name for name, head in HEADS.items() if head.several)
        raise InputError(f"rows of these data have several labels: set finetuning.head to one that tells them ({heads}), or name a column of one label a row")
    if listed or several:
        scanned["label"] = as_sets(scanned["label"])
    classes = natural_order(scanned["label"].dropna().explode().dropna())
    if listed or several:
        scanned["label"] = ordered(scanned["label"], classes)
    if not labelled and not classes:
        classes = [KIND]
        if scanned["split"].isin(["unlabelled", None]).all():
            scanned["split"] = None  # said for want of labels: there is nothing else that the rows could be kept apart from
        scanned["label"] = scanned["split"].map(lambda split: None if split == "unlabelled" else KIND)
    elif labelled and len(classes) < (1 if several else 2):
        found = f"one class only: {classes[0]!r}" if classes else "no labelled row" if scanned["label"].isna().all() else "no label"
        raise InputError(f"the data hold {len(scanned)} rows and {found}. Telling classes apart takes labelled rows of at least two")
    return classes


def _clean(table: pd.DataFrame, rows: np.ndarray | Ragged, modality: Modality, data: Data, classes: list[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows to keep, each with its part and group, and counts of what was removed; the index stays the position in `rows`."""
    usable = table[table["reason"] == ""].copy()
    unlabelled = usable["label"].isna()
    hidden = unlabelled & usable["split"].isin(["test", "validation"])  # neither to be scored nor to be trained on
    usable["part"] = usable["split"].where(usable["split"].notna(), "train").where(~unlabelled, "unlabelled")
    usable = usable[~hidden]
    copy, conflict = exact_duplicates(usable)
    official = bool((usable["part"] == "test").any())
    tested = set(usable.loc[~copy & (usable["part"] == "test"), "content"])
    leaked = int((copy & (usable["part"] != "test") & usable["content"].isin(tested)).sum())
    disputed = [part for _, part in usable[conflict].groupby("content", sort=False)]
    kept = usable[~copy & ~conflict].copy()
    kept["stratum"] = rarest(kept["label"])
    kept["named"] = kept["group"]
    signatures = kept["signature"].to_numpy(np.uint64)
    kept["group"] = near_groups(signatures, rows, kept.index.to_numpy(), modality, kept["named"], data.near_duplicates)
    sizes = kept["group"].value_counts()
    if not official:
        kept["part"] = reserve_test(kept.assign(label=kept["stratum"]), data.test_fraction)
    straddling = keep_groups_apart(kept)
    final = kept[~straddling]
    if classes == [KIND] and not (final["part"] == "train").any():
        raise InputError(
            f"none of the {len(usable)} readable rows is left to train on: all belong to a test or validation part, by their files' names or a column, or copy "
            "rows that do. Add rows for training"
        )
    check_classes(final, classes, usable)
    if not (final["part"] == "test").any():
        raise InputError("no row can be reserved for the test: every class has a single row or group. Add data, or an official test part")
    return final, {
        "test": "official" if official else "hash",
        "unlabelled_evaluation": int(hidden.sum()),
        "duplicates": {"exact": int(copy.sum()), "near": int(sizes[sizes > 1].sum()), "near_groups": int((sizes > 1).sum())},
        "largest_group": int(sizes.max()),
        "leakage": {"exact": leaked, "near": int(straddling.sum())},
        "conflicts": {
            "items": len(disputed),
            "rows": int(conflict.sum()),
            "examples": [{"keys": one["key"].tolist(), "labels": natural_order(one["label"].dropna().map(shown))} for one in disputed[:NAMED]],
        },
    }


def _check_quarantine(quarantine: pd.DataFrame, rows: int, limit: float) -> None:
    share = len(quarantine) / rows
    if share <= limit and share < 1:
        return
    reasons = quarantine["reason"].value_counts()
    common = "; ".join(f"{count} x {reason}" for reason, count in reasons.iloc[:3].items())
    example = quarantine["key"].iloc[0]
    if share == 1:
        raise InputError(f"none of the {rows} items can be read: {common}. The first is {example!r}. Mend them, or name other data in data.source")
    raise InputError(
        f"{len(quarantine)} of {rows} items cannot be used ({share:.1%}, the limit is {limit:.1%}): {common}. The first is {example!r}. "
        f"Mend or remove them, or raise data.quarantine_limit to {min(1.0, np.ceil(share * 100) / 100):.2f}"
    )


def _sample(source: Source, modality: Modality, keys: list[str]) -> Iterator[Raw]:
    """A few short runs of items spread over the data: runs, because a column file is read in order."""
    if modality.planned:
        return
    starts = np.unique(np.linspace(0, max(0, len(keys) - SAMPLE_RUN), SAMPLE_RUNS).astype(int))
    chosen = sorted({row for start in starts.tolist() for row in range(start, min(start + SAMPLE_RUN, len(keys)))})
    yield from source.read([keys[row] for row in chosen])


class _Slices:
    """The rows at `positions` in chunks of bounded size, as often as asked for."""

    def __init__(self, rows: np.ndarray | Ragged, positions: np.ndarray) -> None:
        self._rows, self._positions = rows, positions

    def __iter__(self) -> Iterator[np.ndarray | Ragged]:
        step = max(1, SLICE_BYTES // row_bytes(self._rows))
        for start in range(0, len(self._positions), step):
            chunk = self._rows[self._positions[start : start + step]]
            yield chunk if isinstance(chunk, Ragged) else np.asarray(chunk)


def _counts(table: pd.DataFrame, classes: list[str]) -> dict[str, Any]:
    parts = {str(part): int(count) for part, count in table["part"].value_counts().sort_index().items()}
    labelled = table[["label", "part"]].explode("label").dropna()
    by_class = {name: {str(part): int(n) for part, n in one["part"].value_counts().sort_index().items()} for name, one in labelled.groupby("label")}
    return {
        "rows": len(table),
        "parts": parts,
        "classes": {name: by_class[name] for name in classes},
        "untested_classes": [name for name in classes if "test" not in by_class[name]],
    }


def _final(table: pd.DataFrame, classes: list[str], facts: pd.Index, manifest: Mapping[str, Any]) -> pd.DataFrame:
    """The store's table: documented columns first, then what else the modality told of an item."""
    strata = {name: number for number, name in enumerate(manifest.get("strata", classes))}
    columns = {
        "row_id": table["content"],
        "key": table["key"],
        "label": table["stratum"].map(strata).fillna(UNLABELLED).astype(np.int64),
        "split": table["split"],
        "part": table["part"],
        "group": pd.factorize(table["group"])[0].astype(np.int64),
        "slice": table["slice"],
    }
    if "strata" in manifest:
        numbers = {name: number for number, name in enumerate(classes)}
        columns[SETS] = table["label"].map(lambda names: [numbers[name] for name in names or ()])
    own = {name: table[name].astype(np.int64) for name in facts if name not in ("content", "signature", "reason", "bytes")}
    return pd.DataFrame(columns | own).reset_index(drop=True)
