"""Metrics on their way to MLflow: appended to a file at once, sent in batches later, beside the training.

`metrics.jsonl` holds a line {step, time, metrics} for each report; `metrics.sent` says how many of its bytes MLflow has. A line
that is sent twice (a kill between the two files) is one row in MLflow, since time and value are equal. A step waits for its line, so that to
write one must touch little: docs/decisions/0029.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from math import inf, isfinite
from pathlib import Path

from orjson import OPT_APPEND_NEWLINE, dumps, loads

from tasks.tracking import database

ROWS = 900  # of one batch; MLflow takes 1,000


class Spool:
    """The metrics of one run. A resumed training replays its steps: rows that the file already has are left out."""

    def __init__(self, run_id: str, folder: Path) -> None:
        self.run_id = run_id
        self.odd: dict[str, str] = {}  # name → the non-finite value that was kept out
        self._path, self._mark = folder / "metrics.jsonl", folder / "metrics.sent"
        self._steps: dict[str, int] = {}
        self._values: dict[str, float] = {}
        for row in json_lines(self._path):
            for name, value in row["metrics"].items():
                self._steps[name] = max(row["step"], self._steps.get(name, row["step"]))
                self._values[name] = value
        self._file = self._path.open("ab", buffering=0)
        self._writing = threading.Lock()  # the heartbeat's thread appends system metrics
        self._sending = threading.Lock()

    def append(self, metrics: Mapping[str, float], step: int) -> None:
        """Adds the metrics that are finite and not yet known for this step."""
        with self._writing:
            self._write(self._finite(metrics, step), step)

    def append_next(self, metrics: Mapping[str, float]) -> None:
        """Adds metrics at the step after the last one known of them, for what has no step of its own."""
        with self._writing:
            values = self._finite(metrics)
            self._write(values, max((self._steps.get(name, -1) for name in values), default=-1) + 1)

    def take(self, path: Path) -> None:
        """Adds the rows of another machine's file of the same run, where they are not known, as they were told then."""
        with self._writing:
            for row in json_lines(path):
                self._write(self._finite(row["metrics"], row["step"]), row["step"], row["time"])

    def final(self, metrics: Mapping[str, float]) -> None:
        """Adds final values, at step 0; those that are known already are left out."""
        with self._writing:
            self._write({name: value for name, value in self._finite(metrics).items() if self._values.get(name) != value}, 0)

    def send(self) -> bool:
        """Sends the next batch; false when there was nothing to send."""
        from mlflow.entities import Metric

        with self._sending:
            batch, end = [], self._sent()
            with self._path.open("rb") as file:
                file.seek(end)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    row = loads(line)
                    if batch and len(batch) + len(row["metrics"]) > ROWS:
                        break
                    batch += [Metric(name, value, row["time"], row["step"]) for name, value in row["metrics"].items()]
                    end += len(line)
            for first in range(0, len(batch), ROWS):
                database.client().log_batch(self.run_id, metrics=batch[first : first + ROWS], synchronous=True)
            if batch:
                temporary = self._mark.with_suffix(".tmp")
                temporary.write_text(str(end))
                temporary.replace(self._mark)
            return bool(batch)

    def close(self) -> None:
        """Ends writing; what is not sent stays in the file."""
        self._file.close()

    def _finite(self, metrics: Mapping[str, float], step: float = inf) -> dict[str, float]:
        """The values that are finite, of metrics not yet known at `step`."""
        # MLflow keeps infinity as 1.8e308 and compares NaN as false: neither belongs in a curve.
        values, known = {}, self._steps
        for name, value in metrics.items():
            value = float(value)
            if not isfinite(value):
                self.odd[name] = str(value)
            elif step > known.get(name, -1):
                values[name] = value
        return values

    def _write(self, fresh: Mapping[str, float], step: int, when: int | None = None) -> None:
        if not fresh or self._file.closed:
            return
        line = dumps({"step": step, "time": when or int(time.time() * 1000), "metrics": fresh}, option=OPT_APPEND_NEWLINE)
        written = 0
        try:
            while written < len(line):
                written += self._file.write(line[written:])
        except OSError:  # a full disk, say: a torn line would hide those after it
            os.truncate(self._path, self._path.stat().st_size - written)
            raise
        for name in fresh:
            self._steps[name] = step
        self._values |= fresh

    def _sent(self) -> int:
        try:
            return min(int(self._mark.read_text()), self._path.stat().st_size)
        except (OSError, ValueError):
            return 0


def json_lines(path: Path) -> list[dict]:
    """The objects of a file of JSON lines; a kill or a power cut may leave a torn end, which is cut off."""
    path.touch()
    rows, whole = [], 0
    with path.open("rb") as file:
        for line in file:
            try:
                rows.append(loads(line))
            except ValueError:
                break
            if not line.endswith(b"\n"):
                rows.pop()
                break
            whole += len(line)
    if whole < path.stat().st_size:
        os.truncate(path, whole)
    return rows
