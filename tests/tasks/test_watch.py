"""The look at what a champion served lately: nothing is found where nothing changed, and what drifts or comes anew is."""

import io
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import draw
from PIL import Image

from flows.watch import watch
from ml import drift, observed
from ml.contracts import InputError
from ml.heads import HEADS
from ml.predictor import frame_of
from ml.recipe import load
from tasks.tracking import database, registry
from tasks.tracking.artifacts import fetch
from tasks.watch import observe, recent


@pytest.fixture
def within(monkeypatch):
    """Has this process work in the folder of a finished run."""

    def enter(folder: Path) -> None:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        monkeypatch.setenv("WARMSTART_HOME", str(folder / ".warmstart"))
        database.prepare()

    yield enter
    mlflow.set_tracking_uri(None)


@pytest.fixture
def recipe(finished, tiny, within):
    """The recipe of a finished run, in whose folder this process works."""
    within(finished.folder)
    return load(tiny)


def keep(folder: Path, pictures: list[bytes], days: float = 0, name: str = "0") -> Path:
    """Samples as `warmstart serve` keeps them."""
    folder.mkdir(exist_ok=True)
    time = datetime.now(UTC) - timedelta(days=days)
    table = pa.table({"time": pa.array([time] * len(pictures), pa.timestamp("us", "UTC")), "model": ["models:/tiny/1"] * len(pictures), "image": pa.array(pictures, pa.binary()), "label": ["x"] * len(pictures)})
    pq.write_table(table, folder / f"samples-{name}.parquet")
    return folder


def keep_items(folder: Path, recipe, change=lambda text: text) -> Path:
    """All items of the recipe's data, each of their texts changed, as samples."""
    folder.mkdir()
    source, modality = recipe.data.source.make(), recipe.data.modality.make()
    frame = frame_of([modality.request(item.data) for item in source.read(source.scan()["key"].tolist())], modality).map(change)
    frame.insert(0, "time", datetime.now(UTC))
    frame.to_parquet(folder / "samples-0.parquet")
    return folder


def files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("*.png"))]


def negative(picture: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(255 - np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))).save(buffer, "PNG")
    return buffer.getvalue()


def look(recipe, folder, **given):
    return observe.fn(recipe, str(folder), **{"days": 7, "level": 0.01, "bound": 0.6} | given)


def test_pictures_of_the_same_kind_are_no_reason(recipe, tmp_path):
    same = draw(tmp_path / "same", seed=5)
    found = look(recipe, keep(tmp_path / "samples", files(same)))
    assert found["reasons"] == [] and {one["name"] for one in found["comparisons"]} == {"inputs", "predictions"}
    run = database.client().get_run(database.client().search_runs([database.experiment("tiny-watch")])[0].info.run_id)
    assert run.info.status == "FINISHED" and run.data.metrics["drift/inputs/p"] > 0.005
    assert {path.name for path in fetch(run.info.run_id, "pictures").iterdir()} == {"features.png", "confidence.png", "classes.png"}


def test_other_pictures_are_a_reason(recipe, tmp_path):
    other = [negative(one) for one in files(draw(tmp_path / "same", seed=5))]
    found = look(recipe, keep(tmp_path / "samples", other))
    assert any("inputs have drifted" in one for one in found["reasons"])
    assert found["key"] != look(recipe, tmp_path / "nothing")["key"]
    assert look(recipe, tmp_path / "samples", bound=1.0)["reasons"] == [] or max(one["auc"] for one in found["comparisons"]) == 1.0


def test_equal_requests_count_once_and_old_and_broken_ones_not_at_all(recipe, tmp_path):
    pictures = files(draw(tmp_path / "same", seed=5))
    keep(tmp_path / "samples", pictures[:3] * 50, name="0")
    keep(tmp_path / "samples", pictures[3:9], days=9, name="1")
    keep(tmp_path / "samples", [b"no picture", None], name="2")
    found = look(recipe, tmp_path / "samples")
    assert (found["rows"], found["unusable"]) == (3, 2) and not found["comparisons"] and "3 usable rows" in found["note"]
    (tmp_path / "samples" / "samples-3.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(InputError, match=r"samples-3.parquet cannot be read"):
        look(recipe, tmp_path / "samples")


def test_samples_of_another_kind_of_model_are_left_out(recipe, tmp_path):
    keep(tmp_path, files(draw(tmp_path / "same", seed=5)))
    table = pa.table({"time": pa.array([datetime.now(UTC)], pa.timestamp("us", "UTC")), "text": ["words"]})
    pq.write_table(table, tmp_path / "samples-text.parquet")
    assert len(recent(tmp_path, recipe.data.modality.make(), 1)) == len({*files(tmp_path / "same")})


def test_new_data_are_a_reason(recipe, tmp_path):
    assert not look(recipe, tmp_path)["new_data"]
    path = Path(recipe.data.source.options["path"])
    copy = shutil.copytree(path, tmp_path / "more")
    picture = next(copy.rglob("*.png"))
    picture.with_name("another.png").write_bytes(negative(picture.read_bytes()))
    changed = recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": recipe.data.source.model_copy(update={"options": {"path": str(copy)}})})})
    found = look(changed, tmp_path)
    assert found["reasons"] == ["the data have changed since the champion was trained"]


def test_what_cannot_be_watched_is_told(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "champion", lambda name: None)
    with pytest.raises(InputError, match="has no champion to watch"):
        look(recipe, tmp_path)
    with pytest.raises(InputError, match="expected a level between 0 and 1"):
        watch.fn(recipe, str(tmp_path), level=0.0)


@pytest.mark.e2e
@pytest.mark.parametrize("head", [name for name, head in HEADS.items() if not head.labels])
def test_heads_without_classes_are_watched_by_what_they_read(tiny_heads, finished_heads, within, head, tmp_path, monkeypatch):
    within(finished_heads(head).folder)
    recipe = load(tiny_heads[head])
    monkeypatch.setattr(registry, "champion", lambda name: registry.version(name, 1))  # of which the gate thinks what it likes
    monkeypatch.setattr(drift, "LEAST", 5)  # these data are small
    same = look(recipe, keep_items(tmp_path / "same", recipe))
    assert [one["name"] for one in same["comparisons"]] == ["inputs"] and same["reasons"] == [] and same["unusable"] == 0
    other = look(recipe, keep_items(tmp_path / "other", recipe, lambda text: " ".join(word[:1].upper() + "zq" for word in text.split())))
    assert any("inputs have drifted" in one for one in other["reasons"])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04K\x01."])
def test_a_reference_is_never_unpickled(tmp_path, content):
    (tmp_path / "reference.npz").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a reference"):
        observed.load(tmp_path / "reference.npz")
    np.savez(tmp_path / "pickled.npz", inputs=np.array([os.system], dtype=object))
    with pytest.raises(InputError, match="cannot be read as a reference"):
        observed.load(tmp_path / "pickled.npz")
    np.savez(tmp_path / "other.npz", predictions=np.zeros((2, 2)))
    with pytest.raises(InputError, match="is no reference"):
        observed.load(tmp_path / "other.npz")
