"""The loop on a small real model: it learns, resumes bit for bit after kill -9 anywhere, and never steps on a NaN."""

import json
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from toy import digest, losses, train

from ml import fit as loop
from ml import progress
from ml.contracts import InputError, StepResult
from ml.feed import Feed
from ml.fit import NonFiniteLoss
from ml.interruption import TimeUp


def test_it_learns_and_reports(tmp_path):
    lines: list = []
    _, fitted = train(tmp_path, lines, epochs=8)
    assert fitted.steps == 24 and fitted.epochs == 8
    assert fitted.best_score > 0.9
    curve = losses(lines)
    assert curve[24] < curve[1]
    assert {"train/learning_rate", "train/rows_per_second", "train/data_share", "train/accuracy"} <= {name for _, metrics in lines for name in metrics}


def test_equal_seeds_give_equal_weights_and_others_do_not(tmp_path):
    same = [digest(train(tmp_path / name)[0]) for name in ("a", "b")]
    assert same[0] == same[1] != digest(train(tmp_path / "c", seed=1)[0])


PROGRAM = """
import sys, json, pathlib, torch
sys.path[:0] = [{root!r}, {tests!r}]
from toy import train, digest
torch.set_num_threads(1)
lines = []
model, fitted = train(pathlib.Path(sys.argv[1]), lines)
print(json.dumps([digest(model), fitted.steps]))
"""


def run(folder: Path, crash: str = "") -> subprocess.CompletedProcess:
    program = PROGRAM.format(root=str(Path(__file__).parents[2]), tests=str(Path(__file__).parents[1]))
    environment = {**os.environ, "WARMSTART_TESTING": "1", "WARMSTART_CRASH_AT": crash, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", program, str(folder)], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.e2e
def test_a_run_killed_again_and_again_ends_with_the_weights_of_one_that_was_not(tmp_path):
    whole = run(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    for point in ("checkpoint.write", "toy.step:1", "toy.step:5", "checkpoint.manifest", "toy.step:8", "toy.step:12"):
        killed = run(tmp_path / "killed", point)
        assert killed.returncode == -9, (point, killed.stderr)
    again = run(tmp_path / "killed")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(whole.stdout)


def test_a_resumed_curve_goes_on_where_it_was(tmp_path):
    whole: list = []
    train(tmp_path / "whole", whole)

    class Stop(Exception):
        pass

    def stopping(model):
        real, count = model.step, [0]

        def step(batch):
            count[0] += 1
            if count[0] == 8:
                raise Stop
            return real(batch)

        model.step = step
        return model

    first: list = []
    with pytest.raises(Stop):
        train(tmp_path / "part", first, watch=stopping)
    second: list = []
    train(tmp_path / "part", second)
    assert losses(first) | losses(second) == losses(whole)
    assert min(losses(second)) == 8


def always_waiting(monkeypatch) -> list:
    """From the first step on, each share of waiting is too much; gives what the user is told."""
    told: list = []

    class Listener:
        def update(self, stage, done, total, facts):
            pass

        def warn(self, stage, words):
            told.append((stage, words))

    for name, value in (("ml.fit.WAITING_SHARE", -1.0), ("ml.fit.TOLD_SECONDS", 0.0), ("ml.curves.SPEED_SECONDS", 0.0)):
        monkeypatch.setattr(name, value)
    monkeypatch.setattr(progress, "_listener", Listener())
    return told


def test_batches_made_ahead_train_to_the_same_weights(tmp_path, monkeypatch):
    whole = digest(train(tmp_path / "whole")[0])
    always_waiting(monkeypatch)
    makers = set()

    real = Feed.batch

    def batch(self, *arguments):
        makers.add(threading.current_thread().name.partition("_")[0])
        return real(self, *arguments)

    monkeypatch.setattr(Feed, "batch", batch)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(torch.get_num_threads() + 1)))
    assert digest(train(tmp_path / "ahead")[0]) == whole
    assert makers == {"MainThread", "read-ahead"}
    makers.clear()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(torch.get_num_threads())))
    assert digest(train(tmp_path / "beside")[0]) == whole
    assert makers == {"MainThread"}, "no core is free for it"


def test_a_training_that_waits_for_data_is_told_once(tmp_path, monkeypatch):
    told = always_waiting(monkeypatch)
    train(tmp_path / "waiting")
    ((stage, words),) = told
    assert stage == "toy" and "waited for data" in words and "augmentation.preset" in words
    monkeypatch.setattr(loop, "WAITING_SHARE", 1.0)
    train(tmp_path / "busy")
    assert len(told) == 1


