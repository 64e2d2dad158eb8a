"""What words with tags show of themselves: their lengths, how often each tag occurs, a sample; and how well a model tells each type."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ml import text_pictures
from ml.pictures import BLUE, confusion, plain_text
from ml.store import Store
from ml.tag_metrics import OUTSIDE, Scheme

SAMPLE = 16
LISTED = 40
"""Types that are shown at most, the commonest."""


def overview(store: Store) -> dict[str, Figure]:
    """Figures by name: the lengths, the tags and a sample."""
    return {"lengths": lengths(store), "tags": tags(store), "sample": sample(store)}


def lengths(store: Store) -> Figure:
    """How many tokens the rows have; a line marks how many are read at once."""
    tokens, limit = store.array.lengths, store.spec.shape[0]
    words, share = store.arrays["spans"].lengths.sum() / 2, (tokens > limit).mean()
    title = f"{words:,.0f} words of {tokens.sum() / words:.2f} tokens; {share:.0%} of the rows are read in windows"
    return text_pictures.histogram(store, "tokens", "rows", f"{limit} are read at once", title)


def tags(store: Store) -> Figure:
    """Training words of each type but O."""
    known, scheme = store.spec.statistics, Scheme.of(store.spec.statistics["tags"])
    counts: Counter[str] = Counter()
    for tag, count in zip(known["tags"], known["tag_counts"], strict=True):
        counts[scheme.type_of(tag)] += count
    outside, words = counts.pop(OUTSIDE, 0), sum(known["tag_counts"])
    shown = counts.most_common(LISTED)
    figure = Figure(figsize=(7, 1.4 + 0.26 * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.barh([plain_text(kind, 24) for kind, _ in shown], [count for _, count in shown], color=BLUE)
    axes.invert_yaxis()
    axes.set_xlabel("training words")
    axes.set_title(f"{len(known['tags'])} tags, {len(counts)} types; {outside / words:.0%} of {words:,} training words bear none", fontsize=10)
    return figure


def sample(store: Store) -> Figure:
    """Training rows over the whole part, each with its spans, or where there are none its tags, as the heading."""
    scheme = Scheme.of(store.spec.statistics["tags"])
    rows = np.flatnonzero((store.table["part"] == "train").to_numpy())
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int))]
    entries = []
    for row in rows.tolist():
        text, own = bytes(store.arrays["text"][row]).decode(), json.loads(bytes(store.arrays["tags"][row]))
        places = np.asarray(store.arrays["spans"][row]).reshape(-1, 2)
        spans = [f"{kind}: {text[places[first][0] : places[last - 1][1]]}" for kind, first, last in scheme.spans(own)] if scheme.has_spans else own
        entries.append((", ".join(spans) if scheme.has_spans else " ".join(spans), text))
    return text_pictures.listed(entries)


def pictures(facts: Mapping[str, Any]) -> dict[str, Figure]:
    """F1 of each type, and which types' words are taken for which; `facts` as `tag_details.details` has them, as plain data."""
    found = {"f1_by_type": f1_by_type(facts["per_class"], facts["counted"])} if facts["per_class"] else {}
    return found | {"confusion": confusion(np.array(facts["confusion"]), facts["types"])}


def f1_by_type(rows: Sequence[Mapping[str, Any]], counted: str) -> Figure:
    """F1 of each type with its interval, the commonest first."""
    shown = sorted(rows, key=lambda row: -row["support"])[:LISTED]
    figure = Figure(figsize=(7, 1.2 + 0.3 * len(shown)), layout="constrained")
    axes = figure.subplots()
    value, low, high = (np.array([row["f1"][name] or 0.0 for row in shown]) for name in ("value", "low", "high"))
    axes.barh(range(len(shown)), value, color=BLUE)
    axes.errorbar(value, range(len(shown)), xerr=np.maximum([value - low, high - value], 0), fmt="none", ecolor="#222222", elinewidth=1, capsize=2)
    axes.set_yticks(range(len(shown)), [f"{plain_text(row['class'] or 'span', 24)} ({row['support']:,})" for row in shown])
    axes.set(ylim=(len(shown) - 0.4, -0.6), xlim=(0, 1.02), xlabel=f"F1, with interval; in brackets {counted}")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    return figure
