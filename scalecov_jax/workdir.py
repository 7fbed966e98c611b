"""The folder of one run: new, resumed with the same settings, or overwritten on purpose."""

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scalecov_jax.atomic import DamagedError, read_json, write_json

_SETTINGS = "scalecov_run.json"
_held: dict[Path, int] = {}  # handles of the folders in which this process works
_FREE = {"workers"}  # no result depends on them


def open_workdir(path: str | Path, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Path:
    """Make the folder of a run, and keep other runs out of it until this process ends.

    `settings` determine the results and are kept in `scalecov_run.json`. With `resume` a run goes on in an existing folder, which
    must have been made with the same settings; with `overwrite` an existing folder of an earlier run is deleted.

    Raises:
        ValueError: The folder exists and neither was asked for, both were, it holds no run, its settings differ, or another
            process works there.
    """
    path = Path(path).absolute()
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other.")
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} holds no earlier run (no {_SETTINGS}); choose another --workdir.")
    path.mkdir(parents=True, exist_ok=True)
    _lock(path)
    try:
        _enter(path, json.loads(json.dumps(settings)), resume, overwrite)
    except BaseException:
        _release(path)
        raise
    return path


def _enter(path: Path, current: dict[str, Any], resume: bool, overwrite: bool) -> None:
    killed_early = {_SETTINGS.replace(".", ".partial.")}
    if {file.name for file in path.iterdir()} - killed_early:
        if not (resume or overwrite):
            raise ValueError(
                f"{path} exists; pass --resume to go on there, --overwrite to delete it, or choose another --workdir."
            )
        if not (path / _SETTINGS).is_file():
            raise ValueError(f"{path} holds no earlier run (no {_SETTINGS}); choose another --workdir.")
        if overwrite:
            for file in path.iterdir():  # the folder itself stays, and with it the lock
                shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
        else:
            earlier = _read_settings(path / _SETTINGS)
            names = sorted(
                name for name in {*earlier, *current} - _FREE if earlier.get(name) != current.get(name)
            )
            if names:
                changes = "; ".join(
                    f"{name}: {earlier.get(name)!r}, now {current.get(name)!r}" for name in names
                )
                raise ValueError(f"{path} was made with other settings, so it cannot be resumed ({changes}).")
    write_json(path / _SETTINGS, current)


def _lock(path: Path) -> None:
    """Take the kernel's lock of a folder, which ends with the process, however that ends; a process may take it again.

    The folder itself is locked and no file in it, which --overwrite would delete and a refused folder would keep.
    """
    _release(path)
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(
            f"Another run works in {path}; wait until it ends, or choose another --workdir."
        ) from None
    _held[path] = handle


def _release(path: Path) -> None:
    if path in _held:
        os.close(_held.pop(path))


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except DamagedError as error:
        raise ValueError(f"{error} The run cannot be resumed; pass --overwrite to start again.") from error
