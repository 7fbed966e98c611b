"""A source of images by name: scenes, retinas, VOC as tfds prepared it, or any folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
from absl import logging
from tqdm import tqdm

from scalecov_jax.concepts import shape
from scalecov_jax.concepts.measure import csv_parts
from scalecov_jax.imaging import retina, scenes, slides
from scalecov_jax.imaging.csv_file import (
    NAMES,
    absent,
    find_column,
    join,
    name_column,
    number,
    read_csv,
    say,
    texts,
)
from scalecov_jax.imaging.folder import Files, annotated, read_folder
from scalecov_jax.imaging.image_set import (
    ImageError,
    ImageSet,
    Pixels,
    Skipped,
    concatenate,
    count_reasons,
    image_set,
)
from scalecov_jax.imaging.instances import instances
from scalecov_jax.imaging.microns import resampled, with_mpp
from scalecov_jax.imaging.voc import read_boxes, tfds_boxes

SCENES = "scenes"
RETINA = "retina"
TILE = 256
_ONE = Lock()


def open_images(
    images: str,
    image_class: str = "",
    *,
    count: int = 0,
    seed: int = 0,
    size: int = 128,
    mpp: float | Sequence[float] = (),
    patch: int = 0,
) -> ImageSet:
    """Open images by name; those of one class where there are classes.

    Args:
        images: `scenes`, `retina`, `tfds:<data_dir>` (VOC 2007, prepared), a folder in VOC layout (images that hold exactly one
            object), any other folder of images (see `folder.read_folder`), `annotated:<folder>`, of which only the images with
            annotations are taken (see `instances.instances`), or `slides:<folder>` (see `slides.tiles`).
        image_class: Class name, such as car; for scenes such as striped_disc, or empty for `count` of every class. Only a name
            for retinas and for folders that are not in VOC layout.
        count: Number of scenes or retinas; folders are read whole.
        seed: Of what is rendered.
        size: Height and width of what is rendered, in pixels.
        mpp: Microns per pixel to which images are brought, see `microns.resampled`; each image to every one of several, and
            then its name ends in [mpp=...] and the column source has it without; as they are when empty.
        patch: Height and width in pixels of the squares into which images are then cut, see `squares`; whole when 0.
            Tiles of slides are of 256 when 0.

    Raises:
        ImportError: See `slides.tiles`.
        ValueError: See `read_boxes`, `tfds_boxes`, `read_folder`, `instances.instances`, `slides.tiles`, `resampled`, `squares`
            and `scenes.examples`.
    """
    wanted = [float(one) for one in np.atleast_1d(mpp)]
    if images.startswith("slides:"):
        folder = images.removeprefix("slides:")
        return _at_each(wanted or [0.0], lambda one: slides.tiles(folder, patch or TILE, one))
    found = _open(images, image_class, count, seed, size)
    found = _at_each(wanted, lambda one: resampled(found, one)) if wanted else found
    return squares(found, patch) if patch else found


def _at_each(mpp: Sequence[float], at: Callable[[float], ImageSet]) -> ImageSet:
    if len(mpp) == 1:
        return at(mpp[0])
    sets = []
    for one in mpp:
        found = at(one)
        source = found.table["source" if "source" in found.table else "name"]
        names = [f"{name} [mpp={one:g}]" for name in found.table["name"]]
        sets.append(found.assign(source=source, name=names))
    return concatenate(sets)


def _open(images: str, image_class: str, count: int, seed: int, size: int) -> ImageSet:
    kind, _, folder = images.partition(":")
    if images == SCENES:
        names = [image_class] if image_class else scenes.CLASSES
        return image_set(one for name in names for one in scenes.examples(name, count, seed, size))
    if images == RETINA:
        return image_set(retina.examples(count, seed, size))
    if kind == "tfds":
        return tfds_boxes(folder, "train+validation", image_class)
    if kind == "annotated":
        return annotated(instances(folder), needed=False)
    if is_voc(images):
        return read_boxes(images, image_class)
    return with_mpp(read_folder(images))


def is_voc(images: str) -> bool:
    """Whether a folder is in VOC layout, so that its images have classes."""
    return (Path(images).expanduser() / "Annotations").is_dir()


def has_classes(images: str) -> bool:
    """Whether the images of this name are of classes."""
    return images == SCENES or images.startswith("tfds:") or is_voc(images)


def regroup(images: ImageSet, groups: str) -> ImageSet:
    """The same images in the groups that csv:PATH:COLUMN gives; those for which it says nothing are each their own.

    Patches and tiles are of the group of the image or slide that they were cut from. Nothing changes where `groups` is empty.

    Raises:
        ValueError: See `csv_file.texts`; `groups` of another form.
    """
    if not groups:
        return images
    path, column = csv_parts(groups)
    if not path:
        raise ValueError(f"groups is {groups!r}; expected csv:PATH:COLUMN, as in csv:patients.csv:patient.")
    names = images.table["source" if "source" in images.table else "name"].reset_index(drop=True)
    whole = names.drop_duplicates()
    known = texts(path, column, [*whole])
    found = names.map(pd.Series(known.to_numpy(), whole.iloc[known.index])).dropna()
    if alone := len(images) - len(found):
        logging.warning(
            "%s says nothing of the %s of %d images; each is a group of its own.", path, column, alone
        )
    return images.assign(group=found.reindex(range(len(images))).fillna(names).to_numpy())


def with_values(images: ImageSet, path: str, column: str) -> ImageSet:
    """The images for which a column of a CSV file says something; the others are skipped.

    Raises:
        ValueError: See `csv_file.texts`.
    """
    found = texts(path, column, [*images.table["name"]])
    known = np.isin(np.arange(len(images)), found.index)
    return images.where(known, f"no {column} in {Path(path).name}")


def squares(images: ImageSet, size: int) -> ImageSet:
    """Squares of `size` pixels on a grid without overlap; of images with masks those that hold a whole instance.

    Returns:
        Columns of the images, of which name says where the square lies; source (name of the image), x and y (left and upper edge
        in pixels), width and height. Images that cannot be decoded or are smaller, and squares without a whole instance, are
        skipped.

    Raises:
        ValueError: No square.
    """
    places, skipped = [], [*images.skipped]
    for index in tqdm(range(len(images)), desc="cutting squares", unit="image"):
        try:
            example = images[index]
        except ImageError as error:
            skipped.append(Skipped(error.name, "unreadable image", error.problem))
            continue
        height, width = example.image.shape[:2]
        if size > min(height, width):
            skipped.append(Skipped(example.name, "image smaller than a patch", f"{width} x {height} pixels"))
        for y in range(0, height - size + 1, size):
            for x in range(0, width - size + 1, size):
                mask = example.mask
                if mask is None or shape.instances(mask[y : y + size, x : x + size]).any():
                    places.append((index, x, y))
                else:
                    skipped.append(
                        Skipped(f"{example.name} [x={x},y={y}]", "no whole nucleus", f"{size} pixels")
                    )
    if not places:
        reasons = ", ".join(f"{reason} {count}" for reason, count in count_reasons(skipped).items())
        raise ValueError(
            f"No square of {size} pixels can be cut ({reasons or 'no image'}); choose a smaller patch."
        )
    of, x, y = np.array(places).T
    table = images.table.drop(columns=["x_min", "y_min", "x_max", "y_max"], errors="ignore")
    table = table.iloc[of].reset_index(drop=True)
    names = [f"{name} [x={left},y={top}]" for name, left, top in zip(table["name"], x, y, strict=True)]
    source = table["source" if "source" in table else "name"]
    table = table.assign(source=source, name=names, x=x, y=y, width=size, height=size)
    return ImageSet(table, _Squares(images, tuple(places), size), tuple(skipped))


@dataclass(frozen=True, eq=False)  # so that it is a key of `_whole`
class _Squares:
    images: ImageSet
    places: tuple[tuple[int, int, int], ...]  # image, x, y
    size: int

    def __call__(self, index: int) -> Pixels:
        at, x, y = self.places[index]
        with _ONE:  # squares of one image are asked for by several threads
            image, mask, _ = _whole(self, at)
        square = (slice(y, y + self.size), slice(x, x + self.size))
        return Pixels(image[square], None if mask is None else mask[square])


@lru_cache(maxsize=2)
def _whole(cut: _Squares, at: int) -> Pixels:
    return cut.images.decode(at)


def files(paths: Sequence[Path]) -> ImageSet:
    """Image files, called by their names, or by their paths where names come twice.

    Raises:
        ValueError: Files that are not there.
    """
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise ValueError(f"No such file: {', '.join(missing[:10])}.")
    names = [path.name for path in paths]
    if len({*names}) < len(names):
        names = [path.as_posix() for path in paths]
    decode = Files(tuple(paths), (None,) * len(paths), (False,) * len(paths))
    return ImageSet(pd.DataFrame({"name": names, "group": names, "path": paths}), decode)


def with_measures(found: ImageSet, given: str | Path | pd.DataFrame, groups: str) -> ImageSet:
    """The columns of a CSV file or DataFrame joined to the images that it names, `groups` as their groups.

    Raises:
        ValueError: See `csv_file.join`; no column `groups`.
    """
    if isinstance(given, pd.DataFrame):
        table = given.astype(object).where(given.notna(), "").astype(str)
        table.attrs["path"] = "the DataFrame"
        if find_column(table, *NAMES) is None and not given.index.equals(pd.RangeIndex(len(given))):
            table.insert(0, "image", table.index.astype(str))
        table = table.reset_index(drop=True)
    else:
        table = read_csv(given)
    lines = join(table, [*found.table["name"]])
    known = np.isin(np.arange(len(found)), lines.index)
    found = found.where(known, f"no line in {Path(table.attrs['path']).name}")
    rows = table.loc[lines.to_numpy()].reset_index(drop=True)
    columns: dict[str, Any] = {}
    for column in rows.columns.drop(name_column(table)):
        if column and rows[column].map(is_number).all():
            columns[column] = rows[column].astype(float).to_numpy()
        elif column:
            columns[column] = rows[column].to_numpy()
    if groups and groups not in columns:
        raise ValueError(
            f"{table.attrs['path']}: no column {groups!r}; the columns are {', '.join(columns)}."
        )
    if taken := [name for name in columns if name in ("name", "group", "path", "mask", "width", "height")]:
        say(
            f"{table.attrs['path']}: {', '.join(taken)} are facts of the images themselves; rename these columns to use them."
        )
    found = found.assign(**{name: values for name, values in columns.items() if name not in taken})
    found = with_mpp(found) if "mpp" in columns else found
    if not groups:
        return found
    alone = [absent(one) for one in rows[groups]]
    if any(alone):
        logging.warning(
            "%d of %d images have no %s, such as %s; each of them is a group of its own.",
            sum(alone), len(alone), groups, found.table["name"].iloc[alone.index(True)],
        )  # fmt: skip
    own = zip(alone, found.table["name"], rows[groups], strict=True)
    return found.assign(group=[name if blank else str(one) for blank, name, one in own])


def rows_of_table(names: Sequence[str], table: str | Path, groups: str) -> ImageSet:
    """What a CSV file says of rows of features with these names (`with_measures`); their places are the column row.

    Raises:
        ValueError: No names; see `with_measures`.
    """
    if not names:
        raise ValueError(
            f"The rows of these features have no names, so the lines of {table} cannot find them; pass the measures as an array "
            "in the order of the rows."
        )
    rows = pd.DataFrame({"name": names, "group": names, "row": range(len(names))})
    return with_measures(ImageSet(rows, lambda _: Pixels(np.zeros((1, 1, 3), np.uint8))), table, groups)


def is_number(text: str) -> bool:
    """Whether a cell is what `csv_file.number` reads."""
    try:
        number(text)
    except ValueError:
        return False
    return True