def poisoned(at: set[int], forever: bool = False, by: float = float("nan")):
    def watch(model):
        real, count = model.step, [0]

        def step(batch):
            count[0] += 1
            result = real(batch)
            bad = count[0] in at or (forever and count[0] >= min(at))
            return StepResult(result.loss * by, result.extras) if bad else result

        model.step = step
        return model

    return watch


def test_a_loss_that_is_not_finite_goes_back_at_half_the_rate(tmp_path):
    lines: list = []
    model, fitted = train(tmp_path, lines, watch=poisoned({5}))
    assert fitted.steps == 12
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert any(metrics.get("train/returns") == 1 for _, metrics in lines)


def test_before_the_first_checkpoint_it_returns_to_the_first_weights(tmp_path):
    lines: list = []
    model, fitted = train(tmp_path, lines, watch=poisoned({5}), checkpoint_seconds=1000)
    assert fitted.steps == 12
    assert [step for step, metrics in lines if "train/loss" in metrics] == [*range(1, 5), *range(1, 13)]
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_a_loss_that_stays_so_ends_with_the_remedy_and_finite_weights(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"step 5 of 12.*learning_rate") as caught:
        train(tmp_path, watch=poisoned({5}, forever=True))
    assert isinstance(caught.value, InputError)


def test_a_loss_that_leaps_and_stays_finite_costs_no_more_than_its_step(tmp_path):
    """The clipped gradient is as long as any other: neither the weights nor the optimizer's averages remember the leap."""
    last = {}
    for name, watch, clip in (("calm", None, 1), ("leaps", poisoned({5}, by=1e8), 1), ("unclipped", poisoned({5}, by=1e8), 0)):
        lines: list = []
        _, fitted = train(tmp_path / name, lines, epochs=8, clip=clip, **({"watch": watch} if watch else {}))
        curve = losses(lines)
        assert fitted.steps == 24 and not any("train/returns" in metrics for _, metrics in lines)
        assert name == "calm" or curve[5] > 1e6
        last[name] = sum(curve[step] for step in range(20, 25)) / 5
    assert last["leaps"] < 1.1 * last["calm"], last
    assert last["unclipped"] > 1.5 * last["leaps"], "what clipping saves"


def test_a_training_whose_time_is_up_goes_on_later(tmp_path):
    expected, _ = train(tmp_path / "whole", epochs=30)
    steps = []

    def slow(model):
        step = model.step

        def counted(batch):
            steps.append(batch.rows)
            time.sleep(0.01)
            return step(batch)

        model.step = counted
        return model

    with pytest.raises(TimeUp, match=r"its time is up: toy was stopped at step \d+ of 90; the same command goes on"):
        train(tmp_path / "late", watch=slow, epochs=30, compute={"time_limit": 0.3})
    done = len(steps)
    model, fitted = train(tmp_path / "late", watch=slow, epochs=30, compute={"time_limit": 600})
    assert 0 < done < 90 and len(steps) == fitted.steps == 90
    assert digest(model) == digest(expected)


def test_early_stopping_keeps_the_best(tmp_path):
    _, fitted = train(tmp_path, epochs=30, patience=2)
    assert fitted.stopped_early and fitted.epochs < 30
    assert fitted.best_epoch + 1 <= fitted.epochs - 2


def test_a_damaged_newest_checkpoint_costs_steps_and_not_the_result(tmp_path):
    whole = digest(train(tmp_path / "whole")[0])
    run(tmp_path / "killed", "toy.step:7")
    newest = max((tmp_path / "killed" / "checkpoints").glob("step-*/state.pt"))
    newest.write_bytes(newest.read_bytes()[:-20])
    with pytest.warns(RuntimeWarning, match="damaged"):
        model, _ = train(tmp_path / "killed")
    assert digest(model) == whole


@pytest.mark.parametrize("at", ["a step", "the end"])
def test_a_checkpoint_that_cannot_be_written_ends_the_training(tmp_path, at):
    (tmp_path / "checkpoints").write_text("in the way of the folder")
    steps = []

    def watch(model):
        real = model.step
        model.step = lambda batch: (steps.append(1), real(batch))[1]
        return model

    with pytest.raises(OSError, match="File exists"):
        train(tmp_path, watch=watch, epochs=8, checkpoint_seconds=0 if at == "a step" else 1e-9)
    assert len(steps) < 24 if at == "a step" else steps


def test_accumulation_sees_every_row(tmp_path):
    _, fitted = train(tmp_path, accumulate=4)
    assert fitted.steps == 12


def test_nothing_warns(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path)
