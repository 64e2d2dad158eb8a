"""What a storage holds is whole or noticed, whoever writes at once, on each kind of file system; and nothing that it says holds a secret."""

import hashlib
import tempfile
import threading
import uuid
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml import remote
from ml.contracts import InputError
from ml.remote import INDEX, Damaged, Missing, Remote, StorageError

KINDS = ("file", "memory", "s3")


@pytest.fixture(params=KINDS)
def url(request, tmp_path) -> str:
    """A place of each kind that is empty."""
    name = uuid.uuid4().hex
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/{name}"
    return (tmp_path / "storage").as_uri() if request.param == "file" else f"memory://{name}"


def made(path: Path, **files: bytes) -> Path:
    path.mkdir(parents=True)
    for name, data in (files or {"state.pt": b"weights" * 1000, "manifest.json": b"{}", "empty": b""}).items():
        (path / name).write_bytes(data)
    return path


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def objects(url: str, name: str) -> dict[str, str]:
    """Paths of the copy's objects by the file's name."""
    files, root = fsspec.core.url_to_fs(f"{url}/{name}")
    files.invalidate_cache()
    return {path.rpartition("/")[2].rpartition("-")[2]: path for path in files.ls(root, detail=False)}


def change(url: str, path: str, data: bytes | None) -> None:
    files = fsspec.core.url_to_fs(url)[0]
    files.rm_file(path) if data is None else files.pipe_file(path, data)


def test_what_is_published_is_fetched(url, tmp_path):
    here = made(tmp_path / "here")
    storage = Remote(url)
    assert storage.names() == [] and not storage.holds("one")
    storage.within("below").publish(here, "one")
    storage = storage.within("below")
    storage.publish(here, "two", {"state.pt": hashlib.sha256(b"weights" * 1000).hexdigest()})
    assert storage.names() == ["one", "two"] and storage.holds("one") and storage.holds("two")
    storage.fetch("two", tmp_path / "there" / "two")
    assert content(tmp_path / "there" / "two") == content(here)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["two"]
    storage.remove("one")
    storage.remove("one")
    assert storage.names() == ["two"]


DAMAGE = {"flipped": b"Weights" * 1000, "truncated": b"weights", "gone": None}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_copy_is_noticed_and_mended_by_who_publishes_next(url, tmp_path, damage):
    here, storage = made(tmp_path / "here"), Remote(url)
    storage.publish(here, "one")
    change(url, objects(url, "one")["state.pt"], DAMAGE[damage])
    with pytest.raises(Damaged, match=r"damaged: (the content of )?its state\.pt"):
        storage.fetch("one", tmp_path / "one")
    assert not (tmp_path / "one").exists() and not storage.holds("one")
    storage.publish(here, "one")
    storage.fetch("one", tmp_path / "one")
    assert content(tmp_path / "one") == content(here)


@pytest.mark.parametrize("index", [None, b"", b"[]", b'{"files": {"a": {"sha256": "0", "bytes": 1}}}', b'{"files": {"../a": {"sha256": "%s", "bytes": 1}}}' % (b"0" * 64)])
def test_without_a_sound_index_there_is_no_copy(url, tmp_path, index):
    storage = Remote(url)
    storage.publish(made(tmp_path / "here"), "one")
    change(url, objects(url, "one")[INDEX], index)
    assert not storage.holds("one")
    with pytest.raises(Missing):
        storage.fetch("one", tmp_path / "one")
    assert not (tmp_path / "one").exists()


def test_two_publishers_and_a_reader_at_once(url, tmp_path):
    """Of one name with other bytes, as two libraries' versions write one table: each copy that is read is of one of them."""
    here = [made(tmp_path / str(n), **{"table.parquet": bytes([n]) * 50_000, "same": b"x" * 50_000, "manifest.json": b"%d" % n}) for n in range(2)]
    storages = [Remote(url) for _ in range(2)]
    threads = [threading.Thread(target=lambda n=n: [storages[n].publish(here[n], "one") for _ in range(5)]) for n in range(2)]
    for thread in threads:
        thread.start()
    read = 0
    while any(thread.is_alive() for thread in threads) or not read:
        try:
            Remote(url).fetch("one", tmp_path / f"read-{read}")
        except Missing as error:
            assert read == 0 and not isinstance(error, Damaged), error
            continue
        assert content(tmp_path / f"read-{read}") in [content(one) for one in here]
        read += 1
    for thread in threads:
        thread.join()
    assert Remote(url).holds("one")


def test_a_folder_that_is_there_stays(url, tmp_path):
    storage = Remote(url)
    storage.publish(made(tmp_path / "here"), "one")
    there = made(tmp_path / "one", mine=b"1")
    storage.fetch("one", there)
    assert content(there) == {"mine": b"1"}


NAMES = st.text("abc.-_", min_size=1, max_size=8).filter(lambda name: name not in (".", "..", INDEX))


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(NAMES, st.binary(max_size=200), min_size=1, max_size=4), st.data())
def test_any_folder_comes_back_or_is_refused(files, data):
    storage = Remote(f"memory://{uuid.uuid4().hex}")
    with tempfile.TemporaryDirectory() as place:
        here = made(Path(place) / "here", **files)
        storage.publish(here, "one")
        storage.fetch("one", Path(place) / "whole")
        assert content(Path(place) / "whole") == files
        damaged = data.draw(st.sampled_from(sorted(storage._sizes("one"))))
        other = data.draw(st.none() | st.binary(max_size=200))
        before = storage._fs.cat_file(storage._path("one", damaged))
        change(storage.url, storage._path("one", damaged), other)
        try:
            storage.fetch("one", Path(place) / "again")
        except Missing:
            assert other != before
        else:
            assert content(Path(place) / "again") == files


def test_a_storage_that_is_away_is_not_asked_again_at_once_and_later_is(tmp_path, monkeypatch):
    here, place = made(tmp_path / "here"), tmp_path / "storage"
    place.write_bytes(b"in the way")
    storage = Remote(str(place))
    for _ in range(2):
        with pytest.raises(StorageError, match="cannot be used"):
            storage.within("a").publish(here, "one")
    place.unlink()
    with pytest.raises(StorageError, match="cannot be used"):
        storage.publish(here, "one")
    monkeypatch.setattr(remote.time, "monotonic", lambda: float("inf"))
    storage.publish(here, "one")
    assert storage.holds("one")


def test_secrets_stay_unsaid(s3, bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:hidden-word@127.0.0.1:1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(StorageError) as raised:
        Remote(bucket).names()
    assert "hidden-word" not in str(raised.value) and s3["AWS_SECRET_ACCESS_KEY"] not in str(raised.value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("folder", "neither a whole path nor a URL"),
        ("http://host/folder", "protocol 'http': expected one of s3, "),
        ("s3://", "names no place"),
        ("s3://key:hidden@bucket/x", "Credentials belong into the environment"),
        ("s3://key%3Ahidden@bucket/x", "Credentials belong into the environment"),
        ("s3://bucket/x?X-Amz-Signature=hidden", "Credentials belong into the environment"),
        ("s3://bucket::file://x", "a second URL"),
        ("simplecache::s3://hidden", "expected one of"),
        ("gs://bucket/x", "pip install 'gcsfs'"),
    ],
)
def test_a_url_that_cannot_be_used_says_why(url, words):
    with pytest.raises(InputError, match=words) as raised:
        Remote(url)
    assert "hidden" not in str(raised.value)


def test_a_plain_path_is_a_storage(tmp_path):
    assert Remote(str(tmp_path)).url == tmp_path.as_uri() == Remote(f"{tmp_path.as_uri()}/").url
