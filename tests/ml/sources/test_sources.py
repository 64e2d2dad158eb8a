"""What every source of the table keeps to."""

import gzip
import json
import struct

import datasets
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ml.contracts import InputError, Source
from ml.sources import SOURCES
from ml.sources.torchvision import DATASETS


def _mnist(root, images, labels):
    """The files of MNIST in their own format (IDX), as torchvision looks for them."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, part in (("train", slice(0, 40)), ("t10k", slice(40, 60))):
        pixels, targets = images[part], labels[part]
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, *pixels.shape) + pixels.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(targets)) + targets.tobytes())
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(b""))


@pytest.fixture
def options(tmp_path, tree, png, monkeypatch):
    """The options with which each source finds a little data."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.Dataset.from_dict({"text": ["A fine day.", "A poor one."], "label": ["good", "bad"]}).to_parquet(tmp_path / "hub" / "x.parquet")
    root = tree("a/1.png", "a/2.png", "b/3.png")
    pd.DataFrame({"image": [png(1), png(2)], "label": ["a", "b"]}).to_parquet(tmp_path / "x.parquet")
    (root / "x.csv").write_text("path,label\na/1.png,a\nb/3.png,b\n")
    (tmp_path / "texts.csv").write_text("text,label\nA fine day.,good\nA poor one.,bad\n")
    asked = [{"id": name, "question": f"What is {name}?", "answers": [{"text": "A fine day", "answer_start": 0}]} for name in "ab"]
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"title": "x", "paragraphs": [{"context": "A fine day.", "qas": asked}]}]}))
    (tmp_path / "tagged.conll").write_text("Ann B-PER\nsleeps O\n\nBob B-PER\nwakes O\n")
    (tmp_path / "pairs.csv").write_text("source,target\nA dog.,Ein Hund.\nA cat.,Eine Katze.\n")
    for name in ("good/1.txt", "bad/1.txt", "bad/2.txt"):
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"This is {name}.")
    digits = load_digits()
    _mnist(tmp_path, (digits.images[:60] * 15).astype("uint8"), digits.target[:60].astype("uint8"))
    return {
        "sklearn-digits": {},
        "image-folder": {"path": str(root)},
        "parquet": {"path": str(tmp_path / "x.parquet")},
        "csv": {"path": str(root / "x.csv")},
        "text-table": {"path": str(tmp_path / "texts.csv")},
        "text-folder": {"path": str(tmp_path / "texts")},
        "hugging-face": {"path": str(tmp_path / "hub")},
        "text-pairs": {"path": str(tmp_path / "pairs.csv")},
        "python-docs": {"per_class": 10},
        "tagged-text": {"path": str(tmp_path / "tagged.conll")},
        "python-tokens": {"statements": 100},
        "squad": {"path": str(tmp_path / "squad.json")},
        "torchvision": {"dataset": "MNIST", "path": str(tmp_path), "download": False},
    }


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_keeps_its_promises(name, options, tmp_path):
    chosen = SOURCES[name]
    first, second = (chosen(chosen.Options(**options[name])) for _ in range(2))
    assert isinstance(first, Source) and first.options == chosen.Options(**options[name])
    frame = first.scan()
    assert list(frame.columns) == ["key", "label", "split", "group", "slice"]
    assert frame["key"].is_unique
    assert all(isinstance(key, str) and str(tmp_path) not in key for key in frame["key"])
    assert all(label is None or isinstance(label, str) for label in frame["label"])
    assert set(frame["split"].dropna()) <= {"train", "validation", "test", "unlabelled"}
    assert first.fingerprint() == second.fingerprint()
    keys = frame["key"].tolist()[::-1][:50]
    data = [raw.data for raw in second.read(keys)]  # one that has not been scanned
    assert len(data) == len(keys)
    assert all(data)
    assert data == [next(first.read([key])).data for key in keys]
    assert all(field.description for field in chosen.Options.model_fields.values())
    assert chosen.__doc__


def test_digits_are_the_digits():
    chosen = SOURCES["sklearn-digits"]
    source = chosen(chosen.Options())
    frame = source.scan()
    assert frame["label"].value_counts().to_dict() == {str(digit): int((load_digits().target == digit).sum()) for digit in range(10)}


def test_torchvision_has_the_official_parts(options, tmp_path):
    chosen = SOURCES["torchvision"]
    frame = chosen(chosen.Options(**options["torchvision"])).scan()
    assert frame["split"].value_counts().to_dict() == {"train": 40, "test": 20}
    assert frame["label"][0] == "0 - zero"
    with pytest.raises(InputError, match="unknown torchvision data set 'CIFAR11'"):
        chosen(chosen.Options(dataset="CIFAR11"))
    with pytest.raises(InputError, match="download=true"):
        chosen(chosen.Options(dataset="CIFAR10", path=str(tmp_path / "none"), download=False)).scan()


def test_torchvision_knows_all_the_sets_listed():
    import torchvision

    assert all(hasattr(torchvision.datasets, name) for name in DATASETS)
    assert Image.MAX_IMAGE_PIXELS  # Pillow's own guard stays as it was
