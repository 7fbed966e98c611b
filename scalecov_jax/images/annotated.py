"""Histology images with annotated nuclei: folders of image and label pairs, and the Janowczyk set."""

import csv
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8

from scalecov_jax.images.example import (
    Example,
    ImageError,
    Skipped,
    count_reasons,
    decode_image,
    decode_labels,
    decode_mask,
    image_size,
)

_IMAGE = re.compile(r"(?P<stem>.+)_(image|original)\.(png|jpe?g|tiff?|bmp)", re.IGNORECASE)
_ANNOTATION = re.compile(r".*_(mask|labels)\.(png|tiff?|bmp)", re.IGNORECASE)
# TCGA-AA-BBBB is a patient; the Janowczyk set writes patient_size_region.
_PATIENT = re.compile(r"TCGA-\w\w-\w{4}|\d+(?=_\d+_\w+$)")


class AnnotatedImage(NamedTuple):
    """An image whose nuclei are known.

    Attributes:
        image: Stored pixels, RGB.
        labels: Instance numbers, 0 is background; None where only a mask is known.
        mask: As stored, foreground bright; None where absent.
        magnification: Of the objective; 40 is about 0.25 um a pixel.
        group: Patient or source image; never split between training and test.
        name: Names the image to a person.
    """

    image: UInt8[np.ndarray, "H W 3"]
    labels: Integer[np.ndarray, "H W"] | None
    mask: UInt8[np.ndarray, "H W"] | None
    magnification: float
    group: str
    name: str


class _Files(NamedTuple):
    image: Path
    mask: Path | None
    labels: Path | None
    magnification: float
    group: str
    name: str


@dataclass(frozen=True)
class AnnotatedFolder:
    """Annotated images of a folder, decoded when asked for."""

    files: tuple[_Files, ...]
    skipped: tuple[Skipped, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> AnnotatedImage:
        """Decode an image and its annotation.

        Raises:
            ImageError: One of the files cannot be decoded.
        """
        one = self.files[index]
        return AnnotatedImage(
            decode_image(one.image, one.name),
            None if one.labels is None else decode_labels(one.labels, one.labels.name),
            None if one.mask is None else decode_mask(one.mask, one.mask.name),
            one.magnification,
            one.group,
            one.name,
        )


@dataclass(frozen=True)
class MaskedImages:
    """The images of an annotated folder as examples: `mask` holds instance numbers where they are known, else the foreground."""

    folder: AnnotatedFolder

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Example:
        """Decode an image and its annotation.

        Raises:
            ImageError: One of the files cannot be decoded.
        """
        one = self.folder[index]
        mask = one.labels if one.labels is not None else None if one.mask is None else one.mask > 127
        return Example(one.image, None, None, mask, one.group, one.name)


def read_annotated(folder: str | Path, magnification: float = 0.0) -> AnnotatedFolder:
    """Pair the images of a folder with their annotations.

    Either an `index.csv` lists them (columns image, mask and/or labels; magnification and group if known), or the names do, at
    any depth: `X_image.png` or `X_original.tif` with `X_mask.png` and/or `X_labels.png`. The group is the column `group`, else
    the patient where the name tells it (TCGA-AA-BBBB, or patient_size_region as in the Janowczyk set), else the image itself.

    Args:
        folder: Where the files are.
        magnification: Of the images whose magnification `index.csv` does not state; 0 leaves such images out.

    Returns:
        The images, and those left out with their reasons: no annotation, another size than the image, magnification unknown,
        unreadable.

    Raises:
        ValueError: No such folder, a bad `index.csv` (all its problems at once), a mask given as an image, or nothing usable.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is no folder; expected images with X_mask.png or X_labels.png beside them."
        )
    if magnification < 0 or not math.isfinite(magnification):
        raise ValueError(f"The magnification is {magnification}; expected such as 40, or 0 if it is unknown.")
    index = folder / "index.csv"
    listed = _read_index(index) if index.is_file() else _read_names(folder)
    usable, skipped = [], []
    for one in listed:
        one = one._replace(magnification=one.magnification or magnification)
        try:
            problem = _problem(one)
        except ImageError as error:
            problem = ("unreadable image", str(error))
        if problem:
            skipped.append(Skipped(one.name, *problem))
        else:
            usable.append(one)
    if not usable:
        reasons = ", ".join(f"{reason} {count}" for reason, count in count_reasons(skipped).items())
        raise ValueError(
            f"{folder}: no usable annotated image ({reasons or 'no file is called X_image.png or X_original.tif'}). Images need "
            "X_mask.png or X_labels.png of the same size beside them, and a magnification (index.csv or config.magnification)."
        )
    return AnnotatedFolder(tuple(usable), tuple(skipped))


def _problem(one: _Files) -> tuple[str, str] | None:
    if one.mask is None and one.labels is None:
        return "no annotation", "neither a mask nor labels"
    if not one.magnification:
        return "unknown magnification", "index.csv does not state it and none was given"
    size = image_size(one.image, one.name)
    for annotation in filter(None, (one.mask, one.labels)):
        if (other := image_size(annotation, annotation.name)) != size:
            return (
                "annotation of another size",
                f"{annotation.name}: {other}, the image is {size} (width, height)",
            )
    return None


def _group(stem: str) -> str:
    found = _PATIENT.match(stem)
    return found.group() if found else stem


def _read_names(folder: Path) -> list[_Files]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    annotations = {
        (path.parent, path.stem.casefold()): path for path in files if _ANNOTATION.fullmatch(path.name)
    }
    pairs = []
    for path in files:
        if found := _IMAGE.fullmatch(path.name):
            stem = found["stem"]
            mask, labels = (
                annotations.get((path.parent, f"{stem}_{kind}".casefold())) for kind in ("mask", "labels")
            )
            where = path.parent.relative_to(folder) / stem
            pairs.append(_Files(path, mask, labels, 0.0, _group(stem), where.as_posix()))
    return pairs


def _read_index(index: Path) -> list[_Files]:
    with index.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows, columns = list(reader), reader.fieldnames or ()
    if "image" not in columns or not {"mask", "labels"} & {*columns}:
        raise ValueError(f"{index}: columns {', '.join(columns)}; expected image and mask or labels.")
    pairs, problems = [], []
    for line, row in enumerate(rows, start=2):
        paths = {kind: index.parent / row[kind] for kind in ("image", "mask", "labels") if row.get(kind)}
        bad = [f"no file {row[kind]}" for kind, path in paths.items() if not path.is_file()]
        bad += [
            f"{row[kind]} lies outside" for kind, path in paths.items() if not _inside(path, index.parent)
        ]
        image = paths.pop("image", None)
        if image is None:
            bad.append("no image")
        elif _ANNOTATION.fullmatch(image.name) or image in paths.values():
            bad.append(f"a mask as image: {row['image']}")
        problems += [f"line {line}: {one}" for one in bad]
        if bad or image is None:
            continue
        stem = re.sub(r"_(image|original)$", "", image.stem)
        name = (Path(row["image"]).parent / stem).as_posix()
        pairs.append(
            _Files(
                image,
                paths.get("mask"),
                paths.get("labels"),
                _magnification(row.get("magnification")),
                row.get("group") or (_group(stem) if _PATIENT.match(stem) else name),
                name,
            )
        )
    if problems:
        raise ValueError(f"{index}: {_first(problems)}")
    return pairs


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _magnification(text: str | None) -> float:
    """40x, 40X or 40; 0 for anything that states none."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*[xX]?\s*", text or "")
    return float(found[1]) if found else 0.0


def _first(problems: Iterable[str], most: int = 10) -> str:
    problems = list(problems)
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more
