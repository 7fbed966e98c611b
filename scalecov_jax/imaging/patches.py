"""Patches of known magnification and mean nucleus area, cut from annotated images and kept on disk as a tfds dataset."""

import contextlib
import csv
import errno
import io
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from scalecov_jax.atomic import read_table, replacing, seal
from scalecov_jax.concepts import nuclei
from scalecov_jax.imaging.decoding import encode_png
from scalecov_jax.imaging.image_set import Example, ImageError, ImageSet, Skipped, count_reasons
from scalecov_jax.imaging.prepared import Records, open_tfds

MAGNIFICATIONS = (5.0, 8.0, 10.0, 15.0, 20.0, 30.0, 40.0)
Labels = Literal["mask", "instances"]
_TABLE, _SKIPPED = "patches.csv", "skipped.csv"
_PART = 64 << 20


class Patch(NamedTuple):
    """A square cut out of an annotated image and brought to another magnification.

    Attributes:
        image: RGB.
        area: Mean area of its nuclei in pixels of the patch.
        nuclei: Their number.
        magnification: Of the patch.
        group: Patient or source image.
        source: Name of the annotated image.
        x: Left edge in pixels of the annotated image.
        y: Upper edge.
    """

    image: UInt8[np.ndarray, "size size 3"]
    area: float
    nuclei: int
    magnification: float
    group: str
    source: str
    x: int
    y: int


def cut_patches(
    annotated: Example,
    magnification: float,
    size: int,
    skipped: list[Skipped],
    *,
    magnifications: Sequence[float] = MAGNIFICATIONS,
    labels: Labels = "mask",
    stride: float = 1.0,
    limit: int = 0,
) -> Iterator[Patch]:
    """Cut patches of every magnification m: squares of size M / m pixels of an image of magnification M, downsampled to `size`.

    Args:
        annotated: The image, with its mask.
        magnification: Of the image.
        size: Height and width of the patches in pixels.
        skipped: What is left out is appended: magnifications that do not fit the image, patches without a whole nucleus.
        magnifications: Wanted.
        labels: Area from the foreground as published (`nuclei.mean_area`), or from instance numbers.
        stride: Distance of neighbouring squares as a share of their side; 1 is without overlap.
        limit: Most patches of one magnification, spread evenly; 0 for all.

    Raises:
        ValueError: There is no mask, no instance numbers where they are asked for, or the image is its own mask.

    Source: Graziani et al. 2021, section 3.1 (magnifications 5 to 40); areas as in the authors' notebook.
    """
    truth = annotated.mask
    if truth is None or (labels == "instances" and truth.dtype == bool):
        raise ValueError(
            f"{annotated.name} has no {labels}; set config.labels to the other of mask, instances."
        )
    if labels == "mask":
        truth = np.where(truth, np.uint8(255), np.uint8(0))
    height, width = annotated.image.shape[:2]
    if truth.shape != (height, width):
        raise ValueError(f"{annotated.name}: the annotation is {truth.shape}, the image {(height, width)}.")
    if np.ptp(truth) and all(np.array_equal(annotated.image[..., c], truth) for c in range(3)):
        raise ValueError(f"{annotated.name} is a mask, not an image.")
    for wanted in magnifications:
        side = round(size * magnification / wanted)
        where = f"{annotated.name} at {wanted:g}X"
        if side < size:
            skipped.append(
                Skipped(where, "above the magnification of the image", f"it has {magnification:g}X")
            )
            continue
        if side > min(height, width):
            skipped.append(
                Skipped(where, "image smaller than a patch", f"{width} x {height}, needs {side} pixels")
            )
            continue
        step = max(1, round(stride * side))
        corners = [
            (x, y) for y in range(0, height - side + 1, step) for x in range(0, width - side + 1, step)
        ]
        if limit and len(corners) > limit:
            corners = [corners[i] for i in np.linspace(0, len(corners) - 1, limit).round().astype(int)]
        for x, y in corners:
            square = (slice(y, y + side), slice(x, x + side))
            found = _measure(truth[square], size, labels)
            if found is None:
                skipped.append(Skipped(f"{where}, x={x}, y={y}", "no whole nucleus", f"{side} pixels"))
                continue
            image = _downsample(annotated.image[square], size, Image.Resampling.BOX)
            facts = found.mean_area, found.count, wanted, annotated.group, annotated.name
            yield Patch(image, *facts, x, y)


def _measure(truth: np.ndarray, size: int, labels: Labels) -> nuclei.Nuclei | None:
    if labels == "mask":
        return nuclei.mean_area(_downsample(truth, size, Image.Resampling.BOX))
    return nuclei.mean_area_of_instances(
        _downsample(truth.astype(np.int32), size, Image.Resampling.NEAREST).astype(np.int32)
    )


def _downsample(values: np.ndarray, size: int, how: Image.Resampling) -> np.ndarray:
    if len(values) == size:
        return values
    return np.array(Image.fromarray(values).resize((size, size), how))


