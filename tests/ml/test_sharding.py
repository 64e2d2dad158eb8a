"""Under the strategy fsdp each of two ranks holds half of everything, and what is not divided as it must be is refused."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ml.contracts import InputError
from ml.sharding import Sharded
from ml.shards import part, placed, whole
from ml.step_probe import How, Step

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What two ranks found; see sharding_program.py."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    program = [sys.executable, str(Path(__file__).with_name("sharding_program.py")), str(folder)]
    running = [subprocess.Popen(program, env={**shared, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True) for rank in range(2)]
    said = [process.communicate(timeout=200)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("what", ["parameters", "gradients", "moments"])
def test_each_rank_holds_half(what, found):
    assert [rank[what] for rank in found] == pytest.approx([0.5, 0.5], abs=0.01)
    assert sum(rank[what] for rank in found) == pytest.approx(1.0)


def test_layers_are_gathered_one_after_the_other(found):
    """Of six that are alike; with one at work, the next may be on its way."""
    assert all(0.1 < rank["gathered"] < 0.45 for rank in found)


def test_what_is_put_together_again_is_what_was_divided(found):
    assert all(rank["placed"] for rank in found)
    assert [len(rank["whole"]) > 10 for rank in found] == [True, False]


def test_all_ranks_leave_out_a_step_of_float16_that_one_has_an_infinity_in(found):
    assert not any(rank["steps on infinity"] for rank in found)


def test_plain_tensors_are_whole_and_parts_at_once():
    value = torch.rand(3, 2)
    content = {"a": [value, 1], "b": None}
    assert part(value) is value and whole(content)["a"][0] is value and whole(content) == content
    like = torch.empty(1, 4, 5, 5).to(memory_format=torch.channels_last)
    assert placed(torch.rand(1, 4, 5, 5), like).stride() == like.stride()


def test_a_single_number_cannot_be_divided():
    module = nn.Module()
    module.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(InputError, match=r"module\.scale is a single number.*compute\.strategy=ddp"):
        Sharded(Step(module, How()), [], torch.device("cpu"))
