"""A stage is done once: reused, resumed after a kill in the same run, and never counted before all of it is stored."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tracking_workers as workers
from tracking_workers import read

from ml.contracts import InputError
from tasks.tracking import artifacts, database, lease, runs, stages


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def history(run_id, metric="loss"):
    return [(one.step, one.value) for one in database.client().get_metric_history(run_id, metric)]


def stage_runs(experiment, kind="stage"):
    found = database.client().get_experiment_by_name(experiment)
    return runs.search([found.experiment_id], f"tags.`warmstart.kind` = '{kind}'")


def kill_in_body(processes, key="k", **options):
    process = processes("pipeline_of", "killed", key, "", {"stop_at": 24, **options})
    until(lambda: Path(f"stopped-{key}").exists())
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_done_once_then_reused_by_another_recipe(tracked):
    with runs.pipeline_run("first", "name: first\n") as one:
        done = workers.train(one, "k" * 64)
    with runs.pipeline_run("second", "name: second\n") as two:
        again = workers.train(two, "k" * 64)
    assert not done.cached and done.why == "no earlier run of this stage"
    assert again == replace(done, cached=True, why=again.why, seconds=again.seconds)
    assert "all that it stored is there" in again.why
    assert len(Path("bodies-" + "k" * 64).read_text().splitlines()) == 1
    run = database.client().get_run(done.run_id)
    assert run.info.status == "FINISHED"
    assert history(done.run_id) == [(step, 1 / (1 + step)) for step in range(50)]
    assert run.data.metrics["best/loss"] == 1 / 50
    assert run.data.params == {"steps": "50"}
    assert run.data.tags["mlflow.parentRunId"] == one.run_id
    [link] = stage_runs("second", "link")
    assert link.data.tags["warmstart.reuses"] == done.run_id
    assert link.data.tags["mlflow.parentRunId"] == two.run_id
    assert link.info.status == "FINISHED"
    assert [path.name for path in Path("work").iterdir()] == [f"pretrain-{'k' * 16}.lock"]


def test_a_miss_says_what_differs(tracked):
    with runs.pipeline_run("misses", "") as pipeline:
        workers.train(pipeline, "a", seed=0)
        assert workers.train(pipeline, "b", seed=1).why.endswith("seed 0 → 1")
        assert workers.train(pipeline, "c", seed=1).why.endswith("its code changed")
        assert workers.train(pipeline, "a", seed=0, force=True).why == "asked to do it anew"
        assert workers.train(pipeline, "a", seed=0, verify=lambda output: "its store is gone").why.endswith("but its store is gone")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.write_bytes(b"x" + file.read_bytes()[1:]), "damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "damaged"),
        (lambda file: file.unlink(), "gone"),
    ],
    ids=["flipped", "truncated", "deleted"],
)
@pytest.mark.parametrize("name", ["model/weights.txt", "manifest.json"])
def test_damaged_artifacts_are_not_reused(name, damage, reason, tracked):
    with runs.pipeline_run("damage", "") as pipeline:
        done = workers.train(pipeline, "k")
        damage(artifacts.local_folder(done.uri) / name)
        again = workers.train(pipeline, "k")
    assert not again.cached and again.run_id != done.run_id
    assert name in again.why or "manifest" in again.why
    assert workers.train(pipeline, "k").run_id == again.run_id


def test_killed_in_the_body_goes_on_in_the_same_run(tracked, processes):
    kill_in_body(processes)
    [before] = stage_runs("killed")
    assert before.info.status == "RUNNING"
    with runs.pipeline_run("killed", "") as pipeline:
        assert database.client().get_run(before.info.run_id).info.status == "FAILED"  # reconciled at the start
        result = workers.train(pipeline, "k")
    assert result.run_id == before.info.run_id and not result.cached and "did not finish" in result.why
    assert [line.split()[1] for line in Path("bodies-k").read_text().splitlines()] == ["0", "20"]
    assert history(result.run_id) == [(step, 1 / (1 + step)) for step in range(50)]
    after = database.client().get_run(result.run_id)
    assert after.info.status == "FINISHED" and "warmstart.error" not in after.data.tags
    assert after.data.tags["warmstart.parents"] == f"{before.data.tags['mlflow.parentRunId']},{pipeline.run_id}"
    assert {run.info.status for run in stage_runs("killed", "pipeline")} == {"FAILED", "FINISHED"}
    assert not runs.search([pipeline.experiment_id], "attributes.status = 'RUNNING'")


@pytest.mark.parametrize("point", ["stage.upload", "stage.uploaded", "stage.manifest"])
def test_killed_while_it_is_stored(point, tracked, processes):
    process = processes("pipeline_of", "storing", "k", crash=point)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    [before] = stage_runs("storing")
    with runs.pipeline_run("storing", "") as pipeline:
        result = workers.train(pipeline, "k")
    assert result.run_id == before.info.run_id
    assert len(Path("bodies-k").read_text().splitlines()) == 1  # its output was kept
    assert history(result.run_id) == [(step, 1 / (1 + step)) for step in range(50)]
    assert artifacts.fetch(result.run_id, "model/weights.txt").read_text() == "weights " * 100
    assert workers.train(pipeline, "k").cached


def test_eight_with_the_same_key_train_once(tracked, processes):
    started = [processes("pipeline_of", "together", "k", f"done-{number}", {"wait": 0.01}) for number in range(8)]
    for process in started:
        process.join(120)
    results = [read(f"done-{number}") for number in range(8)]
    assert len(Path("bodies-k").read_text().splitlines()) == 1
    assert len({result["run_id"] for result in results}) == 1
    assert sorted(result["cached"] for result in results) == [False] + [True] * 7
    assert len(stage_runs("together")) == 1 and len(stage_runs("together", "link")) == 7


def test_an_owner_whose_run_was_taken_over_stops(tracked, processes):
    process = processes("fast_pipeline", "fenced", "k", "done", {"steps": 100_000, "wait": 0.02}, 0.2)
    until(lambda: Path("bodies-k").exists())
    [run] = stage_runs("fenced")
    mine = lease.Lease.mine(fence=2)

    def taken() -> bool:  # a heartbeat that looked before may write after: so whoever takes a lease looks again
        database.client().set_tag(run.info.run_id, lease.TAG, mine.dump())
        time.sleep(lease.SETTLE)
        return lease.held(run.info.run_id, mine)

    until(taken)
    process.join(60)
    assert process.exitcode == 1 and not Path("done").exists()
    after = database.client().get_run(run.info.run_id)
    assert lease.read(after) == mine and after.info.status == "RUNNING"  # the new owner's, untouched


def test_another_hosts_lease_is_waited_for_by_this_clock(tracked, monkeypatch):
    monkeypatch.setattr(lease, "TAKEOVER", 1.0)
    monkeypatch.setattr(lease, "BEAT", 0.2)
    with runs.pipeline_run("hosts", "") as pipeline:
        # Its clock is an hour behind: what counts is that the lease does not change.
        far = replace(lease.Lease.mine(), host="elsewhere/boot/pid", fence=6, beat=time.time() - 3600)
        tags = {"warmstart.kind": "stage", "warmstart.key": "k", "warmstart.stage": "pretrain", lease.TAG: far.dump()}
        run = runs.create_run(pipeline.experiment_id, "pretrain", tags)
        began = time.monotonic()
        result = workers.train(pipeline, "k")
    assert time.monotonic() - began >= 1.0
    assert result.run_id == run.info.run_id
    assert lease.read(database.client().get_run(result.run_id)).fence == 7


def test_reconcile_closes_what_is_dead_and_nothing_else(tracked):
    experiment = database.experiment("mixed")
    mine = lease.Lease.mine()
    cases = {
        "mine": mine,
        "gone": replace(mine, pid=2**22 - 1),
        "ended attempt": replace(mine, token="other"),
        "reused pid": replace(mine, pid=1, started=-1),
        "far and fresh": replace(mine, host="elsewhere"),
        "far and silent": replace(mine, host="elsewhere", beat=time.time() - 121),
    }
    made = {name: runs.create_run(experiment, name, {lease.TAG: one.dump()}).info.run_id for name, one in cases.items()}
    theirs = database.client().create_run(experiment).info.run_id
    assert set(runs.reconcile(experiment)) == {made[name] for name in cases} - {made["mine"], made["far and fresh"]}
    statuses = {name: database.client().get_run(run_id).info.status for name, run_id in made.items()}
    assert statuses == {name: "RUNNING" if name in ("mine", "far and fresh") else "FAILED" for name in cases}
    assert database.client().get_run(theirs).info.status == "RUNNING"


@pytest.mark.parametrize(("error", "status"), [(InputError("bad http://me:secret@host"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(1), "KILLED")])
def test_an_error_closes_both_runs_and_passes_through(error, status, tracked):
    def body(stage):
        stage.report({"loss": 1.0}, 0)
        raise error

    with pytest.raises(type(error)), runs.pipeline_run("errors", "") as pipeline:
        stages.run_stage(pipeline, "pretrain", key="k", params={}, inputs={}, workroot=Path("work"), body=body)
    found = runs.search([pipeline.experiment_id], "")
    assert [run.info.status for run in found] == [status, status]
    assert all(run.data.tags["warmstart.error"].startswith(type(error).__name__) for run in found)
    assert "secret" not in str([run.data.tags for run in found])
    assert [history(run.info.run_id) for run in found if run.data.tags["warmstart.kind"] == "stage"] == [[(0, 1.0)]]
    assert lease.alive(lease.read(found[0])) is False


def test_what_a_body_logs(tracked, tmp_path):
    from matplotlib.figure import Figure

    def body(stage):
        stage.log_params({f"p{number}": number for number in range(250)})
        stage.log_input("digits", "f" * 64, "training", 1437)
        stage.report({"loss": float("nan"), "fine": 1.0}, 0)
        stage.report({"loss": float("inf")}, 1)
        figure = Figure()
        figure.subplots().plot([1, 2])
        stage.log_figure(figure, "pictures/line.png")
        stage.log_json({"a": [1]}, "facts.json")
        (stage.workdir / "table.csv").write_text("a\n1\n")
        stage.log_artifact(stage.workdir / "table.csv", "tables")
        stage.log_text("old", "twice.txt")
        stage.log_text("new", "twice.txt")
        stage.set_tag("note", "x")
        with pytest.raises(InputError, match="leads out"):
            stage.log_text("", "../../escape.txt")
        return {"a": 1}

    with runs.pipeline_run("logs", "seed: 1\n") as pipeline:
        done = stages.run_stage(pipeline, "pretrain", key="k", params={}, inputs={}, workroot=tmp_path / "w", body=body, system_metrics=True)
    run = database.client().get_run(done.run_id)
    assert len(run.data.params) == 250
    assert "loss" not in run.data.metrics and run.data.metrics["fine"] == 1.0
    assert run.data.tags["warmstart.not_finite.loss"] in ("nan", "inf")
    assert "system/cpu_utilization_percentage" in run.data.metrics
    assert run.inputs.dataset_inputs[0].dataset.name == "digits"
    assert set(artifacts.sizes(done.uri)) == {"pictures/line.png", "facts.json", "tables/table.csv", "twice.txt", "manifest.json"}
    assert artifacts.fetch(done.run_id, "twice.txt").read_text() == "new"
    assert artifacts.fetch(f"runs:/{done.run_id}", "tables").is_dir()
    assert artifacts.fetch(pipeline.run_id, "recipe.yaml").read_text() == "seed: 1\n"


def test_a_heartbeat_outlives_a_full_disk(tracked, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.05)
    samples = []

    def sample():
        samples.append(1)
        raise OSError("No space left on device")

    with runs.pipeline_run("beats", "") as pipeline:
        run = runs.create_run(pipeline.experiment_id, "one", {})
        held = lease.acquire(run.info.run_id)
        heartbeat = lease.Heartbeat(run.info.run_id, held, sample)
        until(lambda: len(samples) > 2)
        heartbeat.stop()
    assert lease.read(database.client().get_run(run.info.run_id)).beat > held.beat
