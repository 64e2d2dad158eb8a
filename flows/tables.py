"""What those who look back see on the terminal: runs, models, a lineage as a tree, a comparison. All names in it are plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from flows.console import estimate, named
from ml import lineage as told
from ml.comparison_words import points, shown

BAD = ("failed", "dead", "deleted")


def show_runs(found: Mapping[str, Any]) -> None:
    """A line for each pipeline run."""
    if not found["runs"]:
        _say("no runs yet")
        return
    header, scores = _scores([one["score"] for one in found["runs"]])
    table = _table("run", "experiment", "started (UTC)", "status", header, "gate", "model", folding=("experiment", "model", "score"))
    for one, score in zip(found["runs"], scores, strict=True):
        ended = _took(one["seconds"]) if one["status"] == "finished" else one["status"]
        model = f"{one['model']['name']}/{one['model']['version']}" if one["model"] else ""
        cells = (one["id"], one["experiment"], _minute(one["started"]), ended, score, _passed(one["passed"]), model)
        table.add_row(*map(plain, cells), style="red" if one["status"] in BAD else None)
    Console().print(table)
    if any(one["status"] == "dead" for one in found["runs"]):
        _say("dead: its process is gone; the next run of its experiment marks it as failed, and goes on with what it had begun")


def show_models(found: Mapping[str, Any]) -> None:
    """The versions of each model; of a single one that was asked for the audit of its champion too."""
    if not found["models"]:
        _say("no registered models yet")
        return
    rows = [(model["name"], one) for model in found["models"] for one in model["versions"]]
    header, scores = _scores([one["score"] for _, one in rows])
    table = _table("model", "aliases", header, "gate", "registered (UTC)", folding=("model", "aliases", "score"))
    for (name, one), score in zip(rows, scores, strict=True):
        cells = (f"{name}/{one['version']}", ", ".join(one["aliases"]), score, _passed(one["passed"]), _minute(one["created"]))
        table.add_row(*map(plain, cells))
    Console().print(table)
    for model in found["models"]:
        if model["count"] > len(model["versions"]):
            _say(f"{model['name']}: {model['count'] - len(model['versions'])} more; `warmstart models {model['name']}` lists all")
        for note in model["notes"]:
            _say(f"{model['name']}: {note}", "yellow")
        for entry in model.get("audit", ()):
            _say(_entry(entry))


def show_lineage(found: Mapping[str, Any]) -> None:
    """The tree of a version: its steps in order, backbones that it started from below the pretraining, moves of the champion."""
    Console().print(_tree(found))


def show_comparison(found: Mapping[str, Any], labels: Sequence[str]) -> None:
    """Parameters that differ, scores with intervals, and paired differences to the first run."""
    out, runs = Console(), found["runs"]
    table = _table("run", *labels)
    rows: dict[str, list[str]] = {
        "experiment": [run["experiment"] for run in runs],
        "started": [_minute(run["started"]) for run in runs],
        "status": [run["status"] for run in runs],
        "took": [_took(run["seconds"]) for run in runs],
        "model": [f"{run['model']['name']}/{run['model']['version']}" if run["model"] else "" for run in runs],
        "gate": [_passed(run["passed"]) for run in runs],
        "data": [(run["data"]["store"] or "")[:12] for run in runs],
    }
    for one in found["parameters"]:
        rows[one["path"]] = [shown(value) for value in one["values"]]
    metrics = list(dict.fromkeys(name for run in runs for name in run["metrics"]))
    for name, cells in rows.items():
        table.add_row(plain(name), *map(plain, cells))
    table.add_section()
    for metric in metrics:
        table.add_row(plain(named(metric)), *(plain(estimate(metric, run["metrics"].get(metric))) for run in runs))
    out.print(table)
    if not found["parameters"]:
        _say("the recipes are equal")
    if metrics:
        _say("scores in percent; lower is better where ↓ stands", "dim")
    for label, one in zip(labels[1:], found["differences"], strict=True):
        if one["why_not"]:
            _say(f"{label} against {labels[0]}: no difference is given: {one['why_not']}", "yellow")
            continue
        _say(f"{label} against {labels[0]}, on the same test rows:", "bold")
        for metric, difference in one["metrics"].items():
            _say(f"  {named(metric):<20} {points(difference, metric)}")
    for label, run in zip(labels, runs, strict=True):
        for stage, why in run["missing"].items():
            _say(f"{label}, {stage}: {why}", "yellow")


def plain(text: object) -> Text:
    """Names as they are shown: one line, no markup, nothing that moves the cursor."""
    return Text("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text)), overflow="fold")


def _tree(found: Mapping[str, Any], title: str = "") -> Tree:
    aliases = f" ({', '.join(found['aliases'])})" if found["aliases"] else ""
    tree = Tree(plain(f"{title}{found['uri']}{aliases}"))
    for line in told.head(found):
        tree.add(_line(line))
    for step in found["steps"]:
        branch = tree.add(Text.assemble((told.title(step), "bold red" if step["missing"] else "bold")))
        for line in told.lines(step):
            branch.add(_line(line))
        if step["weights"]:
            branch.add(_tree(step["weights"], "started from "))
    for words, lines in told.moves(found):
        branch = tree.add(plain(words))
        branch.label.stylize("bold")
        for line in lines:
            branch.add(_line(line))
    return tree


def _line(line: str) -> Text:
    text = plain(line)
    if line.startswith("missing:") or "moved by hand" in line:
        text.stylize("yellow")
    return text


def _entry(entry: Mapping[str, Any]) -> str:
    """One line of the audit."""
    places = f"{entry['from'] or 'none'} → {entry['to'] or 'none'}"
    if entry["action"] == "noticed":
        return f"{told.at(entry['time'])}  {places}  noticed that it was moved by hand"
    evidence = entry.get("evidence") or {}
    why = evidence.get("reason") or (f"run {str(evidence['run'])[:8]}" if evidence.get("run") else "")
    broken = "" if entry.get("done") else ", broken off before it was done"
    return f"{told.at(entry['time'])}  {places}  {entry['action']} by {entry.get('user') or 'unknown'}{f': {why}' if why else ''}{broken}"


def _table(*columns: str, folding: Sequence[str] = ()) -> Table:
    """A table of which columns `folding` become narrow where the terminal is."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    for name in columns:
        table.add_column(plain(name), overflow="fold", no_wrap=bool(folding) and name not in folding)
    return table


def _say(line: str, style: str = "") -> None:
    text = plain(line)
    text.stylize(style)
    Console().print(text, soft_wrap=True)


def _scores(scores: Sequence[Mapping[str, Any] | None]) -> tuple[str, list[str]]:
    """The head of their column, the metric where all have the same, and each with its interval."""
    metrics = {score["metric"] for score in scores if score}
    texts = [estimate(score["metric"], score) if score else "" for score in scores]
    if len(metrics) == 1:
        return named(metrics.pop()), texts
    return "score", [f"{named(score['metric'])} {text}" if score else "" for score, text in zip(scores, texts, strict=True)]


def _minute(moment: str) -> str:
    return moment[:16].replace("T", " ")


def _took(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _passed(passed: bool | None) -> str:
    return "" if passed is None else "passed" if passed else "no"
