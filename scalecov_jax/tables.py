"""Tidy tables: rows of them, several below each other, one that is computed once, and the names of the networks in them."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from scalecov_jax.atomic import if_whole, read_table, write_table
from scalecov_jax.models.architecture import plain_name


def rows_of(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows of a table that have these values in these columns; KeyError for a column that the table has not."""
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def labelled(frame: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    """The table with further columns in front, each with one value in all rows."""
    return frame.assign(**columns)[[*columns, *frame]]


def stacked(parts: Iterable[tuple[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Tables of the same name below each other."""
    tables: dict[str, list[pd.DataFrame]] = {}
    for name, frame in parts:
        tables.setdefault(name, []).append(frame)
    return {name: pd.concat(frames, ignore_index=True) for name, frames in tables.items()}


def kept_table(path: Path | None, compute: Callable[[], pd.DataFrame], **reading: Any) -> pd.DataFrame:
    """A table that is computed once and kept as CSV at `path`, or nowhere; `reading` is for `pandas.read_csv`."""
    if path is None:
        return compute()
    read = partial(read_table, **reading)
    if (kept := if_whole(path, read)) is not None:
        return kept
    write_table(path, compute())
    return read(path)


def network_names(table: pd.DataFrame) -> dict[str, str]:
    """What people call the networks of a table, by weights; the weights too where findings could not be told apart without."""
    pairs = table[["architecture", "weights"]].drop_duplicates()
    twice = pairs["architecture"].duplicated(keep=False)
    return {
        weights: plain_name(architecture) + f" ({weights})" * several
        for architecture, weights, several in zip(pairs["architecture"], pairs["weights"], twice, strict=True)
    }
