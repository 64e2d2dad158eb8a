"""Values and differences of a comparison, as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ml.evaluation import points as words
from ml.evidence import Estimate


def shown(value: Any) -> str:
    """A parameter's value."""
    return "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def points(difference: Mapping[str, Any] | None, metric: str) -> str:
    """A paired difference with its interval, "" where there is none."""
    if difference is None:
        return ""
    value, low, high = (math.nan if difference[part] is None else difference[part] for part in ("value", "low", "high"))
    return words(Estimate(value, low, high, difference["n"]), metric)
