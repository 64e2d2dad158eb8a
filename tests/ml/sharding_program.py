"""One of the ranks that test_sharding.py starts, with the variables that torchrun sets: `python sharding_program.py FOLDER` leaves what it found in rank-R.json."""

import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toy import ToyStore

from ml import ranks
from ml.contracts import Batch
from ml.feed import plain_batches
from ml.groups import parameter_groups
from ml.modalities import MODALITIES
from ml.model import Model
from ml.recipe import BackboneChoice, Fit, HeadChoice, Strategy
from ml.shards import part, placed, whole
from ml.step_probe import How
from ml.update import Updates

ROWS = range(16)


def share(tensors) -> float:
    """Of all numbers, how many this rank holds."""
    held = [(part(one).numel(), one.numel()) for one in tensors]
    return sum(own for own, _ in held) / sum(full for _, full in held)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ranks.begin(torch.device("cpu"), 60)
    os.environ.pop("WORLD_SIZE")  # accelerate would join the others too
    store, modality = ToyStore(), MODALITIES["image"]
    inputs = next(plain_batches(store, modality(modality.Options(**store.spec.options)), ROWS, torch.device("cpu")))
    batch = Batch(inputs, torch.from_numpy(store.targets(ROWS)))
    torch.manual_seed(0)
    model = Model.build(BackboneChoice(name="vit-tiny"), HeadChoice(name="classification"), store.spec)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    updates = Updates(model, parameter_groups(model, 1e-3, 0.05), Fit(), Strategy.fsdp, How(), torch.device("cpu"))
    found = {"parameters": share(model.parameters())}
    found["placed"] = all(torch.equal(part(placed(before[name], own)), part(own)) for name, own in model.state_dict().items())
    again = whole(model.state_dict())
    found["whole"] = [name for name, value in again.items() if value is not None and torch.equal(value, before[name])]

    gathered: list[int] = []  # while each layer is at work, the weights that this rank has whole

    def look(*_) -> None:
        gathered.append(sum(one.numel() for one in model.parameters() if part(one) is one))

    for layer in model.backbone.net.encoder.layers:
        layer.mlp.register_forward_hook(look)
        layer.mlp.register_full_backward_hook(look)
    updates.gradients([batch])
    found["gathered"] = max(gathered) / sum(one.numel() for one in model.parameters())
    found["gradients"] = share(one.grad for one in model.parameters())
    updates.step(1.0)
    found["moments"] = share(value for kept in updates.optimizer.state.values() for value in kept.values() if value.ndim)

    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    kept = [part(one).clone() for one in model.parameters()]
    updates.gradients([batch])
    if ranks.rank() == 1:
        part(model.head.linear.weight.grad)[0, 0] = torch.inf
    scaler.step(updates.optimizer.optimizer)
    found["steps on infinity"] = any(not torch.equal(one, part(own)) for one, own in zip(kept, model.parameters(), strict=True))
    (folder / f"rank-{ranks.rank()}.json").write_text(json.dumps(found))
    ranks.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
