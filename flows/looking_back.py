"""The commands that look back: each gives what it found as JSON has it, and a function that shows the same on the terminal."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows import tables
from ml.contracts import InputError
from ml.evaluation import plain
from tasks.tracking import database, history, listing
from tasks.tracking.lineage import lineage as lineage_of

Found = tuple[dict[str, Any], Callable[[], None]]

PICTURES = (".svg", ".png", ".pdf")


def runs(experiment: str, limit: int) -> Found:
    """The newest pipeline runs."""
    database.look()
    found = plain(listing.pipelines(experiment, limit))
    return found, lambda: tables.show_runs(found)


def models(name: str) -> Found:
    """The registered models, or one with its audit."""
    database.look()
    found = plain(listing.models(name))
    return found, lambda: tables.show_models(found)


def lineage(version: str, picture: Path | None) -> Found:
    """Where a version comes from; drawn to `picture` too."""
    if picture is not None:
        if picture.suffix.lower() not in PICTURES:
            raise InputError(f"cannot draw {picture}: expected a name that ends in {', '.join(PICTURES)}")
        _check_place(picture)
    database.look()
    found = plain(lineage_of(version))
    if picture is not None:
        from ml.lineage_picture import draw

        _write(picture, lambda file: draw(found).savefig(file, dpi=150, facecolor="white"))
    return found, lambda: tables.show_lineage(found)


def compare(names: list[str], html: Path | None) -> Found:
    """Runs against the first of them; a page of it at `html` too."""
    if len(names) < 2:
        raise InputError("compare takes two runs or more. `warmstart runs` lists them.")
    if html is not None:
        _check_place(html)
    database.look()
    from tasks import compare as side_by_side

    looked = side_by_side.look(names)
    found = side_by_side.compare(looked)
    labels = history.short([one["run_id"] for one in found["runs"]])
    if html is not None:
        from ml.comparison_page import render

        page = render(found, labels, side_by_side.curves(looked), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
        _write(html, lambda file: file.write_text(page, encoding="utf-8"))
    return found, lambda: tables.show_comparison(found, labels)


def _check_place(path: Path) -> None:
    """InputError where no file can be written to `path`: told before the work."""
    folder = path.absolute().parent
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file")
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} to write {path.name} to")
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write to {folder}: permission denied")


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """The file `path`, whole or not at all."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
