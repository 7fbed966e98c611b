"""The main experiment on features that are there already: no network, so no cut and no random weights."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from scalecov_jax.concepts.compute import Measured, check_measures
from scalecov_jax.concepts.measure import csv_parts
from scalecov_jax.experiments.probe_memory import probe_class
from scalecov_jax.experiments.probe_settings import NO_CLASS, Settings
from scalecov_jax.experiments.probe_tables import case_table, class_tables
from scalecov_jax.feature_files import Features, read_features
from scalecov_jax.imaging.csv_file import absent, number, read_csv, required_column, say, texts
from scalecov_jax.imaging.image_set import Skipped, listed
from scalecov_jax.tables import labelled
from scalecov_jax.vectors import rcv_table, save_rcvs


def open_features(settings: Settings) -> tuple[Features, Measured]:
    """The features, and what tables say of their rows.

    Lines of tables belong to rows by name where the file of features has names (`csv_file.join`), else in their order.

    Raises:
        ValueError: See `feature_files.read_features`, `csv_file.texts` and `compute.check_measures`; tables of another number of
            lines than rows without names; cells that are no numbers; layers that the file has not.
    """
    path = settings.features
    found = read_features(path)
    if missing := [layer for layer in settings.layers if layer not in found.values]:
        raise ValueError(f"{path} has no {', '.join(missing)}; it has {', '.join(found.values)}.")
    found = found._replace(values={layer: found.values[layer] for layer in settings.layers or found.values})
    count = len(found.indices)
    names = found.names or tuple(f"row {at + 1}" for at in range(count))
    skipped, kept, columns, problems = [], np.full(count, True), [], []
    for name in (*settings.concept, *settings.csv_nuisances):
        table, column = csv_parts(name)
        cells, values = _cells(found, table, column), np.full(count, np.nan)
        for at, cell in cells.items():
            try:
                values[at] = number(cell)  # pyright: ignore[reportCallIssue, reportArgumentType]
            except ValueError as error:
                problems.append(f"{names[at]}: {column} {error}")  # pyright: ignore[reportArgumentType, reportCallIssue]
        known = np.isin(np.arange(count), cells.index)
        left = np.flatnonzero(kept & ~known)
        skipped += [Skipped(names[at], f"no {column} in {Path(table).name}", "") for at in left]
        kept &= known
        columns.append(values)
    if problems:
        raise ValueError(f"{listed(problems)}.")
    groups = pd.Series(names)
    if settings.groups:
        groups.update(_cells(found, *settings.group_column))
    at = np.flatnonzero(kept)
    images, grouped = tuple(names[index] for index in at), tuple(groups[at])
    measured = Measured(np.stack(columns, 1)[at], images, grouped, at, tuple(skipped))
    for values in measured.values.T[: len(settings.concept)]:
        check_measures(values, images)
    return found, measured


def _cells(found: Features, path: str, column: str) -> pd.Series:
    """The cells that say something, by row of the features."""
    if found.names:
        return texts(path, column, found.names)
    table, count = read_csv(path), len(found.indices)
    cells = table[required_column(table, column)].reset_index(drop=True)
    if len(cells) != count:
        raise ValueError(
            f"{path} has {len(cells)} lines for {count} rows of features without names; expected one per row, in their order."
        )
    say(f"{path}: the features have no names, so its {count} lines are taken to be in the order of the rows.")
    return cells[[not absent(one) for one in cells]]


def run(settings: Settings, folder: Path | None) -> dict[str, pd.DataFrame]:
    """The tables of `probe.run` without cuts; rcvs.npz in the folder."""
    found, measured = open_features(settings)
    name = Path(settings.features).stem
    names = {"architecture": name, "weights": name, "image_class": NO_CLASS}
    one = probe_class({"trained": found}, measured, None, settings, names)
    tables = class_tables(name, {NO_CLASS: one})
    tables["rcvs"] = rcv_table({NO_CLASS: one.rcvs}, {NO_CLASS: one.split_rcvs})
    columns = {"width": one.widths, "rank": one.ranks, "parameters": {}, "defined_from": {}}
    widths = pd.DataFrame({key: pd.Series(values, [*one.widths], float) for key, values in columns.items()})
    widths = widths.rename_axis("layer").reset_index()
    tables["widths"] = labelled(widths, architecture=name, weights=name)
    tables["skipped"] = _skipped(measured.skipped)
    if len(one.widths) > 1:
        tables["cases"] = case_table(tables["images"], tables["layers"])
    if folder:
        save_rcvs(folder / "rcvs.npz", one.rcvs)
    return tables


def _skipped(rows: Sequence[Skipped]) -> pd.DataFrame:
    given = [("", row.name, row.reason) for row in rows]
    return pd.DataFrame(given, columns=["weights", "image", "reason"], dtype="str")
