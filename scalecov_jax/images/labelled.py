"""Images whose class is known: a folder with index.csv, a folder with boxes, or scenes."""

import csv
import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from scalecov_jax.images import scenes
from scalecov_jax.images.boxes import OTHER_CLASS, SUFFIXES, read_boxes
from scalecov_jax.images.example import (
    Box,
    Example,
    ImageError,
    Skipped,
    central_square,
    clip_to_square,
    decode_image,
    file_size,
    image_size,
)
from scalecov_jax.images.sources import SCENES

Square = Literal["crop", "stretch"]


class Label(NamedTuple):
    """What is known of an image without decoding it; `class_name` is a name or the index of a class, as written."""

    name: str
    class_name: str
    box: Box | None
    width: int
    height: int


@dataclass(frozen=True)
class LabelledImages:
    """A source of examples whose classes are known; pixels are decoded when an item is read.

    Attributes:
        labels: One an example.
        read: Gives the example with this index.
        skipped: Images left out, with the reason.
    """

    labels: tuple[Label, ...]
    read: Callable[[int], Example]
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int, /) -> Example:
        """Decode one image.

        Raises:
            ImageError: It cannot be decoded.
        """
        return self.read(range(len(self.labels))[index])


def open_labelled(
    images: str, class_indices: str = "", *, count: int = 0, seed: int = 0, size: int = 256
) -> LabelledImages:
    """Open labelled images by name.

    Args:
        images: `scenes`, a folder in VOC layout (with `class_indices`), or a folder with index.csv (without).
        class_indices: The network's class of each class of a VOC folder, as in "n02058221:146,n04037443:751".
        count: Scenes of each class.
        seed: Of the scenes.
        size: Height and width of the scenes in pixels.

    Raises:
        ValueError: See `parse_classes`, `read_index` and `boxes.read_boxes`.
    """
    if images == SCENES:
        return scene_images(count, seed, size)
    if class_indices:
        return read_box_classes(images, parse_classes(class_indices))
    return read_index(images)


def parse_classes(text: str) -> dict[str, str]:
    """The network's class (index or name) by the class in the annotations, from "name:class,name:class".

    Raises:
        ValueError: A part is no such pair, or a name comes twice.
    """
    pairs = [part.strip().rpartition(":") for part in text.split(",") if part.strip()]
    bad = [f"{name}{colon}{index}" for name, colon, index in pairs if not (name.strip() and index.strip())]
    if bad or not pairs:
        raise ValueError(
            f"Classes are given as name:index, separated by commas, as in n02058221:146,car:751; got {', '.join(bad) or 'none'}."
        )
    classes = {name.strip(): index.strip() for name, _, index in pairs}
    if len(classes) < len(pairs):
        raise ValueError(f"A class is named twice in {text!r}; expected one index each.")
    return classes


def read_index(folder: str | Path) -> LabelledImages:
    """Read a folder whose `index.csv` has the columns file and class_index; other columns are ignored.

    A file lies beside index.csv or in `images/`. Files that cannot be read as images are skipped.

    Raises:
        ValueError: No index.csv, columns missing, or rows without label, images that no row names, files that do not exist, lie
            outside or come twice: all of them at once.
    """
    folder = Path(folder)
    index = folder / "index.csv"
    if not index.is_file():
        boxes = (folder / "Annotations").is_dir()
        hint = "for boxes in VOC layout give class_indices as well, as in car:751" if boxes else "or scenes"
        raise ValueError(
            f"{folder}: {'' if folder.is_dir() else 'no such folder; '}expected index.csv with the columns file and class_index, "
            f"and the images beside it or in images/; {hint}."
        )
    with index.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows, columns = list(reader), reader.fieldnames or ()
    if missing := [name for name in ("file", "class_index") if name not in columns]:
        raise ValueError(
            f"{index}: no column {' and '.join(missing)}; the columns are {', '.join(columns) or 'none'}."
        )
    problems: list[str] = []
    found: dict[Path, tuple[str, str]] = {}
    for line, row in enumerate(rows, start=2):
        name, label = ((row[column] or "").strip() for column in ("file", "class_index"))
        path = next((path for path in (folder / name, folder / "images" / name) if path.is_file()), None)
        if path is None:
            problems.append(f"line {line}: no file {name}" if name else f"line {line}: names no file")
        elif not path.resolve().is_relative_to(folder.resolve()):
            problems.append(f"line {line}: {name} lies outside the folder")
        elif path in found:
            problems.append(f"line {line}: {name} has a label already")
        else:
            found[path] = (name, label)
            problems += [] if label else [f"line {line}: {name} has no label"]
    there = sorted(path for part in (folder, folder / "images") if part.is_dir() for path in part.iterdir())
    problems += [
        f"{path.relative_to(folder).as_posix()} has no label (no line names it)"
        for path in there
        if path.suffix.lower() in SUFFIXES and path not in found
    ]
    if problems or not found:
        raise ValueError(f"{index}: {_first(problems) or 'lists no image'}.")
    return _from_files(found)


