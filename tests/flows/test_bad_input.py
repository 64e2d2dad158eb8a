"""What a user can get wrong: each gets exit code 2 and one message that says what to do, and costs no finished work."""

import io
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import save_file

SOURCE = "data.source.options.path"


def picture(side: int = 16, seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def folder(root: Path, **classes) -> list[str]:
    """A folder of pictures by class and number, and the override that names it."""
    for name, files in classes.items():
        (root / "data" / name).mkdir(parents=True)
        for number, content in enumerate(files):
            (root / "data" / name / f"{number:03d}.png").write_bytes(content)
    (root / "data").mkdir(exist_ok=True)
    return [f"{SOURCE}={root / 'data'}"]


def good(count: int, first: int = 0) -> list[bytes]:
    return [picture(seed=first + number) for number in range(count)]


def table(root: Path, name: str) -> str:
    """A table of pictures whose labels stand in a column `kind`."""
    frame = pd.DataFrame({"image": good(12), "kind": ["a", "b"] * 6})
    if name.endswith(".parquet"):
        frame.to_parquet(root / name)
    else:
        frame.assign(path=[f"{number}.png" for number in range(12)])[["path", "kind"]].to_csv(root / name, index=False)
    return str(root / name)


def parquet(root: Path) -> list[str]:
    return ["data.source.name=parquet", f"{SOURCE}={table(root, 'rows.parquet')}"]


def csv(root: Path) -> list[str]:
    return ["data.source.name=csv", f"{SOURCE}={table(root, 'rows.csv')}"]


def cut_parquet(root: Path) -> list[str]:
    path = Path(table(root, "rows.parquet"))
    path.write_bytes(path.read_bytes()[:-40])
    return ["data.source.name=parquet", f"{SOURCE}={path}"]


class Trap:
    """Pickled, it leaves a canary where it is loaded."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def pickled(root: Path) -> list[str]:
    (root / "weights.pt").write_bytes(pickle.dumps({"conv.weight": Trap(root / "canary")}))
    return [f"weights={root / 'weights.pt'}"]


def torch_pickled(root: Path) -> list[str]:
    torch.save({"conv.weight": Trap(root / "canary")}, root / "weights.pth")
    return [f"weights={root / 'weights.pth'}"]


def foreign(root: Path) -> list[str]:
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.bias": torch.zeros(64)}, root / "other.safetensors")
    return [f"weights={root / 'other.safetensors'}"]


def cut_safetensors(root: Path) -> list[str]:
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, root / "cut.safetensors")
    (root / "cut.safetensors").write_bytes((root / "cut.safetensors").read_bytes()[:-100])
    return [f"weights={root / 'cut.safetensors'}"]


def huge(root: Path) -> list[str]:
    file = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(file, "PNG")
    return folder(root, cats=[*good(8), file.getvalue()], dogs=good(8, 100))


# What is done to the recipe `tiny`, and the words that its message must hold. Functions get a folder to put files in.
CASES = {
    "missing folder": ([f"{SOURCE}=nowhere"], ["nothing at 'nowhere'", SOURCE]),
    "a file for a folder": (lambda root: [f"{SOURCE}={table(root, 'rows.csv')}"], ["is a file", "expected a folder"]),
    "empty folder": (folder, ["holds no pictures", "png"]),
    "one class only": (lambda root: folder(root, cats=good(5)), ["one class only", "'cats'", "at least two"]),
    "class without images": (lambda root: folder(root, cats=good(5), dogs=[]), ["'dogs'", "no pictures", "remove the folder"]),
    "all images corrupt": (lambda root: folder(root, cats=[b"x"] * 5, dogs=[b"y"] * 5), ["none of the 10 items can be read"]),
    "above the quarantine limit": (
        lambda root: folder(root, cats=[*good(8), b"x", b"y"], dogs=good(10, 50)),
        ["2 of 20", "10.0%", "the limit is 5.0%", "data.quarantine_limit to 0.10", "'cats/008.png'"],
    ),
    "an image of 30,000 x 30,000 pixels": (huge, ["1 of 17", "pixels", "cats/008.png"]),
    "label column missing, parquet": (parquet, ["label", "kind", "image"]),
    "label column missing, csv": (csv, ["label", "kind", "path"]),
    "truncated parquet": (cut_parquet, ["rows.parquet"]),
    "unknown key": (["sead=1"], ["'sead'", "Did you mean 'seed'", "finetuning"]),
    "unknown key below": (["pretraining.fit.epoch=1"], ["pretraining.fit", "'epoch'", "'epochs'"]),
    "unknown backbone": (["backbone.name=resnet19"], ["'resnet19'", "resnet18", "small-cnn"]),
    "unknown objective": (["pretraining.objective.name=bert"], ["'bert'", "simclr", "denoising"]),
    "unknown option": (["backbone.options.depth=3"], ["'depth'", "width"]),
    "a pair that cannot work": (["backbone=resnet18", "backbone.options={}", "data.modality=sound"], ["'sound'", "image"]),
    "wrong type": (["finetuning.fit.epochs=many"], ["finetuning.fit.epochs", "'many'"]),
    "not a choice": (["finetuning.fit.optimizer=adam"], ["finetuning.fit.optimizer", "adamw", "'adam'"]),
    "not an override": (["epochs"], ["KEY=VALUE", "'epochs'"]),
    "fractions above one": (
        ["data.test_fraction=0.7", "splitting.validation_fraction=1.3"],
        ["splitting.validation_fraction", "less than 1", "1.3"],
    ),
    "two limits at once": (["splitting.labels_per_class=3", "splitting.label_fraction=0.5"], ["exclude each other"]),
    "fractions that leave nothing": (
        ["data.test_fraction=0.99", "splitting.validation_fraction=0.99", "splitting.labels_per_class=5"],
        ["labels_per_class", "at most"],
    ),
    "fewer labels than asked for": (["splitting.labels_per_class=1000"], ["splitting.labels_per_class", "1000", "class0 has", "at most"]),
    "weights that are a pickle": (pickled, ["weights.pt"]),
    "weights that hold code": (torch_pickled, ["weights.pth", "could run any code", "state_dict"]),
    "weights of another architecture": (foreign, ["do not fit the backbone small-cnn", "missing ", "unexpected conv1.weight 64x3x7x7"]),
    "weights cut short": (cut_safetensors, ["cut.safetensors"]),
    "weights that are not there": (["weights=nowhere.safetensors"], ["no weights file nowhere.safetensors"]),
    "weights that nobody published": (["weights=IMAGENET1K_V9"], ["IMAGENET1K_V9", "random"]),
    "weights that nobody registered": (["weights=models:/none@champion"], ["models:/none@champion", "registry"]),
    "a loss that is not finite": (
        ["finetuning.fit.learning_rate=100", "finetuning.fit.optimizer=sgd", "finetuning.fit.clip=0", "finetuning.fit.weight_decay=10"],
        ["the loss of finetune became", "learning_rate", "clip"],
    ),
    "a device that is not there": (["compute.device=mps", "--from", "finetune"], ["compute.device", "cpu"]),
}


def texts(change, name: str = "rows.csv"):
    """A function that writes a changed table of twelve texts, and gives the override that names it."""

    def make(root: Path) -> list[str]:
        frame = change(pd.DataFrame({"text": [f"text number {row} of a few" for row in range(12)], "label": ["a", "b"] * 6}))
        if name.endswith(".parquet"):
            frame.to_parquet(root / name)
        elif name.endswith(".jsonl"):
            frame.to_json(root / name, orient="records", lines=True)
        else:
            frame.to_csv(root / name, index=False)
        return [f"{SOURCE}={root / name}"]

    return make


def damaged(make, damage):
    """The same with its file's bytes changed."""

    def changed(root: Path) -> list[str]:
        overrides = make(root)
        path = Path(overrides[0].partition("=")[2])
        path.write_bytes(damage(path.read_bytes()))
        return overrides

    return changed


def same(frame: pd.DataFrame) -> pd.DataFrame:
    return frame


# The same for the recipe `tiny_text`.
TEXT_CASES = {
    "text column missing": (
        texts(lambda frame: frame.rename(columns={"text": "words"})),
        ["'rows.csv'", "'words'", "'label'", "data.source.options.text"],
    ),
    "label column missing": (texts(lambda frame: frame[["text"]]), ["12 rows and no labelled row"]),
    "all rows empty": (texts(lambda frame: frame.assign(text="")), ["none of the 12 items can be read", "the text is missing"]),
    "one class only": (texts(lambda frame: frame.assign(label="a")), ["one class only: 'a'", "at least two"]),
    "truncated parquet": (damaged(texts(same, "rows.parquet"), lambda data: data[:-40]), ["rows.parquet", "not a whole Parquet file"]),
    "damaged line of JSON": (
        damaged(texts(same, "rows.jsonl"), lambda data: data.replace(b'6 of a few"', b"6 of a few")),
        ["rows.jsonl", "line 7"],
    ),
    "too little text to pretrain on": (
        texts(lambda frame: frame.assign(text=list("cdefghijklmn"))),
        ["at least 2 blocks of 16 tokens", "found 1", "pretraining.enabled=false"],
    ),
    "a tokenizer that is not there": (["data.modality.options.tokenizer_path=nowhere"], ["cannot read a tokenizer from nowhere"]),
    "too small a vocabulary": (["data.modality.options.vocabulary=8"], ["a vocabulary of 8 is too small for wordpiece", "16"]),
    "a backbone for pictures": (["backbone=small-cnn"], ["does not read text data", "text-cnn"]),
}


def check(done, words: list[str]) -> None:
    done.refused(words)


@pytest.mark.parametrize("case", CASES)
def test_one_message_and_exit_code_2(case, finished, warmstart, tiny, tmp_path):
    overrides, words = CASES[case]
    arguments = overrides(tmp_path) if callable(overrides) else overrides
    check(warmstart(finished.folder, "run", tiny, *arguments, "--json"), words)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("case", TEXT_CASES)
def test_one_message_for_texts_too(case, finished_text, warmstart, tiny_text, tmp_path):
    overrides, words = TEXT_CASES[case]
    arguments = overrides(tmp_path) if callable(overrides) else overrides
    check(warmstart(finished_text.folder, "run", tiny_text, *arguments, "--json"), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], ["RECIPE"]),
        (["run", "nowhere.yaml"], ["nowhere.yaml", "warmstart recipes"]),
        (["fly"], ["fly"]),
        (["run", "nowhere.yaml", "--fast"], ["--fast"]),
        (["show", "networks"], ["'networks'", "backbones"]),
        (["show", "backbones", "resnet19"], ["'resnet19'", "Did you mean 'resnet18'"]),
        (["predict", "models:/none@champion", "mlflow.db", "--output", "x.parquet"], ["models:/none@champion", "registry"]),
        (["predict", "none", "mlflow.db", "--output", "x.parquet"], ["models:/NAME@ALIAS"]),
        (["predict", "models:/tiny@champion", "nowhere.png", "--output", "x.parquet"], ["'nowhere.png'"]),
        (["predict", "models:/tiny@champion", "mlflow.db", "--output", "x.csv"], ["parquet"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_other_commands(finished, warmstart, arguments, words):
    check(warmstart(finished.folder, *arguments), words)


def test_an_unknown_stage_to_start_from(finished, warmstart, tiny):
    check(warmstart(finished.folder, "run", tiny, "--from", "training"), ["'training'", "pretrain", "finetune"])


def test_what_is_wrong_at_once_waits_for_no_server(finished, warmstart, tmp_path):
    """With a Prefect that is away, the recipe's problem is what is told."""
    path = tmp_path / "bad.yaml"
    path.write_text("name: x\ndata: {source: sklearn-digits}\nbackbone: resnet19\n")
    check(warmstart(finished.folder, "run", path, PREFECT_API_URL="http://127.0.0.1:9/api"), ["'resnet19'"])


@pytest.mark.e2e
def test_mlflow_and_prefect_out_of_reach(finished, start, installed, tiny):
    """Both are waited for, here at once."""
    mlflow = start(finished.folder, "run", tiny, "--json", MLFLOW_TRACKING_URI="http://user:hunter22@127.0.0.1:9")
    prefect = installed(finished.folder, "run", tiny, "--json", PREFECT_API_URL="http://127.0.0.1:9/api")
    check(prefect, ["unreachable Prefect at http://127.0.0.1:9/api", "prefect server start", "PREFECT_API_URL"])
    done = mlflow.wait()
    check(done, ["unreachable MLflow at http://***@127.0.0.1:9", "Start it", "MLFLOW_TRACKING_URI"])
    assert "hunter22" not in done.err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WARMSTART_HOME", "/proc/warmstart"),
        ("WARMSTART_HOME", "{file}/home"),
        ("MLFLOW_TRACKING_URI", "sqlite:////proc/mlflow.db"),
        ("MLFLOW_TRACKING_URI", "sqlite:///{file}/mlflow.db"),
    ],
)
def test_places_that_cannot_be_written(finished, warmstart, tiny, tmp_path, name, value):
    (tmp_path / "file").touch()
    value = value.format(file=tmp_path / "file")
    check(warmstart(finished.folder, "run", tiny, "--json", **{name: value}), ["cannot", value.removeprefix("sqlite:///"), name])


