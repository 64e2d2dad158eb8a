"""What a failure is called on the command line: one clear message and an exit code."""

from __future__ import annotations

import errno
import traceback

PLACE = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EROFS: "the file system is read-only", errno.EACCES: "writing is not permitted"}  # fmt: skip


class Stopped(Exception):
    """The user or the system ended the run."""


def explain(error: BaseException) -> tuple[str, int]:
    """The message and the exit code: 2 for what the user can put right, 130 for a stop, 1 with the traceback for anything else."""
    if isinstance(error, Stopped):
        words = str(error) or "finished stages are kept, the same command goes on from there"
        return f"interrupted: {words}", 130
    from ml.contracts import InputError

    if hasattr(error, "format_message"):  # a usage error of typer's own click
        return f"error: {error.format_message()} See --help.", 2
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, InputError):
            return f"error: {one}", 2
    for one in chain:
        words = str(one).lower()
        if isinstance(one, OSError) and one.errno in PLACE:
            return (
                f"error: {PLACE[one.errno]}{f' at {one.filename}' if one.filename else ''}. Put that right and run the same command again: finished work is kept.",
                2,
            )
        if "database or disk is full" in words or "readonly database" in words or "disk i/o error" in words:
            reason = str(one).splitlines()[0].rpartition(") ")[2][:200]
            return (
                f"error: MLflow's tracking database cannot be written: {reason}. Put that right and run the same command again: finished work is kept.",
                2,
            )
    return "".join(
        traceback.format_exception(error)
    ) + "error: an unexpected failure; finished stages are kept, the same command goes on from there", 1


def _chain(error: BaseException | None):
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
