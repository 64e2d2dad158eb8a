"""Text infilling: spans are hidden behind one mask each, either side of a pair is written again, and padding counts for nothing."""

import math
from itertools import pairwise

import pytest
import torch

from ml.backbones.bart import Bart
from ml.contracts import Batch, DataSpec, InputError
from ml.objectives.span_corruption import SpanCorruption

VOCABULARY, LENGTH = 50, 24
MARKS = {"pad": 0, "unknown": 1, "begin": 2, "end": 3, "mask": 4}
SPEC = DataSpec("text", {"vocabulary": VOCABULARY}, (LENGTH,), (), {"tokens": MARKS})


def make(dropout=0.0, **own):
    torch.manual_seed(0)
    return SpanCorruption(SpanCorruption.Options(**own), Bart(Bart.Options(size="nano", dropout=dropout), SPEC), SPEC)


def texts(lengths, padded, start=5):
    """Each text counts upwards from a number of its own."""
    tokens, mask = torch.zeros(len(lengths), padded, dtype=torch.long), torch.zeros(len(lengths), padded, dtype=torch.bool)
    for row, length in enumerate(lengths):
        words = start + (row + torch.arange(length - 2)) % (VOCABULARY - start)
        tokens[row, :length], mask[row, :length] = torch.cat([torch.tensor([2]), words, torch.tensor([3])]), True
    return tokens, mask


def batch(pairs=False):
    tokens, mask = texts([12, 9, 5, 20], LENGTH)
    inputs = {"tokens": tokens, "mask": mask}
    if pairs:
        inputs["target"], inputs["target_mask"] = texts([9, 7, 12], 16, start=25)[0], texts([9, 7, 12], 16)[1]
        inputs["target"], inputs["target_mask"] = (torch.cat([one, one.new_zeros(1, 16)]) for one in (inputs["target"], inputs["target_mask"]))
    return Batch(inputs, torch.full((4,), -1))


def decode(ids):
    return " ".join(str(one) for one in ids if one not in MARKS.values())


@pytest.mark.parametrize("pairs", [False, True])
def test_learns_and_starts_without_a_guess(pairs):
    made = make().train()
    optimizer, losses = torch.optim.AdamW(made.parameters(), 3e-3), []
    for step in range(40):
        torch.manual_seed(step)
        loss = made.step(batch(pairs)).loss
        optimizer.zero_grad()
        loss.backward()
        assert step or not [name for name, parameter in made.named_parameters() if parameter.grad is None]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(math.log(VOCABULARY), abs=0.5)
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]


def test_each_hidden_span_is_one_mask_and_the_rest_stays():
    made, hidden, total, spans = make(rate=0.3, span=3), 0, 0, 0
    torch.manual_seed(0)
    tokens, mask = texts([LENGTH - row % 5 for row in range(400)], LENGTH)
    seen = made._corrupted(tokens, mask)
    for row in range(len(tokens)):
        whole, given = tokens[row][mask[row]].tolist(), seen["tokens"][row][seen["mask"][row]].tolist()
        assert (given[0], given[-1]) == (2, 3) and MARKS["mask"] not in [one for one, after in pairwise(given) if one == after]
        kept = [token for token in given if token != MARKS["mask"]]
        rest = iter(whole)
        assert all(token in rest for token in kept)  # in their order
        hidden, total, spans = hidden + len(whole) - len(kept), total + len(whole) - 2, spans + given.count(MARKS["mask"])
        assert set(seen["tokens"][row][~seen["mask"][row]].tolist()) <= {MARKS["pad"]}
    assert hidden / total == pytest.approx(0.3, abs=0.04)
    assert 2.5 < hidden / spans < 4.5


def test_a_seed_repeats_a_step():
    made, found = make(dropout=0.1).train(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(float(made.step(batch()).loss.detach()))
    assert found[0] == found[1] != found[2]


def test_bfloat16_gives_nearly_the_same_loss():
    made, found = make(), []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            result = made.step(batch())
        assert result.loss.dtype == torch.float32 and not any(value.requires_grad for value in result.extras.values())
        found.append(float(result.loss.detach()))
    assert found[1] == pytest.approx(found[0], rel=0.1)


def test_padding_and_missing_targets_count_for_nothing():
    made, data, found = make().eval(), batch(pairs=True), []
    for token in (0, 20):
        changed = {name: data.inputs[name].masked_fill(~data.inputs[mask], token) for name, mask in (("tokens", "mask"), ("target", "target_mask"))}
        torch.manual_seed(0)
        found.append(made.step(Batch({**data.inputs, **changed}, data.targets_B)).loss)
    torch.testing.assert_close(found[0], found[1])
    alone = Batch({"tokens": torch.zeros(2, 4, dtype=torch.long), "mask": torch.zeros(2, 4, dtype=torch.bool)}, torch.full((2,), -1))
    assert float(made.step(alone).loss.detach()) == 0


def test_examples_show_masks_and_what_is_written():
    made = make(rate=0.5).eval()
    torch.manual_seed(0)
    shown = made.examples(batch(), decode)
    assert len(shown) == 4 and all(" -> " in line for line in shown) and any("[MASK]" in line for line in shown)


def test_it_needs_a_mask_token():
    spec = DataSpec("text", SPEC.options, SPEC.shape, (), {"tokens": MARKS | {"mask": None}})
    with pytest.raises(InputError, match="no mask token"):
        SpanCorruption(SpanCorruption.Options(), make().backbone, spec)
