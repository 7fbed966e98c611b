"""Tidy tables: on disk, where a NamedTuple is a row and its fields are the columns, and rows of data frames."""

import csv
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import pandas as pd

from scalecov_jax.atomic import replacing

_Row = TypeVar("_Row", bound=tuple)
_BEYOND = "beyond the header"
_SHOWN = 10  # lines that a message names


def write_table(path: Path, kind: type[_Row], rows: Iterable[_Row]) -> None:
    """Write rows of one kind as CSV with one header line; None is an empty cell."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_fields(kind))
        for row in rows:
            writer.writerow("" if value is None else value for value in row)


def read_table(path: Path, kind: type[_Row]) -> list[_Row]:
    """Read a table written by `write_table`.

    Fields are annotated str, int, float, bool, a Literal of strings, or one of these or None.

    Raises:
        ValueError: The header is another one, or cells do not hold what the fields are annotated with (numbers must be finite);
            names the file, and of every such column what it holds and where.
    """
    fields = list(_fields(kind))
    # A cell that a line lacks is NaN; the first that it has beyond the header comes into a column of its own.
    cut: Any = lambda cells: cells[: len(fields) + 1]  # noqa: E731 - pandas annotates a string alone
    table: Any = pd.read_csv(
        path,
        engine="python",
        header=None,
        names=[*fields, _BEYOND],
        dtype=str,
        keep_default_na=False,
        skip_blank_lines=False,
        on_bad_lines=cut,
    )
    header = [cell for cell in table[:1].to_numpy().ravel() if isinstance(cell, str)]
    if header != fields:
        raise ValueError(
            f"{path}: expected the header {','.join(fields)}, got {','.join(header) or 'nothing'}."
        )
    table.index += 1  # lines of the file
    table = table[1:]
    uneven = table[fields].isna().any(axis=1) | table[_BEYOND].notna()
    problems = [f"not {len(fields)} cells in {_lines(table.index[uneven])}"] if uneven.any() else []
    table, hints, columns = table[~uneven], get_type_hints(kind), []
    for field in fields:
        parse, expected = _parser(hints[field])
        values, wrong = [], {}
        for line, text in table[field].items():
            try:
                values.append(parse(text))
            except (ValueError, KeyError):
                wrong[line] = text
        if wrong:
            given = ", ".join(map(repr, dict.fromkeys([*wrong.values()][:_SHOWN])))
            problems.append(f"{field} is {given} in {_lines(wrong)}, expected {expected}")
        columns.append(values)
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}.")
    return [kind(*row) for row in zip(*columns, strict=True)]


def _fields(kind: Any) -> tuple[str, ...]:
    return kind._fields


def _lines(numbers: Iterable[Any]) -> str:
    numbers = list(numbers)
    return f"lines {numbers[:_SHOWN]} ({len(numbers)} in all)"


def _parser(hint: Any) -> tuple[Callable[[str], Any], str]:
    """What turns a cell into a value, raising ValueError or KeyError, and what it expects."""
    choices = get_args(hint)
    if NoneType in choices:
        (hint,) = (one for one in choices if one is not NoneType)
        parse, expected = _parser(hint)
        return lambda text: parse(text) if text else None, f"{expected} or nothing"
    if choices:
        return {one: one for one in choices}.__getitem__, f"one of {', '.join(choices)}"
    return _PARSERS[hint]


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


_PARSERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    str: (str, "text"),
    int: (int, "an integer"),
    float: (_finite, "a finite number"),
    bool: ({"True": True, "False": False}.__getitem__, "True or False"),
}


def rows_of(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows of a table that have these values in these columns.

    Raises:
        KeyError: A column that the table has not.
    """
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame
