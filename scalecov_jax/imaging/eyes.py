"""Eyes with a grade of diabetic retinopathy: rendered retinas, a folder with a table, or EyePACS as tfds prepared it."""

from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Int, Key

from scalecov_jax.concepts.measure import csv_parts
from scalecov_jax.imaging import fundus, retina
from scalecov_jax.imaging.csv_file import number, say, texts
from scalecov_jax.imaging.folder import group_of, read_folder, side_of
from scalecov_jax.imaging.image_set import ImageSet, Pixels, listed
from scalecov_jax.imaging.prepared import Records, open_tfds
from scalecov_jax.imaging.sources import regroup, with_values

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
GRADES = 5
DATASET = "diabetic_retinopathy_detection"


def open_eyes(
    images: str,
    *,
    part: Part,
    size: int,
    count: int = 0,
    seed: int = 0,
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
    concept: str = "",
    groups: str = "",
) -> ImageSet:
    """Open one part of a set of graded eyes, trimmed to what the camera sees; no patient is in two parts.

    Args:
        images: `retina` (rendered), `tfds:<data_dir>` (diabetic_retinopathy_detection, prepared; its own splits), or a folder of
            photographs with one CSV file.
        part: Which one.
        size: Height and width of the eyes in pixels.
        count: Number of rendered eyes in this part.
        seed: Of the rendering, and of the parting of a folder.
        shares: Of a folder's patients: train, validation, test.
        concept: Of a folder, see `folder_eyes`.
        groups: Likewise.

    Returns:
        Columns grade (0 to 4), side (left, right, or empty where it is not known) and group, which is the patient.

    Raises:
        ValueError: See `rendered_eyes`, `tfds_eyes` and `folder_eyes`.
    """
    if images == "retina":
        return rendered_eyes(part, count, seed, size)
    if images.startswith("tfds:"):
        found = tfds_eyes(images.removeprefix("tfds:"), part)
    else:
        found = folder_eyes(images, part, seed=seed, shares=shares, concept=concept, groups=groups)
    return found.map(partial(fundus.trim_example, size=size))


def rendered_eyes(part: Part, count: int, seed: int, size: int) -> ImageSet:
    """Rendered retinas, drawn when they are read: two an eye, the right eye first, graded as in `retina.examples`.

    Each part has keys of its own, so that no eye is in two. They need no trimming: the disc fills them.

    Args:
        part: Which one.
        count: Number of eyes; the last patient has one if it is odd.
        seed: Same seed, same eyes.
        size: Height and width in pixels.

    Raises:
        ValueError: Less than one eye.
    """
    if count < 1:
        raise ValueError(f"{count} rendered eyes for {part}; expected at least 1.")
    grading, drawing = jax.random.split(jax.random.fold_in(jax.random.key(seed), PARTS.index(part)))
    grades = np.asarray(_patient_grades(grading, -(-count // 2))).reshape(-1)[:count].tolist()

    def render(index: int) -> Pixels:
        key = jax.random.fold_in(drawing, index)
        image, _ = retina.render(key, jnp.asarray(grades[index]), size, jnp.asarray(index % 2 == 1))
        return Pixels(np.asarray(image))

    table = pd.DataFrame(
        {
            "name": [f"{part}_{index:05d}" for index in range(count)],
            "group": [f"{part}_patient_{index // 2:05d}" for index in range(count)],
            "grade": grades,
            "side": [("right", "left")[index % 2] for index in range(count)],
        }
    )
    return ImageSet(table, render)


def _patient_grades(key: Key[Array, ""], patients: int) -> Int[Array, "P 2"]:
    """Of both eyes: the same in four of five patients, else neighbouring ones."""
    first_key, second_key = jax.random.split(key)
    first = jax.random.randint(first_key, (patients,), 0, GRADES)
    differs = jax.random.bernoulli(second_key, 0.2, (patients,))
    return jnp.stack([first, jnp.where(differs, jnp.where(first < 4, first + 1, 3), first)], 1)


def tfds_eyes(data_dir: str | Path, part: Part) -> ImageSet:
    """EyePACS as tfds prepared it (array_record), read without TensorFlow and never downloaded; parted as there.

    Args:
        data_dir: Folder of prepared datasets; where several configurations of the dataset are prepared, the folder of one.
        part: Split of the same name.

    Raises:
        ValueError: Not prepared, several configurations, another format, or an unknown split.

    Source: https://www.tensorflow.org/datasets/catalog/diabetic_retinopathy_detection
    """
    path = Path(data_dir).expanduser()
    if path.parent.name == DATASET:
        root, found = path.parent.parent, [path.name]
    else:
        root = path
        found = sorted({one.parents[1].name for one in path.glob(f"{DATASET}/*/*/dataset_info.json")})
    if len(found) > 1:
        raise ValueError(
            f"{path / DATASET}: prepared in {len(found)} configurations ({', '.join(found)}); name the folder of one, such as "
            f"tfds:{path / DATASET / found[0]}."
        )
    records, _ = open_tfds(root, part, "/".join([DATASET, *found]))
    names = [PurePosixPath(record["name"].decode()).stem for record in records]
    grades = [int(record["label"]) for record in records]
    patients = [group_of(Path(name)) or name for name in names]
    table = pd.DataFrame({"name": names, "group": patients, "side": [*map(side_of, names)], "grade": grades})
    graded = table["grade"].between(0, GRADES - 1).to_numpy()
    if not graded.any():
        raise ValueError(f"{path}: none of the {len(table)} eyes of {part} has a grade of 0 to 4.")
    return ImageSet(table, Records(records, names)).where(
        graded, "no grade", [f"label {one}" for one in grades]
    )


def folder_eyes(
    folder: str | Path,
    part: Part,
    *,
    seed: int = 0,
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
    concept: str = "",
    groups: str = "",
) -> ImageSet:
    """A folder of photographs with one CSV file that names and grades each of them, parted by patient at random.

    Columns: see `folder.COLUMNS`, of which grade is needed; without a patient, the patient is the name without left, right, OD or
    OS, as in EyePACS. Photographs without a grade, or with -1 (ungradable), are left out.

    Args:
        folder: Photographs at any depth, and the CSV file in the folder itself.
        part: Which one.
        seed: Of the parting; the same for all three parts.
        shares: Of the patients: train, validation, test.
        concept: The grades, csv:PATH:COLUMN, in place of the CSV file in the folder.
        groups: The patients, see `sources.regroup`.

    Raises:
        ValueError: See `read_folder`; grades other than 0 to 4, all at once; shares that do not add up to 1 or leave no patient.
    """
    path, column = csv_parts(concept)
    if concept and not path:
        raise ValueError(f"concept is {concept!r}; expected csv:PATH:COLUMN, as in csv:grades.csv:level.")
    images = regroup(read_folder(folder, needs="" if concept else "grade"), groups)
    if concept:
        images = with_values(images, path, column)
        images = images.assign(grade=texts(path, column, [*images.table["name"]]).sort_index().to_numpy())
    grades, problems = [], []
    for name, text in images.table[["name", "grade"]].itertuples(index=False):
        try:
            grade = number(text)
        except ValueError:
            grade = np.nan
        if grade not in range(-1, GRADES):
            problems.append(f"{name}: grade {text!r}")
        grades.append(grade)
    if problems:
        raise ValueError(
            f"{folder}: expected grades of 0 to 4, or -1 for an ungradable eye: {listed(problems)}."
        )
    told = images.table["side"] if "side" in images.table else images.table["name"]
    sides = [
        side_of(one) or side_of(name) for one, name in zip(told.fillna(""), images.table["name"], strict=True)
    ]
    grades = np.array(grades, int)
    images = images.assign(grade=grades, side=sides).where(
        grades >= 0, "no grade", ["grade -1"] * len(grades)
    )
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"The shares of train, validation and test are {shares}; expected parts of 1.")
    known = sorted({*images.table["group"]})
    if len(known) == len(images):
        say(f"{folder}: no two photographs share a patient, as far as their names and table tell.")
    order = np.random.default_rng(seed).permutation(len(known))
    edges = np.round(np.cumsum([0, *shares]) * len(known)).astype(int)
    at = PARTS.index(part)
    chosen = {known[one] for one in order[edges[at] : edges[at + 1]]}
    if not chosen:
        raise ValueError(
            f"{folder}: {shares[at]:g} of {len(known)} patients leaves none for {part}; add patients or raise its share."
        )
    chosen_images = images.take(np.flatnonzero(images.table["group"].isin(chosen)))
    # What is left out is in no part, and named with the first.
    return replace(chosen_images, skipped=images.skipped if part == PARTS[0] else ())
