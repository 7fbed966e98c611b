"""The folder of one run: new, resumed with the same settings, or overwritten on purpose."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SETTINGS = "scalecov_run.json"


def open_workdir(path: str | Path, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Path:
    """Make the folder of a run.

    Args:
        path: The folder.
        settings: What determines the results; kept in `scalecov_run.json`.
        resume: Go on in an existing folder, which must have been made with the same settings.
        overwrite: Delete an existing folder that an earlier run made.

    Raises:
        ValueError: The folder exists and neither was asked for, both were, it holds no run, or its settings differ.
    """
    path = Path(path).absolute()
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other.")
    current = json.loads(json.dumps(settings))
    partial = path / f"{_SETTINGS}.partial"
    if path.exists() and (not path.is_dir() or any(file != partial for file in path.iterdir())):
        if not (resume or overwrite):
            raise ValueError(
                f"{path} exists; pass --resume to go on there, --overwrite to delete it, or choose another --workdir."
            )
        if not (path / _SETTINGS).is_file():
            raise ValueError(f"{path} holds no earlier run (no {_SETTINGS}); choose another --workdir.")
        if overwrite:
            shutil.rmtree(path)
        else:
            earlier = _read_settings(path / _SETTINGS)
            names = sorted(name for name in {*earlier, *current} if earlier.get(name) != current.get(name))
            if names:
                changes = "; ".join(
                    f"{name}: {earlier.get(name)!r}, now {current.get(name)!r}" for name in names
                )
                raise ValueError(f"{path} was made with other settings, so it cannot be resumed ({changes}).")
    path.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(current, indent=2) + "\n")
    partial.replace(path / _SETTINGS)
    return path


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Keep other runs out of a folder while this one works there; without a folder there is nothing to keep them out of.

    The lock is the kernel's: it ends with the process, however that ends.

    Raises:
        ValueError: Another run works there.
    """
    if not Path(path).is_dir():
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"Another run works in {path}; wait until it ends, or choose another --workdir."
        ) from None
    else:
        yield
    finally:
        os.close(handle)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged, so the run cannot be resumed; pass --overwrite to start anew."
        ) from error
