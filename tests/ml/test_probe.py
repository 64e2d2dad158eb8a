import numpy as np
import pandas as pd
import torch
from torch import nn

from ml.contracts import DataSpec, Features
from ml.modalities import MODALITIES
from ml.probe import nearest_neighbours, vote

IMAGE = MODALITIES["image"]


class ToyStore:
    """Two classes that differ in brightness."""

    def __init__(self, rows: int):
        self.labels = np.arange(rows) % 2
        self.array = np.full((rows, 8, 8, 1), 40, dtype=np.uint8) + (self.labels[:, None, None, None] * 120).astype(np.uint8)
        self.table = pd.DataFrame({"part": ["train"] * rows})
        self.spec = DataSpec("image", {"size": 8, "channels": 1}, (1, 8, 8), ("dark", "bright"), {"mean": [0.4], "std": [0.2]})


class Brightness(nn.Module):
    def __init__(self, blind: bool):
        super().__init__()
        self.blind = blind

    def encode(self, inputs):
        mean_B = inputs["image"].mean((1, 2, 3))
        noise_B2 = torch.randn(len(mean_B), 2, generator=torch.Generator().manual_seed(len(mean_B)))
        return Features(noise_B2 if self.blind else torch.stack([mean_B, -mean_B], 1))


def test_features_that_tell_the_classes_apart_score_and_noise_does_not():
    store, modality = ToyStore(80), IMAGE(IMAGE.Options(size=8, channels=1))
    probe = nearest_neighbours(store, modality, torch.device("cpu"), seed=0)
    assert probe(Brightness(blind=False)) == 1.0
    assert probe(Brightness(blind=True)) < 0.9


def test_too_few_labels_give_no_probe():
    assert nearest_neighbours(ToyStore(6), IMAGE(IMAGE.Options(size=8, channels=1)), torch.device("cpu"), seed=0) is None


def test_the_vote_is_weighted_by_nearness():
    bank = nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.05, 1.0]]), dim=1)
    assert vote(bank, torch.tensor([0, 1, 1]), bank[:1], torch.tensor([0]), classes=2) == 1.0