class NucleiPatches(tfds.core.GeneratorBasedBuilder):
    """tfds builder of patches: one split `patches` in array_record, in the order given.

    tfds holds all records of a split in memory before it writes them (and needs TensorFlow beyond 1 GB), so that a large set
    is several datasets, see `prepare_patches`.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, patches: Iterator[Patch], data_dir: Path):
        self._patches = patches
        super().__init__(data_dir=str(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Histology patches with the mean area of their nuclei in pixels.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "area": np.float64,
                    "nuclei": np.int32,
                    "magnification": np.float32,
                    "group": tfds.features.Text(),
                    "source": tfds.features.Text(),
                    "x": np.int32,
                    "y": np.int32,
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"patches": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, patch in enumerate(self._patches):
            yield number, {**patch._asdict(), "image": encode_png(patch.image)}


def prepare_patches(source: ImageSet, folder: Path, *, size: int, **settings: Any) -> None:
    """Cut a source into patches and write them to a new `folder`, which appears only when it is complete.

    Memory holds one annotated image and at most 64 MB of patches: as often as these are reached, they become a tfds dataset
    `part_0000`, `part_0001` and so on. `patches.csv` lists all patches, `skipped.csv` what was left out.

    Args:
        source: Images with masks, and a column magnification.
        folder: Where to.
        size: Height and width of the patches in pixels.
        settings: See `cut_patches`.

    Raises:
        ValueError: Not one patch could be cut; says why.
    """
    with replacing(folder) as partial:
        partial.mkdir()
        _write_set(source, partial, size=size, **settings)


def _write_set(source: ImageSet, folder: Path, *, size: int, **settings: Any) -> None:
    skipped: list[Skipped] = []
    parts, count = 0, 0
    with (folder / _TABLE).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(Patch._fields[1:])
        cut = _cut_all(source, skipped, size=size, **settings)
        while part := list(itertools.islice(cut, max(1, _PART // (3 * size**2)))):
            _write_part(part, folder / f"part_{parts:04d}")
            table.writerows(patch[1:] for patch in part)
            parts, count = parts + 1, count + len(part)
    if not count:
        reasons = ", ".join(f"{reason} {n}" for reason, n in count_reasons(skipped).items())
        raise ValueError(
            f"There is no patch to cut ({reasons}). Lower config.size, choose other config.magnifications, or add images."
        )
    with (folder / _SKIPPED).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([Skipped._fields, *skipped])
    for name in (_TABLE, _SKIPPED):
        seal(folder / name)


def _cut_all(source: ImageSet, skipped: list[Skipped], **settings: Any) -> Iterator[Patch]:
    for index in tqdm(range(len(source)), desc="cutting patches", unit="image"):
        try:
            annotated = source[index]
        except ImageError as error:
            skipped.append(Skipped(error.name, "unreadable image", error.problem))
        else:
            magnification = float(source.column("magnification")[index])
            yield from cut_patches(annotated, magnification, skipped=skipped, **settings)


def _write_part(part: Sequence[Patch], folder: Path) -> None:
    tfds.disable_progress_bar()  # ours counts images
    with contextlib.redirect_stdout(io.StringIO()):
        # An iterator, since tfds keeps its builders for ever.
        try:
            NucleiPatches(iter(part), folder).download_and_prepare()
        except RuntimeError as error:  # of the writer of array_record, which names no errno
            full = "No space left" in str(error)
            code = errno.ENOSPC if full else errno.EIO
            raise OSError(code, os.strerror(code) if full else str(error), str(folder)) from error


@dataclass(frozen=True)
class _Records:
    """The records of all parts, one after the other."""

    parts: Sequence[Any]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: int) -> Any:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


def open_patches(folder: Path) -> ImageSet:
    """Open what `prepare_patches` wrote; examples carry no mask.

    Returns:
        Columns area (mean nucleus area in pixels of the patch), nuclei (their number), magnification, group, and source (the
        annotated image that a patch was cut from).

    Raises:
        ValueError: The folder holds no complete set of patches.
    """
    try:
        table = read_table(folder / _TABLE, dtype={"group": str, "source": str})
        left_out = read_table(folder / _SKIPPED, dtype=str)
        skipped = tuple(Skipped(*row) for row in left_out[[*Skipped._fields]].itertuples(index=False))
        parts = sorted(folder.glob("part_*"))
        records = _Records([open_tfds(part, "patches", NucleiPatches.name)[0] for part in parts])
        if len(records) != len(table):
            raise ValueError(f"{_TABLE} has {len(table)} rows, the dataset {len(records)} patches")
        area, magnification = (table[name].to_numpy(float) for name in ("area", "magnification"))
        names = [
            f"{source} at {one:g}X ({at})"
            for at, (source, one) in enumerate(zip(table["source"], magnification, strict=True))
        ]
    except Exception as error:  # tfds, array_record and protobuf have their own
        raise ValueError(
            f"{folder} holds no complete set of patches ({error}); delete it to cut them again."
        ) from error
    known = table.assign(name=names, area=area, magnification=magnification)
    return ImageSet(known, Records(records, names), skipped)
