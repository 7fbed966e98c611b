"""Any folder of images, of which nothing but the pixels is known; and a part of any source."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scalecov_jax.images.example import Example, ImageError, Source, decode_image, decode_mask

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
INDEX = "index.csv"


@dataclass(frozen=True)
class FolderImages:
    """Image files in the order of their names, with the mask of each where an index names it; decoded when an item is read."""

    paths: tuple[Path, ...]
    masks: tuple[Path | None, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Example:
        """Decode one image, and its mask if there is one (foreground is bright).

        Raises:
            ImageError: It cannot be decoded.
        """
        path = self.paths[index]
        at = self.masks[index] if self.masks else None
        mask = None if at is None else decode_mask(at, at.name) > 127
        image = decode_image(path, path.name)
        if mask is not None and mask.shape != image.shape[:2]:
            raise ImageError(
                path.name,
                f"its mask {at and at.name} has {mask.shape[1]} x {mask.shape[0]} pixels, the image {image.shape[1]} x "
                f"{image.shape[0]}; expected the same",
            )
        return Example(image, None, None, mask, path.name, path.name)


@dataclass(frozen=True)
class Subset:
    """Some examples of a source, in an order of their own."""

    source: Source
    order: Sequence[int]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int, /) -> Example:
        """Read one example."""
        return self.source[self.order[index]]


@dataclass(frozen=True)
class Prepared:
    """Examples of a source, each changed when it is read, such as a photograph trimmed to what the camera sees."""

    source: Source
    prepare: Callable[[Example], Example]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> Example:
        """Read one example.

        Raises:
            ImageError: It cannot be prepared.
        """
        example = self.source[index]
        try:
            return self.prepare(example)
        except ValueError as error:
            raise ImageError(example.name, str(error)) from error


def read_folder(folder: str | Path) -> FolderImages:
    """All image files of a folder, without those that are masks of others.

    An `index.csv` in the folder, or in the one around it, may list images in a column `file` (relative to the index) and the mask
    of each in a column `mask`. Masks belong to their images then and are no images; what the index of the folder itself lists
    in folders below is read too. Without one, every image file counts.

    Raises:
        ValueError: There is no such folder, no image in it, or the index names masks that are not there.
    """
    folder = Path(folder)
    listed = _read_index(folder / INDEX) | _read_index(folder.parent / INDEX)
    masks = set(listed.values())
    found = {path.resolve(): path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES}
    if not found:
        found = {path: path for path in listed if path.is_relative_to(folder.resolve()) and path.is_file()}
    paths = sorted(path for real, path in found.items() if real not in masks)
    if not paths:
        problem = "no image" if folder.is_dir() else "no such folder"
        raise ValueError(
            f"{folder}: {problem}; expected a folder of images ({', '.join(SUFFIXES)}), one in VOC layout, or scenes."
        )
    own = tuple(listed.get(path.resolve()) for path in paths)
    if missing := [path.name for path in own if path and not path.is_file()]:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise ValueError(
            f"{folder}: {INDEX} names masks that are not there: {', '.join(missing[:10])}{more}."
        )
    return FolderImages(tuple(paths), own)


def _read_index(index: Path) -> dict[Path, Path | None]:
    """Masks by image, as far as both lie below the index; nothing where there is no index with a column `file`."""
    if not index.is_file():
        return {}
    with index.open(newline="", encoding="utf-8") as file:
        rows = [(row.get("file"), row.get("mask")) for row in csv.DictReader(file)]
    around = index.parent.resolve()
    inside: dict[Path, Path | None] = {}
    for image, mask in rows:
        at, of = (around / one if one else None for one in (image, mask))
        if at and at.resolve().is_relative_to(around):
            inside[at.resolve()] = of.resolve() if of and of.resolve().is_relative_to(around) else None
    return inside


def evenly(source: Source, most: int) -> Source:
    """At most `most` examples, evenly spread over their order; all when 0."""
    if not 0 < most < len(source):
        return source
    return Subset(source, np.linspace(0, len(source) - 1, most).round().astype(int).tolist())