def _from_files(found: dict[Path, tuple[str, str]]) -> LabelledImages:
    labels, paths, skipped = [], [], []
    for path, (name, label) in found.items():
        try:
            width, height = image_size(path, name)
        except ImageError as error:
            skipped.append(Skipped(name, "unreadable image", error.problem))
        else:
            labels.append(Label(name, label, None, width, height))
            paths.append(path)

    def read(index: int) -> Example:
        name, class_name = labels[index][:2]
        image = decode_image(paths[index], name)
        return Example(image, class_name, None, None, name, name, file_size(paths[index]))

    return LabelledImages(tuple(labels), read, tuple(skipped))


def read_box_classes(folder: str | Path, classes: dict[str, str]) -> LabelledImages:
    """Read several classes of a folder in VOC layout, see `boxes.read_boxes`.

    Args:
        folder: Holds `Annotations` and the images.
        classes: The network's class (index or name) by the class in the annotations.
    """
    sources = {name: read_boxes(folder, name) for name in classes}
    places = [(source, index) for source in sources.values() for index in range(len(source))]
    labels = [
        Label(one.name, classes[name], one.box, one.width, one.height)
        for name, source in sources.items()
        for one in source.annotations
    ]
    skipped = dict.fromkeys(
        skip for source in sources.values() for skip in source.skipped if skip.reason != OTHER_CLASS
    )
    return LabelledImages(tuple(labels), lambda index: places[index][0][places[index][1]], tuple(skipped))


def scene_images(count: int, seed: int, size: int = 256) -> LabelledImages:
    """`count` scenes of every class, rendered now, in `size` x `size` pixels."""
    examples = [one for name in scenes.CLASSES for one in scenes.examples(name, count, seed, size)]
    labels = (Label(one.name, str(one.label), one.box, size, size) for one in examples)
    return LabelledImages(tuple(labels), examples.__getitem__)


def class_indices(
    labels: Sequence[Label], classes: int, class_names: Sequence[str] = (), network: str = "the network"
) -> Int[np.ndarray, " N"]:
    """The network's class of each image.

    Args:
        labels: Their `class_name` is an index, or a name that is looked up.
        classes: Outputs of the network.
        class_names: Names of the outputs; empty when unknown.
        network: Name for errors.

    Raises:
        ValueError: Labels that are neither integers nor such names, or lie outside the classes; all images at once.
    """
    known = {name: index for index, name in enumerate(class_names)}
    indices, problems = [], []
    for name, label, *_ in labels:
        near = get_close_matches(label, known, n=1)
        index = int(label) if re.fullmatch(r"[+-]?\d+", label) else known.get(label)
        if index is None:
            problem = f"did you mean {near[0]}?" if near else "expected an integer"
            problems.append(f"{name}: label {label!r}, {problem}")
        elif not 0 <= index < classes:
            problems.append(f"{name}: label {index}")
        else:
            indices.append(index)
    if problems:
        names = "" if known else "; it names none of them"
        raise ValueError(
            f"Labels that are no class of {network}, which has {classes} classes (0 to {classes - 1}{names}): {_first(problems)}."
        )
    return np.array(indices, int)


def squared(images: LabelledImages, square: Square) -> LabelledImages:
    """The same images made square.

    `crop` takes the central square, so that objects keep their shape; boxes are clipped to it, and images whose object lies
    outside are skipped. `stretch` leaves them as they are: resizing distorts them.
    """
    if square == "stretch":
        return images
    labels, kept, skipped = [], [], []
    for index, one in enumerate(images.labels):
        box = one.box and clip_to_square(one.box, one.height, one.width)
        if one.box and not box:
            detail = f"{one.box} in {one.width} x {one.height} pixels"
            skipped.append(Skipped(one.name, "object outside the central square", detail))
            continue
        side = min(one.width, one.height)
        labels.append(one._replace(box=box, width=side, height=side))
        kept.append(index)

    def read(index: int) -> Example:
        example = images[kept[index]]
        image = central_square(example.image)
        return example._replace(image=image, box=labels[index].box, mask=None, file_bytes=None)

    return LabelledImages(tuple(labels), read, (*images.skipped, *skipped))


def spread(images: LabelledImages, most: int) -> LabelledImages:
    """At most `most` of the images, evenly spread over their order; all when 0."""
    if not 0 < most < len(images):
        return images
    kept = np.linspace(0, len(images) - 1, most).round().astype(int).tolist()
    labels = tuple(images.labels[index] for index in kept)
    return dataclasses.replace(images, labels=labels, read=lambda index: images[kept[index]])


def _first(problems: Sequence[str], most: int = 10) -> str:
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more
