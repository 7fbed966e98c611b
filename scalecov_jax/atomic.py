"""Files that appear under their name only when they are complete, and are read back only if they are as they were written.

Whatever a run writes and reads again goes through the three pairs of functions here, and carries a SHA-256 of its names, types,
shapes and values: arrays (.npz) and JSON inside, tables (.csv) in a file `NAME.csv.sha256` beside, as sha256sum writes it.
"""

import hashlib
import json
import re
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from absl import logging

T = TypeVar("T")
_SEAL = "sha256"
MOST_INSIDE = 2**30  # bytes of the arrays of a file, unless it is itself a hundredth of that


class DamagedError(ValueError):
    """A file is not as it was written, or was written by another version or as something else."""


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Where to write a file or folder that takes the place of `path` when the block ends; `NAME.partial.SUFFIX` beside it.

    If the block raises, what it wrote is deleted and `path` stays as it was; so does a folder that is not empty, which no other
    replaces. What a killed process left is deleted by the next writer.

    Args:
        path: Of the file or folder; folders above it are made.
        shared: Several processes or threads may write `path` at the same time: each takes a name of its own.

    Raises:
        OSError: The disk is full, or the folder cannot be written to; names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{secrets.token_hex(4)}" if shared else ""
    partial = path.with_name(f"{path.stem}{own}.partial{path.suffix}")
    _delete(partial)
    try:
        yield partial
        partial.replace(path)
    except BaseException as error:
        _delete(partial)
        if isinstance(error, OSError) and error.errno and error.filename is None:  # such as of a full disk
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def file_name(text: str) -> str:
    """A text as the name of a file on any system: what cannot stand there becomes _, and a digest keeps such names apart."""
    plain = re.sub(r"[^\w .,+=@-]", "_", text).strip(" .")[:80]
    return text if text == plain else f"{plain}-{digest(text)[:8]}"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that is only looked at, such as a picture; raises as `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def digest(*parts: str | bytes | np.ndarray | None) -> str:
    """SHA-256 of texts and of arrays: their types, shapes and values."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype.str} {part.shape}".encode())
            found.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        else:
            part = "none" if part is None else part
            found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()


def write_arrays(path: Path, arrays: Mapping[str, Any], kind: str, *, shared: bool = False) -> None:
    """Write arrays as `.npz`; `kind` says what they are and in which format, such as "RCVs 2".

    Raises:
        OSError: See `replacing`, also for `shared`.
    """
    values = {name: np.asarray(array) for name, array in arrays.items()}
    with replacing(path, shared=shared) as partial:
        np.savez(partial, **{_SEAL: np.array(f"{kind}: {_digest(kind, values)}")}, **values)  # pyright: ignore[reportArgumentType]


def read_arrays(path: Path, kind: str) -> dict[str, np.ndarray]:
    """The arrays that `write_arrays` wrote.

    Raises:
        DamagedError: They are not those that were written, or of another kind.
        OSError: There is no such file, or it cannot be opened.
    """
    with _guarded(path):
        arrays = _members(path)
        wrote, _, seal = str(arrays.pop(_SEAL, "of an earlier version")).rpartition(": ")
        if wrote != kind:
            raise ValueError(f"it holds {wrote or seal}, expected {kind}")
        if seal != _digest(kind, arrays):
            raise ValueError("its values are not those that were written")
    return arrays


def load_arrays(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of an `.npy` file, or those of an `.npz` file, that somebody brings: without a digest, and maybe compressed.

    Raises:
        DamagedError, OSError: See `read_arrays`.
    """
    with _guarded(path):
        if zipfile.is_zipfile(path):
            return _members(path)
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)


def _members(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        members, size = archive.infolist(), path.stat().st_size
        if (inside := sum(member.file_size for member in members)) > max(MOST_INSIDE, 100 * size):
            raise ValueError(f"{size:,} bytes claim to hold {inside:,}")
        arrays = {}
        for member in members:
            with archive.open(member) as file:
                name = member.filename.removesuffix(".npy")
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays


def _digest(kind: str, arrays: Mapping[str, np.ndarray]) -> str:
    return digest(kind, *(part for name in sorted(arrays) for part in (f"\n{name} ", arrays[name])))


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write facts as JSON, and their digest as a last fact `sha256`; raises as `replacing`."""
    with replacing(path) as partial:
        sealed = {**facts, _SEAL: _digest_of_json(facts)}
        partial.write_text(json.dumps(sealed, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The facts that `write_json` wrote.

    Raises:
        DamagedError, OSError: See `read_arrays`.
    """
    with _guarded(path):
        facts = json.loads(path.read_bytes().decode())
        if not isinstance(facts, dict) or facts.pop(_SEAL, None) != _digest_of_json(facts):
            raise ValueError("it is not what was written")
    return facts


def _digest_of_json(facts: Mapping[str, Any]) -> str:
    return digest(json.dumps(json.loads(json.dumps(facts)), sort_keys=True))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, and its digest beside it; raises as `replacing`."""
    with replacing(path) as partial:
        table.to_csv(partial, index=False, lineterminator="\n")
    seal(path)


def seal(path: Path) -> None:
    """Write the digest of a file that is complete beside it; raises as `replacing`."""
    with replacing(_beside(path)) as partial:
        partial.write_bytes(_line(path))


def read_table(path: Path, **reading: Any) -> pd.DataFrame:
    """The table of a file that has its digest beside it; `reading` is for `pandas.read_csv`.

    Raises:
        DamagedError, OSError: See `read_arrays`.
    """
    with _guarded(path):
        beside = _beside(path)
        if _line(path) != (beside.read_bytes() if beside.is_file() else b""):
            raise ValueError(f"its digest is not that in {beside.name}")
        return pd.read_csv(path, keep_default_na=False, **reading)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _line(path: Path) -> bytes:
    with path.open("rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n".encode()


def if_whole(path: Path, read: Callable[[Path], T]) -> T | None:
    """What `read` makes of a file; None where there is no file, or a damaged one, which is then made again, with a warning."""
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except DamagedError as error:
        logging.warning("%s What it held is made again.", error)
        return None


def kept_arrays(path: Path, kind: str) -> dict[str, np.ndarray] | None:
    """The arrays of a file that `write_arrays` wrote; None where `if_whole` gives none."""
    return if_whole(path, lambda path: read_arrays(path, kind))


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    """Whatever parsers of files raise on a damaged one becomes a DamagedError that names it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:  # it cannot be opened
            raise
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        raise DamagedError(f"{path} is damaged, or of another version ({problem}).") from error
