"""Metrics and files on their way to MLflow: every row once, whatever is reported, and whatever happens to the disk."""

import json
import math
import shutil
import threading
from pathlib import Path

import mlflow
import numpy as np
import pytest
from full_disk import no_room
from hypothesis import given, settings
from hypothesis import strategies as st
from often import times

from tasks.tracking import artifacts, database, runs
from tasks.tracking.spool import Spool, json_lines
from tasks.tracking.uploads import Outbox

NUMBERS = st.one_of(st.floats(), st.integers(-(2**53), 2**53), st.floats(width=32).map(np.float32), st.booleans())
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)


@settings(max_examples=times(50, 50), deadline=None)
@given(reports=st.lists(st.tuples(st.dictionaries(NAMES, NUMBERS, max_size=4), st.integers(0, 2**40)), max_size=12))
def test_the_file_holds_what_is_finite_and_new_as_json_to_the_bit(tmp_path_factory, reports):
    folder = tmp_path_factory.mktemp("spool")
    spool, expected, known = Spool("run", folder), [], {}
    for metrics, step in reports:
        spool.append(metrics, step)
        fresh = {name: float(value) for name, value in metrics.items() if math.isfinite(value) and step > known.get(name, -1)}
        known |= dict.fromkeys(fresh, step)
        expected += [(step, fresh)] if fresh else []
    spool.close()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]
    assert [(row["step"], row["metrics"]) for row in rows] == expected
    assert set(spool.odd) == {name for metrics, _ in reports for name, value in metrics.items() if not math.isfinite(value)}


def test_a_full_disk_tears_no_row_and_what_comes_after_it_is_kept(tmp_path):
    spool = Spool("run", tmp_path)
    with no_room(1000), pytest.raises(OSError, match="too large"):
        for step in range(100):
            spool.append({"loss": step / 7}, step)
    written = (tmp_path / "metrics.jsonl").read_bytes()
    failed = written.count(b"\n")
    assert 0 < failed < 100 and written.endswith(b"}\n")
    for step in range(failed, 100):
        spool.append({"loss": step / 7}, step)
    spool.close()
    assert [(row["step"], row["metrics"]["loss"]) for row in json_lines(tmp_path / "metrics.jsonl")] == [(step, step / 7) for step in range(100)]


def test_two_threads_that_go_on_with_one_metric_share_no_step(tmp_path):
    spool = Spool("run", tmp_path)

    def system():
        for number in range(2000):
            spool.append_next({"system/memory": number})

    thread = threading.Thread(target=system)
    thread.start()
    for step in range(2000):
        spool.append({"loss": step}, step)
        spool.append_next({"system/memory": -1})
    thread.join()
    spool.close()
    rows = json_lines(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["metrics"]["loss"]) for row in rows if "loss" in row["metrics"]] == [(step, step) for step in range(2000)]
    assert [row["step"] for row in rows if "system/memory" in row["metrics"]] == [*range(4000)]


def test_a_row_that_was_sent_but_not_marked_is_one_row(tracked):
    with runs.pipeline_run("twice", "") as pipeline:
        run = runs.create_run(pipeline.experiment_id, "one", {})
        folder = Path("spool")
        folder.mkdir()
        first = Spool(run.info.run_id, folder)
        for step in range(2000):
            first.append({"loss": step / 7}, step)
        while first.send():
            pass
        first.close()
        (folder / "metrics.sent").write_text("0")  # killed before the mark
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 2000, "ti')  # and in a write
        second = Spool(run.info.run_id, folder)
        second.append({"loss": 0.0}, 1999)
        second.append({"loss": 5.0}, 2000)
        while second.send():
            pass
        second.close()
    rows = database.client().get_metric_history(run.info.run_id, "loss")
    assert [(one.step, one.value) for one in rows] == [(step, step / 7) for step in range(2000)] + [(2000, 5.0)]


def test_rows_of_another_machine_are_taken_as_they_were_told(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    other = Spool("run", there)
    for step in range(5):
        other.append({"loss": 1 / (1 + step)}, step)
    other.close()
    mine = Spool("run", here)
    mine.append({"loss": 1.0}, 0)
    mine.take(there / "metrics.jsonl")
    for step in range(3, 7):  # a training that goes on from step 3
        mine.append({"loss": 1 / (1 + step)}, step)
    mine.close()
    rows, told = json_lines(here / "metrics.jsonl"), json_lines(there / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(7)) and rows[1:5] == told[1:]


def test_a_file_that_the_store_holds_otherwise_is_told_and_stored_again(tracked, monkeypatch):
    with runs.pipeline_run("damage", "") as pipeline:
        run = runs.create_run(pipeline.experiment_id, "one", {})
        Path("model.bin").write_bytes(bytes(100_000))
        outbox, store = Outbox(run.info.run_id, run.info.artifact_uri, Path.cwd()), artifacts.local_folder(run.info.artifact_uri)
        outbox.add(Path("model.bin"), "model/model.bin")
        honest = mlflow.MlflowClient.log_artifact

        def damaging(*args):
            honest(*args)
            with (store / "model/model.bin").open("rb+") as file:
                file.seek(70_000)
                file.write(b"!")
            shutil.copystat(args[2], store / "model/model.bin")  # as a disk does it: unseen

        with monkeypatch.context() as patch, pytest.raises(database.TrackingError, match=r"reads back .* differently"):
            patch.setattr(mlflow.MlflowClient, "log_artifact", damaging)
            outbox.send()
        assert not outbox.stored
        assert outbox.send() and not outbox.send()
        assert (store / "model/model.bin").read_bytes() == bytes(100_000)
