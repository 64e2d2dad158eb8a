"""Every objective and every head, killed in the middle of its training, ends with the weights of one that was not, bit for bit.

In this process, with the data, recipes and bodies of the stages; tests/flows/test_kills.py kills the command itself.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ml import fit, frozen
from ml.heads import HEADS
from ml.model import Model
from ml.objectives import OBJECTIVES
from ml.preprocess import preprocess
from ml.recipe import Recipe, load
from ml.splitting import split
from ml.store import Store
from tasks import finetune, pretrain

OFTEN = ["pretraining.fit.checkpoint_seconds=0", "finetuning.fit.checkpoint_seconds=0", "pretraining.fit.epochs=2", "finetuning.fit.epochs=2"]
AT = 2
"""The step before whose checkpoint it dies: in the first epoch, whose weights may turn out to be the best."""

# By objective and head: the recipe that can train it, and what is changed in that.
OF_OBJECTIVES = {
    "simclr": ("image", []),
    "vicreg": ("image", []),
    "masked": ("image", ["backbone.name=vit-tiny", "backbone.options={patch: 4, depth: 1}"]),
    "denoising": ("image", []),
    "supervised": ("text", []),
    "masked-language": ("answering", []),
    "causal-language": ("language-model", []),
    "span-corruption": ("translation", []),
    "pairs": ("embedding", []),
}
OF_HEADS = {"classification": ("text", []), "multi-label": ("image", [])} | {head: (head, []) for head, one in HEADS.items() if not one.labels}


class Died(Exception):
    """What a crash point raises here instead of ending the process."""


class Told:
    """A stage's run without MLflow."""

    def __init__(self, workdir: Path):
        self.workdir = workdir
        workdir.mkdir()

    def report(self, metrics, step):
        with (self.workdir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"metrics": dict(metrics), "step": step}) + "\n")

    def nothing(self, *content):
        pass

    log_params = log_metrics = log_figure = log_text = set_tag = nothing


@pytest.fixture(scope="module")
def stored(tmp_path_factory, tiny, tiny_text, tiny_heads):
    """A recipe by its name and changes, and the store of its data."""
    paths = {"image": tiny, "text": tiny_text, **tiny_heads}

    def make(name: str, *changes: str) -> tuple[Recipe, Store]:
        recipe, folder = load(paths[name], [*OFTEN, *changes]), tmp_path_factory.mktemp("store")
        head = recipe.finetuning.head.chosen
        kind = (head.labels, head.several)
        return recipe, preprocess(recipe.data.source.make(), recipe.data.modality.make(), recipe.data, folder / "work", folder / "stores", *kind)

    return make


def digest(module) -> str:
    return hashlib.sha256(b"".join(value.contiguous().numpy().tobytes() for _, value in sorted(module.state_dict().items()))).hexdigest()


def whole_and_killed(train, tmp_path, monkeypatch, stage) -> tuple[str, str]:
    """Digests of what a training makes that is not interrupted, and of one that dies and goes on in a fresh module."""
    whole, place = train(Told(tmp_path / "whole")), Told(tmp_path / "killed")

    def die(point):
        if point == f"{stage}.step:{AT}":
            raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(fit, "crash_point", die)
        train(place)
    resumed = []
    with monkeypatch.context() as patch:
        patch.setattr(fit, "crash_point", resumed.append)
        killed = train(place)
    assert f"{stage}.step:{AT}" in resumed and f"{stage}.step:{AT - 1}" not in resumed, "it began anew"
    return digest(whole), digest(killed)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_pretraining_goes_on_exactly(name, stored, tmp_path, monkeypatch):
    which, changes = OF_OBJECTIVES[name]
    recipe, store = stored(which, f"pretraining.objective={name}", *changes)

    def train(stage):
        torch.manual_seed(0)
        backbone = recipe.backbone.make(store.spec)
        pretrain._train(backbone, store, recipe, stage)
        return backbone

    whole, killed = whole_and_killed(train, tmp_path, monkeypatch, "pretrain")
    assert whole == killed


@pytest.mark.parametrize("name", HEADS)
def test_a_fine_tuning_goes_on_exactly(name, stored, tmp_path, monkeypatch):
    which, changes = OF_HEADS[name]
    recipe, store = stored(which, f"finetuning.head.name={name}", *changes)
    rows = split(store.table, store.spec.classes, recipe.splitting, recipe.seed)

    def train(stage):
        torch.manual_seed(0)
        model = Model.build(recipe.backbone, recipe.finetuning.head, store.spec)
        finetune._train("finetune", model, store, rows, recipe, stage)
        return model

    whole, killed = whole_and_killed(train, tmp_path, monkeypatch, "finetune")
    assert whole == killed


PROBE = ["finetuning.method=linear-probe", "finetuning.augmentation.preset=none"]


@pytest.mark.parametrize("which", ["image", "text"])
def test_a_probe_of_remembered_features_goes_on_exactly(which, stored, tmp_path, monkeypatch):
    recipe, store = stored(which, *PROBE)
    rows, encoded = split(store.table, store.spec.classes, recipe.splitting, recipe.seed), []

    def train(stage):
        torch.manual_seed(0)
        model = Model.build(recipe.backbone, recipe.finetuning.head, store.spec)
        model.backbone.encode = lambda inputs, encode=model.backbone.encode: (encoded.append(1), encode(inputs))[1]
        finetune._train("finetune", model, store, rows, recipe, stage)
        return model

    whole, killed = whole_and_killed(train, tmp_path, monkeypatch, "finetune")
    assert whole == killed
    assert len(encoded) == 3 * -(-len(np.concatenate([rows.train, rows.validation])) // frozen.BATCH), "each row is read once in a training"


@pytest.mark.parametrize("method", ["linear-probe", "full"])
@pytest.mark.parametrize("preset", ["none", "standard"])
def test_a_probe_learns_the_same_from_remembered_features(method, preset, stored, tmp_path, monkeypatch):
    recipe, store = stored("image", f"finetuning.method={method}", f"finetuning.augmentation.preset={preset}")
    rows, found = split(store.table, store.spec.classes, recipe.splitting, recipe.seed), []
    for most in (frozen.MOST_BYTES, 0):
        monkeypatch.setattr(frozen, "MOST_BYTES", most)
        torch.manual_seed(0)
        model = Model.build(recipe.backbone, recipe.finetuning.head, store.spec)
        temperature, fitted, _ = finetune._train("finetune", model, store, rows, recipe, Told(tmp_path / str(most)))
        found.append((model.state_dict(), temperature, fitted))
    for name, value in found[0][0].items():
        torch.testing.assert_close(value, found[1][0][name], rtol=1e-3, atol=1e-4, msg=name)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-2) and found[0][2].steps == found[1][2].steps
