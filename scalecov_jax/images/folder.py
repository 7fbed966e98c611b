"""Any folder of images, of which nothing but the pixels is known; and a part of any source."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scalecov_jax.images.boxes import SUFFIXES
from scalecov_jax.images.example import Example, Source, decode_image


@dataclass(frozen=True)
class FolderImages:
    """Image files in the order of their names; pixels are decoded when an item is read."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Example:
        """Decode one image.

        Raises:
            ImageError: It cannot be decoded.
        """
        path = self.paths[index]
        return Example(decode_image(path, path.name), None, None, None, path.name, path.name)


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


def read_folder(folder: str | Path) -> FolderImages:
    """All image files of a folder.

    Raises:
        ValueError: There is no such folder, or no image in it.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        problem = "no image" if folder.is_dir() else "no such folder"
        raise ValueError(
            f"{folder}: {problem}; expected a folder of images ({', '.join(SUFFIXES)}), one in VOC layout, or scenes."
        )
    return FolderImages(tuple(paths))


def evenly(source: Source, most: int) -> Source:
    """At most `most` examples, evenly spread over their order; all when 0."""
    if not 0 < most < len(source):
        return source
    return Subset(source, np.linspace(0, len(source) - 1, most).round().astype(int).tolist())
