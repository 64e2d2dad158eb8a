"""The lineage of a model version as people read it: each step a title and lines. `tasks.tracking.lineage` says what it holds.

Names in it come from users: whoever shows them keeps them from being read as markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ml.metrics import LOWER_IS_BETTER

TITLES = {"preprocess": "data", "pretrain": "pretraining", "split": "split", "finetune": "fine-tuning", "evaluate": "evaluation", "register": "gate"}


def title(step: Mapping[str, Any]) -> str:
    """What the step is called."""
    return TITLES.get(step["name"], step["name"])


def lines(step: Mapping[str, Any]) -> Iterator[str]:
    """What the step did, in short lines; what is missing and what was reused last."""
    yield from TOLD.get(step["name"], lambda facts: iter(()))(step["facts"])
    if step["run_id"]:
        yield f"run {step['run_id'][:8]}" + _reused(step["reused"])
    if step["missing"]:
        yield f"missing: {step['missing']}"


def moves(lineage: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Each move of the alias champion to or from the version: what happened, and when, by whom, on which evidence."""
    for entry in lineage["history"]:
        evidence = entry.get("evidence") or {}
        place = f"version {entry['from']}" if entry["from"] else "none"
        if entry["action"] == "noticed":
            yield f"found moved by hand from {place} to {'version ' if entry['to'] else ''}{entry['to'] or 'none'}", [f"noticed {at(entry['time'])}"]
            continue
        what = "promoted" if entry["action"] == "promote" else "rolled back to"
        who = f"{what}{f' in place of {place}' if entry['from'] else ': the first champion'}" if entry["to"] == lineage["version"] else f"replaced by version {entry['to']} ({entry['action']})"
        told = [f"{at(entry['time'])} by {entry.get('user') or 'unknown'}" + ("" if entry.get("done") else ", broken off before it was done")]
        told += [f"evidence: {evidence['reason']}"] if evidence.get("reason") else []
        told += [f"evidence: run {str(evidence['run'])[:8]}"] if evidence.get("run") else []
        told += [f"  {reason}" for reason in evidence.get("verdict") or []]
        yield who, told


def head(lineage: Mapping[str, Any]) -> Iterator[str]:
    """Lines about the version itself."""
    if lineage["created"]:
        yield f"registered {at(lineage['created'])}"
    if lineage["run_id"]:
        code = lineage["code"]
        commit = f", commit {code['commit'][:8]}{' with changes' if code['dirty'] else ''}" if code["commit"] else ""
        yield f"pipeline run {lineage['run_id'][:8]} of {lineage['experiment']}, {at(lineage['started'])} by {lineage['user']}"
        yield f"code {code['version']}{commit}"
    if lineage["missing"]:
        yield f"missing: {lineage['missing']}"
    yield from lineage["notes"]


def at(moment: str) -> str:
    """An ISO time to the minute."""
    return f"{moment[:10]} {moment[11:16]} UTC"


def _reused(doer: Mapping[str, Any] | None) -> str:
    if doer is None:
        return ""
    return f", reused: done by pipeline run {doer['run_id'][:8]} of {doer['experiment']}, {at(doer['started'])}" if doer["run_id"] else ", reused of a pipeline run that was deleted"


def _data(facts: Mapping[str, Any]) -> Iterator[str]:
    if "source" in facts:
        yield " ".join(str(part) for part in (facts["source"], facts.get("path"), f"({facts.get('modality', 'unknown')})") if part)
    if "fingerprint" in facts:
        yield f"source fingerprint {facts['fingerprint'][:16]}"
    if "store" in facts:
        yield f"store {facts['store'][:16]}"
    if "rows" in facts:
        parts = ", ".join(f"{name} {rows:,}" for name, rows in facts.get("parts", {}).items())
        yield f"{facts['rows']:,} rows ({parts})" + (f", {facts['classes']:,} classes" if facts.get("classes") else "")
        yield f"{facts.get('quarantined', 0):,} in quarantine"


def _pretraining(facts: Mapping[str, Any]) -> Iterator[str]:
    if facts:
        yield f"{facts.get('backbone', 'backbone')} from {facts.get('weights', 'unknown')} weights"
        yield f"objective {facts.get('objective', 'unknown')}"
        yield from _training(facts)


def _split(facts: Mapping[str, Any]) -> Iterator[str]:
    if facts:
        yield ", ".join(f"{name} {rows:,}" for name, rows in facts["rows"].items()) + " rows"


def _finetuning(facts: Mapping[str, Any]) -> Iterator[str]:
    if facts:
        yield f"head {facts.get('head', 'unknown')}, method {facts.get('method', 'unknown')}"
        yield from _training(facts)
        if "validation" in facts:
            yield f"best validation score {facts['validation']:.4g}"


def _evaluation(facts: Mapping[str, Any]) -> Iterator[str]:
    score = facts.get("score")
    if score:
        yield f"{facts['metric'].replace('_', ' ')} {estimate(score, facts['metric'])} on {score['n']:,} test rows"
    if "seen in pretraining" in facts:
        yield f"test rows seen in pretraining: {facts['seen in pretraining']:,}"
    yield from facts.get("conclusions", ())


def _gate(facts: Mapping[str, Any]) -> Iterator[str]:
    if "passed" in facts:
        yield f"{'passed' if facts['passed'] else 'not passed'} (against {facts.get('against', 'unknown')})"
    yield from facts.get("reasons", ())


TOLD = {"preprocess": _data, "pretrain": _pretraining, "split": _split, "finetune": _finetuning, "evaluate": _evaluation, "register": _gate}


def _training(facts: Mapping[str, Any]) -> Iterator[str]:
    if facts.get("samples"):
        took = f" in {facts['seconds']:,.0f} s" if facts.get("seconds") is not None else ""
        yield f"{facts['rows']:,} rows, {facts['epochs']:,} epochs: {facts['samples']:,} samples{took}, seed {facts.get('seed', 'unknown')}"


def estimate(one: Mapping[str, Any], metric: str) -> str:
    """A value with its interval: in percent where it is a share."""
    share = metric not in LOWER_IS_BETTER
    value, low, high = (None if one.get(part) is None else f"{100 * one[part]:.1f}" if share else f"{one[part]:.3f}" for part in ("value", "low", "high"))
    if value is None:
        return "undefined"
    return f"{value}{' %' if share else ''}" + (f" [{low}, {high}]" if low is not None and high is not None else "")
