"""What a stage's body sees of its run: a folder to work in, and ways to report that never wait for MLflow."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tasks.tracking import database, lease
from tasks.tracking.artifacts import inside
from tasks.tracking.spool import Spool
from tasks.tracking.uploads import Outbox

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Run

EACH = 3.0  # seconds between two sendings, at least
SHARE = 0.005  # of the time, at most, goes into sending metrics: Python code, for which the training's own has to wait
PARAMS = 90  # of one batch; MLflow takes 100

_log = logging.getLogger(__name__)


class StageRun:
    """One stage's MLflow run while its body runs. `workdir` outlives a kill: a resumed stage finds its checkpoints there."""

    def __init__(self, run: Run, held: lease.Lease, workdir: Path, system_metrics: bool = False) -> None:
        self.run_id: str = run.info.run_id
        self.uri: str = run.info.artifact_uri
        self.workdir = workdir
        self.metrics = Spool(self.run_id, workdir)
        self.outbox = Outbox(self.run_id, self.uri, workdir)
        self._params = set(run.data.params)
        self.begun = bool(self._params)
        """Whether an earlier process, perhaps on another machine, has begun this stage."""
        self._told: set[str] = set()
        self._monitor = _monitor(self.run_id) if system_metrics else None
        self.heartbeat = lease.Heartbeat(self.run_id, held, self._sample)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, name=f"spool-{self.run_id[:8]}", daemon=True)
        self._thread.start()

    def report(self, metrics: Mapping[str, float], step: int) -> None:
        """Adds a point to the curves `metrics` at `step`; steps that are known already, as when a resumed training replays them, are not."""
        self.heartbeat.check()
        self.metrics.append(metrics, step)

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Final values, one a metric."""
        self.heartbeat.check()
        self.metrics.final(metrics)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters by name. MLflow keeps the first value of each: those that a resumed run has already stay."""
        from mlflow.entities import Param

        fresh = [Param(name, str(value)) for name, value in params.items() if name not in self._params]
        for first in range(0, len(fresh), PARAMS):
            database.retry(database.client().log_batch, self.run_id, params=fresh[first : first + PARAMS], synchronous=True)
        self._params |= set(params)

    def log_artifact(self, path: Path | str, folder: str = "") -> None:
        """Stores the file `path` under its own name in the artifact folder `folder`."""
        path = Path(path)
        self._queue(path, (PurePosixPath(folder) / path.name).as_posix())

    def log_text(self, text: str, path: str) -> None:
        """Stores `text` as the artifact `path`."""
        file = self.workdir / f"text-{threading.get_ident()}"
        file.write_text(text, encoding="utf-8")
        self._queue(file, path)
        file.unlink()

    def log_json(self, content: Any, path: str) -> None:
        """Stores `content` as the JSON artifact `path`."""
        self.log_text(json.dumps(content, indent=1), path)

    def log_figure(self, figure: Figure, path: str) -> None:
        """Stores a matplotlib figure as the picture `path`."""
        file = self.workdir / f"figure-{threading.get_ident()}{PurePosixPath(path).suffix}"
        figure.savefig(file)
        self._queue(file, path)
        file.unlink()

    def log_input(self, name: str, digest: str, context: str, rows: int) -> None:
        """Records the data set `name` of `rows` rows, known by `digest`, as what `context` (training, test ...) read."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(
            name=name,
            digest=digest[:36],  # MLflow's column holds 36 characters
            source_type="warmstart",
            source=json.dumps({"digest": digest}),
            profile=json.dumps({"rows": rows}),
        )
        given = DatasetInput(dataset=data, tags=[InputTag("mlflow.data.context", context)])
        database.retry(database.client().log_inputs, self.run_id, datasets=[given])

    def set_tag(self, name: str, value: str) -> None:
        """Sets a tag of the run."""
        database.retry(database.client().set_tag, self.run_id, name, value)

    def send_all(self, seconds: float) -> None:
        """Waits until MLflow has all; raises TrackingError after `seconds`. Nothing can be reported after."""
        self._sample()
        self.close()
        deadline = time.monotonic() + seconds
        for send in (self.metrics.send, self.outbox.send):
            while database.retry(send, seconds=max(0.0, deadline - time.monotonic())):
                pass
        self._tell_odd()

    def close(self) -> None:
        """Ends the sending thread; what MLflow does not have yet stays in `workdir`."""
        self._stop.set()
        self._thread.join(timeout=5.0)  # a call to a server that hangs takes longer: it may end by itself
        self.metrics.close()

    def _queue(self, file: Path, path: str) -> None:
        self.heartbeat.check()
        self.outbox.add(file, inside(path))

    def _send(self) -> None:
        pause = EACH
        while not self._stop.wait(pause):
            began = time.thread_time()
            try:
                self.metrics.send()
                pause = max(EACH, (time.thread_time() - began) / SHARE)
                while not self._stop.is_set() and self.outbox.send():
                    pass
                self._tell_odd()
            except Exception as error:  # kept on disk and tried again
                _log.debug("run %s waits for MLflow: %s", self.run_id, error)
                self._stop.wait(EACH)

    def _tell_odd(self) -> None:
        for name in sorted(self.metrics.odd.keys() - self._told):
            _log.warning("the metric %s was %s: kept out of MLflow", name, self.metrics.odd[name])
            database.client().set_tag(self.run_id, f"warmstart.not_finite.{name}", self.metrics.odd[name])
            self._told.add(name)

    def _sample(self) -> None:
        if self._monitor is not None:
            self._monitor.collect_metrics()
            self.metrics.append_next({f"system/{name}": value for name, value in self._monitor.aggregate_metrics().items()})
            for part in self._monitor.monitors:
                part.clear_metrics()


def _monitor(run_id: str) -> Any:
    # MLflow's own thread gives up when the server is away: its probes are read at each heartbeat instead, into the spool.
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    return SystemMetricsMonitor(run_id)
