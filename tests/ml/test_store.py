"""The store is whole or absent, says when it is damaged, and is named after its content."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from ml.contracts import DataSpec, InputError
from ml.partial import PARTIAL
from ml.ragged import Ragged
from ml.store import MANIFEST, Store, write_store

SPEC = DataSpec("image", {"size": 4}, (3, 4, 4), ("b", "a"), {"mean": [0.5] * 3, "std": [0.2] * 3})


def arrays(seed=0, rows=10):
    return np.random.default_rng(seed).integers(0, 256, (rows, 4, 4, 3), dtype=np.uint8)


def table(rows=10):
    names = [f"{row:064x}" for row in range(rows)]
    return pd.DataFrame({"row_id": names, "key": names, "label": np.arange(rows) % 2 - (np.arange(rows) == 9), "slice": None, "part": "train"})


def lines(rows=10):
    """Rows of different lengths, one of them without a value."""
    return Ragged.of([np.arange(row, 2 * row) for row in range(rows)], np.int32)


def write(folder, array=None, frame=None, chunks=3, quarantined=(), **facts):
    array = arrays() if array is None else array
    quarantine = pd.DataFrame({"key": list(quarantined), "reason": "bad", "bytes": 1})
    pieces = ({"image": array[part], "text": lines(len(array))[part]} for part in np.array_split(np.arange(len(array)), chunks))
    return write_store(folder, pieces, table() if frame is None else frame, quarantine, SPEC, {"rows": len(array), **facts})


def test_what_is_written_is_read_back(tmp_path):
    store = Store.open(write(tmp_path, quarantined=["x"], classes={"b": 1, "a": 2}).path)
    assert np.array_equal(store.array, arrays())
    assert isinstance(store.array, np.memmap)
    assert not store.array.flags.writeable
    assert list(store.arrays) == ["image", "text"]
    assert [row.tolist() for row in store.arrays["text"]] == [row.tolist() for row in lines()]
    assert isinstance(store.arrays["text"].values, np.memmap) and not store.arrays["text"].values.flags.writeable
    assert store.table["row_id"].tolist() == table()["row_id"].tolist()
    assert store.labels.dtype == np.int64
    assert store.labels.tolist() == table()["label"].tolist()
    assert store.spec == SPEC
    assert store.quarantine["key"].tolist() == ["x"]
    assert store.manifest["rows"] == 10
    assert store.path.name == store.digest
    store.verify()


def test_the_digest_is_that_of_the_content_alone(tmp_path):
    first = write(tmp_path / "one", chunks=1)
    assert write(tmp_path / "two", chunks=7).digest == first.digest
    changed = arrays()
    changed[3, 0, 0, 0] ^= 1
    others = [
        write(tmp_path, array=changed),
        write(tmp_path, frame=table().assign(part="test")),
        write(tmp_path, quarantined=["x"]),
        write(tmp_path, more=1),
    ]
    assert len({first.digest, *(other.digest for other in others)}) == 5


def test_where_rows_end_counts_too(tmp_path):
    """The same values, cut into other rows, are another store."""
    cuts = [[0, 1, 3], [0, 2, 3], [0, 0, 3]]
    stores = [
        write_store(tmp_path, [{"text": Ragged(np.arange(3), np.array(cut))}], table(2), pd.DataFrame({"key": []}), SPEC, {}) for cut in cuts
    ]
    assert len({store.digest for store in stores}) == 3
    assert [store.array.offsets.tolist() for store in stores] == cuts


def test_rows_without_any_value(tmp_path):
    nothing = Ragged.of([np.zeros(0)] * 2, np.int32)
    store = write_store(tmp_path, [{"text": nothing}], table(2), pd.DataFrame({"key": []}), SPEC, {})
    assert [row.tolist() for row in store.array] == [[], []]
    store.verify()


def test_a_store_that_is_there_is_kept_and_a_damaged_one_replaced(tmp_path):
    store = write(tmp_path)
    inode = (store.path / "image.npy").stat().st_ino
    assert write(tmp_path).digest == store.digest
    assert (store.path / "image.npy").stat().st_ino == inode
    data = bytearray((store.path / "image.npy").read_bytes())
    data[-1] ^= 1
    (store.path / "image.npy").write_bytes(data)
    write(tmp_path).verify()
    (store.path / MANIFEST).unlink()
    write(tmp_path).verify()
    assert [path.name for path in tmp_path.iterdir()] == [store.digest]


def test_every_flipped_bit_is_found(tmp_path):
    store = write(tmp_path)
    for name in store.manifest["files"]:
        whole = (store.path / name).read_bytes()
        for where in (0, len(whole) // 2, len(whole) - 1):
            damaged = bytearray(whole)
            damaged[where] ^= 4
            (store.path / name).write_bytes(damaged)
            with pytest.raises(InputError, match=f"damaged: the content of {name} has changed"):
                Store.open(store.path).verify()
        (store.path / name).write_bytes(whole[:-1])
        with pytest.raises(InputError, match=f"damaged: {name} has"):
            Store.open(store.path)
        (store.path / name).unlink()
        with pytest.raises(InputError, match=f"damaged: {name} has 0 bytes"):
            Store.open(store.path)
        (store.path / name).write_bytes(whole)
    store.verify()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1}'])
def test_a_manifest_that_is_none(tmp_path, text):
    store = write(tmp_path)
    (store.path / MANIFEST).write_text(text)
    with pytest.raises(InputError, match="holds no whole store"):
        Store.open(store.path)


def test_a_missing_folder_and_another_version(tmp_path):
    with pytest.raises(InputError, match="holds no whole store"):
        Store.open(tmp_path / "none")
    store = write(tmp_path)
    (store.path / MANIFEST).write_text(json.dumps(store.manifest | {"version": 99}))
    with pytest.raises(InputError, match="version 99; this program reads 2"):
        Store.open(store.path)


def test_a_failed_write_leaves_nothing(tmp_path):
    def failing():
        yield {"image": arrays()[:5], "text": lines()[:5]}
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write_store(tmp_path, failing(), table(), pd.DataFrame({"key": []}), SPEC, {})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="5 rows of image for a table of 10"):
        write(tmp_path, array=arrays(rows=5))


def test_partial_folders_of_dead_writers_are_removed(tmp_path):
    (tmp_path / f"{PARTIAL}dead").mkdir()
    (tmp_path / f"{PARTIAL}dead" / "image.npy").write_bytes(b"half")
    (tmp_path / f"{PARTIAL}dead.lock").touch()
    store = write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [store.digest]


def test_a_store_may_be_moved(tmp_path):
    store = write(tmp_path / "one")
    shutil.move(store.path, tmp_path / "elsewhere")
    Store.open(tmp_path / "elsewhere").verify()
