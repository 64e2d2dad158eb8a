"""Names as data sets write them: class labels, their order, columns, and the words for the parts of a split."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from ml.contracts import InputError

SPLITS = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test",
    "unlabelled": "unlabelled", "unlabeled": "unlabelled", "unsup": "unlabelled", "unsupervised": "unlabelled",
}  # fmt: skip
"""What folders, files and split columns are called, and the split that each word means."""
TEXTS = ("text", "sentence", "review", "content", "document", "utterance", "question")
LABELS = ("label_name", "label", "class", "category", "intent", "target", "sentiment", "labels", "tags")
"""What columns of texts and of labels are called, the likeliest first."""


def label_texts(values: pd.Series) -> pd.Series:
    """Labels as text, None where missing, NaN or empty. Whole numbers lose their ".0", which a gap in a column gives them."""
    missing = values.isna()
    if pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
        texts = values.map(lambda value: value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value))
        texts = texts.str.strip()
        missing |= texts.eq("")
        if texts[~missing].str.fullmatch(r"-?\d+\.0+").all():
            texts = texts.str.replace(r"\.0+$", "", regex=True)
    elif (values[~missing] % 1 == 0).all():
        texts = values.map(lambda value: "" if pd.isna(value) else str(int(value)))
    else:
        texts = values.map(str)
    return texts.astype(object).where(~missing, None)


def class_names(values: pd.Series, column: str, metadata: Mapping[bytes, bytes] | None) -> pd.Series:
    """Numbers, texts of them, or lists of either, as the names that Hugging Face's `datasets` keeps in a Parquet file's metadata; its -1 means no label.

    Raises InputError for a label that is not among them.
    """
    try:
        feature = json.loads((metadata or {})[b"huggingface"])["info"]["features"][column]
        names = feature.get("feature", feature)["names"]  # of lists, the names stand with their items
    except (AttributeError, KeyError, TypeError, ValueError):
        return values
    known = {-1: None, "-1": None}
    for number, name in enumerate(map(str, names)):
        known |= {number: name, str(number): name}

    strange = []

    def named(value: object) -> object:
        if isinstance(value, list | np.ndarray):
            return [named(one) for one in value]
        if value not in known and value not in names and not (pd.isna(value) or value == ""):
            strange.append(value)
        return known.get(value, value)

    found = values.astype(object).map(named)
    if strange:
        raise InputError(
            f"the column {column!r} holds {', '.join(map(repr, natural_order(map(str, strange))[:5]))}, which the file's own map of classes lacks; "
            f"expected 0 to {len(names) - 1} ({', '.join(map(str, names[:10]))}{', ...' * (len(names) > 10)}) or -1 for none. "
            "Mend those rows, or write the column as texts without that map"
        )
    return found.astype(object).where(found.notna(), None)


def natural_order(names: Iterable[str]) -> list[str]:
    """The distinct names in the order people expect: 2 before 10, item2 before item10."""

    def key(name: str) -> tuple:
        parts = re.split(r"(\d+)", name)  # text and numbers take turns, so that like is compared with like
        return tuple(int(part) if index % 2 else part.casefold() for index, part in enumerate(parts)), name

    names = set(names)
    if all(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in names):
        return sorted(names, key=lambda name: (float(name), name))
    return sorted(names, key=key)


def split_from_path(path: str) -> str | None:
    """The split that a file's name or folders tell of ("data/train-00000-of-00004.parquet"), else None; the last word counts."""
    found = None
    for word in re.split(r"[^a-z]+", path.lower()):
        found = SPLITS.get(word) or ("unlabelled" if word.startswith(("unsup", "unlabel")) else found)
    return found


def split_column(values: pd.Series, name: str) -> pd.Series:
    """A column of split names in the project's words; InputError where one is not known."""
    texts = label_texts(values)
    known = texts.map(lambda text: None if text is None else SPLITS.get(text.lower(), ""))
    if known.eq("").any():
        strange = ", ".join(repr(text) for text in natural_order(texts[known.eq("")])[:5])
        raise InputError(f"the split column {name!r} holds {strange}; expected one of {', '.join(SPLITS)}, or nothing")
    return known.astype(object).where(known.notna(), None)
