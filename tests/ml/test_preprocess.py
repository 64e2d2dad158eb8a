"""From raw files to a store: what stays, what goes, and what a kill in between costs."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ml import decoding, progress
from ml.contracts import UNLABELLED, InputError
from ml.modalities import MODALITIES
from ml.overview import overview
from ml.preprocess import preprocess, summary
from ml.recipe import Data
from ml.sources.sklearn_digits import SklearnDigits
from ml.store import Store


def run(where, name="sklearn-digits", source=None, **data):
    options = data.pop("options", {})
    recipe = Data.model_validate({"source": {"name": name, "options": options}, **data})
    return preprocess(source or recipe.source.make(), recipe.modality.make(), recipe, where / "work", where / "stores")


def scene(seed, side=48):
    """A picture with structure: a few smooth blobs of colour."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def save(path: Path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


@pytest.fixture
def scenes(tmp_path):
    """A folder of 2 x 20 different pictures."""
    for number in range(40):
        save(tmp_path / "data" / "ab"[number % 2] / f"{number}.png", scene(number))
    return tmp_path / "data"


def parts(store):
    return dict(zip(store.table["key"], store.table["part"], strict=True))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return run(tmp_path_factory.mktemp("digits"))


def test_digits_become_a_store(digits):
    digits.verify()
    assert digits.array.shape == (1797, 16, 16, 1)
    assert digits.spec.classes == tuple("0123456789")
    table = digits.table
    assert list(table.columns) == ["row_id", "key", "label", "split", "part", "group", "slice", "width", "height"]
    assert table["row_id"].is_unique
    share = (table["part"] == "test").mean()
    assert 0.15 < share < 0.25
    assert set(table.loc[table["part"] == "test", "label"]) == set(range(10))
    assert table.groupby("group")["part"].nunique().max() == 1
    labels = SklearnDigits(SklearnDigits.Options()).scan()["label"]
    assert [digits.spec.classes[label] for label in digits.labels] == labels.tolist()


def test_statistics_are_those_of_the_training_part_alone(digits):
    training = digits.array[(digits.table["part"] == "train").to_numpy()] / 255
    assert digits.spec.statistics["mean"] == pytest.approx([training.mean()])
    assert digits.spec.statistics["std"] == pytest.approx([training.std()])


def test_small_similar_pictures_are_not_one_chain(digits):
    assert digits.manifest["largest_group"] <= 10
    assert digits.manifest["duplicates"]["near"] < 180


def test_the_result_depends_on_the_data_alone(digits, tmp_path):
    again = run(tmp_path / "elsewhere", workers=3)
    assert again.digest == digits.digest
    assert not (tmp_path / "elsewhere" / "work" / "decoded").exists()


class Counted(SklearnDigits):
    """The digits, telling how many items are read."""

    def __init__(self):
        super().__init__(self.Options())
        self.count = 0

    def read(self, keys):
        for raw in super().read(keys):
            self.count += 1
            yield raw


