"""A recipe's file and its overrides as plain data. Imports nothing heavy, so that a recipe that is not there is told at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ml.contracts import InputError


def read(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The content of the YAML recipe at `path` with `a.b.c=value` overrides applied, not yet checked; raises InputError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}. `warmstart recipes` lists those that there are.") from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"the recipe {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"the recipe {path} must be a mapping of sections, found {type(content).__name__}")
    for override in overrides:
        _apply(content, override)
    return content


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"an override is KEY=VALUE, found {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if key.endswith(".path"):
        value = text  # a path is text, even where YAML would read a number or a mapping in it
    node = content
    *parents, last = key.split(".")
    for part in parents:
        child = node.get(part)
        if child is None:
            child = node[part] = {}
        elif isinstance(child, str):
            child = node[part] = {"name": child}
        if not isinstance(child, dict):
            raise InputError(f"cannot set {key!r}: {part!r} is a value, not a section")
        node = child
    # Options belong to the class they were written for: another name starts without them.
    if last == "name" and node.get("name") != value and "options" in node:
        node.pop("options")
    if isinstance(node.get(last), dict) and isinstance(value, str):
        node[last] = {"name": value}
    else:
        node[last] = value
