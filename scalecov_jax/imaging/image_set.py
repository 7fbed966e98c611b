"""One image with what is known about it (`Example`), and many of them, decoded on demand (`ImageSet`)."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Bool, Integer, UInt8

MIN_IMAGES = 10
_CORNERS = ("x_min", "y_min", "x_max", "y_max")


class Box(NamedTuple):
    """Corners of a box in pixels, 1-based and inclusive as in PASCAL VOC: the width is x_max - x_min + 1."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


class Example(NamedTuple):
    """One image.

    Attributes:
        image: RGB.
        label: Class of the image, if it has one.
        box: The object, in pixels of `image`.
        mask: Instance numbers (0 is background) where they are known, else the foreground; in pixels of `image`.
        group: What must not be split between training and test: slide, patient or source image.
        name: Names the image to a person.
        file_bytes: Size of the file that `image` was decoded from; None where there is none, or where the pixels were changed.
        mpp: Microns per pixel, where they are known.
    """

    image: UInt8[np.ndarray, "H W 3"]
    label: str | None
    box: Box | None
    mask: Integer[np.ndarray, "H W"] | Bool[np.ndarray, "H W"] | None
    group: str
    name: str
    file_bytes: int | None = None
    mpp: float | None = None


@runtime_checkable
class Source(Protocol):
    """A sequence of examples, read when asked for: an `ImageSet`, a list, or your own."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Example: ...


class Skipped(NamedTuple):
    """An image that is left out: `reason` can be counted, `detail` says what was given."""

    name: str
    reason: str
    detail: str


class ImageError(ValueError):
    """An image that cannot be decoded; holds its name and the problem."""

    def __init__(self, name: str, problem: str):
        super().__init__(name, problem)
        self.name = name
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}"


class Pixels(NamedTuple):
    """What decoding gives; fields as in `Example`."""

    image: UInt8[np.ndarray, "H W 3"]
    mask: Integer[np.ndarray, "H W"] | Bool[np.ndarray, "H W"] | None = None
    file_bytes: int | None = None


@dataclass(frozen=True)
class ImageSet:
    """N images: what is known of them before they are decoded, and how to decode one.

    Attributes:
        table: One row per image. Columns name and group; where they are known label (class name or index, as text), x_min, y_min,
            x_max and y_max (see `Box`; NaN without an object), width and height (pixels), magnification (of the objective, 40 is
            about 0.25 um per pixel), mpp (microns per pixel; NaN where unknown), grade, side, and whatever else a reader adds.
        decode: Gives the pixels of the image with this index; raises ImageError. Picklable where the images are files, so that
            other processes can decode them.
        skipped: Images left out, with the reason.
    """

    table: pd.DataFrame
    decode: Callable[[int], Pixels]
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int, /) -> Example:
        """Decode one image.

        Raises:
            ImageError: It cannot be decoded.
        """
        index = range(len(self))[index]
        return self.outline(index)._replace(**self.decode(index)._asdict())

    def outline(self, index: int, /) -> Example:
        """What is known of an image without decoding it; `image` is black, and of its size where `sized`."""
        row: dict[Any, Any] = self.table.iloc[index].to_dict()
        label, corners = row.get("label"), [row.get(corner, np.nan) for corner in _CORNERS]
        mpp = row.get("mpp")
        return Example(
            np.broadcast_to(np.uint8(0), (int(row.get("height", 1)), int(row.get("width", 1)), 3)),
            label if isinstance(label, str) else None,
            None if np.isnan(corners).any() else Box(*map(float, corners)),
            None,
            row["group"],
            row["name"],
            mpp=float(mpp) if isinstance(mpp, float) and np.isfinite(mpp) else None,
        )

    @property
    def sized(self) -> bool:
        """Whether height and width are known without decoding."""
        return {"width", "height"} <= {*self.table}

    def column(self, name: str) -> np.ndarray:
        """Values of a column, one per image.

        Raises:
            ValueError: There is no such column; the nearest is named.
        """
        if name not in self.table:
            near = get_close_matches(name, self.table.columns, n=1)
            hint = (
                f"; did you mean {near[0]}?"
                if near
                else f"; the columns are {', '.join(map(str, self.table))}."
            )
            raise ValueError(f"Nothing is known of the {name} of these images{hint}")
        return self.table[name].to_numpy()

    def take(self, indices: Sequence[int] | np.ndarray) -> "ImageSet":
        """Some of the images, in the order given."""
        indices = np.asarray(indices, int)
        return replace(self, table=self.table.iloc[indices], decode=partial(_decode_of, self, indices))

    def where(self, keep: np.ndarray, reason: str, details: Sequence[str] = ()) -> "ImageSet":
        """The images for which `keep` is true; the others are skipped for a `reason`, with a detail each or none."""
        keep = np.asarray(keep, bool)  # of no images too
        left = np.flatnonzero(~keep)
        names = self.table["name"].iloc[left]
        told = [details[index] for index in left.tolist()] if len(details) else [""] * len(left)
        skipped = [Skipped(name, reason, detail) for name, detail in zip(names, told, strict=True)]
        kept = self if keep.all() else self.take(np.flatnonzero(keep))
        return replace(kept, skipped=(*self.skipped, *skipped))

    def spread(self, most: int) -> "ImageSet":
        """At most `most` of the images, evenly spread over their order; all when 0."""
        if not 0 < most < len(self):
            return self
        return self.take(np.linspace(0, len(self) - 1, most).round().astype(int))

    def __repr__(self) -> str:
        left = f"; {len(self.skipped)} left out" if self.skipped else ""
        return f"<{len(self)} images of {self.table['group'].nunique()} groups{left}>"

    def _repr_html_(self) -> str:
        return self.table.to_html(max_rows=6)

    def assign(self, **columns: Any) -> "ImageSet":
        """The same images with columns added or replaced, such as `group`."""
        return replace(self, table=self.table.assign(**columns))

    def map(self, prepare: Callable[[Example], Example]) -> "ImageSet":
        """The images changed when they are read, such as photographs trimmed to what the camera sees.

        Boxes and sizes that were known before are forgotten. A ValueError of `prepare` becomes an ImageError.
        """
        table = self.table.drop(columns=[*_CORNERS, "width", "height"], errors="ignore")
        return replace(self, table=table, decode=partial(_prepared, self, prepare))


def image_set(examples: Iterable[Example]) -> ImageSet:
    """Examples in memory."""
    examples = list(examples)
    rows = [
        {
            "name": one.name,
            "group": one.group,
            "label": one.label,
            **dict(zip(_CORNERS, one.box or [np.nan] * 4, strict=True)),
            "width": one.image.shape[1],
            "height": one.image.shape[0],
            "mpp": one.mpp or np.nan,
        }
        for one in examples
    ]
    table = pd.DataFrame(rows)
    known = "mpp" in table and table["mpp"].notna().any()
    return ImageSet(
        table if known else table.drop(columns="mpp", errors="ignore"), partial(_pixels_of, examples)
    )


def concatenate(sets: Sequence[ImageSet]) -> ImageSet:
    """One set after the other."""
    places = [(images, index) for images in sets for index in range(len(images))]
    skipped = dict.fromkeys(skip for images in sets for skip in images.skipped)
    table = pd.concat([images.table for images in sets], ignore_index=True)
    return ImageSet(table, partial(_decode_from, places), tuple(skipped))


def _decode_from(places: Sequence[tuple[ImageSet, int]], index: int) -> Pixels:
    images, at = places[index]
    return images.decode(at)


def _pixels_of(examples: Source, index: int) -> Pixels:
    example = examples[index]
    return Pixels(example.image, example.mask, example.file_bytes)


def _decode_of(images: ImageSet, indices: np.ndarray, index: int) -> Pixels:
    return images.decode(int(indices[index]))


def _prepared(images: ImageSet, prepare: Callable[[Example], Example], index: int) -> Pixels:
    example = images[index]
    try:
        example = prepare(example)
    except ValueError as error:
        raise ImageError(example.name, str(error)) from error
    return Pixels(example.image, example.mask)


def boxes_of(images: ImageSet) -> list[Box | None]:
    """The object of each image."""
    return [images.outline(index).box for index in range(len(images))]


def count_reasons(skipped: Iterable[Skipped]) -> dict[str, int]:
    """Count skipped images by reason, most frequent first."""
    return dict(Counter(skip.reason for skip in skipped).most_common())


def listed(problems: Sequence[str], most: int = 10) -> str:
    """The first problems in one sentence, and the number of the others."""
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more
