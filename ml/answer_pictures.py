"""What questions with contexts show of themselves, and where a model answers them well.

N rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ml import text_pictures
from ml.answer_metrics import QUESTION_WORDS
from ml.overview import COLOURS
from ml.pictures import BLUE, GRAY
from ml.store import Store

LEAST = 5
"""Fewer questions than this of a kind go with the others."""
BINS = 5
SAMPLE = 16


def overview(store: Store) -> dict[str, Figure]:
    """Figures by name: the lengths, how many can be answered, and a sample."""
    return {"lengths": lengths(store), "answerable": answerable(store), "sample": sample(store)}


def lengths(store: Store) -> Figure:
    """How many tokens question and context have together; a line marks how many are read at once."""
    tokens, limit = store.array.lengths, store.spec.shape[0]
    share, known = (tokens > limit).mean(), store.spec.options["vocabulary"]
    title = f"median {np.median(tokens):,.0f} tokens; {share:.0%} are read in windows; {known:,} tokens known"
    return text_pictures.histogram(store, "tokens of question and context", "questions", f"{limit} are read at once", title)


def answerable(store: Store) -> Figure:
    """How many questions of each part have an answer in their context."""
    parts = [part for part in COLOURS if (store.table["part"] == part).any()]
    has = store.table["answerable"].to_numpy().astype(bool)
    figure = Figure(figsize=(7, 1.2 + 0.5 * len(parts)), layout="constrained")
    axes = figure.subplots()
    rows = [has[(store.table["part"] == part).to_numpy()] for part in parts]
    yes, no = np.array([one.sum() for one in rows]), np.array([(~one).sum() for one in rows])
    axes.barh(parts, yes, color=BLUE, label="an answer")
    axes.barh(parts, no, left=yes, color=GRAY, label="none")
    axes.invert_yaxis()
    axes.set_xlabel("questions")
    axes.set_title(f"{1 - has.mean():.0%} of {len(has):,} questions have no answer in their context", fontsize=10)
    axes.legend()
    return figure


def sample(store: Store) -> Figure:
    """Training questions over the whole part, each with its answer in brackets and its context."""
    rows = np.flatnonzero(store.table["part"].isin(["train", "unlabelled"]).to_numpy())
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int))]
    entries = []
    for row in rows.tolist():
        truths = json.loads(bytes(store.arrays["answers"][row]))
        entries.append((_text(store, "question", row), f"[{truths[0] if truths else 'no answer'}] {_text(store, 'text', row)}"))
    return text_pictures.listed(entries)


def pictures(rows: Mapping[str, Sequence[Any]]) -> dict[str, Figure]:
    """F1 by length of the context (in tokens) and by the question's word, over all rows and over the answerable ones; of each row f1,
    answerable, lengths and words."""
    lengths_N, words_N = np.asarray(rows["lengths"], dtype=int), np.asarray(rows["words"], dtype=object)
    edges = np.unique(np.quantile(lengths_N, np.linspace(0, 1, BINS + 1)).astype(int)) if len(lengths_N) else np.zeros(0, int)
    bins_N = np.clip(np.searchsorted(edges, lengths_N, side="right") - 1, 0, max(0, len(edges) - 2))
    lengths = {f"{low:,} to {high:,}": bins_N == place for place, (low, high) in enumerate(pairwise(edges))}
    kinds = {word: words_N == word for word in QUESTION_WORDS if (words_N == word).sum() >= LEAST}
    kinds["other"] = ~np.isin(words_N, list(kinds))
    return {
        "f1_by_length": _bars(rows, lengths or {"all": np.ones(len(lengths_N), bool)}, "tokens of the context"),
        "f1_by_question": _bars(rows, {name: inside_N for name, inside_N in kinds.items() if inside_N.any() or len(kinds) == 1}, "the question's word"),
    }


def _bars(rows: Mapping[str, Sequence[Any]], kinds: Mapping[str, np.ndarray], label: str) -> Figure:
    figure = Figure(figsize=(7, 1.4 + 0.5 * len(kinds)), layout="constrained")
    axes = figure.subplots()
    f1_N, can_N = np.asarray(rows["f1"], dtype=float), np.asarray(rows["answerable"], dtype=bool)
    for offset, name, colour, counted_N in ((-0.19, "all", GRAY, np.ones(len(can_N), bool)), (0.19, "with an answer", BLUE, can_N)):
        values = [f1_N[inside_N & counted_N].mean() if (inside_N & counted_N).any() else 0.0 for inside_N in kinds.values()]
        axes.barh(np.arange(len(kinds)) + offset, values, 0.36, color=colour, label=name)
    axes.set_yticks(range(len(kinds)), [f"{name} ({int(inside_N.sum()):,})" for name, inside_N in kinds.items()])
    axes.set(ylim=(len(kinds) - 0.4, -0.6), xlim=(0, 1.02), xlabel="F1", ylabel=label)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return figure


def _text(store: Store, name: str, row: int) -> str:
    return bytes(store.arrays[name][row]).decode()
