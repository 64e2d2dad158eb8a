"""Artifacts on their way to MLflow, and the manifest that says, written last, that all are there.

A copy of each file waits in the outbox until it is stored and read back, so that a server that is away holds nobody up. MLflow
copies files to a local store one by one and not atomically: what counts is what the manifest's sums vouch for.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.crash import crash_point
from tasks.tracking import database
from tasks.tracking.artifacts import digest, fetch, local_folder, sizes
from tasks.tracking.spool import json_lines

if TYPE_CHECKING:
    from mlflow.entities import Run

MANIFEST = "manifest.json"
SUM = "warmstart.manifest"  # the tag that holds the manifest's own sha256


class Outbox:
    """The files that one run stores: `outbox/N/PATH` waits, `artifacts.jsonl` lists what is stored, with sha256 and size."""

    def __init__(self, run_id: str, root: str, folder: Path) -> None:
        self.run_id, self.root = run_id, root
        self._box, self._ledger = folder / "outbox", folder / "artifacts.jsonl"
        self._box.mkdir(exist_ok=True)
        for stray in self._box.glob("tmp-*"):
            shutil.rmtree(stray)
        self.stored = {row["path"]: {"sha256": row["sha256"], "bytes": row["bytes"]} for row in json_lines(self._ledger)}
        self._next = max((int(one.name) for one in self._box.iterdir()), default=-1) + 1
        self._adding, self._sending = threading.Lock(), threading.Lock()

    def add(self, file: Path, path: str) -> None:
        """Queues a copy of `file` to be stored as `path`."""
        with self._adding:
            temporary = self._box / f"tmp-{self._next}"
            (temporary / path).parent.mkdir(parents=True)
            shutil.copyfile(file, temporary / path)
            temporary.rename(self._box / f"{self._next:06d}")
            self._next += 1

    def send(self) -> bool:
        """Stores the oldest file that waits; false when there is none."""
        with self._sending:
            waiting = sorted(one for one in self._box.iterdir() if not one.name.startswith("tmp-"))
            if not waiting:
                return False
            file = next(one for one in waiting[0].rglob("*") if one.is_file())
            path = file.relative_to(waiting[0])
            parent = path.parent.as_posix()
            database.client().log_artifact(self.run_id, str(file), None if parent == "." else parent)
            crash_point("stage.upload")
            row = {"path": path.as_posix(), "sha256": digest(file), "bytes": file.stat().st_size}
            folder = local_folder(self.root)
            filecmp.clear_cache()  # it knows files by size and time alone, which a copy that is made anew has too
            if folder is not None and not filecmp.cmp(file, folder / path, shallow=False):
                raise database.TrackingError(f"{path} reads back from {folder} differently from what was written (check that disk)")
            with self._ledger.open("a") as ledger:
                ledger.write(json.dumps(row) + "\n")
            self.stored[row["path"]] = {"sha256": row["sha256"], "bytes": row["bytes"]}
            shutil.rmtree(waiting[0])
            return True

    def commit(self, record: dict[str, Any]) -> None:
        """Checks that all files are in the store, then writes the manifest: `record` and the files' sums."""
        there = sizes(self.root) if self.stored else {}
        for path, facts in self.stored.items():
            if there.get(path) != facts["bytes"]:
                raise database.TrackingError(f"{path} should be stored with {facts['bytes']} bytes, found {there.get(path, 'none')}")
        text = json.dumps({**record, "artifacts": self.stored}, indent=1)
        database.retry(database.client().set_tag, self.run_id, SUM, hashlib.sha256(text.encode()).hexdigest())
        database.retry(database.client().log_text, self.run_id, text, MANIFEST)


def check_manifest(run: Run, stage: str, key: str) -> tuple[dict[str, Any] | None, str]:
    """The output in a finished run's manifest and "", or None and what is wrong with it or with the files that it lists."""
    root = run.info.artifact_uri
    try:
        manifest = json.loads(fetch(root, MANIFEST, run.data.tags[SUM]).read_text())
        output, listed = manifest["output"], {path: (facts["sha256"], facts["bytes"]) for path, facts in manifest["artifacts"].items()}
        if (manifest["stage"], manifest["key"]) != (stage, key) or not isinstance(output, dict):
            return None, "its manifest belongs to another stage"
        there = sizes(root)
        for path, (sha256, length) in listed.items():
            if path not in there:
                return None, f"its {path} is gone"
            if there[path] != length:
                return None, f"its {path} is damaged ({there[path]} bytes, not {length})"
            # What a server holds is read, and checked, when it is used.
            if local_folder(root) is not None:
                fetch(root, path, sha256)
    except (KeyError, TypeError, AttributeError):
        return None, "its manifest is damaged"
    except (OSError, ValueError) as error:  # InputError is one
        return None, database.first_line(error)
    return output, ""
