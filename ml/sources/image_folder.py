"""Pictures in folders named after their classes, with or without folders for the split above them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import pandas as pd
from pydantic import Field

from ml import contracts
from ml.class_folders import FURTHER, Kind, Place, as_frame, check_classes, list_without
from ml.contracts import InputError, Raw
from ml.files import Folder, Item, digest, folder_at, listing_digest

EXTENSIONS = ("png", "jpeg", "jpg", "webp", "bmp", "tif", "tiff")
PICTURES = Kind("pictures", tuple(f".{extension}" for extension in EXTENSIONS), ", ".join(EXTENSIONS))


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
        self._paths: dict[str, str] | None = None

    def scan(self) -> pd.DataFrame:
        pictures, ignored = _pictures(self.options.path, *self._labelled())
        if self.options.unlabelled:
            further = folder_at(self.options.unlabelled)
            found, strange = PICTURES.further(further, further.list()[0], self.options.unlabelled)
            pictures, ignored = pictures + found, ignored + strange
        self._paths = {picture.key: picture.item.path for picture in pictures}
        return as_frame([picture.row for picture in pictures], ignored)

    def read(self, keys: Sequence[str]) -> Iterator[Raw]:
        if self._paths is None:
            self.scan()
        labelled = Folder(self.options.path)
        unlabelled = Folder(self.options.unlabelled) if self.options.unlabelled else labelled
        for further, part in groupby(keys, key=lambda key: key.startswith(FURTHER)):  # together, as a remote folder fetches many at once
            prefix, folder = (FURTHER, unlabelled) if further else ("", labelled)
            yield from folder.read([self._paths.get(key, key.removeprefix(prefix)) for key in part])

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
        return folder, *list_without(folder, Folder(self.options.unlabelled) if self.options.unlabelled else None)


def _pictures(root: str, folder: Folder, items: list[Item], folders: list[str]) -> tuple[list[Place], int]:
    """The pictures with labels and splits as the folders tell them, and how many files are passed over."""
    layout = PICTURES.lay_out(folder, items, folders)
    if not layout.places:
        raise InputError(f"the folder {root!r} holds no pictures: found {len(items)} files, none of them {PICTURES.listed}")
    kept = [place for place in layout.places if place.split or not layout.by_split]
    PICTURES.check_filled(root, kept, layout.class_folders)
    if not any(place.label is not None and place.split in (None, "train") for place in kept):
        raise InputError(f"found {len(kept)} pictures in {root!r}, but no class folders: expected {root}/CLASS/*, or {root}/train/CLASS/*")
    check_classes(root, kept)
    return kept, layout.ignored + len(layout.places) - len(kept)
