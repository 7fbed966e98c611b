"""Tidy tables on disk: a NamedTuple is a row, its fields are the columns."""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

_Row = TypeVar("_Row", bound=tuple)


def write_table(path: Path, kind: type[_Row], rows: Iterable[_Row]) -> None:
    """Write rows of one kind as CSV with one header line; None is an empty field."""
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_fields(kind))
        for row in rows:
            writer.writerow("" if value is None else value for value in row)
    partial.replace(path)


def read_table(path: Path, kind: type[_Row]) -> list[_Row]:
    """Read a table written by `write_table`; fields annotated int, float, bool or `float | None` are converted.

    Raises:
        ValueError: The header is another one, or lines do not hold what the fields are annotated with (numbers must be finite);
            names the file and the lines.
    """
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    fields = _fields(kind)
    if not lines or tuple(lines[0]) != fields:
        raise ValueError(
            f"{path}: expected the header {','.join(fields)}, got {','.join(lines[0]) if lines else 'nothing'}."
        )
    hints = get_type_hints(kind)
    rows, problems = [], []
    for number, line in enumerate(lines[1:], start=2):
        try:
            rows.append(kind(*(_value(text, hints[field]) for field, text in zip(fields, line, strict=True))))
        except ValueError:
            problems.append(number)
    if problems:
        raise ValueError(
            f"{path}: lines {problems[:10]} ({len(problems)} in all) hold no valid {kind.__name__}."
        )
    return rows


def _fields(kind: Any) -> tuple[str, ...]:
    return kind._fields


def _value(text: str, hint: Any) -> Any:
    if hint in (int | None, float | None, str | None):
        if not text:
            return None
        hint = next(part for part in hint.__args__ if part is not type(None))
    if hint is bool:
        return {"True": True, "False": False}[text] if text in ("True", "False") else _refuse()
    if hint is float:
        value = float(text)
        return value if math.isfinite(value) else _refuse()
    return int(text) if hint is int else text


def _refuse() -> Any:
    raise ValueError
