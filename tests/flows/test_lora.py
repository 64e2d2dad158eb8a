"""`finetuning.method=lora`: what was learnt is kept as an adapter too, and with `merge: false` apart from the weights in the registry."""

import json
import signal
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
import pytest
import safetensors.torch
import torch
from mlflow import MlflowClient

from ml.model import load_model

SHORT = ["name=lora", "finetuning.fit.epochs=4", "finetuning.baseline=false", "finetuning.classical=false", "finetuning.fit.checkpoint_seconds=0"]
MERGED = "finetuning.method={name: lora, options: {rank: 2}}"
APART = "finetuning.method={name: lora, options: {rank: 2, merge: false}}"


@pytest.fixture(scope="module")
def runs(finished, start, warmstart, tiny) -> dict[str, dict]:
    """What both ways print; that which stays apart was killed while it trained, and went on."""
    merged = warmstart(finished.folder, "run", tiny, "--json", MERGED, *SHORT).result
    killed = start(finished.folder, "run", tiny, "--json", APART, *SHORT, crash="finetune.step:3").wait()
    assert killed.code == -signal.SIGKILL, killed.err
    return {"merged": merged, "apart": warmstart(finished.folder, "run", tiny, "--json", APART, *SHORT).result}


def artifacts(result: dict, folder: Path, name: str = "finetune") -> Path:
    run_id = next(stage["run_id"] for stage in result["stages"] if stage["name"] == name)
    return Path(MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").get_run(run_id).info.artifact_uri.removeprefix("file://"))


def test_the_adapter_is_an_artifact_either_way(runs, finished):
    merged, apart = (artifacts(runs[way], finished.folder) for way in ("merged", "apart"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (merged / "adapter" / name).read_bytes() == (apart / "adapter" / name).read_bytes()  # the killed run learnt the same
    config = json.loads((merged / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"]) == ("LORA", 2) and config["target_modules"]
    assert not (merged / "model" / "adapter").exists()


def test_both_ways_are_the_same_model(runs, finished):
    folders = [artifacts(runs[way], finished.folder) / "model" for way in ("merged", "apart")]
    merged, apart = (load_model(folder)[0].state_dict() for folder in folders)
    assert all(torch.equal(apart[name], value) for name, value in merged.items())
    written = safetensors.torch.load_file(folders[1] / "model.safetensors")
    pretrained = safetensors.torch.load_file(artifacts(finished.result, finished.folder, "pretrain") / "backbone" / "backbone.safetensors")
    assert all(torch.equal(written[f"backbone.{name}"], value) for name, value in pretrained.items())
    assert any(not torch.equal(merged[name], value) for name, value in written.items())
    assert runs["merged"]["metrics"] == runs["apart"]["metrics"]


def test_the_registered_version_holds_both_and_says_the_same(runs, finished, pictures):
    mlflow.set_tracking_uri(f"sqlite:///{finished.folder / 'mlflow.db'}")
    frame = pd.DataFrame({"image": [path.read_bytes() for path in sorted(pictures.rglob("*.png"))[::40]]})
    pd.testing.assert_frame_equal(*(mlflow.pyfunc.load_model(runs[way]["model"]["uri"]).predict(frame) for way in ("merged", "apart")))
    stored = Path(mlflow.artifacts.download_artifacts(runs["apart"]["model"]["uri"])) / "artifacts" / "model"
    assert {path.relative_to(stored).as_posix() for path in stored.rglob("*") if path.is_file()} == {
        "model.json", "model.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
    }
