"""A concept that was measured elsewhere: a column of a CSV file with one line per image."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from scalecov_jax.imaging.csv_file import finder, number, read_csv, required_column
from scalecov_jax.imaging.image_set import Example


def csv_column(path: str | Path, column: str) -> Callable[[Example], float]:
    """Concept measure: the number in the line of the image, see `csv_file.finder`.

    Args:
        path: See `csv_file.read_csv`.
        column: Of numbers.

    Raises:
        ValueError: See `read_csv`; no such column; when measuring, no column of names, an image without line, with several, or
            without a number.
    """
    table = read_csv(path)
    cells = table[required_column(table, column)]
    find = cache(lambda: finder(table))  # not before it is needed: rows without names take lines in order

    def measure(example: Example) -> float:
        lines, _ = find()(example.name)
        if len(lines) != 1:
            which = f"lines {', '.join(map(str, lines))} name" if lines else "no line names"
            raise ValueError(f"{example.name}: {which} it in {path}.")
        try:
            return number(str(cells.at[lines[0]]))
        except ValueError as error:
            raise ValueError(f"{example.name}: line {lines[0]} of {path} has {column} {error}.") from None

    return measure
