"""Several labels a row, from the recipe to a registered model, on real messages: comp.sys.mac.hardware is comp, sys, mac and hardware."""

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

TEXTS = {
    "name": "several",
    "data": {"modality": {"name": "text", "options": {"max_length": 64, "vocabulary": 1000}}, "workers": 1, "quarantine_limit": 0.2},
    "backbone": {"name": "text-cnn", "options": {"width": 16, "depth": 0, "words": True}},
    "pretraining": {"objective": "supervised", "fit": {"epochs": 1, "batch_size": 32}},
    "finetuning": {"head": "multi-label", "balance": "weights", "baseline": False, "fit": {"epochs": 15, "batch_size": 32, "learning_rate": 0.02}},
    "evaluation": {"bootstrap": 100, "mistakes": 4},
    "compute": {"threads": 1, "precision": "float32"},
}


@pytest.fixture(scope="module")
def recipe(shared_data, tmp_path_factory):
    path = tmp_path_factory.mktemp("several") / "several.yaml"
    options = {"path": str(shared_data / "small" / "newsgroups20"), "label": "label_name", "separator": "."}
    path.write_text(yaml.safe_dump({**TEXTS, "data": {**TEXTS["data"], "source": {"name": "text-table", "options": options}}}))
    return path


def test_a_run_on_real_messages_and_the_registered_model(finished, warmstart, recipe, shared_data, tmp_path):
    result = warmstart(finished.folder, "run", recipe, "--json").result
    assert set(result["metrics"]) == {"micro_f1", "macro_f1", "subset_accuracy", "mean_average_precision", "hamming_loss"}
    assert result["metrics"]["micro_f1"]["value"] > 0.2 and result["classical"]["micro_f1"]["value"] > 0.4 and result["verdict"]["passed"]
    client = MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    evaluation = next(stage["run_id"] for stage in result["stages"] if stage["name"] == "evaluate")
    folder = client.get_run(evaluation).info.artifact_uri.removeprefix("file://")
    predictions = pd.read_parquet(f"{folder}/predictions.parquet")
    assert "comp, hardware, ibm, pc, sys" in set(predictions["label"])
    messages = pd.read_parquet(shared_data / "small" / "newsgroups20" / "test.parquet")[["text"]][:20]
    messages.to_parquet(tmp_path / "rows.parquet")
    done = warmstart(finished.folder, "predict", "models:/several@champion", tmp_path / "rows.parquet", "--output", tmp_path / "out.parquet")
    assert done.code == 0, done.err
    told = pd.read_parquet(tmp_path / "out.parquet")
    good = told[told["error"].isna()]
    known = {name.removeprefix("p_") for name in told if name.startswith("p_")}
    assert len(good) >= 18 and len(known) >= 24 and all(set(one.split(", ")) <= known for one in good["labels"] if one)
    of = predictions.set_index("key").loc[[f"test.parquet:{row}" for row in good.index if f"test.parquet:{row}" in set(predictions["key"])]]
    same = good.loc[[int(key.rpartition(":")[2]) for key in of.index]]
    assert same["labels"].replace("", "(none)").tolist() == of["predicted"].tolist()
    np.testing.assert_allclose(same["p_comp"], of["p_comp"], atol=1e-4)
    page = (finished.folder / result["report"].removeprefix("file://")).read_text()
    assert "average precision" in page and "rows of no class" in page


def test_another_head_says_which_would_do(finished, warmstart, recipe):
    done = warmstart(finished.folder, "run", recipe, "finetuning.head=classification", "finetuning.balance=none")
    assert done.code == 2 and "set finetuning.head to one that tells them (multi-label)" in done.err.replace("\n", " ")
