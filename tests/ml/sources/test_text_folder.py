"""Folders of text files, and their paragraphs."""

import os

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml.contracts import InputError
from ml.sources.text_folder import LONGEST, TextFolder


def source(path, **options):
    return TextFolder(TextFolder.Options(path=str(path) if path else "", **options))


def rows(frame):
    return {row.key: (row.label, row.split) for row in frame.itertuples()}


def texts(one, keys=None):
    return [raw.data if raw.data is None else raw.data.decode() for raw in one.read(one.scan()["key"].tolist() if keys is None else keys)]


@pytest.fixture
def texts_at(tmp_path):
    """texts_at("a/1.txt", ...) writes files that hold their own names, and gives the folder."""

    def write(*names):
        root = tmp_path / "root"
        root.mkdir(exist_ok=True)
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(os.fsencode(name))
        return root

    return write


def test_class_folders(texts_at):
    one = source(texts_at("neg/1.txt", "neg/deep/2.TEXT", "pos/3.md", "pos/x.json", "pos/.hidden.txt", "README.txt"))
    frame = one.scan()
    assert rows(frame) == {"neg/1.txt": ("neg", None), "neg/deep/2.TEXT": ("neg", None), "pos/3.md": ("pos", None)}
    assert frame.attrs["ignored"] == 3
    assert texts(one) == frame["key"].tolist()
    assert texts(one, ["pos/3.md", "neg/1.txt", "none.txt"]) == ["pos/3.md", "neg/1.txt", None]


def test_the_layout_of_the_large_movie_review_data_set(texts_at):
    root = texts_at("train/neg/0_3.txt", "train/pos/0_9.txt", "train/unsup/0_0.txt", "test/neg/1_2.txt", "test/pos/1_8.txt", "train/urls_pos.txt", "README.md")
    assert rows(source(root).scan()) == {
        "train/neg/0_3.txt": ("neg", "train"),
        "train/pos/0_9.txt": ("pos", "train"),
        "train/unsup/0_0.txt": (None, "unlabelled"),
        "test/neg/1_2.txt": ("neg", "test"),
        "test/pos/1_8.txt": ("pos", "test"),
    }


def test_train_may_be_a_class(texts_at):
    frame = source(texts_at("train/1.txt", "bus/2.txt")).scan()
    assert set(frame["label"]) == {"train", "bus"}
    assert frame["split"].isna().all()


@pytest.mark.parametrize("names", [["1.txt", "2.md"], ["unsup/a/1.txt", "unsup/b/2.txt"]])
def test_texts_without_classes(texts_at, names):
    assert rows(source(texts_at(*names)).scan()) == dict.fromkeys(names, (None, "unlabelled"))


@pytest.mark.parametrize("names", [["train/1.txt", "test/2.txt"], ["train.txt", "wiki.test.txt"], ["book.txt", "wiki.test.txt"]])
def test_names_tell_the_parts_of_texts_without_classes(texts_at, names):
    assert rows(source(texts_at(*names)).scan()) == dict(zip(names, [(None, "train"), (None, "test")], strict=True))


def test_unlabelled_texts_within_beside_and_alone(texts_at):
    root = texts_at("a/1.txt", "b/2.txt", "more/x/3.txt", "unsup/4.txt")
    one = source(root, unlabelled=str(root / "more"))
    assert rows(one.scan()) == {
        "a/1.txt": ("a", None),
        "b/2.txt": ("b", None),
        "unsup/4.txt": (None, "unlabelled"),
        "unlabelled:x/3.txt": (None, "unlabelled"),
    }
    assert texts(one, ["unlabelled:x/3.txt", "a/1.txt"]) == ["more/x/3.txt", "a/1.txt"]
    assert rows(source("", unlabelled=str(root)).scan()).keys() == {f"unlabelled:{name}" for name in ("a/1.txt", "b/2.txt", "more/x/3.txt", "unsup/4.txt")}


def test_paragraphs(texts_at, tmp_path):
    root = texts_at("a.txt", "b.md", "empty.txt")
    (root / "a.txt").write_bytes(b"\n \r\nOne,\r\nof two lines.\r\n\t\r\n\r\n  Two.\nOn.\n\n")
    (root / "b.md").write_text("# Naïve\n\nlast")
    (root / "empty.txt").write_text("\n\n")
    one = source(root, unit="paragraph")
    assert rows(one.scan()).keys() == {"a.txt:0", "a.txt:1", "b.md:0", "b.md:1", "empty.txt:0"}
    assert texts(one) == ["One,\r\nof two lines.", "  Two.\nOn.", "# Naïve", "last", None]
    assert texts(one, ["b.md:1", "a.txt:1", "a.txt:0", "a.txt:2", f"../{root.name}/a.txt:0"]) == ["last", "  Two.\nOn.", "One,\r\nof two lines.", None, None]
    single = source(root / "a.txt", unit="paragraph")
    assert single.scan()["key"].tolist() == ["a.txt:0", "a.txt:1"]
    assert texts(source(root / "a.txt")) == [(root / "a.txt").read_bytes().decode()]


