"""A source of images by name: scenes, retinas, VOC as tfds prepared it, or any folder."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import logging
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from scalecov_jax.imaging import retina, scenes
from scalecov_jax.imaging.csv_file import NAMES, find_column, join, name_column, number, read_csv, say, texts
from scalecov_jax.imaging.folder import Files, annotated, read_folder
from scalecov_jax.imaging.image_set import ImageSet, image_set
from scalecov_jax.imaging.voc import read_boxes, tfds_boxes

SCENES = "scenes"
RETINA = "retina"


def open_images(
    images: str, image_class: str = "", *, count: int = 0, seed: int = 0, size: int = 128
) -> ImageSet:
    """Open images by name; those of one class where there are classes.

    Args:
        images: `scenes`, `retina`, `tfds:<data_dir>` (VOC 2007, prepared), a folder in VOC layout (images that hold exactly one
            object), any other folder of images (see `folder.read_folder`), or `annotated:<folder>`, of which only the images with
            a mask are taken.
        image_class: Class name, such as car; for scenes such as striped_disc, or empty for `count` of every class. Only a name
            for retinas and for folders that are not in VOC layout.
        count: Number of scenes or retinas; folders are read whole.
        seed: Of what is rendered.
        size: Height and width of what is rendered, in pixels.

    Raises:
        ValueError: See `read_boxes`, `tfds_boxes`, `read_folder` and `scenes.examples`.
    """
    kind, _, folder = images.rpartition(":")
    if images == SCENES:
        names = [image_class] if image_class else scenes.CLASSES
        return image_set(one for name in names for one in scenes.examples(name, count, seed, size))
    if images == RETINA:
        return image_set(retina.examples(count, seed, size))
    if kind == "tfds":
        return tfds_boxes(folder, "train+validation", image_class)
    if kind == "annotated":
        return annotated(read_folder(folder), needed=False)
    if is_voc(images):
        return read_boxes(images, image_class)
    return read_folder(images)


def is_voc(images: str) -> bool:
    """Whether a folder is in VOC layout, so that its images have classes."""
    return (Path(images).expanduser() / "Annotations").is_dir()


def has_classes(images: str) -> bool:
    """Whether the images of this name are of classes."""
    return images == SCENES or images.startswith("tfds:") or is_voc(images)


def regroup(images: ImageSet, path: str, column: str) -> ImageSet:
    """The same images with the groups that a column of a CSV file gives them; those for which it says nothing are each their own.

    Raises:
        ValueError: See `csv_file.texts`.
    """
    found = texts(path, column, [*images.table["name"]])
    if alone := len(images) - len(found):
        logging.warning(
            "%s says nothing of the %s of %d images; each is a group of its own.", path, column, alone
        )
    return images.assign(
        group=found.reindex(range(len(images))).fillna(images.table["name"].reset_index(drop=True)).to_numpy()
    )


def with_values(images: ImageSet, path: str, column: str) -> ImageSet:
    """The images for which a column of a CSV file says something; the others are skipped.

    Raises:
        ValueError: See `csv_file.texts`.
    """
    found = texts(path, column, [*images.table["name"]])
    known = np.isin(np.arange(len(images)), found.index)
    return images.where(known, f"no {column} in {Path(path).name}")


def with_copies_together(images: ImageSet) -> ImageSet:
    """The same images, where those whose files are equal byte for byte are of one group, with all of their groups.

    A copy on the other side of a split is read by heart, and R2 is high on noise.
    """
    if "path" not in images.table:
        return images
    by_size, by_content = defaultdict(list), defaultdict(list)
    for at, path in enumerate(images.table["path"]):
        by_size[path.stat().st_size].append(at)
    for size, places in by_size.items():
        for at in places if len(places) > 1 else ():
            by_content[size, hashlib.sha256(images.table["path"].iloc[at].read_bytes()).digest()].append(at)
    copies = [places for places in by_content.values() if len(places) > 1]
    if not copies:
        return images
    names, numbers = np.unique(images.column("group").astype(str), return_inverse=True)
    pairs = np.array([(numbers[places[0]], numbers[at]) for places in copies for at in places]).T
    links = coo_array((np.ones(pairs.shape[1]), tuple(pairs)), shape=(len(names),) * 2)
    of = connected_components(links, directed=False)[1]
    first = {part: names[at] for at, part in reversed([*enumerate(of)])}
    more = sum(map(len, copies)) - len(copies)
    original, copy = images.table["name"].iloc[copies[0][:2]]
    logging.warning(
        "%d of %d images are copies of others, such as %s of %s; copies are kept in one group.",
        more, len(images), copy, original,
    )  # fmt: skip
    return images.assign(group=[first[of[number]] for number in numbers])


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
    return found.assign(group=[*map(str, rows[groups])]) if groups else found


def is_number(text: str) -> bool:
    """Whether a cell is what `csv_file.number` reads."""
    try:
        number(text)
    except ValueError:
        return False
    return True
