"""A real tracking server: what is reported while it is away comes later, and artifacts travel over HTTP."""

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
from tracking_models import register_tiny

from ml.contracts import InputError
from tasks.reach import wait_for
from tasks.tracking import artifacts, database, registry, runs, stages

ROOT = Path(__file__).resolve().parents[3]


class Line:
    """A line to a server that can be cut: connections are refused, and those that are open break."""

    def __init__(self, target: int) -> None:
        self.target, self.listener, self.open = target, None, []
        self.port = free_port()

    def up(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def cut(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for one in self.open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self.open.clear()

    def _accept(self, listener) -> None:
        with suppress(OSError):
            while True:
                near = listener.accept()[0]
                far = socket.create_connection(("127.0.0.1", self.target))
                self.open += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one, other) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def line(tmp_path, template, monkeypatch):
    """A line to `python -m mlflow_server`, up, and used by this process."""
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(template.read_bytes())
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    port = free_port()
    with (folder / "server.log").open("w") as log:
        command_line = [sys.executable, "-m", "mlflow_server", "--port", str(port)]
        process = subprocess.Popen(command_line, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    one = Line(port)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", "the server", "", 180)
        one.up()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{one.port}")
        monkeypatch.setenv("WARMSTART_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        database.prepare()
        yield one
        one.cut()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        mlflow.set_tracking_uri(None)


@pytest.mark.e2e
def test_away_in_a_stage_and_back_then_away_at_its_end(line, monkeypatch):
    experiment = database.experiment("away")

    def body(stage):
        for step in range(300):
            if step == 50:
                line.cut()
            stage.report({"loss": float(step)}, step)
        stage.log_text("made while it was away", "model/file.txt")  # holds nobody up
        line.up()
        return {"steps": 300}

    with runs.pipeline_run("away", "name: away\n") as pipeline:
        done = stages.run_stage(pipeline, "pretrain", key="k1", params={"a": 1}, inputs={}, workroot=Path("work"), body=body)
        history = database.client().get_metric_history(done.run_id, "loss")
        assert [(one.step, one.value) for one in history] == [(step, float(step)) for step in range(300)]
        assert artifacts.fetch(done.run_id, "model/file.txt").read_text() == "made while it was away"
        assert stages.run_stage(pipeline, "pretrain", key="k1", params={"a": 1}, inputs={}, workroot=Path("work"), body=body).cached

        # Away at the end for longer than is waited: the result is kept, and the next call stores it without doing it again.
        monkeypatch.setattr(stages, "PATIENCE", 0.5)
        done_bodies = []

        def last(stage):
            stage.report({"loss": 1.0}, 0)
            done_bodies.append(1)
            line.cut()
            return {"last": True}

        with pytest.raises(database.TrackingError, match="Its result is kept in") as caught:
            stages.run_stage(pipeline, "finetune", key="k2", params={}, inputs={}, workroot=Path("work"), body=last)
        assert "run the same command again" in str(caught.value)
        monkeypatch.setattr(stages, "PATIENCE", 30.0)
        line.up()
        result = stages.run_stage(pipeline, "finetune", key="k2", params={}, inputs={}, workroot=Path("work"), body=last)
        assert (result.output, result.cached, len(done_bodies)) == ({"last": True}, False, 1)
        assert [one.value for one in database.client().get_metric_history(result.run_id, "loss")] == [1.0]

        # Where it was told to wait for longer, as runs of deployments are, it is stored at once.
        monkeypatch.setattr(stages, "PATIENCE", 0.5)
        monkeypatch.setenv(database.PATIENCE, "120")
        back = threading.Timer(3, line.up)

        def longer(stage):
            line.cut()
            back.start()
            return {"longer": True}

        assert stages.run_stage(pipeline, "finetune", key="k3", params={}, inputs={}, workroot=Path("work"), body=longer).output == {"longer": True}
    assert not runs.search([experiment], "attributes.status = 'RUNNING'")
    assert {run.info.status for run in runs.search([experiment], "")} == {"FINISHED"}


def test_a_damaged_download_is_made_anew_and_a_damaged_store_is_told(line, tmp_path):
    with runs.pipeline_run("stored", "name: stored\n") as pipeline:
        one = register_tiny("tiny", pipeline.run_id, "k", tmp_path / "model")
    folder = registry.files(one)
    assert folder.is_relative_to(tmp_path / "home" / "downloads")
    [kept] = list(folder.rglob("MLmodel"))
    good = kept.read_bytes()
    kept.write_bytes(good[:-1])
    assert registry.files(one) == folder and kept.read_bytes() == good
    [stored] = list((tmp_path / "server").rglob("MLmodel"))
    stored.write_bytes(good[:-1])
    assert registry.files(one) == folder, "what is at hand is whole"
    kept.write_bytes(good[:-1])
    with pytest.raises(InputError, match=r"models:/tiny/1 is damaged"):
        registry.files(one)
