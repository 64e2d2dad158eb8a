from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ml.contracts import UNLABELLED, DataSpec
from ml.feed import BUCKET, Feed, plain_batches, rows_of, seed_of, stream
from ml.modalities import MODALITIES
from ml.ragged import Ragged

IMAGE, TEXT = MODALITIES["image"], MODALITIES["text"]
TOKENS = {"pad": 0, "unknown": 1, "begin": 2, "end": 3, "mask": 4}


class ToyStore:
    def __init__(self, rows: int):
        self.array = np.random.default_rng(0).integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8)
        self.labels = np.arange(rows) % 3
        self.table = pd.DataFrame({"part": ["train"] * rows})
        self.spec = DataSpec("image", {"size": 8, "channels": 3}, (3, 8, 8), ("a", "b", "c"), {"mean": [0.5] * 3, "std": [0.25] * 3})

    def targets(self, numbers):
        return self.labels[numbers]


def feed(rows: int = 20, batch: int = 6, seed: int = 0, preset: str = "standard", **options) -> Feed:
    store = ToyStore(rows)
    modality = IMAGE(IMAGE.Options(size=8, channels=3))
    return Feed(store, modality, np.arange(rows), batch, seed, torch.device("cpu"), IMAGE.presets[preset](store.spec), **options)


class ToyTexts:
    """Texts whose tokens name their row, of lengths that differ much."""

    def __init__(self, rows: int, limit: int = 64, part: str | list[str] = "train"):
        lengths = np.random.default_rng(1).geometric(0.05, rows).clip(max=300)
        self.array = Ragged.of([np.concatenate([[2], np.full(length, 5 + row), [3]]) for row, length in enumerate(lengths)], np.int32)
        self.labels = np.arange(rows) % 3
        self.table = pd.DataFrame({"part": [part] * rows if isinstance(part, str) else part})
        self.spec = DataSpec("text", {"vocabulary": rows + 5}, (limit,), ("a", "b", "c"), {"tokens": TOKENS})

    def targets(self, numbers):
        return self.labels[numbers]


def text_feed(rows: int = 20, batch: int = 6, seed: int = 0, preset: str = "contrastive", **options) -> Feed:
    store = ToyTexts(rows)
    return Feed(store, TEXT(TEXT.Options()), np.arange(rows), batch, seed, torch.device("cpu"), TEXT.presets[preset](store.spec), **options)


FEEDS = pytest.mark.parametrize("feed", [feed, text_feed], ids=["images", "texts"])


@FEEDS
@given(rows=st.integers(1, 60), batch=st.integers(1, 64), epoch=st.integers(0, 3), accumulate=st.integers(1, 4))
def test_an_epoch_sees_every_row_once_in_batches_of_nearly_one_size(feed, rows, batch, epoch, accumulate):
    one = feed(rows, batch, preset="none", accumulate=accumulate)
    assert sorted(np.concatenate(one.parts(epoch))) == list(range(rows))
    sizes = [sum(len(part.targets_B) for part in parts) for _, parts in one.batches(epoch)]
    assert sum(sizes) == rows and len(sizes) == one.steps
    assert max(sizes) - min(sizes) <= 1
    assert sorted(one.order(epoch)) == list(range(rows))