KILLED = """
import os, sys
from pathlib import Path
from ml.preprocess import preprocess
from ml.recipe import Data
data = Data.model_validate({"source": "sklearn-digits"})
for point in sys.argv[2:]:
    if os.fork() == 0:
        os.environ |= {"WARMSTART_TESTING": "1", "WARMSTART_CRASH_AT": point}
        folder = Path(sys.argv[1]) / point
        preprocess(data.source.make(), data.modality.make(), data, folder / "work", folder / "stores")
        os._exit(0)
    print(point, os.WTERMSIG(os.wait()[1]))
"""  # one process imports, its children are killed


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Where runs on the digits were killed, each at one point."""
    root, points = tmp_path_factory.mktemp("killed"), ("preprocess.chunk", "preprocess.rename")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", KILLED, root, *points], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.split() == [word for point in points for word in (point, str(int(signal.SIGKILL)))]
    return root


@pytest.mark.parametrize(("point", "left"), [("preprocess.chunk", 1797 - 512), ("preprocess.rename", 0)])
def test_a_killed_run_goes_on_where_it_was(digits, killed, point, left):
    folder = killed / point
    visible = [path.name for path in (folder / "stores").glob("*") if not path.name.startswith(".")]
    assert visible == []
    source = Counted()
    store = run(folder, source=source)
    sampled = 256
    assert source.count == left + sampled
    assert store.digest == digits.digest
    assert [path.name for path in (folder / "stores").iterdir()] == [store.digest]


def test_chunks_of_another_plan_are_not_taken(digits, tmp_path):
    class Interrupting(Counted):
        def read(self, keys):
            for raw in super().read(keys):
                if self.count > 1024 + 256:
                    raise KeyboardInterrupt
                yield raw

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, source=Interrupting(), modality={"name": "image", "options": {"size": 24}})
    assert list((tmp_path / "work" / "decoded").glob("facts-*"))
    assert run(tmp_path).digest == digits.digest


def test_progress_is_told(tmp_path):
    told = []

    class Listener:
        def update(self, stage, done, total, facts):
            told.append((stage, done, total, facts))

    progress.listen(Listener())
    try:
        run(tmp_path)
    finally:
        progress.listen(None)
    assert [done for _, done, _, _ in told] == [0, 512, 1024, 1536, 1797]
    assert {(stage, total) for stage, _, total, _ in told} == {("preprocess", 1797)}


def test_corrupt_items_are_set_aside_with_reasons(scenes, tmp_path):
    (scenes / "a" / "0.png").write_bytes((scenes / "a" / "0.png").read_bytes()[:200])
    (scenes / "a" / "new.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"2 of 41 items cannot be used \(4.9%, the limit is 1.0%\).*data.quarantine_limit to 0.05"):
        run(tmp_path, "image-folder", options={"path": str(scenes)}, quarantine_limit=0.01)
    store = run(tmp_path, "image-folder", options={"path": str(scenes)})
    quarantine = store.quarantine.set_index("key")
    assert set(quarantine.index) == {"a/0.png", "a/new.png"}
    assert quarantine.loc["a/new.png", "reason"] == "empty file"
    assert quarantine.loc["a/0.png", "bytes"] == 200
    assert store.manifest["quarantined"] == 2
    assert len(store.table) == 39
    for row, key in enumerate(store.table["key"]):  # arrays and table stay in step
        expected = np.asarray(Image.open(scenes / key).resize((48, 48)))
        assert np.array_equal(store.array[row], expected)


def test_all_corrupt(scenes, tmp_path):
    for path in scenes.rglob("*.png"):
        path.write_bytes(b"not a picture")
    with pytest.raises(InputError, match="none of the 40 items can be read: 40 x not a PNG"):
        run(tmp_path, "image-folder", options={"path": str(scenes)}, quarantine_limit=1.0)


def test_a_class_of_corrupt_pictures_is_named(scenes, tmp_path):
    save(scenes / "broken" / "1.png", scene(99))
    (scenes / "broken" / "1.png").write_bytes(b"oh")
    with pytest.raises(InputError, match="class 'broken'"):
        run(tmp_path, "image-folder", options={"path": str(scenes)})


def test_an_enormous_picture_is_set_aside(scenes, tmp_path):
    Image.new("1", (9_000, 9_000)).save(scenes / "a" / "huge.png")
    store = run(tmp_path, "image-folder", options={"path": str(scenes)})
    assert "above the limit" in store.quarantine["reason"].item()


def test_exact_copies_go_and_conflicts_are_flagged(scenes, tmp_path):
    save(scenes / "a" / "copy.bmp", scene(0))  # the same pixels as a/0.png in another file
    save(scenes / "b" / "disputed.png", scene(2))  # a/2.png says it is an "a"
    store = run(tmp_path, "image-folder", options={"path": str(scenes)})
    assert {"a/copy.bmp", "a/0.png"} & set(store.table["key"]) == {"a/0.png"}
    assert not {"b/disputed.png", "a/2.png"} & set(store.table["key"])
    assert store.manifest["duplicates"]["exact"] == 1
    assert store.manifest["conflicts"] == {
        "items": 1,
        "rows": 2,
        "examples": [{"keys": ["a/2.png", "b/disputed.png"], "labels": ["a", "b"]}],
    }


@pytest.fixture
def official(tmp_path):
    """Official parts, with a test picture again in training, recompressed and resized there, and among the unlabelled."""
    root = tmp_path / "data"
    for number in range(60):
        part = {0: "test", 1: "val"}.get(number % 6, "train")
        save(root / part / "ab"[number % 2 if part == "train" else number // 6 % 2] / f"{number}.png", scene(number))
    test = sorted((root / "test").rglob("*.png"))
    for path in test[:2]:
        picture = Image.open(path)
        save(root / "train" / path.parent.name / f"copy-{path.name}", picture)
        save(root / "train" / path.parent.name / f"again-{path.stem}.jpg", picture.resize((96, 96)), quality=60)
        save(root / "unlabelled" / f"more-{path.stem}.jpg", picture, quality=70)
    save(root / "unlabelled" / "other.png", scene(1000))
    return root


def test_no_copy_of_an_official_test_row_stays_outside_the_test(official, tmp_path):
    store = run(tmp_path, "image-folder", options={"path": str(official)})
    found = parts(store)
    assert not any("copy-" in key or "again-" in key or "more-" in key for key in found)
    assert {key for key, part in found.items() if part == "test"} == {key for key in found if key.startswith("test/")}
    assert {key for key, part in found.items() if part == "validation"} == {key for key in found if key.startswith("val/")}
    assert found["unlabelled/other.png"] == "unlabelled"
    assert store.manifest["test"] == "official"
    assert store.manifest["leakage"] == {"exact": 2, "near": 4}
    assert store.labels[store.table["key"] == "unlabelled/other.png"].item() == UNLABELLED


def test_near_copies_stay_on_one_side_of_a_drawn_test(tmp_path):
    root = tmp_path / "data"
    for number in range(40):
        save(root / "ab"[number % 2] / f"{number}.png", scene(number))
        save(root / "ab"[number % 2] / f"{number}-again.jpg", scene(number), quality=50)
        save(root / "unlabelled" / f"{number}-more.jpg", scene(number), quality=80)
    store = run(tmp_path, "image-folder", options={"path": str(root)})
    table = store.table
    for number in range(40):
        rows = table[table["key"].str.contains(rf"/{number}(?:\.|-)", regex=True)]
        assert rows["group"].nunique() == 1
        tested = (rows["part"] == "test").any()
        assert len(rows) == (2 if tested else 3)  # the unlabelled copy of a test row is gone
        assert rows["part"].isin(["test"] if tested else ["train", "unlabelled"]).all()
    alone = run(tmp_path, "image-folder", options={"path": str(root)}, near_duplicates=False)
    assert alone.table["group"].is_unique


def test_users_groups_do_not_straddle(tmp_path):
    rows = []
    for number in range(200):
        out = io.BytesIO()
        scene(number, 16).save(out, "PNG")
        rows.append({"image": out.getvalue(), "label": number % 3, "patient": f"p{number // 5}", "site": "xyz"[number % 3]})
    (tmp_path / "x").mkdir()
    pd.DataFrame(rows).to_parquet(tmp_path / "x" / "data.parquet")
    store = run(tmp_path, "parquet", options={"path": str(tmp_path / "x"), "group": "patient", "slice": "site"})
    table = store.table.assign(patient=[int(key.split("#")[1]) // 5 for key in store.table["key"]])
    assert table.groupby("patient")["part"].nunique().max() == 1
    assert table.groupby("patient")["group"].nunique().max() == 1
    assert table["group"].nunique() == 40
    assert set(table["slice"]) == set("xyz")
    assert store.spec.classes == ("0", "1", "2")


def test_rows_without_label_serve_pretraining_but_not_the_test(tmp_path):
    rows = []
    for number in range(120):
        out = io.BytesIO()
        scene(number, 16).save(out, "PNG")
        split = "test" if number < 30 else "train"
        rows.append({"image": out.getvalue(), "label": None if number % 3 == 0 else float(number % 2), "part": split})
    pd.DataFrame(rows).to_parquet(tmp_path / "x.parquet")
    store = run(tmp_path, "parquet", options={"path": str(tmp_path / "x.parquet"), "split": "part"})
    assert store.manifest["parts"] == {"test": 20, "train": 60, "unlabelled": 30}
    assert store.manifest["unlabelled_evaluation"] == 10
    assert ((store.labels == UNLABELLED) == (store.table["part"] == "unlabelled")).all()


@pytest.mark.parametrize(("labels", "message"), [(["a"] * 10, "one class only: 'a'"), ([None] * 10, "no labelled row")])
def test_too_few_classes(tmp_path, labels, message):
    out = io.BytesIO()
    scene(1, 16).save(out, "PNG")
    pd.DataFrame({"image": [out.getvalue()] * 10, "label": pd.Series(labels, dtype=object)}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=message):
        run(tmp_path, "parquet", options={"path": str(tmp_path / "x.parquet")})


def test_a_full_disk_names_the_folder_and_the_need(tmp_path, monkeypatch):
    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(InputError, match=r"the disk of .*work is full: about \d+ MiB are needed"):
            run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(decoding.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
        with pytest.raises(InputError, match="has 0 MiB free, but 17 MiB are needed"):
            run(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "work").write_text("a file in the way")
    with pytest.raises(InputError, match="cannot write"):
        run(tmp_path)


def test_the_summary_is_json(digits):
    facts = summary(digits)
    assert json.loads(json.dumps(facts)) == facts
    assert list(facts["classes"]) == list("0123456789")
    assert facts["rows"] == sum(facts["parts"].values()) == 1797
    assert 1 <= facts["imbalance"] < 1.5
    assert facts["bytes"] > 1797 * 256


def test_the_overview_draws_what_there_is(digits, scenes, tmp_path):
    assert set(overview(digits, MODALITIES["image"](MODALITIES["image"].Options()))) == {"classes", "sample", "sizes"}
    (scenes / "a" / "new.png").write_bytes(b"")
    save(scenes / "$x^{" / "1.png", scene(50))
    save(scenes / "$x^{" / "2.png", scene(51, 20))
    figures = overview(run(tmp_path, "image-folder", options={"path": str(scenes)}), MODALITIES["image"](MODALITIES["image"].Options()))
    assert set(figures) == {"classes", "sample", "sizes", "quarantine"}
    for figure in figures.values():
        assert isinstance(figure, Figure)
        out = io.BytesIO()
        figure.savefig(out)
        assert Image.open(out).getextrema() != ((255, 255),) * 4


def test_real_pictures(shared_data, tmp_path):
    store = run(tmp_path, "parquet", options={"path": str(shared_data / "small" / "cifar10"), "label": "label_name"})
    assert store.manifest["parts"]["test"] == 200
    assert store.spec.shape == (3, 32, 32)
    assert len(store.spec.classes) == 10
    folder = run(tmp_path, "image-folder", options={"path": str(shared_data / "small" / "clothing_small")})
    assert folder.manifest["parts"] == {"test": 40, "train": 150, "validation": 40}
    assert Store.open(folder.path).digest == folder.digest
