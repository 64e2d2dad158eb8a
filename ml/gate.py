"""The gate: may this version become the champion? A verdict with its reasons in words, from predictions on the same rows.

A first model must surely beat the trivial way to answer. A challenger's lower bound of (challenger − champion) on the
primary metric must reach the margin: equality passes, so that with a margin of 0 a model that predicts exactly as the
champion does may take its place. Whatever is not finite fails.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ml.evaluation import SURE, plain, points
from ml.evidence import Estimate, bootstrap, interval
from ml.metrics import LOWER_IS_BETTER, UNITS, Metric, expected_calibration_error
from ml.recipe import Gate


@dataclass(frozen=True)
class Candidate:
    """A version's scores (N, S) on the frozen test rows, as its head's metrics read them, and its time for a row in seconds."""

    scores_NS: np.ndarray
    seconds_per_row: float


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger passed, a reason for each check, and the numbers behind them."""

    passed: bool
    reasons: list[str]
    evidence: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return plain({"passed": self.passed, "reasons": self.reasons, "evidence": self.evidence})


@dataclass(frozen=True)
class Check:
    """One condition: its name, whether it holds, why in words, and its numbers."""

    name: str
    passed: bool
    reason: str
    numbers: Mapping[str, Any]


def verdict(
    targets_N: np.ndarray,
    challenger: Candidate,
    champion: Candidate | None,
    trivial_NS: np.ndarray,
    gate: Gate,
    metrics: Mapping[str, Metric],
    primary: str,
    *,
    trivial: str,
    slices_N: np.ndarray | None = None,
    groups_N: np.ndarray | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Verdict:
    """Judges `challenger` against `champion`, or against `trivial_NS`, of what `trivial` says, where there is none yet.

    A row in no slice has "" or None.
    """
    targets_N = np.asarray(targets_N)
    checks = [_finite([challenger] if champion is None else [challenger, champion])]
    if checks[0].passed:
        rival = (trivial, trivial_NS) if champion is None else ("the champion", champion.scores_NS)
        options = {"resamples": resamples, "confidence": confidence, "seed": seed}
        checks.append(_better(targets_N, challenger.scores_NS, *rival, gate, metrics[primary], primary, champion is None, groups_N, options))
        if expected_calibration_error in metrics.values():
            checks.append(_calibrated(targets_N, challenger.scores_NS, gate, groups_N, options))
        if champion is not None:
            if slices_N is not None:
                checks.append(_slices(targets_N, challenger, champion, gate, metrics[primary], primary, slices_N, groups_N, options))
            checks.append(_fast(challenger, champion, gate))
    evidence = {"primary": primary, "n": len(targets_N), "confidence": confidence, "gate": gate.model_dump()}
    evidence["checks"] = [{"name": check.name, "passed": check.passed, **check.numbers} for check in checks]
    return Verdict(all(check.passed for check in checks), [check.reason for check in checks], evidence)


def _finite(candidates: Sequence[Candidate]) -> Check:
    bad = sum(int((~np.isfinite(one.scores_NS)).any(1).sum()) for one in candidates)
    timed = all(math.isfinite(one.seconds_per_row) for one in candidates)
    passed = bad == 0 and timed
    reason = "all predictions are finite" if passed else f"{bad} predictions are not finite" if bad else "the time of a row is not known"
    return Check("finite", passed, reason, {"not_finite": bad})


def _better(
    targets_N: np.ndarray,
    own_NS: np.ndarray,
    rival: str,
    rival_NS: np.ndarray,
    gate: Gate,
    metric: Metric,
    primary: str,
    first: bool,
    groups_N: np.ndarray | None,
    options: Mapping[str, Any],
) -> Check:
    gain = _gain(targets_N, own_NS, rival_NS, metric, primary, groups_N, options)
    wanted = "above 0" if first else f"at least {gate.margin:g} {UNITS[primary]}" if primary in UNITS else f"at least {gate.margin * 100:g} points"
    passed = gain.finite and (gain.low > 0 if first else gain.low >= gate.margin)
    name = primary.replace("_", " ")
    reason = f"{name} against {rival}: {points(gain, primary)}; the lower bound must be {wanted}, and {'is' if passed else 'is not'}"
    return Check("better", passed, reason, {"against": rival, "gain": gain})


def _calibrated(targets_N: np.ndarray, own_NS: np.ndarray, gate: Gate, groups_N: np.ndarray | None, options: Mapping[str, Any]) -> Check:
    """Breaks where the error is surely above the limit: on few rows even a perfectly calibrated model measures above 0."""
    error = interval(expected_calibration_error, targets_N, own_NS, groups_N=groups_N, **options)
    passed = error.finite and error.low <= gate.calibration
    where = "within" if error.value <= gate.calibration else "not surely above" if passed else "surely above"
    reason = f"expected calibration error {error.value:.3f} [{error.low:.3f}, {error.high:.3f}], {where} the limit of {gate.calibration:g}"
    return Check("calibration", passed, reason, {"expected_calibration_error": error})


def _slices(
    targets_N: np.ndarray,
    challenger: Candidate,
    champion: Candidate,
    gate: Gate,
    metric: Metric,
    primary: str,
    slices_N: np.ndarray,
    groups_N: np.ndarray | None,
    options: Mapping[str, Any],
) -> Check:
    """A slice breaks where even the upper bound of its gain is a loss of more than the recipe allows."""
    slices_N = np.asarray(slices_N, dtype=object)
    gains = {}
    for name in sorted({name for name in slices_N if isinstance(name, str) and name}):
        inside_N = slices_N == name
        if inside_N.sum() >= SURE:
            groups_n = None if groups_N is None else groups_N[inside_N]
            pair = challenger.scores_NS[inside_N], champion.scores_NS[inside_N]
            gains[name] = _gain(targets_N[inside_N], *pair, metric, primary, groups_n, options)
    broken = {name: gain for name, gain in gains.items() if not (gain.high >= -gate.slice_drop)}
    if broken:
        named = "; ".join(f"{name!r}: {points(gain, primary)}" for name, gain in list(broken.items())[:5])
        reason = f"{len(broken)} of {len(gains)} slices surely lose more than {gate.slice_drop * 100:g} points: {named}"
    else:
        reason = f"none of {len(gains)} slices of {SURE} rows or more surely loses more than {gate.slice_drop * 100:g} points"
    return Check("slices", not broken, reason, {"gains": gains, "broken": sorted(broken)})


def _fast(challenger: Candidate, champion: Candidate, gate: Gate) -> Check:
    own, rival = challenger.seconds_per_row, champion.seconds_per_row
    passed = math.isfinite(own) and math.isfinite(rival) and own <= gate.latency_ratio * rival
    reason = f"{own * 1000:.3g} ms a row against the champion's {rival * 1000:.3g} ms, {'within' if passed else 'above'} {gate.latency_ratio:g} times"
    return Check("latency", passed, reason, {"seconds_per_row": own, "champion_seconds_per_row": rival})


def _gain(
    targets_N: np.ndarray,
    own_NS: np.ndarray,
    rival_NS: np.ndarray,
    metric: Metric,
    primary: str,
    groups_N: np.ndarray | None,
    options: Mapping[str, Any],
) -> Estimate:
    """own − rival, turned round where less is better, so that a gain is positive."""
    difference = bootstrap({primary: metric}, targets_N, {"own": own_NS, "rival": rival_NS}, groups_N=groups_N, **options).difference("own", "rival", primary)
    if primary not in LOWER_IS_BETTER:
        return difference
    return replace(difference, value=-difference.value, low=-difference.high, high=-difference.low)
