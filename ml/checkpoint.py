"""Atomic, verified checkpoints of a training.

A checkpoint is a folder `step-N` with `state.pt` and, written last, `manifest.json` with its sha256: without a manifest that
holds, it does not count. The two newest are kept, so that a damaged one falls back to the one before.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ml.contracts import InputError
from ml.crash import crash_point

KEPT = 2
DAMAGE = (OSError, ValueError, KeyError, TypeError)  # what reading one raises that is not whole


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Writes the checkpoint of `step`; at any moment, a kill leaves the ones before it whole."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:09d}"
    temporary = folder / f"tmp-{step:09d}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        with (temporary / "state.pt").open("wb") as file:
            summed = _Summed(file)
            torch.save(state, summed)
            if summed.error is not None:
                raise summed.error
            crash_point("checkpoint.write")
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync_folder(folder)
        crash_point("checkpoint.manifest")
        write_atomically(final / "manifest.json", json.dumps({"step": step, "sha256": {"state.pt": summed.sha256.hexdigest()}}))
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            raise InputError(f"cannot write a checkpoint to {folder}: {error.strerror}. Make room or permit writing, then run the same command again: it goes on from the last checkpoint.") from None
        raise
    for old in _all(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def load(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The newest checkpoint that verifies, or None; warns of each damaged one that it passes over."""
    for stray in folder.glob("tmp-*"):
        shutil.rmtree(stray, ignore_errors=True)
    for candidate in _all(folder):
        try:
            _verify(candidate)
            return torch.load(candidate / "state.pt", map_location=device, weights_only=True)
        except DAMAGE as error:
            warnings.warn(f"checkpoint {candidate.name} is damaged ({error}); falling back to the one before", RuntimeWarning, stacklevel=2)
            shutil.rmtree(candidate, ignore_errors=True)
    return None


def newest(folder: Path) -> Path | None:
    """The folder of the newest checkpoint that verifies, or None."""
    for candidate in _all(folder):
        with suppress(*DAMAGE):
            _verify(candidate)
            return candidate
    return None


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path` by `text` so that readers, and a kill, see the old or the new file and nothing between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Summed:
    """A file to write to, and the sum of what is meant to be in it."""

    def __init__(self, file: BinaryIO):
        self._file, self.sha256 = file, hashlib.sha256()
        self.error: OSError | None = None  # kept, not raised: `torch.save` would end with an error of its own instead

    def write(self, data: bytes | memoryview) -> int:
        if self.error is None:
            try:
                self.sha256.update(data)
                self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Left to whoever opened the file."""


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _verify(candidate: Path) -> None:
    manifest = json.loads((candidate / "manifest.json").read_text())
    if manifest["sha256"]["state.pt"] != _sha256(candidate / "state.pt"):
        raise ValueError("its contents do not match its manifest")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