@FEEDS
def test_epochs_and_seeds_differ_and_repeat(feed):
    def order(seed, epoch):
        return tuple(np.concatenate(feed(seed=seed).parts(epoch)).tolist())

    assert len({order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert order(0, 0) == order(0, 0)


@FEEDS
def test_a_start_in_the_middle_gives_the_same_batches(feed):
    whole = dict(feed().batches(2))
    for step, parts in feed().batches(2, start=2):
        for name, value in parts[0].inputs.items():
            assert torch.equal(value, whole[step][0].inputs[name])
        assert torch.equal(parts[0].targets_B, whole[step][0].targets_B)


@FEEDS
def test_views_differ_from_each_other(feed):
    _, (batch,) = next(feed(views=2, preset="contrastive").batches(0))
    (first, *_), (second, *_) = (list(view.values()) for view in batch.views)
    assert len(first) == len(second) and (first.shape != second.shape or not torch.equal(first, second))


def test_texts_of_like_length_go_together():
    one = text_feed(4 * 8 * BUCKET, 8, preset="none")
    lengths = one.store.array.lengths.clip(max=one.store.spec.shape[0])
    padding = sum(lengths[rows].max() * len(rows) for rows in one.parts(0)) / lengths.sum()
    drawn = sum(lengths[rows].max() * len(rows) for rows in np.array_split(one.order(0), one.steps)) / lengths.sum()
    assert padding < 1.1 < 1.5 < drawn
    order = [lengths[rows].mean() for rows in one.parts(0)[:BUCKET]]
    assert order != sorted(order) and order != sorted(order, reverse=True)  # long ones come at any time


def test_a_batch_of_texts_holds_its_rows():
    one = text_feed(preset="none")
    batch = one.batch(np.array([7, 3]), 0, 0)
    assert batch.targets_B.tolist() == [1, 0]
    for row, tokens, mask in zip((7, 3), batch.inputs["tokens"], batch.inputs["mask"], strict=True):
        assert tokens[mask].tolist() == [*one.store.array[row][:63].tolist(), 3][: mask.sum()]


def words(store, blocks, chosen) -> set[int]:
    """The rows whose tokens are in the chosen blocks."""
    return {int(token) - 5 for token in blocks.array[chosen].ravel() if token >= 5}


def test_a_stream_holds_out_its_last_blocks():
    store = ToyTexts(300, limit=16)
    rows = np.arange(0, 300, 2)
    blocks, trained, held = stream(store, rows, 0)
    assert set(trained) & set(held) == set() and set(trained) | set(held) == set(range(len(blocks.array)))
    assert 1 <= len(held) <= 0.04 * len(trained)
    assert words(store, blocks, np.arange(len(blocks.array))) <= set(rows.tolist())
    assert len(blocks.array) == store.array[rows].nbytes // 4 // 16
    assert (blocks.targets(trained) == UNLABELLED).all() and len(blocks.targets(trained)) == len(trained)
    again, other = stream(store, rows, 0)[0].array, stream(store, rows, 1)[0].array
    everything = np.arange(len(blocks.array))
    assert np.array_equal(again[everything], blocks.array[everything]) and not np.array_equal(other[everything], blocks.array[everything])


def test_a_stream_holds_out_the_official_part():
    store = ToyTexts(300, limit=16, part=["train"] * 250 + ["validation"] * 50)
    blocks, trained, held = stream(store, np.arange(250), 0)
    assert words(store, blocks, trained) <= set(range(250)) and len(held)
    assert words(store, blocks, held[1:]) <= set(range(250, 300))  # the first one may begin within the last text
    assert set(trained) & set(held) == set()


def test_an_official_part_shorter_than_a_block_is_no_part():
    store = ToyTexts(300, part=["train"] * 299 + ["validation"])
    store.array = Ragged.of([np.array([2, 5 + row, 3]) for row in range(300)], np.int32)  # 14 blocks of 64 and one token, then three more
    _, trained, held = stream(store, np.arange(299), 0)
    assert len(held) and len(trained) and set(trained) & set(held) == set()


def test_a_stream_is_fed_in_blocks():
    store = ToyTexts(100, limit=16)
    blocks, trained, _ = stream(store, np.arange(100), 0)
    one = Feed(blocks, TEXT(TEXT.Options()), trained, 8, 0, torch.device("cpu"), TEXT.presets["none"](store.spec))
    seen = [batch for _, (batch,) in one.batches(0)]
    assert sum(len(batch.targets_B) for batch in seen) == len(trained)
    assert all(batch.inputs["tokens"].shape[1] == 16 and batch.inputs["mask"].all() for batch in seen)
    counts = torch.cat([batch.inputs["tokens"].ravel() for batch in seen]).bincount(minlength=105)
    assert counts.tolist() == np.bincount(blocks.array[trained].ravel(), minlength=105).tolist()


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


EVERYTHING = {
    "resized_crop": 0.5, "crop": 0.1, "flip": 0.5, "vertical_flip": 0.5, "rotation": 20, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4,
    "hue": 0.1, "jitter": 0.8, "gray": 0.2, "blur": 0.5, "noise": 0.1, "erasing": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("mixed", [{}, {"mixup": 0.3}, {"cutmix": 1.0}, {"drop": 0.3, "crop": 0.5}], ids=["all", "mixup", "cutmix", "texts"])
def test_ranks_together_see_what_one_sees(mixed, ranks):
    one = text_feed(views=2) if "drop" in mixed else feed(views=2)
    one = replace(one, augmentation=one.modality.Augmentation(**(mixed if "drop" in mixed else EVERYTHING | mixed)), accumulate=2)
    several = [replace(one, rank=rank, ranks=ranks) for rank in range(ranks)]
    for (_, whole), *parts in zip(one.batches(1), *(rank.batches(1) for rank in several), strict=True):
        for batch, *own in zip(whole, *(micro for _, micro in parts), strict=True):
            for view, shown in enumerate(batch.views):
                for name, value in shown.items():
                    assert torch.equal(torch.cat([part.views[view][name] for part in own]), value)
            assert torch.equal(torch.cat([part.targets_B for part in own]), batch.targets_B)
            assert [part.part.start for part in own] == np.cumsum([0, *(len(part.targets_B) for part in own[:-1])]).tolist()
            if batch.mix is not None:
                assert torch.equal(torch.cat([part.mix.partner_B for part in own]), batch.mix.partner_B)
                assert torch.equal(torch.cat([part.mix.weight_B for part in own]), batch.mix.weight_B)
