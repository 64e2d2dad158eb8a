"""Checkpoints of a running training copied beside it to a storage that other machines reach, and taken up there by one that has none.

One thread copies: the newest whole checkpoint only, one at a time, within a share of the time; the training never waits for it. What cannot be
reached is told once and tried again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ml import checkpoint, progress
from ml.contracts import InputError
from ml.remote import AWAY, Damaged, Missing, Remote, StorageError

LOOK = 0.2  # seconds between two looks for a newer checkpoint
SHARE = 0.25  # of the time, at most, goes into copying
LAST = 20.0  # seconds that a training that is stopped waits for the copy of its last checkpoint


@contextmanager
def copied(workdir: Path, remote: Remote, stage: str, begun: bool, beside: Sequence[str] = ()) -> Iterator[Path | None]:
    """Copies checkpoints of the training in `workdir` while the block runs, each with the files `beside` of `workdir` as they then are.

    Where an earlier process has `begun` it and the storage's newest checkpoint is newer than what is here, that is fetched first; yields its folder.
    Raises InputError where that cannot be known.
    """
    fetched = _restored(workdir, remote, stage) if begun else None
    copier = _Copier(workdir, remote, stage, beside, fetched.name if fetched is not None else "")
    try:
        yield fetched
    except BaseException:
        copier.stop(last=True)
        raise
    copier.stop(last=False)


def _restored(workdir: Path, remote: Remote, stage: str) -> Path | None:
    folder = workdir / "checkpoints"
    newest = checkpoint.newest(folder)
    here = newest.name if newest is not None else ""
    try:
        for name in reversed(_steps(remote)):
            if name <= here:
                break
            try:
                shutil.rmtree(folder / name, ignore_errors=True)  # not whole, or it would be the newest
                remote.fetch(name, folder / name)
            except Damaged as error:
                progress.warn(stage, f"passes over a checkpoint: {error}")
            except Missing:  # its machine died while it was copied
                continue
            else:
                progress.finish(stage, f"goes on from the checkpoint {remote.url}/{name}")
                return folder / name
    except StorageError as error:
        if newest is None:
            raise InputError(
                f"{stage} was begun elsewhere and may have checkpoints in the storage, but {error}, and there is none in {folder}. "
                "Run the same command when the storage can be used, or without WARMSTART_STORAGE to begin this stage anew"
            ) from None
        remote.warn(stage, f"goes on from this machine's checkpoint, though there may be a newer one: {error}")
    return None


class _Copier:
    """The thread. Steps of checkpoints are in their names, which sort as they do."""

    def __init__(self, workdir: Path, remote: Remote, stage: str, beside: Sequence[str], done: str) -> None:
        self.workdir, self.remote, self.stage, self.beside = workdir, remote, stage, beside
        self._done, self._last = done, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"copies-{stage}", daemon=True)
        self._thread.start()

    def stop(self, last: bool) -> None:
        """Ends the thread, which copies the `last` checkpoint before; waits LAST seconds at most."""
        self._last = last
        self._stop.set()
        self._thread.join(LAST)

    def _run(self) -> None:
        pause = LOOK
        while not self._stop.wait(pause):
            pause = self._copy()
        if self._last:
            self._copy()

    def _copy(self) -> float:
        """Copies what is new; gives the seconds until the next look."""
        began = time.monotonic()
        try:
            if not self._copy_newest():
                return LOOK
        except FileNotFoundError:  # a newer checkpoint took its place
            return LOOK
        except (StorageError, *checkpoint.DAMAGE) as error:
            self.remote.warn(self.stage, f"goes on, but its checkpoints stay on this machine until the storage can be used: {error}")
            return AWAY
        return max(LOOK, (time.monotonic() - began) * (1 / SHARE - 1))

    def _copy_newest(self) -> bool:
        newest = max((path.parent for path in (self.workdir / "checkpoints").glob("step-*/manifest.json")), default=None)
        if newest is None or newest.name <= self._done:
            return False
        folder = self.workdir / "copied"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir()
            sums = json.loads((newest / "manifest.json").read_text())["sha256"]
            for name in (*sums, "manifest.json"):  # as links, which last when the training removes the checkpoint
                _link(newest / name, folder / name)
            for name in self.beside:
                with suppress(FileNotFoundError):
                    shutil.copyfile(self.workdir / name, folder / name)
            self.remote.publish(folder, newest.name, sums)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._done = newest.name
        for name in _steps(self.remote):
            if name < newest.name:
                self.remote.remove(name)
        return True


def _steps(remote: Remote) -> list[str]:
    """The checkpoints there, whole or not, ascending; what else somebody put there is left alone."""
    return [name for name in remote.names() if re.fullmatch(r"step-\d{9}", name)]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