def test_paragraphs_of_the_further_folder_beside_labelled_files(texts_at):
    root = texts_at("a/1.txt", "b/2.txt", "more/3.txt")
    (root / "more" / "3.txt").write_text("x\n\ny")
    one = source(root, unlabelled=str(root / "more"), unit="paragraph")
    assert texts(one) == ["a/1.txt", "b/2.txt", "x", "y"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(parts=st.lists(st.tuples(st.sampled_from(["word ", "é", "line\n"]), st.integers(1, 2 * LONGEST)), min_size=1, max_size=3), gap=st.sampled_from(["\n\n", "\n \r\n"]))
def test_no_byte_is_lost_and_no_paragraph_is_long(tmp_path, parts, gap):
    whole = gap.join(word * count for word, count in parts)
    (tmp_path / "x.txt").write_bytes(whole.encode())
    one = source(tmp_path / "x.txt", unit="paragraph")
    found = [raw.data for raw in one.read(one.scan()["key"].tolist())]
    assert max(map(len, found)) <= LONGEST
    assert b"".join(found).replace(b"\n", b"").replace(b"\r", b"") == whole.encode().replace(gap.encode(), b"").replace(b"\n", b"")


def test_what_is_no_utf8_is_not_cut_into_paragraphs(texts_at):
    root = texts_at("a.txt")
    (root / "a.txt").write_text("one\n\ntwo", encoding="utf-16")
    one = source(root, unit="paragraph")
    assert [raw.data for raw in one.read(one.scan()["key"].tolist())] == [(root / "a.txt").read_bytes()]


@pytest.mark.parametrize("unit", ["file", "paragraph"])
def test_links_pipes_and_odd_names(texts_at, tmp_path, unit):
    root = texts_at("fine.txt", "a:0.txt", "new\nline.txt", os.fsdecode(b"\xff.txt"))
    (tmp_path / "secret.txt").write_text("secret")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "elsewhere").symlink_to(tmp_path)
    (root / "inner.txt").symlink_to(root / "fine.txt")
    (root / "gone.txt").symlink_to(root / "nowhere.txt")
    os.mkfifo(root / "pipe.txt")
    frame = source(root, unit=unit).scan()
    frame["key"].map(str.encode)
    raws = dict(zip(frame["key"].str.removesuffix(":0"), source(root, unit=unit).read(frame["key"].tolist()), strict=True))
    assert {key for key, raw in raws.items() if raw.data is None} == {"link.txt", "elsewhere", "gone.txt", "pipe.txt"}
    assert all("out of the folder" in raws[key].reason for key in ("link.txt", "elsewhere"))
    assert raws["pipe.txt"].reason == "not a regular file"
    assert raws["inner.txt"].data == b"fine.txt"
    assert raws["a:0.txt"].data == b"a:0.txt"


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, "holds no texts: found 0 files"),
        (["a/x.png"], {}, "holds no texts: found 1 files"),
        (["a/1.txt"], {}, "one class only.*'a'"),
        (["a/1.txt", "b/2.txt", "c/x.png"], {}, "class folder 'c' in .* holds no texts"),
        (["train/a/1.txt", "train/b/2.txt", "test/c/3.txt"], {}, "class 'c' is in the test part"),
        (["a/1.txt", "b/2.txt"], {"unit": "paragraph"}, "unit=paragraph is for texts without classes"),
    ],
)
def test_folders_that_cannot_work_say_why(texts_at, names, options, message):
    with pytest.raises(InputError, match=message):
        source(texts_at(*names), **options).scan()


@pytest.mark.parametrize("method", ["scan", "fingerprint"])
def test_places_that_are_missing(tmp_path, method):
    with pytest.raises(InputError, match="there is nothing at"):
        getattr(source(tmp_path / "nowhere"), method)()
    with pytest.raises(InputError, match="`path` is empty"):
        getattr(source(""), method)()


def test_an_empty_text_is_missing(texts_at):
    root = texts_at("a/1.txt", "b/2.txt")
    (root / "a" / "1.txt").write_text(" \n")
    assert next(source(root).read(["a/1.txt"])).reason == "the text is missing"


def test_a_file_that_is_gone_after_the_scan_gives_a_reason(texts_at):
    one = source(texts_at("a.txt"), unit="paragraph")
    keys = one.scan()["key"].tolist()
    os.remove(one.options.path + "/a.txt")  # noqa: PTH107
    assert "cannot open" in next(one.read(keys)).reason


def test_the_fingerprint_sees_every_change(texts_at):
    root = texts_at("a/1.txt", "b/2.txt")
    seen = [source(root).fingerprint(), source(root, unlabelled=str(root / "b")).fingerprint()]
    assert source(root).fingerprint() == seen[0]
    texts_at("a/3.txt")
    seen.append(source(root).fingerprint())
    os.utime(root / "a" / "3.txt", ns=(1, 1))
    seen.append(source(root).fingerprint())
    assert len(set(seen)) == 4


def test_a_folder_behind_a_url():
    files = fsspec.filesystem("memory")
    for name in ("a/1.txt", "a/2.txt", "b/3.txt"):
        files.pipe(f"/texts/{name}", f"{name}\n\nmore".encode())
    try:
        one = source("memory://texts")
        assert rows(one.scan()) == {"a/1.txt": ("a", None), "a/2.txt": ("a", None), "b/3.txt": ("b", None)}
        assert texts(one, ["b/3.txt", "a/1.txt", "a/1.txt"]) == ["b/3.txt\n\nmore", *["a/1.txt\n\nmore"] * 2]
        assert texts(source("", unlabelled="memory://texts/a", unit="paragraph")) == ["a/1.txt", "more", "a/2.txt", "more"]
    finally:
        files.rm("/texts", recursive=True)


@pytest.mark.parametrize(
    ("name", "least", "parts"),
    [("tiny_shakespeare", 1000, {"train", "validation"}), ("gutenberg_nltk", 500, {"unlabelled"}), ("wikitext2_eval", 300, {"validation", "test"})],
)
def test_real_texts(shared_data, name, least, parts):
    one = source(shared_data / "small" / name, unit="paragraph")
    frame = one.scan()
    assert len(frame) >= least
    assert set(frame["split"]) == parts
    assert all(raw.data for raw in one.read(frame["key"].tolist()))