@pytest.fixture
def mount(tmp_path):
    """Mounts a small file system on a folder."""
    mounted = []

    def mount(name: str, options: str) -> Path:
        place = tmp_path / name
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_read_only_working_folder(mount, warmstart, tiny):
    place = mount("readonly", "size=1m,ro")
    check(warmstart(place, "run", tiny, "--json"), ["cannot", str(place), "Read-only file system"])


@pytest.mark.e2e
@pytest.mark.parametrize(("size", "apart"), [("200k", False), ("1700k", True)])
def test_a_full_disk_loses_nothing(mount, warmstart, tiny, tmp_path, size, apart):
    """Wherever it gets full, that is said; with more room the same command goes on. `apart`: MLflow alone has a small disk."""
    place = mount("small", f"size={size}")
    more = {"WARMSTART_HOME": str(tmp_path / "home")} if apart else {}
    done = warmstart(place, "run", tiny, "--json", **more)
    check(done, [])
    assert "full" in done.err or "MiB free" in done.err or "No space left" in done.err
    subprocess.run(["mount", "-o", "remount,size=100m", str(place)], check=True)
    again = warmstart(place, "run", tiny, "--json", **more).result
    before = {line.split()[0] for line in done.err.splitlines() if " done in " in line}
    assert {stage["name"] for stage in again["stages"] if stage["cached"]} >= before


def test_after_all_that_the_good_work_is_kept(finished, warmstart, tiny):
    again = warmstart(finished.folder, "run", tiny, "--json").result
    assert [stage for stage in again["stages"] if not stage["cached"]] == []
    client = MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    assert client.search_runs([one.experiment_id for one in client.search_experiments()], "attributes.status = 'RUNNING'") == []
