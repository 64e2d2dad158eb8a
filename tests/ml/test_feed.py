import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ml.contracts import DataSpec
from ml.feed import Feed, plain_batches, rows_of, seed_of
from ml.modalities import MODALITIES

IMAGE = MODALITIES["image"]


class ToyStore:
    def __init__(self, rows: int):
        self.array = np.random.default_rng(0).integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8)
        self.labels = np.arange(rows) % 3
        self.table = pd.DataFrame({"part": ["train"] * rows})
        self.spec = DataSpec("image", {"size": 8, "channels": 3}, (3, 8, 8), ("a", "b", "c"), {"mean": [0.5] * 3, "std": [0.25] * 3})


def feed(rows: int = 20, batch: int = 6, seed: int = 0, preset: str = "standard", **options) -> Feed:
    store = ToyStore(rows)
    modality = IMAGE(IMAGE.Options(size=8, channels=3))
    return Feed(store, modality, np.arange(rows), batch, seed, torch.device("cpu"), IMAGE.presets[preset](store.spec), **options)


@given(rows=st.integers(1, 60), batch=st.integers(1, 64), epoch=st.integers(0, 3), accumulate=st.integers(1, 4))
def test_an_epoch_sees_every_row_once_in_batches_of_nearly_one_size(rows, batch, epoch, accumulate):
    one = feed(rows, batch, preset="none", accumulate=accumulate)
    sizes = [sum(len(part.targets_B) for part in parts) for _, parts in one.batches(epoch)]
    assert sum(sizes) == rows and len(sizes) == one.steps
    assert max(sizes) - min(sizes) <= 1
    assert sorted(one.order(epoch)) == list(range(rows))


def test_epochs_and_seeds_differ_and_repeat():
    orders = [feed(seed=seed).order(epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == feed(seed=0).order(0).tolist()


def test_a_start_in_the_middle_gives_the_same_batches():
    whole = dict(feed().batches(2))
    for step, parts in feed().batches(2, start=2):
        assert torch.equal(parts[0].inputs["image"], whole[step][0].inputs["image"])
        assert torch.equal(parts[0].targets_B, whole[step][0].targets_B)


def test_views_differ_from_each_other():
    _, (batch,) = next(feed(views=2, preset="contrastive").batches(0))
    first, second = (view["image"] for view in batch.views)
    assert first.shape == second.shape and not torch.equal(first, second)


def test_weights_even_out_the_classes():
    one = feed(300, 50)
    rare = one.store.labels == 2
    weights = np.where(rare, 10.0, 1.0)
    drawn = Feed(one.store, one.modality, one.rows, 50, 0, one.device, one.augmentation, weights=weights).order(0)
    assert len(drawn) == 300 and rare[drawn].mean() > 0.6


def test_plain_batches_keep_order_and_draw_nothing():
    store = ToyStore(10)
    modality = IMAGE(IMAGE.Options(size=8, channels=3))
    parts = [inputs["image"] for inputs in plain_batches(store, modality, np.array([3, 1, 7]), torch.device("cpu"), batch_size=2)]
    expected = modality.encode(torch.from_numpy(store.array[[3, 1, 7]]), store.spec)["image"]
    assert torch.equal(torch.cat(parts), expected)


def test_rows_of_parts():
    store = ToyStore(4)
    store.table = pd.DataFrame({"part": ["train", "test", "unlabelled", "train"]})
    assert rows_of(store, "train", "unlabelled").tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("parts", "seed"), [((0,), 4761921975702974394), ((0, "a"), 6612858177627257344), ((7, "order", 3), 2396369170524145093)]
)
def test_seeds_stay_what_they_are(parts, seed):
    """Another value here would change the result of every recipe."""
    assert seed_of(*parts) == seed
