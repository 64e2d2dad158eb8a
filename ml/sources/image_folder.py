"""Pictures in folders named after their classes, with or without folders for the split above them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
from pydantic import Field

from ml import contracts
from ml.contracts import InputError, Raw
from ml.files import Folder, Item, digest, folder_at, listing_digest
from ml.labels import SPLITS, natural_order

EXTENSIONS = ("png", "jpeg", "jpg", "webp", "bmp", "tif", "tiff")
UNLABELLED = "unlabelled:"
"""What keys of the further, unlabelled folder begin with."""


class ImageFolder:
    """Pictures in `root/class/**`, or in `root/{train,val,test}/class/**`, whose official test is then honoured.

    A folder `unlabelled` beside them, and pictures outside any class folder, serve pretraining alone. `scan().attrs["ignored"]`
    counts the files passed over: hidden ones, those without a picture's extension, those outside the split's folders.
    """

    class Options(contracts.Options):
        path: str = Field("", description="Folder that holds the class folders, or train/val/test folders with them; fsspec URLs work.")
        unlabelled: str | None = Field(None, description="Further folder of pictures without labels, for pretraining only.")

    def __init__(self, options: ImageFolder.Options) -> None:
        self.options = options
        self._names: dict[str, str] | None = None

    def scan(self) -> pd.DataFrame:
        _, items, folders = self._labelled()
        rows, strange = _rows(self.options.path, items, folders)
        names = {_text(row["key"]): row["key"] for row in rows}
        if self.options.unlabelled:
            further, extra = _pictures(folder_at(self.options.unlabelled).list()[0])
            if not further:
                raise InputError(f"the folder of unlabelled pictures {self.options.unlabelled!r} holds none ({', '.join(EXTENSIONS)})")
            strange += extra
            rows += [{"key": UNLABELLED + item.path, "label": None, "split": "unlabelled"} for item in further]
            names |= {UNLABELLED + _text(item.path): UNLABELLED + item.path for item in further}
        self._names = names
        frame = pd.DataFrame(rows, columns=["key", "label", "split", "group", "slice"], dtype=object)
        frame = frame.where(frame.notna(), None)
        frame["key"] = frame["key"].map(_text)
        frame["label"] = frame["label"].map(lambda label: None if label is None else _text(label)).astype(object)
        frame["label"] = frame["label"].where(frame["label"].notna(), None)
        frame.attrs["ignored"] = strange
        return frame

    def read(self, keys: Sequence[str]) -> Iterator[Raw]:
        if self._names is None:
            self.scan()
        labelled = Folder(self.options.path)
        unlabelled = Folder(self.options.unlabelled) if self.options.unlabelled else labelled
        start = 0
        while start < len(keys):  # runs of keys of one folder, as a remote one fetches many at once
            further = keys[start].startswith(UNLABELLED)
            end = start
            while end < len(keys) and end - start < 256 and keys[end].startswith(UNLABELLED) == further:
                end += 1
            paths = [self._names.get(key, key).removeprefix(UNLABELLED if further else "") for key in keys[start:end]]
            yield from (unlabelled if further else labelled).read(paths)
            start = end

    def fingerprint(self) -> str:
        folder, items, _ = self._labelled()
        parts = [listing_digest(folder, items)]
        if self.options.unlabelled:
            further = folder_at(self.options.unlabelled)
            parts.append(listing_digest(further, further.list()[0]))
        return digest("image-folder", *parts)

    def _labelled(self) -> tuple[Folder, list[Item], list[str]]:
        """The folder with its files and folders, less those of an unlabelled folder within it."""
        folder = folder_at(self.options.path)
        items, folders = folder.list()
        if self.options.unlabelled:
            within = Folder(self.options.unlabelled).root.removeprefix(folder.root + "/") + "/"
            items = [item for item in items if not item.path.startswith(within)]
            folders = [path for path in folders if not (path + "/").startswith(within)]
        return folder, items, folders


def _rows(root: str, items: list[Item], folders: list[str]) -> tuple[list[dict], int]:
    pictures, ignored = _pictures(items)
    if not pictures:
        raise InputError(f"the folder {root!r} holds no pictures: found {len(items)} files, none of them {', '.join(EXTENSIONS)}")
    top = {path: SPLITS.get(path.lower()) for path in folders if "/" not in path}
    top |= {item.path: SPLITS.get(item.path.lower()) for item in pictures if "/" not in item.path and not _by_name(item.path)}
    filled = {item.path.split("/")[0] for item in pictures if "/" in item.path}
    training = [path for path, split in top.items() if split == "train"]
    others = [path for path, split in top.items() if split in ("validation", "test")]
    # "train" is also a fine name for a class: it is a split where it is alone or has another split beside it.
    by_split = bool(training) and (bool(others) or filled <= set(training) | {path for path, split in top.items() if split == "unlabelled"})
    rows = []
    for item in pictures:
        parts = item.path.split("/")
        first = top.get(parts[0])
        if by_split and first is None:
            ignored += 1
            continue
        depth = 1 if by_split else 0  # a link that stands for a whole class folder is of that class too
        label = parts[depth] if len(parts) > depth + _by_name(item.path) else None
        unlabelled = first == "unlabelled"
        split = first if by_split or unlabelled else None
        rows.append({"key": item.path, "label": None if unlabelled else label, "split": split})
    depth = 1 if by_split else 0
    kept = [path for path in folders if path.count("/") == depth and (top[path.split("/")[0]] == "train" if by_split else top[path] != "unlabelled")]
    _check(root, rows, kept, by_split)
    return rows, ignored


def _check(root: str, rows: list[dict], class_folders: list[str], by_split: bool) -> None:
    seen = {row["key"] for row in rows}
    used = {"/".join(key.split("/")[: depth + 1]) for key in seen for depth in range(key.count("/"))}
    empty = natural_order(path for path in class_folders if path not in used)
    if empty:
        raise InputError(
            f"the class folder{'s' * (len(empty) > 1)} {', '.join(map(repr, empty[:10]))} in {root!r} hold{'s' * (len(empty) == 1)} no pictures: "
            f"add some ({', '.join(EXTENSIONS)}), or remove the folder"
        )
    train = {row["label"] for row in rows if row["label"] is not None and row["split"] in (None, "train")}
    if not train:
        raise InputError(f"found {len(rows)} pictures in {root!r}, but no class folders: expected {root}/CLASS/*, or {root}/train/CLASS/*")
    for split in ("validation", "test"):
        lost = natural_order({row["label"] for row in rows if row["label"] is not None and row["split"] == split} - train)
        if by_split and lost:
            raise InputError(f"class {', '.join(map(repr, lost[:10]))} is in the {split} part of {root!r}, but not in its training part: nothing could learn it")
    if len(train) == 1:
        raise InputError(f"found one class only in {root!r}: {next(iter(train))!r}. Telling classes apart takes at least two folders")


def _pictures(items: list[Item]) -> tuple[list[Item], int]:
    """Those of the items that are pictures by name, or unreadable and in a folder's place; and how many are neither."""
    kept = [item for item in items if not _hidden(item.path) and (_by_name(item.path) or (item.reason and "." not in item.path.split("/")[-1]))]
    return kept, len(items) - len(kept)


def _by_name(path: str) -> bool:
    return path.lower().endswith(tuple(f".{extension}" for extension in EXTENSIONS))


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _text(path: str) -> str:
    """A name as clean text: bytes that are not UTF-8, which Linux allows in names, show as \\xNN."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
