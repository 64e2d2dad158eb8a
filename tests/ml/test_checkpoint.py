import subprocess
import sys

import pytest
import torch
from full_disk import no_room
from hypothesis import given, settings
from hypothesis import strategies as st
from often import times

from ml import checkpoint
from ml.checkpoint_writer import Writer
from ml.contracts import InputError


def state(step: int) -> dict:
    return {"step": step, "weights": {"w": torch.full((64,), float(step))}}


def test_the_newest_is_loaded_and_two_are_kept(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, state(step))
    assert checkpoint.load(tmp_path)["step"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000002", "step-000000003"]


def test_nothing_there_is_none(tmp_path):
    assert checkpoint.load(tmp_path / "absent") is None


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@settings(max_examples=times(60, 500), deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans(), name=st.sampled_from(["state.pt", "manifest.json"]))
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path_factory, position, bit, cut, name):
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (1, 2):
        checkpoint.save(folder, step, state(step))
    file = folder / "step-000000002" / name
    data = bytearray(file.read_bytes())
    where = int(position * len(data))
    if cut:
        data = data[:where]
    else:
        data[where] ^= 1 << bit
    file.write_bytes(data)
    with pytest.warns(RuntimeWarning, match="damaged") if not still_good(folder, name) else no_warning():
        loaded = checkpoint.load(folder)
    assert loaded["step"] in ((1, 2) if name == "manifest.json" else (1,))
    assert torch.equal(loaded["weights"]["w"], torch.full((64,), float(loaded["step"])))


def still_good(folder, name) -> bool:
    """A flipped bit in the manifest may leave its meaning as it was (in the step, which is only told)."""
    if name != "manifest.json":
        return False
    try:
        import hashlib
        import json

        newest = folder / "step-000000002"
        return json.loads((newest / name).read_text())["sha256"]["state.pt"] == hashlib.sha256((newest / "state.pt").read_bytes()).hexdigest()
    except (ValueError, KeyError, TypeError):
        return False


def no_warning():
    import contextlib

    return contextlib.nullcontext()


@pytest.mark.parametrize("point", ["checkpoint.write", "checkpoint.manifest"])
def test_a_kill_while_saving_leaves_the_one_before(tmp_path, point):
    program = (
        "import os, sys, torch\nfrom ml import checkpoint\n"
        "checkpoint.save(__import__('pathlib').Path(sys.argv[1]), 1, {'step': 1})\n"
        f"os.environ.update(WARMSTART_TESTING='1', WARMSTART_CRASH_AT={point!r})\n"
        "checkpoint.save(__import__('pathlib').Path(sys.argv[1]), 2, {'step': 2})\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert ended.returncode == -9
    if point == "checkpoint.manifest":  # renamed, but without what vouches for it
        with pytest.warns(RuntimeWarning, match="damaged"):
            assert checkpoint.load(tmp_path)["step"] == 1
    else:
        assert checkpoint.load(tmp_path)["step"] == 1
    assert not list(tmp_path.glob("tmp-*"))


@pytest.mark.parametrize("most", [0, 3000, 50_000])
def test_a_place_that_cannot_be_written_is_named(tmp_path, most):
    checkpoint.save(tmp_path, 1, state(1))
    with no_room(most), pytest.raises(InputError, match=r"cannot write a checkpoint.*File too large.*Make room"):
        checkpoint.save(tmp_path, 2, {"large": torch.zeros(50_000), "other": torch.ones(50_000)})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_what_fails_beside_the_training_is_raised_there_and_the_next_write_goes_on(tmp_path):
    with Writer(tmp_path, every=0) as writer:
        with no_room(3000):
            writer.save(1, {"large": torch.zeros(50_000)})
            with pytest.raises(InputError, match="cannot write a checkpoint"):
                writer.wait()
        writer.save(2, state(2))
    assert checkpoint.load(tmp_path)["step"] == 2
    with pytest.raises(InputError, match="cannot write a checkpoint"), Writer(tmp_path, every=0) as writer, no_room(3000):
        writer.save(3, {"large": torch.zeros(50_000)})
        writer._thread.shutdown()  # it fails before there is room again


def test_a_training_that_goes_on_does_not_reach_what_is_being_written(tmp_path):
    weights = torch.zeros(200_000)
    with Writer(tmp_path, every=0) as writer:
        for step in range(1, 6):
            weights.fill_(step)
            writer.save(step, {"step": step, "weights": weights, "again": weights.view(-1)})
            weights.fill_(-1)
            writer.wait()
            kept = checkpoint.load(tmp_path)
            assert kept["step"] == step and (kept["weights"] == step).all()
    assert (tmp_path / "step-000000005" / "state.pt").stat().st_size < 1.5 * weights.nbytes, "one memory is written once"


def test_a_state_is_written_as_it_is(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(2, 3, 8, 8)).sum().backward()
    with Writer(tmp_path, every=0) as writer:
        for step in (1, 2):  # the optimizer's state is new in the second one
            writer.save(step, {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "best": None, "pair": [1, (2.5, "three")]})
            writer.wait()
            kept = checkpoint.load(tmp_path)
            assert kept["pair"] == [1, (2.5, "three")] and kept["best"] is None
            assert kept["module"]._metadata == module.state_dict()._metadata
            for name, value in module.state_dict().items():
                assert torch.equal(kept["module"][name], value) and kept["module"][name].stride() == value.stride()
            for number, values in optimizer.state_dict()["state"].items():
                assert all(torch.equal(kept["optimizer"]["state"][number][name], value) for name, value in values.items())
            optimizer.step()
