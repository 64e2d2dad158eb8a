"""Docstrings of the Python packages that are installed anyway: real text on any machine."""

from __future__ import annotations

import ast
import importlib.util
import platform
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
from pydantic import Field

from ml import contracts
from ml.contracts import Raw
from ml.files import digest
from ml.python_files import STANDARD, modules, parsed, standard_library

PACKAGES = {
    "numpy": "numpy", "pandas": "pandas", "torch": "torch", "sklearn": "scikit-learn", "scipy": "scipy", "matplotlib": "matplotlib",
    "sqlalchemy": "sqlalchemy", "pydantic": "pydantic",
}  # fmt: skip
"""Packages by the names of what installed them. Each is a class, and the standard library is one more, `python`."""
SHORTEST, LONGEST = 80, 2_000
"""Characters of a docstring or paragraph."""
FILES = 400
"""Files of a package that are read at most."""
ENOUGH = 2
"""A package's files are read until they gave this many times what is chosen, so that no few files make up a class."""


class PythonDocs:
    """Docstrings of installed packages, whose class is the package, and the language reference, unlabelled. No download, nothing is imported.

    The same versions of the packages give the same rows. Docstrings of one file are a group: they stay on one side of a split.
    """

    class Options(contracts.Options):
        per_class: int = Field(400, ge=10, le=5_000, description="Docstrings of a package at most.")

    def __init__(self, options: PythonDocs.Options) -> None:
        self.options = options

    def scan(self) -> pd.DataFrame:
        rows = [
            {"key": key, "label": name, "split": None if name else "unlabelled", "group": key.partition(":")[0] if name else None, "slice": None}
            for key, (name, _) in self._texts.items()
        ]
        frame = pd.DataFrame(rows, dtype=object)
        return frame.where(frame.notna(), None)

    def read(self, keys: Sequence[str]) -> Iterator[Raw]:
        for key in keys:
            _, text = self._texts.get(key, (None, None))
            yield Raw(None, f"there is no docstring {key!r} in the installed versions") if text is None else Raw(text.encode("utf-8", "replace"))

    def fingerprint(self) -> str:
        return digest("python-docs", self.options.model_dump_json(), platform.python_version(), *_versions().items())

    @cached_property
    def _texts(self) -> dict[str, tuple[str | None, str]]:
        """Package (None: unlabelled) and text by key, copies dropped."""
        found: dict[str, tuple[str | None, str]] = {}
        seen: set[str] = set()
        for name, root in _roots().items():
            texts: dict[str, str] = {}
            for path in modules(name, root)[:FILES]:
                for key, text in _docstrings(f"{name}/{path}", root / path):
                    if SHORTEST <= len(text) <= LONGEST and text not in seen and key not in texts:
                        seen.add(text)
                        texts[key] = text
                if len(texts) >= ENOUGH * self.options.per_class:
                    break
            found |= {key: (name, texts[key]) for key in sorted(sorted(texts, key=digest)[: self.options.per_class])}
        for key, text in _reference():
            if SHORTEST <= len(text) <= LONGEST and text not in seen:
                seen.add(text)
                found[key] = (None, text)
        return found


def _versions() -> dict[str, str]:
    """The installed packages and their versions."""
    found = {}
    for name, distribution in PACKAGES.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            continue
    return found


def _roots() -> dict[str, Path]:
    """The folder of each class."""
    specs = {name: importlib.util.find_spec(name) for name in _versions()}
    roots = {name: Path(spec.submodule_search_locations[0]) for name, spec in specs.items() if spec and spec.submodule_search_locations}
    return roots | {STANDARD: standard_library()}


def _docstrings(module: str, path: Path) -> Iterator[tuple[str, str]]:
    """Keys and docstrings of the module, its classes and functions; none where it cannot be parsed."""
    try:
        tree = parsed(path)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        name, node = waiting.pop()
        text = ast.get_docstring(node)
        if text:
            yield f"{module}:{name or '__doc__'}", text
        inner = [one for one in node.body if isinstance(one, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]
        waiting += [(f"{name}.{one.name}".lstrip("."), one) for one in reversed(inner)]


def _reference() -> Iterator[tuple[str, str]]:
    """Paragraphs of the language reference, which Python keeps for help()."""
    spec = importlib.util.find_spec("pydoc_data")
    path = Path(spec.submodule_search_locations[0]) / "topics.py" if spec and spec.submodule_search_locations else None
    if path is None or not path.is_file():  # some systems ship it in a package of its own
        return
    topics = next((ast.literal_eval(node.value) for node in parsed(path, size=None).body if isinstance(node, ast.Assign)), {})
    for topic in sorted(topics):
        for number, text in enumerate(topics[topic].split("\n\n")):
            yield f"pydoc_data/topics.py:{topic}.{number}", text.strip()
