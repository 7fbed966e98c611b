"""Eyes with a grade of diabetic retinopathy: rendered retinas, a folder with a CSV file, or EyePACS as tfds prepared it."""

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt8

from scalecov_jax.images import fundus, retina
from scalecov_jax.images.boxes import open_tfds
from scalecov_jax.images.example import ImageError, Skipped, decode_image

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
GRADES = 5
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".ppm", ".webp", ".gif", ".jp2")
DATASET = "diabetic_retinopathy_detection"
_SIDE = re.compile(r"(?P<patient>.+)_(?P<side>left|right)", re.IGNORECASE)


@dataclass(frozen=True)
class Eyes:
    """Photographs of eyes, one an item, whose grades and patients are known before they are decoded.

    Attributes:
        names: Of the photographs.
        grades: 0 to 4.
        patients: Whose eye it is.
        sides: left, right, or empty where it is not known.
        read: Gives the eye with this index; raises ImageError for what cannot be decoded, shows no disc, or is grey.
        skipped: What was left out.
    """

    names: tuple[str, ...]
    grades: tuple[int, ...]
    patients: tuple[str, ...]
    sides: tuple[str, ...]
    read: Callable[[int], UInt8[np.ndarray, "size size 3"]]
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


def open_eyes(
    images: str,
    *,
    part: Part,
    size: int,
    count: int = 0,
    seed: int = 0,
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> Eyes:
    """Open one part of a set of graded eyes; no patient is in two parts.

    Args:
        images: `retina` (rendered), `tfds:<data_dir>` (diabetic_retinopathy_detection, prepared; its own splits), or a folder of
            photographs with one CSV file.
        part: Which one.
        size: Height and width of the eyes in pixels.
        count: Number of rendered eyes in this part.
        seed: Of the rendering, and of the parting of a folder.
        shares: Of a folder's patients: train, validation, test.

    Raises:
        ValueError: See `rendered_eyes`, `tfds_eyes` and `folder_eyes`.
    """
    if images == "retina":
        return rendered_eyes(part, count, seed, size)
    if images.startswith("tfds:"):
        return tfds_eyes(images.removeprefix("tfds:"), part, size)
    return folder_eyes(images, part, size, seed=seed, shares=shares)


def rendered_eyes(part: Part, count: int, seed: int, size: int) -> Eyes:
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

    def read(index: int) -> UInt8[np.ndarray, "size size 3"]:
        index = range(count)[index]
        key = jax.random.fold_in(drawing, index)
        image, _ = retina.render(key, jnp.asarray(grades[index]), size, jnp.asarray(index % 2 == 1))
        return np.asarray(image)

    names = tuple(f"{part}_{index:05d}" for index in range(count))
    patients = tuple(f"{part}_patient_{index // 2:05d}" for index in range(count))
    sides = tuple(("right", "left")[index % 2] for index in range(count))
    return Eyes(names, tuple(grades), patients, sides, read)


def _patient_grades(key: Key[Array, ""], patients: int) -> Int[Array, "P 2"]:
    """Of both eyes: the same in four of five patients, else neighbouring ones."""
    first_key, second_key = jax.random.split(key)
    first = jax.random.randint(first_key, (patients,), 0, GRADES)
    differs = jax.random.bernoulli(second_key, 0.2, (patients,))
    return jnp.stack([first, jnp.where(differs, jnp.where(first < 4, first + 1, 3), first)], 1)


def tfds_eyes(data_dir: str | Path, part: Part, size: int) -> Eyes:
    """EyePACS as tfds prepared it (array_record), read without TensorFlow and never downloaded; parted as there.

    Args:
        data_dir: Folder of prepared datasets; where several configurations of the dataset are prepared, the folder of one.
        part: Split of the same name.
        size: Height and width of the trimmed eyes in pixels.

    Raises:
        ValueError: Not prepared, several configurations, another format, or an unknown split.

    Source: https://www.tensorflow.org/datasets/catalog/diabetic_retinopathy_detection
    """
    path = Path(data_dir)
    if path.parent.name == DATASET:
        root, found = path.parent.parent, [path.name]
    else:
        root, found = (
            path,
            sorted({one.parents[1].name for one in path.glob(f"{DATASET}/*/*/dataset_info.json")}),
        )
    if len(found) > 1:
        raise ValueError(
            f"{path / DATASET}: prepared in {len(found)} configurations ({', '.join(found)}); name the folder of one, such as "
            f"tfds:{path / DATASET / found[0]}."
        )
    records, _ = open_tfds(root, part, "/".join([DATASET, *found]))
    kept, skipped = [], []
    for index, record in enumerate(records):
        name, grade = PurePosixPath(record["name"].decode()).stem, int(record["label"])
        if 0 <= grade < GRADES:
            kept.append((index, name, grade))
        else:
            skipped.append(Skipped(name, "no grade", f"label {grade}"))

    if not kept:
        raise ValueError(f"{path}: none of the {len(skipped)} eyes of {part} has a grade of 0 to 4.")

    def read(index: int) -> UInt8[np.ndarray, "size size 3"]:
        number, name, _ = kept[index]
        return _trimmed(records[number]["image"], name, size)

    names = tuple(name for _, name, _ in kept)
    patients, sides = zip(*map(_patient, names), strict=True)
    return Eyes(names, tuple(grade for _, _, grade in kept), patients, sides, read, tuple(skipped))


class _Row(NamedTuple):
    """A line of the CSV file that is in order."""

    path: Path
    name: str
    grade: int
    patient: str
    side: str


def folder_eyes(
    folder: str | Path,
    part: Part,
    size: int,
    *,
    seed: int = 0,
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> Eyes:
    """A folder of photographs with one CSV file that names and grades each of them, parted by patient at random.

    Columns: image (or file, filename, name; the ending may be left out), level (or grade), and patient if there is one; else the
    patient is the name without _left or _right, as in EyePACS.

    Args:
        folder: Photographs at any depth, and the CSV file in the folder itself.
        part: Which one.
        size: Height and width of the trimmed eyes in pixels.
        seed: Of the parting; the same for all three parts.
        shares: Of the patients: train, validation, test.

    Raises:
        ValueError: No such folder, none or several CSV files, or other columns; all lines without a grade of 0 to 4, without file
            or with that of another line, and all photographs without a line; shares that do not add up to 1 or leave no patient.
    """
    rows = _read_rows(Path(folder))
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"The shares of train, validation and test are {shares}; expected parts of 1.")
    known = sorted({row.patient for row in rows})
    order = np.random.default_rng(seed).permutation(len(known))
    edges = np.round(np.cumsum([0, *shares]) * len(known)).astype(int)
    number = PARTS.index(part)
    chosen = {known[one] for one in order[edges[number] : edges[number + 1]]}
    if not chosen:
        raise ValueError(
            f"{folder}: {shares[number]:g} of {len(known)} patients leaves none for {part}; add patients or raise its share."
        )
    kept = [row for row in rows if row.patient in chosen]

    def read(index: int) -> UInt8[np.ndarray, "size size 3"]:
        return _trimmed(kept[index].path, kept[index].name, size)

    paths, names, grades, patients, sides = zip(*kept, strict=True)
    del paths
    return Eyes(names, grades, patients, sides, read)


def _trimmed(source: Path | bytes, name: str, size: int) -> UInt8[np.ndarray, "size size 3"]:
    image = decode_image(source, name)
    try:
        return fundus.trim(image, size)
    except ValueError as error:
        raise ImageError(name, str(error)) from None


def _patient(name: str) -> tuple[str, str]:
    """Patient and side from such as 10_left."""
    found = _SIDE.fullmatch(name)
    return (found["patient"], found["side"].lower()) if found else (name, "")


def _read_rows(folder: Path) -> list[_Row]:
    tables = sorted(folder.glob("*.csv"))
    if len(tables) != 1:
        problem = "no such folder" if not folder.is_dir() else f"{len(tables)} CSV files"
        raise ValueError(
            f"{folder}: {problem}; expected photographs and one CSV file with the columns image and level (0 to 4)."
        )
    with tables[0].open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            lines = [(reader.line_num, row) for row in reader]
        except UnicodeDecodeError as error:
            raise ValueError(f"{tables[0]}: not UTF-8 ({error}); save it so.") from None
        columns = [*(reader.fieldnames or ())]
    image = next((one for one in ("image", "file", "filename", "name") if one in columns), None)
    level = next((one for one in ("level", "grade") if one in columns), None)
    if image is None or level is None:
        raise ValueError(
            f"{tables[0]}: the columns are {', '.join(columns) or 'none'}; expected image and level (or file and grade)."
        )
    photographs = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    by_name: dict[str, set[Path]] = defaultdict(set)
    for path in photographs:
        whole = path.relative_to(folder)
        for one in (whole, whole.with_suffix(""), Path(whole.name), Path(whole.stem)):
            by_name[one.as_posix()].add(path)
    problems: dict[str, list[str]] = defaultdict(list)
    rows: list[_Row] = []
    taken: set[Path] = set()
    for number, row in lines:
        name, text, patient = ((row.get(column) or "").strip() for column in (image, level, "patient"))
        where = f"line {number}: {name}"
        files = by_name.get(name, set())
        exact = folder / name
        path = exact if exact in files else next(iter(files)) if len(files) == 1 else None
        if path is None:
            problems["several files of the name" if files else "no such file"].append(where)
        elif path in taken:
            problems["listed twice"].append(where)
        taken |= files if path is None else {path}
        if not text:
            problems["no grade"].append(where)
        elif text not in map(str, range(GRADES)):
            problems["a grade other than 0 to 4"].append(f"{where} {text!r}")
        elif path is not None:
            own, side = _patient(path.stem)
            rows.append(_Row(path, path.relative_to(folder).as_posix(), int(text), patient or own, side))
    problems["photograph without a line"] = [
        path.relative_to(folder).as_posix() for path in photographs if path not in taken
    ]
    if not lines:
        problems["no lines"] = ["only a header"]
    if any(problems.values()):
        raise ValueError(f"{tables[0]}: {'; '.join(_listed(problems))}.")
    return rows


def _listed(problems: dict[str, list[str]], most: int = 5) -> Iterator[str]:
    for kind, places in problems.items():
        if places:
            more = f", and {len(places) - most} more" if len(places) > most else ""
            yield f"{kind} ({len(places)}): {', '.join(places[:most])}{more}"
