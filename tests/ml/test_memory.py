"""A training whose memory runs out goes on with fewer rows at once, and ends where it would have ended with as few from the start."""

import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from toy import digest, losses, train

from ml.contracts import InputError
from ml.memory import ran_out
from ml.model import Model

EACH = 400_000_000  # bytes that a row takes for a moment, of addresses alone
MORE = 7_200_000_000  # bytes that there are beside what the process has, which may give some back meanwhile


class Hungry(Model):
    def step(self, batch):
        torch.empty(batch.rows * EACH, dtype=torch.uint8)
        return super().step(batch)


def hungry(model):
    model.__class__ = Hungry
    return model


@contextmanager
def little_memory():
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + MORE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_fewer_rows_at_once_give_the_same_update(tmp_path, caplog):
    found, expected = [], []
    other, _ = train(tmp_path / "enough", expected, batch_size=48, accumulate=4)  # first: it loads what memory has to hold
    with little_memory():  # 48 rows and 24 are too many, 12 are not
        model, fitted = train(tmp_path / "little", found, watch=hungry, batch_size=48)
    assert fitted.accumulate == 4 and "memory ran out with 24 rows" in caplog.text
    assert losses(found) == losses(expected)
    assert digest(model) == digest(other)


class HungryLater(Model):
    """Has enough for the first part of an update, and breaks off in the second."""

    calls = 0

    def step(self, batch):
        HungryLater.calls += 1
        result = super().step(batch)  # which moves running statistics
        if HungryLater.calls == 2:
            raise MemoryError
        return result


def test_an_update_that_broke_off_leaves_no_trace(tmp_path, monkeypatch, caplog):
    def later(model):
        model.__class__ = HungryLater
        return model

    monkeypatch.setattr(HungryLater, "calls", 0)
    expected, _ = train(tmp_path / "enough", batch_size=48, accumulate=4)
    model, fitted = train(tmp_path / "late", watch=later, batch_size=48, accumulate=2)
    assert fitted.accumulate == 4 and fitted.steps == 4 and "memory ran out with 24 rows" in caplog.text
    assert digest(model) == digest(expected)


def test_a_probe_that_runs_out_is_made_on_fewer_rows(tmp_path, caplog):
    train(tmp_path / "warm", batch_size=48, compute={"deterministic": False, "compile": "never"})
    with little_memory():
        _, fitted = train(tmp_path / "little", watch=hungry, batch_size=48, compute={"deterministic": False, "compile": "never"})
    assert fitted.accumulate >= 4 and fitted.steps == 4 and "memory ran out with 48 rows" in caplog.text


def test_what_needs_too_much_for_a_row_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.EACH", 20 * EACH)
    with little_memory(), pytest.raises(InputError, match=r"memory ran out in toy, with 3 rows at once.*compute\.recompute=true"):
        train(tmp_path, watch=hungry, batch_size=48)


def test_other_errors_are_not_taken_for_it():
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) and not ran_out(ValueError("out of memory"))
    assert ran_out(MemoryError()) and ran_out(torch.OutOfMemoryError())
