"""`warmstart predict`: what the registered model says of files, folders, Parquet and CSV."""

import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from ml.predictor import Predictor


@pytest.fixture(scope="module")
def predictor(finished) -> Predictor:
    run = MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}").get_run(finished.stages()["finetune"])
    return Predictor.load(Path(run.info.artifact_uri.removeprefix("file://")) / "model")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, drawn) -> tuple[Path, list[bytes]]:
    """A folder with pictures, a bad one, a Parquet and a CSV file; and the good pictures in the order in which they are listed."""
    root = tmp_path_factory.mktemp("inputs")
    drawn(root / "folder", each=2, seed=9)
    good = [path.read_bytes() for path in sorted((root / "folder").rglob("*.png"))]
    (root / "folder" / "class1" / "zzz.png").write_bytes(b"no picture")
    pd.DataFrame({"image": [good[0], b"x", good[1]]}).to_parquet(root / "rows.parquet")
    pd.DataFrame({"path": ["folder/class0/000.png", "folder/none.png"]}).to_csv(root / "rows.csv", index=False)
    return root, good


def test_all_kinds_of_input_score_as_the_training_code_does(finished, warmstart, inputs, predictor, tmp_path):
    root, good = inputs
    output = tmp_path / "new" / "scores.parquet"
    given = [root / "folder", root / "rows.parquet", root / "rows.csv", root / "folder" / "class2" / "001.png"]
    done = warmstart(finished.folder, "predict", "models:/tiny/1", *given, "--output", output, "--batch-size", 2)
    assert done.code == 0, done.err
    assert "10 of 13 items scored, 3 with a reason" in done.out and str(output) in done.out
    frame = pd.read_parquet(output)
    bad = [4, 8, 11]  # zzz.png, the second row of the Parquet file, that of the CSV file
    assert np.flatnonzero(frame["error"].notna()).tolist() == bad
    scored = frame[frame["error"].isna()]
    expected = predictor.predict([*good, good[0], good[1], good[0], good[-1]])
    columns = [name for name in expected if name.startswith("p_")]
    np.testing.assert_allclose(scored[columns], expected[columns], atol=1e-5)
    assert scored["label"].tolist() == expected["label"].tolist()
    assert (scored["label"][:6] == ["class0", "class0", "class1", "class1", "class2", "class2"]).mean() > 0.5


def test_killed_it_goes_on(finished, start, warmstart, inputs, tmp_path):
    arguments = ["predict", "models:/tiny@champion", inputs[0] / "folder", "--output", tmp_path / "scores.parquet"]
    assert start(finished.folder, *arguments, crash="predict.part:0").wait().code == -signal.SIGKILL
    part = pd.read_parquet(tmp_path / "scores.parquet.parts" / "part-000000.parquet")
    assert not (tmp_path / "scores.parquet").exists()
    assert warmstart(finished.folder, *arguments).code == 0
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "scores.parquet"), part)
    assert not (tmp_path / "scores.parquet.parts").exists()


def test_texts_score_as_the_training_code_does(finished_text, warmstart, tmp_path):
    texts = ["sail and storm, harbour and mast", "a bowl of flour — sugar, butter", "Größe ☃ 日本", ""]
    pd.DataFrame({"text": texts}).to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "folder").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "folder" / f"{number}.txt").write_text(text, encoding="utf-8")
    done = warmstart(
        finished_text.folder, "predict", "models:/tiny/1", tmp_path / "rows.csv", tmp_path / "folder", "--output", tmp_path / "x.parquet"
    )
    assert done.code == 0, done.err
    frame = pd.read_parquet(tmp_path / "x.parquet")
    run = MlflowClient(f"sqlite:///{finished_text.folder / 'mlflow.db'}").get_run(finished_text.stages()["finetune"])
    expected = Predictor.load(Path(run.info.artifact_uri.removeprefix("file://")) / "model").predict([*texts, *texts])
    np.testing.assert_allclose(frame[["p_salt", "p_sea"]], expected[["p_salt", "p_sea"]], atol=1e-6)
    assert frame["label"][:2].tolist() == ["sea", "salt"] and frame["error"].fillna("").tolist() == ["", "", "", "empty"] * 2


def test_an_exported_graph_scores_as_torch_does(finished, warmstart, tiny, inputs, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    arguments = ["--engine", "onnx", "--output", tmp_path / "onnx.parquet"]
    warmstart(finished.folder, "predict", "models:/tiny/1", inputs[0] / "folder", *arguments).refused(["no model.onnx", "registration.onnx=true"])
    # Under another name: other tests look at the champion of `tiny`.
    graphs = ["registration.onnx=true", "registration.int8=true"]
    done = warmstart(finished.folder, "run", tiny, *graphs, "registration.model=graphs", "--json")
    assert done.result["model"]["version"] == "1"
    assert any("Weights of 8 bits" in words for words in done.result["conclusions"])
    frames = {}
    for engine in ("torch", "onnx", "int8"):
        done = warmstart(finished.folder, "predict", "models:/graphs/1", inputs[0] / "folder", "--engine", engine, "--output", tmp_path / f"{engine}.parquet")
        assert done.code == 0, done.err
        frames[engine] = pd.read_parquet(tmp_path / f"{engine}.parquet")
    pd.testing.assert_frame_equal(frames["onnx"], frames["torch"], check_exact=False, atol=1e-5)
    pd.testing.assert_frame_equal(frames["int8"].drop(columns="label"), frames["torch"].drop(columns="label"), check_exact=False, atol=0.1)
