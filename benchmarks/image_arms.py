"""One arm of benchmarks/images.py in a process of its own: `python -m benchmarks.image_arms CASE ARM DIR SHARE`.

Prints what it took and did as JSON. DIR/data holds the pictures in folders. SHARE is the share of the usual number of pictures and epochs.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness import calls, speed

CLASSES, WORKERS, PROBED = 8, (0, 1), 128
MEAN, STD = (0.5,) * 3, (0.25,) * 3
RATE, DECAY, WARM, CLIP = 1e-3, 0.05, 0.1, 1.0


@dataclass(frozen=True)
class Case:
    """`side` is that of the files, `size` what the network sees."""

    size: int
    side: int
    suffix: str
    backbone: str
    rows: int
    batch: int
    epochs: int

    @property
    def steps(self) -> int:
        """Updates in an epoch."""
        return self.rows // self.batch

    @property
    def total(self) -> int:
        return self.steps * self.epochs

    def shortened(self, share: float) -> Case:
        return replace(self, rows=max(2, round(self.steps * share)) * self.batch, epochs=max(2, round(self.epochs * share)))


CASES = {
    "small-cnn-32": Case(32, 32, "png", "small-cnn", 2560, 128, 4),
    "mobilenet-224": Case(224, 256, "jpg", "timm:mobilenetv3_small_100", 256, 32, 4),
    "resnet18-224": Case(224, 256, "jpg", "resnet18", 64, 16, 3),
}


def network(case: Case) -> Any:
    """The network with the same random weights each time, its last layer called `head.linear`."""
    import torch

    from ml.modalities import MODALITIES
    from ml.model import Model
    from ml.recipe import BackboneChoice, HeadChoice

    modality = MODALITIES["image"](MODALITIES["image"].Options(size=case.size, channels=3))
    spec = modality.spec([f"c{k}" for k in range(CLASSES)], {"mean": MEAN, "std": STD})
    torch.manual_seed(0)
    return Model.build(BackboneChoice(name=case.backbone), HeadChoice(name="classification"), spec)


def measured(case: Case, folder: Path, mean: Sequence[float], std: Sequence[float], train: Callable[[Any], None]) -> dict[str, Any]:
    """What `train` does with the network, which gets pictures with that mean and deviation."""
    import torch
    from torch.nn import functional as F

    model = network(case)
    files = sorted((folder / "data" / "train").rglob(f"*.{case.suffix}"))
    files = files[:: max(1, len(files) // PROBED)][:PROBED]
    x_BHWC = np.stack([np.asarray(Image.open(file).convert("RGB").resize((case.size, case.size), Image.Resampling.BICUBIC)) for file in files])
    x_BHWC = (x_BHWC / np.float32(255) - np.float32(mean)) / np.float32(std)
    targets_B = torch.tensor([int(file.parent.name[1:]) for file in files])

    def loss() -> float:
        with torch.no_grad():  # by the batch's own statistics: running ones lag behind in a short training
            return float(F.cross_entropy(model.train()({"image": torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)}), targets_B))

    before, found = loss(), calls(model.head.linear)
    train(model)
    done = {"speed": speed(found, case.steps), "updates": len(found), "rows": sum(rows for _, rows in found)}
    return done | {"parameters": sum(one.numel() for one in model.parameters()), "before": before, "after": loss()}


def ours(case: Case, folder: Path) -> dict[str, Any]:
    """A store is made, and trained on."""
    from ml.device import device_of
    from ml.feed import Feed, rows_of
    from ml.fit import fit
    from ml.groups import parameter_groups
    from ml.modalities import MODALITIES
    from ml.preprocess import preprocess
    from ml.recipe import parse

    source = {"name": "image-folder", "options": {"path": str(folder / "data")}}
    data = {"source": source, "modality": {"name": "image", "options": {"size": case.size, "channels": 3}}}
    settings = {"epochs": case.epochs, "batch_size": case.batch, "learning_rate": RATE, "weight_decay": DECAY, "warmup": WARM, "clip": CLIP}
    threads = int(os.environ["OMP_NUM_THREADS"])
    compute = {"device": "cpu", "threads": threads, "precision": "float32"}
    recipe = parse({"name": "images", "data": data, "backbone": case.backbone, "compute": compute, "finetuning": {"fit": settings}})
    device, modality = device_of(recipe.compute), recipe.data.modality.make()
    augmentation = MODALITIES["image"].Augmentation(**({"crop": 0.125} if case.size == case.side else {"resized_crop": 0.08}), flip=0.5)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        began = time.perf_counter()
        store = preprocess(recipe.data.source.make(), modality, recipe.data, Path(scratch) / "work", Path(scratch) / "stores")
        first_pass = time.perf_counter() - began
        feed = Feed(store, modality, rows_of(store, "train"), case.batch, recipe.seed, device, augmentation)

        def train(model: Any) -> None:
            fit(
                model, feed, recipe.finetuning.fit, recipe.compute, stage="images", groups=parameter_groups(model, RATE, DECAY),
                workdir=Path(scratch), report=lambda metrics, step: None,
            )  # fmt: skip

        statistics = store.spec.statistics
        return measured(case, folder, statistics["mean"], statistics["std"], train) | {"first_pass": first_pass}


def held(case: Case, folder: Path) -> tuple[Any, list[int]]:
    """Small pictures and their classes, decoded into memory: (N, C, H, W) uint8."""
    import torch

    files = sorted((folder / "data" / "train").rglob(f"*.{case.suffix}"))
    pictures = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files])).permute(0, 3, 1, 2).contiguous()
    return pictures, [int(file.parent.name[1:]) for file in files]


def batches(case: Case, folder: Path, workers: int) -> Any:
    """A DataLoader over tensors, as torchvision's reference has it with `--backend tensor --use-v2`."""
    import torch
    from torch.utils.data import DataLoader, Dataset
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    small = case.size == case.side
    crop = v2.RandomCrop(case.size, padding=4) if small else v2.RandomResizedCrop(case.size, antialias=True)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    class Held(Dataset):
        def __init__(self) -> None:
            self.pictures, self.classes = held(case, folder)

        def __len__(self) -> int:
            return len(self.classes)

        def __getitem__(self, row: int) -> tuple[Any, int]:
            return transform(self.pictures[row]), self.classes[row]

    def read(path: str) -> Any:
        return decode_image(path, ImageReadMode.RGB)

    data = Held() if small else ImageFolder(str(folder / "data" / "train"), transform, loader=read)
    return DataLoader(data, case.batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0)


