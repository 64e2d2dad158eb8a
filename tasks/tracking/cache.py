"""A stage's key: the digest of all that decides its result, so that equal keys mean equal work."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ml", "tasks")
RECORDS = "tasks.tracking"  # how work is recorded does not change what comes out


def stage_key(stage: str, options: Mapping[str, Any], inputs: Mapping[str, str], modules: Sequence[str], root: Path = ROOT) -> str:
    """sha256, in hex, of the stage's options, its inputs' digests, and the source of `modules` and of what they import."""
    content = {"stage": stage, "options": options, "inputs": inputs, "source": source_digest(modules, root)}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def source_digest(modules: Sequence[str], root: Path = ROOT) -> str:
    """sha256, in hex, of the source of `modules` and of all of this project's modules that they import."""
    total = hashlib.sha256()
    for name in sorted(closure(modules, root)):
        total.update(f"{name} {hashlib.sha256(_file(name, root).read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def closure(modules: Sequence[str], root: Path = ROOT) -> set[str]:
    """`modules` and all modules of this project that they import, directly or not.

    A package's own file counts only where it is asked for by name: a table imports every entry, and one more entry changes no
    result. So the chosen entry's module must be among `modules`.
    """
    found, waiting = set(), list(modules)
    for name in modules:
        if not _file(name, root).is_file():
            raise ModuleNotFoundError(f"no module {name!r} in {root}")
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _imports(name, root)
    return found


@cache
def _imports(module: str, root: Path) -> tuple[str, ...]:
    """The project's modules, packages' own files aside, that a module imports anywhere in its source."""
    path = _file(module, root)
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = []
    for name in _names(ast.parse(path.read_bytes()), package):
        if name.split(".")[0] in PACKAGES and not f"{name}.".startswith(f"{RECORDS}."):
            plain = root.joinpath(*name.split(".")).with_suffix(".py")
            if plain.is_file():
                found.append(name)
    return tuple(dict.fromkeys(found))


def _names(tree: ast.Module, package: list[str]) -> Iterator[str]:
    """Absolute names of all that is imported; of `from a import b` both a and a.b, since b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _file(module: str, root: Path) -> Path:
    base = root.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_name(f"{base.name}.py")
