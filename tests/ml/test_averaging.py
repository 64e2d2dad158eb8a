import pytest
import torch
from torch import nn

from ml.averaging import average, swapped, weights_of
from ml.determinism import determinism, is_deterministic
from ml.recipe import Compute


def test_the_average_is_the_recurrence_and_counters_are_copied():
    module = nn.BatchNorm1d(3)
    ema = weights_of(module)
    with torch.no_grad():
        module.weight.fill_(3.0)
        module.num_batches_tracked.fill_(7)
    average(ema, module, 0.75)
    assert torch.allclose(ema["weight"], torch.full((3,), 0.75 * 1 + 0.25 * 3))
    assert ema["num_batches_tracked"] == 7


def test_copies_do_not_follow_the_module():
    module = nn.Linear(2, 2)
    kept = weights_of(module)
    with torch.no_grad():
        module.weight.add_(1)
    assert not torch.equal(kept["weight"], module.weight)


def test_swapped_weights_come_back_even_after_an_error():
    module = nn.Linear(2, 2)
    before = weights_of(module)
    with pytest.raises(RuntimeError, match="inside"), swapped(module, {name: value + 1 for name, value in before.items()}):
        assert torch.equal(module.weight, before["weight"] + 1)
        raise RuntimeError("inside")
    assert torch.equal(module.weight, before["weight"])


@pytest.mark.parametrize(("asked", "device", "expected"), [(None, "cpu", True), (None, "cuda", False), (False, "cpu", False), (True, "cuda", True)])
def test_a_cpu_is_deterministic_unless_told_otherwise(asked, device, expected):
    assert is_deterministic(Compute(deterministic=asked), torch.device(device)) is expected


def test_determinism_is_for_the_block_alone():
    before = torch.are_deterministic_algorithms_enabled()
    with determinism(not before):
        assert torch.are_deterministic_algorithms_enabled() is not before
    assert torch.are_deterministic_algorithms_enabled() is before
