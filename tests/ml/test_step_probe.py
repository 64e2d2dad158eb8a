"""What a probe finds is one of what the recipe allows, and is remembered."""

import json
import time

import pytest
import torch
from torch import nn
from toy import losses, train

from ml import step_probe
from ml.contracts import Batch, InputError, StepResult
from ml.recipe import Compute
from ml.step_probe import How, how_to_step


class Network(nn.Module):
    """Slow in the layout that its pictures do not have, where `slow` says so."""

    def __init__(self, slow: bool = False):
        super().__init__()
        self.layer, self.slow = nn.Conv2d(3, 4, 3), slow

    def step(self, batch: Batch) -> StepResult:
        if self.slow and not batch.inputs["image"].is_contiguous():
            time.sleep(0.02)
        return StepResult(self.layer(batch.inputs["image"]).square().mean())


def batch() -> Batch:
    return Batch({"image": torch.rand(4, 3, 8, 8).to(memory_format=torch.channels_last)}, torch.zeros(4, dtype=torch.long))


def test_a_run_that_must_repeat_is_not_timed(tmp_path):
    assert how_to_step(Network(), batch, Compute(), True, 10**9, tmp_path / "probes.json") == How("float32", True, False)
    assert how_to_step(Network(), batch, Compute(precision="bfloat16", compile="always"), True, 1, tmp_path / "probes.json") == How("bfloat16", True, True)
    assert not list(tmp_path.iterdir())


def test_the_faster_layout_is_found_once(tmp_path, monkeypatch):
    memory = tmp_path / "probes.json"
    given = [Compute(precision="float32", compile="never"), False, 100, memory]
    network = Network(slow=True)
    first = {name: value.clone() for name, value in network.state_dict().items()}
    assert how_to_step(network, batch, *given) == How("float32", False, False)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in first.items())
    monkeypatch.setattr(step_probe, "_timed", None)
    assert how_to_step(Network(slow=True), batch, *given) == How("float32", False, False)
    with pytest.raises(TypeError):  # what the recipe leaves open differs
        how_to_step(network, batch, Compute(), *given[1:])


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": {"precision": "float32"}}'])
def test_a_damaged_memory_is_forgotten(tmp_path, content):
    memory = tmp_path / "probes.json"
    memory.write_text(content)
    how = how_to_step(Network(), batch, Compute(), False, 100, memory)
    assert how.precision in ("float32", "bfloat16") and not how.compiled
    assert list(json.loads(memory.read_text()).values()) == [vars(how)]


@pytest.mark.parametrize(("faster", "steps", "compiled"), [(0.5, 10**6, True), (0.5, 100, False), (1.5, 10**6, False)])
def test_compilation_has_to_pay(tmp_path, monkeypatch, faster, steps, compiled):
    """It costs its own time, here none; a second a step is saved or lost, or so few steps that it is not tried."""
    tried = []

    def timed(module, batch, candidates):
        tried.extend(candidates)
        return {how: faster if how.compiled else 1.0 for how in candidates}

    monkeypatch.setattr(step_probe, "_timed", timed)
    found = how_to_step(Network(), batch, Compute(precision="float32"), False, steps, tmp_path / "probes.json")
    assert found.compiled == compiled and any(how.compiled for how in tried) == (steps > 600)


def test_compilation_without_a_compiler_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"C\+\+ compiler.*compute\.compile=auto"):
        how_to_step(Network(), batch, Compute(compile="always"), True, 1, tmp_path / "probes.json")


def test_compiled_steps_learn_the_same(tmp_path):
    eager, compiled = [], []
    train(tmp_path / "eager", eager, dropout=0)
    _, fitted = train(tmp_path / "compiled", compiled, dropout=0, compute={"compile": "always"})
    assert fitted.how["compiled"]
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-3)
