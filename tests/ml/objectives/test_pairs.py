"""Contrastive pairs: the loss is InfoNCE in both directions, what is the same is no wrong answer, and what has no target counts for nothing."""

import math

import pytest
import torch
from torch.nn import functional as F

from ml.backbones.bart import Bart
from ml.backbones.bert import Bert
from ml.backbones.gpt import Gpt
from ml.backbones.text_cnn import TextCnn
from ml.contracts import Batch, DataSpec
from ml.losses import contrast
from ml.objectives.pairs import Pairs
from ml.objectives.simclr import SimCLR

VOCABULARY, LENGTH = 50, 12
MARKS = {"pad": 0, "unknown": 1, "begin": 2, "end": 3, "mask": 4}
SPEC = DataSpec("text-pair", {"vocabulary": VOCABULARY}, (LENGTH,), (), {"tokens": MARKS})
BACKBONES = [(TextCnn, {"width": 32, "depth": 0}), (TextCnn, {"width": 32, "depth": 1}), (Bert, {"size": "tiny"}), (Gpt, {"size": "nano"}), (Bart, {"size": "nano"})]


def make(backbone=TextCnn, options=None, **own):
    torch.manual_seed(0)
    return Pairs(Pairs.Options(**own), backbone(backbone.Options(**(options or {"width": 32, "depth": 0}), dropout=0.0), SPEC), SPEC)


def padded(rows):
    tokens = torch.tensor([[*row, *[0] * (LENGTH - len(row))] for row in rows])
    return tokens, torch.tensor([[place < len(row) for place in range(LENGTH)] for row in rows])


def batch(pairs):
    (tokens, mask), (target, target_mask) = (padded([[2, *words, 3] if words else [] for words in side]) for side in zip(*pairs, strict=True))
    return Batch({"tokens": tokens, "mask": mask, "target": target, "target_mask": target_mask}, torch.zeros(len(pairs), dtype=torch.long))


DATA = batch([((5 + k, 6 + k, 7 + k), (30 + k, 29 + k)) for k in range(8)])


def test_loss_is_infonce_in_both_directions():
    made = make()
    result = made.step(DATA)
    source, target = (F.normalize(made.backbone.encode({"tokens": DATA.inputs[a], "mask": DATA.inputs[b]}).pooled_BD, dim=1) for a, b in (("tokens", "mask"), ("target", "target_mask")))
    cosine = source @ target.T / 0.05
    expected = (F.cross_entropy(cosine, torch.arange(8)) + F.cross_entropy(cosine.T, torch.arange(8))) / 2
    torch.testing.assert_close(result.loss, expected)
    assert set(result.extras) == {"contrastive_accuracy", "feature_spread"} and not any(value.requires_grad for value in result.extras.values())


@pytest.mark.parametrize(("backbone", "options"), BACKBONES)
def test_learns_pairs_by_heart_with_every_backbone(backbone, options):
    assert SPEC.modality in backbone.modalities and Pairs.needs <= backbone.traits
    made = make(backbone, options).train()
    optimizer = torch.optim.AdamW(made.parameters(), 1e-3)
    for step in range(25):
        result = made.step(DATA)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        if not step:
            first = float(result.loss.detach())
    assert float(result.loss.detach()) < 0.5 * first


@pytest.mark.parametrize("copied", [0, 1])
def test_pairs_with_an_equal_side_are_no_wrong_answers(copied):
    """What a pair with the same source, or the same target, holds changes neither of their losses."""
    pairs = [[(5, 6), (30, 31)], [(7, 8), (32, 33)], [(9,), (34,)]]
    pairs[1][copied] = pairs[0][copied]
    made = make()
    features = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    same = torch.eye(3, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    expected = contrast(*features.chunk(2), 0.05, same, torch.ones(3, dtype=torch.bool))
    made.backbone.encode = lambda inputs: type("Features", (), {"pooled_BD": features})
    torch.testing.assert_close(made.step(batch(pairs)).loss, expected.loss)
    assert made.step(batch([[(5, 6), (30, 31)], [(7, 8), (32, 33)], [(9,), (34,)]])).loss != expected.loss


def test_a_lone_pair_and_identical_ones_have_nothing_to_find():
    for pairs in ([((5, 6), (30,))], [((5, 6), (30,))] * 4):
        result = make().step(batch(pairs))
        result.loss.backward()
        assert float(result.loss.detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("backbone", "options"), BACKBONES)
def test_what_has_no_target_counts_for_nothing(backbone, options):
    pairs = [((5, 6, 7), (30, 31)), ((8, 9), (33, 32)), ((10,), (34, 35, 36))]
    made = make(backbone, options).eval()
    alone = made.step(batch(pairs))
    among = made.step(batch([*pairs, ((11, 12), ()), ((13,), ())]))
    among.loss.backward()
    torch.testing.assert_close(among.loss, alone.loss, rtol=1e-4, atol=1e-5)
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters() if parameter.grad is not None)
    none = made.step(batch([((11, 12), ()), ((13,), ())]))
    none.loss.backward()
    assert float(none.loss.detach()) == 0
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters() if parameter.grad is not None)


def test_padding_changes_nothing():
    changed = {name: DATA.inputs[name].masked_fill(~DATA.inputs[mask], 20) for name, mask in (("tokens", "mask"), ("target", "target_mask"))}
    made = make()
    torch.testing.assert_close(made.step(Batch({**DATA.inputs, **changed}, DATA.targets_B)).loss, made.step(DATA).loss)


def test_bfloat16_gives_nearly_the_same_loss():
    made, found = make(Bert, {"size": "tiny"}), []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            result = made.step(DATA)
        result.loss.backward()
        assert result.loss.dtype == torch.float32
        found.append(float(result.loss.detach()))
    assert found[1] == pytest.approx(found[0], rel=0.1)


@pytest.mark.parametrize(("backbone", "options"), BACKBONES)
def test_simclr_without_augmentation_is_simcse(backbone, options):
    """Two views that are the same texts differ by dropout alone; it learns to tell texts apart by them."""
    torch.manual_seed(0)
    spec = DataSpec("text", SPEC.options, SPEC.shape, (), SPEC.statistics)
    made = SimCLR(SimCLR.Options(output=0, temperature=0.05), backbone(backbone.Options(**options, dropout=0.2), spec), spec).train()
    view = {name: DATA.inputs[name] for name in ("tokens", "mask")}
    encoded = made.backbone.encode({name: torch.cat([value, value]) for name, value in view.items()}).pooled_BD
    assert (encoded[:8] - encoded[8:]).abs().max() > 1e-3
    data = Batch(view, DATA.targets_B, views=(view, view))
    losses = []
    optimizer = torch.optim.AdamW(made.parameters(), 1e-3)
    for step in range(15):
        torch.manual_seed(step)
        result = made.step(data)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        losses.append(float(result.loss.detach()))
    assert 0 < sum(losses[-3:]) < sum(losses[:3]) and losses[0] < 2 * math.log(15)
    made.eval()
    first, second = made.backbone.encode(view).pooled_BD, made.backbone.encode(view).pooled_BD
    torch.testing.assert_close(first, second)
