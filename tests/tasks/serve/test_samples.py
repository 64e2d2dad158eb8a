"""Samples hold what was sent and what was told, stay within their limit, and never stand in a request's way."""

import signal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from tasks.serve import samples as module
from tasks.serve.metrics import Metrics
from tasks.serve.model import Loaded
from tasks.serve.samples import Samples


def test_they_hold_what_was_sent_and_told(serving, model, tmp_path):
    with serving(f"{model.name}@champion", "--sample", 1, "--samples", tmp_path / "kept") as server:
        told = server.predictions(model.rows())
        if model.modality.column_type == "binary":  # CSV brings base64, which is kept as bytes too
            csv = pd.DataFrame(model.rows()).to_csv(index=False).encode()
            told += server.ask("/invocations", csv, {"Content-Type": "text/csv"}).json["predictions"]
        server.running.signal(signal.SIGTERM)
        assert server.running.wait().code == 0
    (file,) = (tmp_path / "kept").iterdir()
    assert file.stat().st_mode & 0o077 == 0 and (tmp_path / "kept").stat().st_mode & 0o077 == 0
    table = pq.read_table(file)
    assert str(table.schema.field("time").type) == "timestamp[us, tz=UTC]"
    assert set(table["model"].to_pylist()) == {f"models:/{model.name}/1"}
    fields = list(model.modality.fields)
    sent = [value if isinstance(value, dict) else {fields[0]: value} for value in model.values]
    assert table.select(fields).to_pylist() == sent * (len(told) // len(sent))
    rows = table.drop_columns(["time", "model", *fields]).to_pylist()
    assert [list(row) for row in rows] == [list(row) for row in told]
    for row, answer in zip(rows, told, strict=True):
        for name, value in answer.items():
            if isinstance(value, float | list):
                np.testing.assert_allclose(row[name], value, rtol=1e-6)
            else:
                assert row[name] == value


def test_a_share_is_kept_and_without_the_options_nothing(serving, registered, tmp_path):
    model = registered.models["text"]
    with serving("text@champion", "--sample", 0.5, "--samples", tmp_path / "kept") as server:
        for _ in range(5):
            server.predictions(model.rows() * 20)
        server.running.signal(signal.SIGTERM)
        server.running.wait()
    rows = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "kept").iterdir())
    assert 100 < rows < 300  # of 400; beyond it once in 10²³


def answers(count: int) -> pd.DataFrame:
    return pd.DataFrame({"label": ["cat"] * count, "error": [None] * count})


def loaded(registered, number: int = 1) -> Loaded:
    version = SimpleNamespace(uri=f"models:/text/{number}")
    return Loaded(version, registered.models["text"].expected(), None)


def test_a_file_is_of_one_version_and_the_oldest_go(registered, tmp_path, monkeypatch):
    metrics = Metrics()
    monkeypatch.setattr(module, "ROWS", 10)
    versions = [loaded(registered, number) for number in (1, 2)]
    (tmp_path / "of somebody else.parquet").write_bytes(b"x" * 100_000)
    samples = Samples(tmp_path, 1.0, 20_000, metrics)
    for number in range(40):
        samples.offer(versions[number // 20], [f"{number} {row} " * 20 for row in range(10)], answers(10))
    samples.offer(versions[1], ["last"], answers(1))
    samples.offer(versions[0], ["changed"], answers(1))
    samples.close()
    files = sorted(tmp_path.glob("samples-*.parquet"))
    assert sum(path.stat().st_size for path in files) <= 20_000 and 3 <= len(files) < 42
    tables = [pq.read_table(path) for path in files]
    assert all(len(set(table["model"].to_pylist())) == 1 for table in tables)
    assert [table["text"].to_pylist() for table in tables[-2:]] == [["last"], ["changed"]]
    assert (tmp_path / "of somebody else.parquet").exists() and not list(tmp_path.glob(".samples*"))
    assert b"warmstart_sampled_rows_total 402.0" in metrics.text()


def test_what_cannot_be_written_is_dropped_and_counted(registered, tmp_path, monkeypatch):
    metrics, model = Metrics(), loaded(registered)
    monkeypatch.setattr(module, "PENDING", 1000)
    samples = Samples(tmp_path / "kept", 1.0, 2**20, metrics)
    samples.offer(model, ["x" * 600], answers(1))
    samples.offer(model, ["y" * 600], answers(1))  # too much waits
    samples.offer(model, ["z" * 300], answers(1))
    samples.close()
    (file,) = (tmp_path / "kept").iterdir()
    assert [text[0] for text in pq.read_table(file)["text"].to_pylist()] == ["x", "z"]
    assert b"warmstart_dropped_samples_total 1.0" in metrics.text()
    samples = Samples(tmp_path / "gone", 1.0, 2**20, metrics)
    (tmp_path / "gone").rmdir()
    samples.offer(model, ["x"], answers(1))
    samples.close()
    assert b"warmstart_dropped_samples_total 2.0" in metrics.text()
