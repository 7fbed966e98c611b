"""Images whose class a network knows: where labels come from, which output they mean, and how images become square."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Int

from scalecov_jax.imaging.decoding import central_square, clip_to_square
from scalecov_jax.imaging.folder import read_folder, with_sizes
from scalecov_jax.imaging.image_set import Box, Example, ImageSet, boxes_of, concatenate, listed
from scalecov_jax.imaging.sources import SCENES, is_voc, open_images
from scalecov_jax.imaging.voc import OTHER_CLASS, read_boxes

Square = Literal["crop", "stretch"]


def open_labelled(
    images: str, class_indices: str = "", *, count: int = 0, seed: int = 0, size: int = 256
) -> ImageSet:
    """Open images with labels and known sizes by name.

    Args:
        images: `scenes` (of every class), a folder in VOC layout (with `class_indices`), or a folder with a table that has the
            column class_index (without), see `folder.read_folder`.
        class_indices: The network's class of each class of a VOC folder, as in "n02058221:146,n04037443:751".
        count: Scenes of each class.
        seed: Of the scenes.
        size: Height and width of the scenes in pixels.

    Raises:
        ValueError: See `parse_classes`, `read_folder` and `voc.read_boxes`.
    """
    if images == SCENES:
        return open_images(SCENES, count=count, seed=seed, size=size)
    if class_indices:
        classes = parse_classes(class_indices)
        found = concatenate([read_boxes(images, name).assign(label=to) for name, to in classes.items()])
        own = tuple(skip for skip in found.skipped if skip.reason != OTHER_CLASS)
        return ImageSet(found.table, found.decode, own)
    if is_voc(images):
        raise ValueError(f"{images}: for boxes in VOC layout give class_indices as well, as in car:751.")
    return with_sizes(read_folder(images, needs="label"))


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


def class_indices(
    images: pd.DataFrame, classes: int, class_names: Sequence[str] = (), network: str = "the network"
) -> Int[np.ndarray, " N"]:
    """The network's class of each image.

    Args:
        images: Columns name and label; a label is an index, or a name that is looked up.
        classes: Outputs of the network.
        class_names: Names of the outputs; empty when unknown.
        network: Name for errors.

    Raises:
        ValueError: Labels that are neither integers nor such names, or lie outside the classes; all images at once.
    """
    known = {name: index for index, name in enumerate(class_names)}
    indices, problems = [], []
    for name, label in images[["name", "label"]].itertuples(index=False):
        near = get_close_matches(label, known, n=1)
        index = int(label) if re.fullmatch(r"[+-]?[0-9]+", label) else known.get(label)
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
            f"Labels that are no class of {network}, which has {classes} classes (0 to {classes - 1}{names}): {listed(problems)}."
        )
    return np.array(indices, int)


def squared(images: ImageSet, square: Square) -> ImageSet:
    """The same images made square.

    `crop` takes the central square, so that objects keep their shape; boxes are clipped to it, and images whose object lies
    outside are skipped. `stretch` leaves them as they are: resizing distorts them.
    """
    if square == "stretch":
        return images
    width, height, boxes = images.column("width"), images.column("height"), boxes_of(images)
    clipped = [
        box and clip_to_square(box, int(h), int(w)) for box, h, w in zip(boxes, height, width, strict=True)
    ]
    details = [f"{box} in {w} x {h} pixels" for box, h, w in zip(boxes, height, width, strict=True)]
    inside = np.array([bool(new or not box) for new, box in zip(clipped, boxes, strict=True)])
    kept = images.where(inside, "object outside the central square", details)
    corners = np.array([box or [np.nan] * 4 for box, use in zip(clipped, inside, strict=True) if use], float)
    side = np.minimum(width, height)[inside]
    boxed = dict(zip(Box._fields, corners.reshape(-1, 4).T, strict=True))
    return kept.map(_crop).assign(width=side, height=side, **boxed)


def _crop(example: Example) -> Example:
    mask = None if example.mask is None else central_square(example.mask)  # pyright: ignore[reportArgumentType]
    return example._replace(image=central_square(example.image), mask=mask)
