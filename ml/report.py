"""The report of one run: a single HTML file with everything inside, which asks nothing of any network.

Names of classes, files and runs are hostile input: the template escapes everything, and links may only be http(s).

`render(context)` takes a mapping of
  title, subtitle   str: the recipe's name; what was done, in a line
  evaluation        `Evaluation.to_dict()`
  verdict           {"passed": bool, "reasons": [str]}, or None before the gate
  model             {"name", "version", "uri", "aliases"}, or None
  leakage           {"seen": test rows seen in pretraining, "of": test rows}
  data              {fact: value}: the data card, in order
  quarantine        {reason: count}
  stages            [{"name", "seconds", "cached", "why", "run_id", "link" (optional)}]
  pictures          [{"title": str, "png": bytes, "note": str (optional), "section": "data" | "training" | "evaluation"}]
  notes             [str], such as that of the simple alternative
  recipe            str: YAML
  created           str: when
Everything but title and evaluation may be missing.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from ml.metrics import LOWER_IS_BETTER
from ml.pictures import ARMS

COLUMNS: Mapping[str, str] = {"key": "item", "label": "is", "probability": "probability"}
"""How columns of mistakes are headed, where not by their own names."""
DEFAULTS: Mapping[str, Any] = {
    "subtitle": "",
    "verdict": None,
    "model": None,
    "leakage": None,
    "data": {},
    "quarantine": {},
    "stages": [],
    "pictures": [],
    "notes": [],
    "recipe": "",
    "created": "",
}


def render(context: Mapping[str, Any]) -> str:
    """The report as HTML; see the module for `context`."""
    template = environment().get_template("report.html.j2")
    labels = {name: label for name, (label, _) in ARMS.items()}
    return template.render(DEFAULTS | dict(context), labels=labels, lower=LOWER_IS_BETTER, shown_as=COLUMNS)


def environment() -> jinja2.Environment:
    """What pages are made with: everything is escaped, what a template names must be there."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent, encoding="utf-8"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {"number": number, "duration": duration, "picture": picture, "words": words}
    made.tests["link"] = lambda value: str(value).startswith(("http://", "https://"))
    return made


def number(value: float | None, metric: str = "") -> str:
    """A metric's value: percent where it is a share, three decimals else, a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if metric in LOWER_IS_BETTER else f"{value * 100:.1f} %"


def words(metric: str) -> str:
    """A metric's name as people write it."""
    return metric.replace("_", " ").replace("auroc", "AUROC").replace("f1", "F1")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def picture(png: bytes) -> str:
    """A PNG file as a data URL."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
