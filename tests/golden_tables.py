"""Tables that the pipelines wrote before, beside those that they write now: a change of the code must not change a number.

`SCALECOV_GOLDEN=write` in the environment replaces what is kept by what the pipelines write now (see CONTRIBUTING.md).
"""

import gzip
import hashlib
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import jax
import numpy as np
import pandas as pd

GOLDEN = Path(__file__).parent / "golden"
PROCESSOR = "processor.txt"
COMPRESSED_FROM = 100_000  # bytes


def assert_golden(
    folder: Path,
    name: str,
    *,
    tables: Sequence[str] = (),
    columns: Sequence[str] = (),
    rows: Mapping[str, object] | None = None,
) -> None:
    """Compare every CSV table under `folder` with that under tests/golden/NAME: files, columns, rows, numbers and strings.

    Numbers must agree to 1e-3 on a processor like the one that wrote the tables, with its jax. (What earlier tests of a process
    compiled with other options is used again: 1e-6 in float32, which ridge on few images and training enlarge.) Others round
    otherwise, and ranks and p values enlarge that: there 9 of 10 numbers of a table of 10 rows must agree to 1 %.

    Args:
        folder: What a pipeline wrote.
        name: Of the folder of kept tables.
        tables: Left out: patterns of paths under `folder`.
        columns: Left out: of times, paths or rounding errors.
        rows: Left out: those with this value, or any of these, in this column.
    """
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*.csv"))}
    found = {table: path for table, path in paths.items() if not any(fnmatch(table, one) for one in tables)}
    if os.environ.get("SCALECOV_GOLDEN") == "write":
        _keep(found, GOLDEN / name)
        (GOLDEN / PROCESSOR).write_text(f"{_processor()}\n")
    kept = {
        str(path.relative_to(GOLDEN / name)).removesuffix(".gz"): path
        for path in (GOLDEN / name).rglob("*.csv*")
    }
    assert found.keys() == kept.keys()
    same = (GOLDEN / PROCESSOR).read_text().strip() == _processor()
    for table, path in found.items():
        now, before = (_read(one, columns, rows or {}) for one in (path, kept[table]))
        if same:
            pd.testing.assert_frame_equal(now, before, check_exact=False, rtol=1e-3, atol=1e-6, obj=table)
            continue
        assert list(now) == list(before), table
        assert len(now) == len(before), table
        if len(now) >= 10:
            numbers = [now.select_dtypes("number"), before.select_dtypes("number")]
            close = np.isclose(*numbers, rtol=1e-2, atol=1e-6, equal_nan=True)
            assert close.sum() >= 0.9 * close.size, table


def _processor() -> str:
    """What rounding depends on: jax, and the instructions of the processor."""
    path = Path("/proc/cpuinfo")
    facts = path.read_text().split("\n\n")[0].splitlines() if path.exists() else [platform.processor()]
    kept = [line for line in facts if line.startswith(("vendor_id", "cpu family", "model\t", "flags"))]
    return hashlib.sha256("\n".join([jax.__version__, *(kept or facts)]).encode()).hexdigest()


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
