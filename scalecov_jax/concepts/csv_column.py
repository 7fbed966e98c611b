"""A concept that was measured elsewhere: a column of a CSV file with one line an image."""

import csv
import math
from collections import defaultdict
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from scalecov_jax.images.example import Example

NAME_COLUMNS = ("image", "file", "filename", "name")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".ppm", ".jp2")


def csv_column(path: str | Path, column: str) -> Callable[[Example], float]:
    """Concept measure: the number in the line of the image.

    The images are named in the first of the columns image, file, filename or name that exists, else in the first column. A line
    belongs to an image if both names are equal; else if they end alike, folder by folder as far as both have folders, the
    extension of an image left aside. So 7.png and a/7 belong to a/7.png, but b/7.png does not.

    Raises:
        ValueError: No such file or column; when measuring, an image without line, with several, or without a finite number.
    """
    read = csv_text(path, column)

    def measure(example: Example) -> float:
        text, number = read(example.name)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(
                f"{example.name}: line {number} of {path} has {column} {text!r}, expected a number."
            )
        return value

    return measure


def csv_text(path: str | Path, column: str) -> Callable[[str], tuple[str, int]]:
    """From the name of an image to the text in its line, such as its patient, and the number of the line; see `csv_column`."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a CSV file with one line an image.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        lines = [(reader.line_num, row) for row in reader]
        columns = list(reader.fieldnames or ())
    if column not in columns:
        near = get_close_matches(column, columns, n=1)
        raise ValueError(
            f"{path}: no column {column!r}{f'; did you mean {near[0]!r}?' if near else '.'} The columns are "
            f"{', '.join(columns) or 'none'}."
        )
    named = next((one for one in NAME_COLUMNS if one in columns), columns[0])
    rows: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for number, row in lines:
        name = (row[named] or "").strip()
        if name:
            rows[_parts(name)[-1]].append((number, name, (row[column] or "").strip()))

    def read(name: str) -> tuple[str, int]:
        found = rows.get(_parts(name)[-1], [])
        same = [row for row in found if row[1] == name]
        found = same or [row for row in found if _end_alike(row[1], name)]
        if len(found) != 1:
            numbers = ", ".join(str(number) for number, _, _ in found)
            raise ValueError(
                f"{name}: {f'lines {numbers}' if found else 'no line'} of {path} {'name' if found else 'names'} it."
            )
        number, _, text = found[0]
        return text, number

    return read


def _parts(name: str) -> tuple[str, ...]:
    path = PurePosixPath(name.replace("\\", "/"))
    return (path.with_suffix("") if path.suffix.lower() in _SUFFIXES else path).parts or (name,)


def _end_alike(first: str, second: str) -> bool:
    pairs = zip(reversed(_parts(first)), reversed(_parts(second)), strict=False)
    return all(one == other for one, other in pairs)
