"""CSV files of paths and labels."""

import pytest

from ml.contracts import InputError
from ml.sources.csv import Csv


def source(path, **options):
    return Csv(Csv.Options(path=str(path), **options))


def test_paths_and_labels(tree):
    root = tree("a/1.png", "a/2.png", "3.png")
    (root / "x.csv").write_text("path,label,part,who\na/1.png,NA,train,p1\na/2.png,None,test,p2\n3.png,,,\na/1.png,NA,train,p1\n")
    one = source(root / "x.csv", split="part", group="who")
    frame = one.scan()
    assert frame["label"].tolist() == ["NA", "None", None, "NA"]
    assert frame["split"].tolist() == ["train", "test", None, "train"]
    assert frame["group"].tolist() == ["p1", "p2", None, "p1"]
    assert frame["key"].is_unique
    raws = list(one.read(frame["key"].tolist()))
    assert [raw.data for raw in raws] == [(root / path).read_bytes() for path in ("a/1.png", "a/2.png", "3.png", "a/1.png")]


def test_paths_may_be_relative_to_another_folder_but_not_leave_it(tree, tmp_path, png):
    root = tree("a/1.png")
    (tmp_path / "secret.png").write_bytes(png(3))
    (tmp_path / "x.csv").write_text("path;label\na/1.png;1\n../secret.png;2\n")
    raws = list(source(tmp_path / "x.csv", root=str(root), separator=";").read(["a/1.png", "../secret.png"]))
    assert raws[0].data == png(0)
    assert raws[1].data is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as CSV"),
        ("file,label\n1.png,a\n", "no column 'path' for `image`; it has 'file', 'label'"),
        ("path,class\n1.png,a\n", "no column 'label'"),
        ('path,label\n"1.png,a\n', "cannot be read as CSV"),
        ("path,label\n1.png,a\n,b\n", "no path in its row 3"),
        ("path,label\n\xff1.png,a\n", "cannot be read as CSV"),
    ],
)
def test_files_that_cannot_work_say_why(tmp_path, text, message):
    (tmp_path / "x.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        source(tmp_path / "x.csv").scan()


def test_the_fingerprint_sees_the_pictures_too(tree, png):
    root = tree("1.png", "2.png")
    (root / "x.csv").write_text("path,label\n1.png,a\n")
    before = source(root / "x.csv").fingerprint()
    (root / "2.png").write_bytes(png(5, side=16))
    assert source(root / "x.csv").fingerprint() == before
    (root / "1.png").write_bytes(png(6, side=16))
    assert source(root / "x.csv").fingerprint() != before
