"""What there is: recipes, and the tables that a recipe chooses from."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from ml.choice import unknown
from ml.contracts import InputError


def recipes() -> Iterator[tuple[str, str]]:
    """Each recipe's path and the first line of its header, from ./conf or, elsewhere, from the project's own folder."""
    own = Path(__file__).resolve().parents[1] / "conf"
    folder = Path("conf") if Path("conf").is_dir() else own
    for path in sorted(folder.rglob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        yield str(path), first.lstrip("# ").strip()


def show(kind: str, name: str = "") -> str:
    """The entries of a table, or one entry's options with their defaults, as text."""
    tables = _tables()
    if kind not in tables:
        raise InputError(unknown("table", kind, tables))
    table = tables[kind]
    if not name:
        width = max(map(len, table))
        return "\n".join(f"{entry:<{width}}  {_first_line(one)}" for entry, one in table.items())
    if name not in table:
        raise InputError(unknown(kind.removesuffix("s"), name, table))
    one = table[name]
    lines = [f"{name}: {_first_line(one)}", ""]
    for option, field in one.Options.model_fields.items():
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        lines.append(f"  {option} ({default})\n      {field.description or ''}")
    return "\n".join(lines if one.Options.model_fields else [*lines, "  (no options)"])


def _first_line(one: type) -> str:
    return (inspect.getdoc(one) or "").split("\n")[0]


def _tables() -> dict[str, dict[str, type]]:
    from ml.backbones import BACKBONES
    from ml.heads import HEADS
    from ml.methods import METHODS
    from ml.modalities import MODALITIES
    from ml.objectives import OBJECTIVES
    from ml.sources import SOURCES

    return {"sources": SOURCES, "modalities": MODALITIES, "backbones": BACKBONES, "objectives": OBJECTIVES, "heads": HEADS, "methods": METHODS}  # fmt: skip
