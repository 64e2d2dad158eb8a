"""Checkpoints beside a training: the newest is copied and the older go, it is taken up where there is none newer, and a storage that is away stops nothing."""

import time
import uuid
from pathlib import Path

import pytest
import torch

from ml import checkpoint, copies, progress, remote
from ml.contracts import InputError
from ml.copies import copied
from ml.remote import Remote


@pytest.fixture
def storage(tmp_path) -> Remote:
    return Remote(str(tmp_path / "storage"))


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    found = []
    monkeypatch.setattr(progress, "warn", lambda stage, words: found.append(words))
    return found


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(copies, "LOOK", 0.01)
    for module in (copies, remote):
        monkeypatch.setattr(module, "AWAY", 0.1)


def save(workdir: Path, step: int) -> None:
    checkpoint.save(workdir / "checkpoints", step, {"step": step, "weight": torch.full((3,), float(step))})


def train(workdir: Path, storage: Remote, steps, begun: bool = False, wait: bool = True) -> int:
    """A training that only keeps checkpoints; the step that it goes on from."""
    workdir.mkdir(exist_ok=True)
    with copied(workdir, storage, "pretrain", begun, ["metrics.jsonl"]) as fetched:
        if fetched is not None:
            (workdir / "fetched.jsonl").write_bytes((fetched / "metrics.jsonl").read_bytes())
        saved = checkpoint.load(workdir / "checkpoints") or {"step": 0}
        for step in steps:
            (workdir / "metrics.jsonl").write_text(f"{step}\n")
            save(workdir, step)
            if wait:
                until(lambda name=f"step-{step:09d}": storage.holds(name) and [one for one in storage.names() if one.startswith("step-0")] == [name])
    return saved["step"]


def until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_the_newest_is_there_and_taken_up_on_an_empty_machine(tmp_path, storage, warned):
    train(tmp_path / "a", storage, [1, 2, 3])
    assert storage.names() == ["step-000000003"]
    assert train(tmp_path / "b", storage, [], begun=True) == 3
    assert (tmp_path / "b" / "fetched.jsonl").read_text() == "3\n"
    assert train(tmp_path / "c", storage, []) == 0, "a new training takes up nothing"
    assert warned == [] and not (tmp_path / "a" / "copied").exists()


@pytest.mark.parametrize(("here", "goes_on"), [([], 5), ([4], 5), ([4, 5], 5), ([6], 6)])
def test_what_is_newer_counts(tmp_path, storage, here, goes_on):
    train(tmp_path / "a", storage, [5])
    (tmp_path / "b").mkdir()
    for step in here:
        save(tmp_path / "b", step)
    assert train(tmp_path / "b", storage, [], begun=True) == goes_on
    assert (tmp_path / "b" / "fetched.jsonl").exists() == (goes_on not in here)


def test_a_damaged_one_of_this_machine_counts_as_none(tmp_path, storage, warned):
    train(tmp_path / "a", storage, [5])
    train(tmp_path / "b", Remote(f"memory://{uuid.uuid4().hex}"), [5])
    (tmp_path / "b" / "checkpoints" / "step-000000005" / "state.pt").write_bytes(b"no")
    assert train(tmp_path / "b", storage, [], begun=True) == 5 and warned == []


def test_a_damaged_copy_is_passed_over(tmp_path, storage, warned):
    train(tmp_path / "a", storage, [4])
    storage.publish(next((tmp_path / "a" / "checkpoints").iterdir()), "step-000000007")
    next((tmp_path / "storage" / "step-000000007").glob("*state.pt")).write_bytes(b"no")
    (tmp_path / "storage" / "step-000000009").mkdir()  # of a machine that died while it copied
    assert train(tmp_path / "b", storage, [], begun=True) == 4
    assert len(warned) == 1 and "passes over a checkpoint" in warned[0] and "state.pt" in warned[0]


def test_what_is_no_checkpoint_is_left_alone(tmp_path, storage, monkeypatch):
    """A bucket may hold the name "..", which would lead out of the training's folder."""
    for name in ("own", "zzz", "step-x"):
        (tmp_path / "storage" / name).mkdir(parents=True)
    train(tmp_path / "a", storage, [1, 2])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").touch()
    names = Remote.names
    monkeypatch.setattr(Remote, "names", lambda self: [*names(self), "..", "zzz"])
    assert train(tmp_path / "b", storage, [], begun=True) == 2
    assert (tmp_path / "b" / "mine").exists() and {"own", "zzz", "step-x"} <= set(storage.names())


def test_a_storage_that_is_away_stops_no_training_and_is_told_once(tmp_path, storage, warned):
    place = tmp_path / "storage"
    place.write_bytes(b"in the way")
    (tmp_path / "a").mkdir()
    with copied(tmp_path / "a", storage, "pretrain", False):
        save(tmp_path / "a", 1)
        until(lambda: warned)
        save(tmp_path / "a", 2)
        time.sleep(0.3)
        place.unlink()
        until(lambda: storage._state.away_until < time.monotonic() and storage.holds("step-000000002"))
    assert len(warned) == 1 and "its checkpoints stay on this machine until" in warned[0]


def test_what_is_needed_to_go_on_must_be_readable(tmp_path, storage, warned):
    (tmp_path / "storage").write_bytes(b"in the way")
    with pytest.raises(InputError, match=r"begun elsewhere .* cannot be used .* without WARMSTART_STORAGE"):
        train(tmp_path / "a", storage.within("run"), [], begun=True)
    save(tmp_path / "b", 3)
    assert train(tmp_path / "b", storage.within("run"), [], begun=True) == 3
    assert len(warned) == 1 and "there may be a newer one" in warned[0]


def test_the_last_checkpoint_of_a_training_that_stops_is_copied(tmp_path, storage, monkeypatch):
    monkeypatch.setattr(copies, "LOOK", 100.0)
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyboardInterrupt), copied(tmp_path / "a", storage, "pretrain", False):
        save(tmp_path / "a", 8)
        raise KeyboardInterrupt
    assert storage.names() == ["step-000000008"] and storage.holds("step-000000008")


def test_copies_of_many_quick_checkpoints_are_whole(tmp_path, storage, warned):
    """Checkpoints that are removed while they are copied, as fast as they come."""
    train(tmp_path / "a", storage, range(1, 120), wait=False)
    for name in storage.names():
        if storage.holds(name):
            storage.fetch(name, tmp_path / "b" / name)
    assert checkpoint.load(tmp_path / "b")["step"] > 0 and warned == []