def optimizer(case: Case, model: Any) -> tuple[Any, Any]:
    """AdamW and its schedule, as ours."""
    import torch

    from ml.groups import parameter_groups
    from ml.recipe import Fit
    from ml.schedule import rate

    made = torch.optim.AdamW(parameter_groups(model, RATE, DECAY), lr=RATE, fused=True)
    return made, torch.optim.lr_scheduler.LambdaLR(made, lambda step: rate(Fit(warmup=WARM), step, case.total))


def lightning(case: Case, folder: Path, workers: int) -> dict[str, Any]:
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.nn import functional as F

    class Module(LightningModule):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, number: int) -> Any:
            images, targets_B = batch
            return F.cross_entropy(self.model({"image": images.contiguous(memory_format=torch.channels_last)}), targets_B)

        def configure_optimizers(self) -> Any:
            made, schedule = optimizer(case, self.model)
            return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train(model: Any) -> None:
        trainer = Trainer(max_epochs=case.epochs, accelerator="cpu", devices=1, barebones=True, gradient_clip_val=CLIP)
        trainer.fit(Module(model.to(memory_format=torch.channels_last)), batches(case, folder, workers))

    return measured(case, folder, MEAN, STD, train)


def torchvision(case: Case, folder: Path, workers: int) -> dict[str, Any]:
    import torch
    from torch import nn

    def train(model: Any) -> None:
        model.train().to(memory_format=torch.channels_last)
        loader, criterion = batches(case, folder, workers), nn.CrossEntropyLoss()
        made, schedule = optimizer(case, model)
        for _ in range(case.epochs):
            for images, targets_B in loader:
                loss = criterion(model({"image": images.contiguous(memory_format=torch.channels_last)}), targets_B)
                made.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                made.step()
                schedule.step()

    return measured(case, folder, MEAN, STD, train)


def timm(case: Case, folder: Path, workers: int) -> dict[str, Any]:
    import torch
    from timm.data import ImageDataset, create_loader
    from timm.data.transforms import ToNumpy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import dispatch_clip_grad
    from torch import nn
    from torch.utils.data import Dataset
    from torchvision import transforms

    class Held(Dataset):
        def __init__(self) -> None:
            pictures, self.classes = held(case, folder)
            self.pictures, self.transform = pictures.permute(0, 2, 3, 1).numpy(), None

        def __len__(self) -> int:
            return len(self.classes)

        def __getitem__(self, row: int) -> tuple[Any, int]:
            return self.transform(Image.fromarray(self.pictures[row])), self.classes[row]

    def train(model: Any) -> None:
        small = case.size == case.side
        data = Held() if small else ImageDataset(str(folder / "data" / "train"))
        loader = create_loader(
            data, (3, case.size, case.size), case.batch, is_training=True, color_jitter=0.0, mean=MEAN, std=STD, num_workers=workers,
            device=torch.device("cpu"), use_multi_epochs_loader=True,
        )  # fmt: skip
        if small:  # its own crop is made for large pictures
            loader.dataset.transform = transforms.Compose([transforms.RandomCrop(case.size, padding=4), transforms.RandomHorizontalFlip(), ToNumpy()])
        model.train().to(memory_format=torch.channels_last)
        made = create_optimizer_v2(model, "adamw", RATE, DECAY, fused=True)
        warm = round(WARM * case.total)
        schedule, _ = create_scheduler_v2(made, "cosine", case.epochs, warmup_epochs=warm / case.steps, step_on_epochs=False, updates_per_epoch=case.steps)
        criterion, done = nn.CrossEntropyLoss(), 0
        schedule.step_update(0)
        for _ in range(case.epochs):
            for images, targets_B in loader:
                loss = criterion(model({"image": images.contiguous(memory_format=torch.channels_last)}), targets_B)
                made.zero_grad()
                loss.backward()
                dispatch_clip_grad(model.parameters(), CLIP)
                made.step()
                done += 1
                schedule.step_update(done)

    return measured(case, folder, MEAN, STD, train)


def arm(peer: Callable[[Case, Path, int], dict[str, Any]], workers: int) -> Callable[[Case, Path], dict[str, Any]]:
    return lambda case, folder: peer(case, folder, workers)


PEERS = {"lightning": lightning, "torchvision": torchvision, "timm": timm}
ARMS = {"ours": ours} | {f"{name}, {workers} worker{'' if workers == 1 else 's'}": arm(peer, workers) for name, peer in PEERS.items() for workers in WORKERS}


if __name__ == "__main__":
    print(json.dumps(ARMS[sys.argv[2]](CASES[sys.argv[1]].shortened(float(sys.argv[4])), Path(sys.argv[3]))))
