"""Tables that the pipelines wrote before, beside those that they write now: a change of the code must not change a number.

`SCALECOV_GOLDEN=write` in the environment replaces what is kept by what the pipelines write now (see CONTRIBUTING.md).
"""

import gzip
import os
import shutil
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pandas as pd

GOLDEN = Path(__file__).parent / "golden"
COMPRESSED_FROM = 100_000  # bytes


def assert_golden(
    folder: Path,
    name: str,
    *,
    rtol: float = 1e-3,
    atol: float = 1e-6,
    tables: Sequence[str] = (),
    columns: Sequence[str] = (),
    rows: Mapping[str, object] | None = None,
) -> None:
    """Compare every CSV table under `folder` with that under tests/golden/NAME: files, columns, rows, numbers and strings.

    Args:
        folder: What a pipeline wrote.
        name: Of the folder of kept tables.
        rtol: Relative tolerance of numbers. Features are of float32, whose rounding (1e-7) depends on the processor and on XLA;
            ridge on few images and training enlarge it: between two processors 1.4e-4 was seen in tables of one code.
        atol: Absolute tolerance, for numbers that would be 0 but for rounding.
        tables: Left out: patterns of paths under `folder`.
        columns: Left out: of times, paths or rounding errors.
        rows: Left out: those with this value, or any of these, in this column.
    """
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*.csv"))}
    found = {table: path for table, path in paths.items() if not any(fnmatch(table, one) for one in tables)}
    if os.environ.get("SCALECOV_GOLDEN") == "write":
        _keep(found, GOLDEN / name)
    kept = {
        str(path.relative_to(GOLDEN / name)).removesuffix(".gz"): path
        for path in (GOLDEN / name).rglob("*.csv*")
    }
    assert found.keys() == kept.keys()
    for table, path in found.items():
        now, before = (_read(one, columns, rows or {}) for one in (path, kept[table]))
        pd.testing.assert_frame_equal(now, before, check_exact=False, rtol=rtol, atol=atol, obj=table)


def _read(path: Path, columns: Sequence[str], rows: Mapping[str, object]) -> pd.DataFrame:
    table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    for column in rows.keys() & set(table):
        table = table[~table[column].isin(np.atleast_1d(rows[column]))].reset_index(drop=True)
    return table.drop(columns=[column for column in columns if column in table])


def _keep(found: Mapping[str, Path], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for table, path in found.items():
        target, content = folder / table, path.read_bytes()
        target.parent.mkdir(parents=True, exist_ok=True)
        if len(content) < COMPRESSED_FROM:
            target.write_bytes(content)
        else:
            target.with_name(f"{target.name}.gz").write_bytes(gzip.compress(content, mtime=0))
