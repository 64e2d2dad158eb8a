"""Pictures and pages that commands write where their user says: looked at before the work, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ml.contracts import InputError

PICTURES = (".svg", ".png", ".pdf")


def check_picture(path: Path) -> None:
    """InputError where no picture can be written to `path`."""
    if path.suffix.lower() not in PICTURES:
        raise InputError(f"cannot draw {path}: expected a name that ends in {', '.join(PICTURES)}")
    check_place(path)


def check_place(path: Path) -> None:
    """InputError where no file can be written to `path`."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"there is no folder {path.absolute().parent} to write {path.name} to")
    if not os.access(path.absolute().parent, os.W_OK):
        raise InputError(f"cannot write to {path.absolute().parent}: permission denied")


def write(path: Path, content: Any) -> None:
    """Writes text, or a matplotlib figure in the format that the name says."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        else:
            content.savefig(temporary, dpi=150, facecolor="white")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
