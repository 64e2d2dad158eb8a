"""Files in folders named after their classes, `root/class/**` or `root/{train,val,test}/class/**`, for sources of any modality."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from ml.contracts import InputError
from ml.files import Folder, Item
from ml.labels import SPLITS, natural_order

FURTHER = "unlabelled:"
"""What keys of the further, unlabelled folder begin with."""


@dataclass(frozen=True)
class Place:
    """A file, and what the folders that it lies in tell of it."""

    folder: Folder
    item: Item
    prefix: str = ""
    label: str | None = None
    split: str | None = "unlabelled"

    @property
    def key(self) -> str:
        return self.prefix + _clean(self.item.path)

    @property
    def row(self) -> dict[str, str | None]:
        return {"key": self.key, "label": self.label, "split": self.split}


@dataclass(frozen=True)
class Layout:
    """Files by their folders. Where these are `by_split`, a place without a split lies beside the split's folders."""

    places: list[Place]
    by_split: bool
    class_folders: list[str]
    ignored: int


@dataclass(frozen=True)
class Kind:
    """The files that a source is after: what messages call them, how their names end, and how messages list that."""

    noun: str
    suffixes: tuple[str, ...]
    listed: str

    def by_name(self, path: str) -> bool:
        return path.lower().endswith(self.suffixes)

    def further(self, folder: Folder, items: list[Item], path: str) -> tuple[list[Place], int]:
        """The files of the further folder `path`, all unlabelled, and how many others it holds."""
        named, ignored = self._named(items)
        if not named:
            raise InputError(f"the folder of unlabelled {self.noun} {path!r} holds none ({self.listed})")
        return [Place(folder, item, FURTHER) for item in named], ignored

    def lay_out(self, folder: Folder, items: list[Item], folders: list[str]) -> Layout:
        """What the folders tell of each file; a folder `unlabelled` at the top has no classes."""
        named, ignored = self._named(items)
        filled = {item.path.split("/")[0] for item in named if "/" in item.path}
        # A link at the top may stand for a whole folder, so what lies there counts as well.
        names = filled | {path for path in (*folders, *(item.path for item in named)) if "/" not in path}
        top = {path: SPLITS.get(path.lower()) for path in names}
        # "train" is also a fine name for a class: it is a split where it is alone or has another split beside it.
        by_split = "train" in top.values() and (
            any(split in ("validation", "test") for split in top.values()) or all(top[path] in ("train", "unlabelled") for path in filled)
        )
        depth = 1 if by_split else 0
        places = []
        for item in named:
            parts = item.path.split("/")
            split = top[parts[0]]
            if split == "unlabelled":
                places.append(Place(folder, item))
                continue
            # A link that stands for a whole class folder is of that class too.
            label = _clean(parts[depth]) if len(parts) > depth + self.by_name(item.path) else None
            places.append(Place(folder, item, label=label, split=split if by_split else None))
        deep = [path for path in folders if path.count("/") == depth]
        class_folders = [path for path in deep if (top[path.split("/")[0]] == "train" if by_split else top[path] != "unlabelled")]
        return Layout(places, by_split, class_folders, ignored)

    def check_filled(self, root: str, places: Iterable[Place], class_folders: Iterable[str]) -> None:
        """InputError where a class folder holds none of the places: its class would go missing without a word."""
        parts = [place.item.path.split("/") for place in places]
        used = {"/".join(part[:depth]) for part in parts for depth in range(1, len(part))}
        empty = natural_order(path for path in class_folders if path not in used)
        if empty:
            raise InputError(
                f"the class folder{'s' * (len(empty) > 1)} {', '.join(map(repr, empty[:10]))} in {root!r} "
                f"hold{'s' * (len(empty) == 1)} no {self.noun}: add some ({self.listed}), or remove the folder"
            )

    def _named(self, items: list[Item]) -> tuple[list[Item], int]:
        """Those of the items that are of this kind by name, or unreadable and in a folder's place; and how many are neither."""
        seen = [item for item in items if not _hidden(item.path)]
        kept = [item for item in seen if self.by_name(item.path) or (item.reason and "." not in item.path.split("/")[-1])]
        return kept, len(items) - len(kept)


def check_classes(root: str, places: Iterable[Place], hint: str = "") -> None:
    """InputError where the places' labels are of one class (`hint` says more of that), or of one that the training part lacks."""
    labels = defaultdict(set)
    for place in places:
        if place.label is not None:
            labels[place.split or "train"].add(place.label)
    for split in ("validation", "test"):
        lost = natural_order(labels[split] - labels["train"])
        if lost:
            raise InputError(
                f"class {', '.join(map(repr, lost[:10]))} is in the {split} part of {root!r}, "
                f"but not in its training part: nothing could learn it"
            )
    if len(labels["train"]) == 1:
        only = next(iter(labels["train"]))
        raise InputError(f"found one class only in {root!r}: {only!r}. Telling classes apart takes at least two folders{hint}")


def list_without(folder: Folder, further: Folder | None) -> tuple[list[Item], list[str]]:
    """The files and folders of `folder`, less those of a further folder within it."""
    items, folders = folder.list()
    if further:
        within = further.root.removeprefix(folder.root + "/") + "/"
        items = [item for item in items if not item.path.startswith(within)]
        folders = [path for path in folders if not (path + "/").startswith(within)]
    return items, folders


def as_frame(rows: list[dict[str, str | None]], ignored: int) -> pd.DataFrame:
    """The rows as a source's `scan` gives them, with the number of files passed over."""
    frame = pd.DataFrame(rows, columns=["key", "label", "split", "group", "slice"], dtype=object)
    frame = frame.where(frame.notna(), None)
    frame.attrs["ignored"] = ignored
    return frame


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _clean(path: str) -> str:
    """A name as clean text: bytes that are not UTF-8, which Linux allows in names, show as \\xNN."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
