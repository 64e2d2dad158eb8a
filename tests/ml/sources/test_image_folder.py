"""Folders of pictures, as people really have them."""

import os

import fsspec
import pytest

from ml.contracts import InputError
from ml.sources.image_folder import ImageFolder


def source(path, **options):
    return ImageFolder(ImageFolder.Options(path=str(path), **options))


def rows(frame):
    return {row.key: (row.label, row.split) for row in frame.itertuples()}


def test_class_folders_nested_in_any_case(tree):
    frame = source(tree("cat/1.PNG", "cat/deep/er/2.jpeg", "dog/3.TIFF", "dog/notes.txt", "dog/.hidden.png", ".git/4.png")).scan()
    assert rows(frame) == {"cat/1.PNG": ("cat", None), "cat/deep/er/2.jpeg": ("cat", None), "dog/3.TIFF": ("dog", None)}
    assert frame.attrs["ignored"] >= 2


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_split_folders_are_honoured(tree, validation):
    root = tree("train/a/1.png", "train/b/2.png", f"{validation}/a/3.png", "Test/b/x/4.png", "notes/5.png")
    frame = source(root).scan()
    assert rows(frame) == {
        "train/a/1.png": ("a", "train"),
        "train/b/2.png": ("b", "train"),
        f"{validation}/a/3.png": ("a", "validation"),
        "Test/b/x/4.png": ("b", "test"),
    }
    assert frame.attrs["ignored"] == 1


def test_train_may_be_a_class(tree):
    frame = source(tree("train/1.png", "bus/2.png", "car/3.png")).scan()
    assert set(frame["label"]) == {"train", "bus", "car"}
    assert frame["split"].isna().all()


def test_unlabelled_pictures_within_and_beside(tree):
    root = tree("a/1.png", "b/2.png", "more/x/3.png", "unlabelled/4.png", "5.png")
    frame = source(root, unlabelled=str(root / "more")).scan()
    assert rows(frame) == {
        "a/1.png": ("a", None),
        "b/2.png": ("b", None),
        "unlabelled/4.png": (None, "unlabelled"),
        "5.png": (None, None),
        "unlabelled:x/3.png": (None, "unlabelled"),
    }
    one = source(root, unlabelled=str(root / "more"))
    raws = list(one.read(["unlabelled:x/3.png", "a/1.png", "unlabelled:x/3.png"]))
    assert [raw.data for raw in raws] == [(root / path).read_bytes() for path in ("more/x/3.png", "a/1.png", "more/x/3.png")]


@pytest.mark.parametrize("name", ["a b.png", "ä.png", "a\nb.png", "<b>&.png", "$(x).png", "a..png", "#%?.png", os.fsdecode(b"\xff\xfe.png")])
def test_odd_names_are_read(tree, name):
    root = tree(f"a/{name}", "b/2.png")
    frame = source(root).scan()
    key = frame["key"][frame["label"] == "a"].item()
    key.encode("utf-8")
    assert [raw.data for raw in source(root).read([key])] == [(root / "a" / name).read_bytes()]


def test_a_link_out_of_the_folder_is_listed_and_not_followed(tree, tmp_path, png):
    root = tree("a/1.png", "b/2.png", "c/3.png")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_bytes(png(9))
    (root / "a" / "link.png").symlink_to(tmp_path / "outside" / "secret.png")
    (root / "elsewhere").symlink_to(tmp_path / "outside")
    (root / "b" / "inner.png").symlink_to(root / "a" / "1.png")
    (root / "b" / "loop").symlink_to(root)
    frame = source(root).scan()
    assert rows(frame)["a/link.png"] == ("a", None)
    assert rows(frame)["elsewhere"] == ("elsewhere", None)
    inner, link, folder, climbing = source(root).read(["b/inner.png", "a/link.png", "elsewhere", "../outside/secret.png"])
    assert inner.data == png(0)
    assert [one.data for one in (link, folder, climbing)] == [None] * 3
    assert all("out of the folder" in one.reason for one in (link, folder, climbing))


def test_what_is_no_regular_file_does_not_hang(tree):
    root = tree("a/1.png", "b/2.png")
    os.mkfifo(root / "a" / "pipe.png")
    (root / "a" / "gone.png").symlink_to(root / "a" / "nowhere.png")
    raws = list(source(root).read(["a/pipe.png", "a/gone.png", "a/1.png"]))
    assert [raw.data is None for raw in raws] == [True, True, False]
    assert raws[0].reason == "not a regular file"


@pytest.mark.parametrize(
    ("names", "folders", "message"),
    [
        ([], [], "holds no pictures"),
        (["a/x.txt"], [], "holds no pictures"),
        (["1.png", "2.png"], [], "no class folders"),
        (["a/1.png"], [], "one class only.*'a'"),
        (["a/1.png", "b/2.png"], ["empty"], "class folder 'empty'"),
        (["a/1.png", "b/2.png", "c/x.txt"], [], "class folder 'c'"),
        (["train/a/1.png", "train/b/2.png", "test/c/3.png"], [], "class 'c' is in the test part"),
        (["train/a/1.png", "train/b/2.png", "test/a/3.png"], ["train/z"], "class folder 'train/z'"),
        (["train/a/1.png", "test/a/3.png"], [], "one class only"),
    ],
)
def test_folders_that_cannot_work_say_why(tree, names, folders, message):
    root = tree(*names)
    for folder in folders:
        (root / folder).mkdir(parents=True)
    root.mkdir(exist_ok=True)
    with pytest.raises(InputError, match=message):
        source(root).scan()


@pytest.mark.parametrize("method", ["scan", "fingerprint"])
def test_a_missing_folder_or_a_file_in_its_place(tmp_path, method):
    with pytest.raises(InputError, match="there is nothing at"):
        getattr(source(tmp_path / "nowhere"), method)()
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file; expected a folder"):
        getattr(source(tmp_path / "file"), method)()
    with pytest.raises(InputError, match="empty"):
        getattr(source(""), method)()


def test_the_fingerprint_sees_every_change(tree, png):
    root = tree("a/1.png", "b/2.png")
    seen = [source(root).fingerprint()]
    assert source(root).fingerprint() == seen[0]
    (root / "a" / "3.png").write_bytes(png(5))
    seen.append(source(root).fingerprint())
    (root / "a" / "3.png").write_bytes(png(5, side=9))
    seen.append(source(root).fingerprint())
    os.utime(root / "a" / "3.png", ns=(1, 1))
    seen.append(source(root).fingerprint())
    (root / "a" / "3.png").rename(root / "a" / "4.png")
    seen.append(source(root).fingerprint())
    assert len(set(seen)) == len(seen)


def test_a_folder_behind_a_url(png):
    files = fsspec.filesystem("memory")
    for number, name in enumerate(["a/1.png", "a/2.png", "b/3.png"]):
        files.pipe(f"/pictures/{name}", png(number))
    one = source("memory://pictures")
    assert rows(one.scan()) == {"a/1.png": ("a", None), "a/2.png": ("a", None), "b/3.png": ("b", None)}
    assert [raw.data for raw in one.read(["b/3.png", "a/1.png", "a/1.png"])] == [png(2), png(0), png(0)]
    assert next(one.read(["b/none.png"])).data is None
    before = one.fingerprint()
    files.pipe("/pictures/a/2.png", png(7, side=16))
    assert one.fingerprint() != before
    files.rm("/pictures", recursive=True)
