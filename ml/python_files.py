"""The source files of installed Python packages, and of Python itself: real data on any machine. Nothing is imported."""

from __future__ import annotations

import ast
import os
import sysconfig
import warnings
from pathlib import Path

from ml.files import digest

STANDARD = "python"
"""What the standard library is called beside packages."""
SKIPPED = {"tests", "test", "testing", "idle_test", "site-packages", "dist-packages", "_vendor", "__pycache__"}
FILE_BYTES = 100_000
"""What a file may weigh: some of torch's take a second each to parse."""


def standard_library() -> Path:
    """The folder of Python's own modules."""
    return Path(sysconfig.get_path("stdlib"))


def modules(name: str, root: Path) -> list[str]:
    """The package's modules, relative to its folder, in an order without meaning that is the same everywhere."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [one for one in folders if one not in SKIPPED and not one.startswith((".", "test_"))]
        within = Path(folder).relative_to(root)
        found += [(within / file).as_posix() for file in files if file.endswith(".py") and not file.startswith(("test_", "conftest"))]
    return sorted(found, key=lambda path: digest(name, path))


def parsed(path: Path, size: int | None = FILE_BYTES) -> ast.Module:
    """The module's syntax tree; raises OSError, SyntaxError, ValueError or RecursionError."""
    if size is not None and path.stat().st_size > size:
        raise ValueError(f"{path} is larger than {size} bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # about others' code
        warnings.simplefilter("ignore", DeprecationWarning)
        return ast.parse(path.read_bytes())
