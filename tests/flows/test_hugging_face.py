"""A whole run on a data set that Hugging Face's `datasets` loads."""

import shutil

import pandas as pd
import pytest


def test_the_same_texts_give_the_same_model(tmp_path, tiny_text, finished_text, warmstart):
    """All that differs from the run on the table itself is what the rows are called."""
    pytest.importorskip("datasets")
    (tmp_path / "texts").mkdir()
    shutil.copy(tiny_text.parent / "rows.csv", tmp_path / "texts")
    source = f"data.source=hugging-face:{tmp_path / 'texts'}"
    result = warmstart(tmp_path, "run", tiny_text, "--json", source, HF_HOME=str(tmp_path / "hub")).result
    assert result["metrics"] == finished_text.result["metrics"]
    again = warmstart(tmp_path, "run", tiny_text, "--json", source, HF_HOME=str(tmp_path / "hub")).result
    assert all(stage["cached"] for stage in again["stages"])
    (table,) = (tmp_path / ".warmstart" / "stores").rglob("table.parquet")
    assert pd.read_parquet(table)["key"].str.fullmatch(r"train:\d+").all()
