"""States of trainings and passes over images on disk, by number: from the newest whole one an interrupted run goes on."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from scalecov_jax.atomic import DamagedError, read_arrays, write_arrays
from scalecov_jax.hosts import gather_text, is_first, on_first

_KIND = "state 1"
KEPT = 2  # a damaged state costs one interval


class ChangedError(ValueError):
    """A state of something else."""


class Stored(NamedTuple):
    """A state from disk: its number, its arrays as the tree they were, and what was noted beside them."""

    number: int
    tree: Any
    facts: dict[str, Any]


def write_state(folder: Path, number: int, tree: Any, facts: Mapping[str, Any]) -> None:
    """Write a tree of arrays to `folder/NUMBER.npz`, and delete all but the last two; `facts` must be JSON.

    All hosts call it with the same state, and the first one writes.

    Raises:
        ValueError: It cannot be written, as when the disk is full; those before are kept.
    """

    def write() -> None:
        try:
            write_arrays(_path(folder, number), {**_named(tree), "facts": json.dumps(facts)}, _KIND)
        except OSError as error:
            raise ValueError(
                f"State {number} cannot be written ({error}). The states before are kept: make room and pass --resume."
            ) from error
        for old in _numbers(folder)[KEPT:]:
            _path(folder, old).unlink()

    on_first(write)


def newest_state(folder: Path, like: Callable[[dict[str, Any]], Any]) -> Stored | None:
    """The newest state in `folder` that is whole; None, with a warning if there were states, where there is none.

    A damaged one is moved to `damaged_NUMBER.npz` beside `folder`, with a warning. All hosts read together, from a folder that
    they share.

    Args:
        folder: See `write_state`.
        like: Makes of the facts a tree of arrays with the names, shapes and dtypes that are expected, or raises ChangedError.

    Raises:
        ChangedError: The newest whole state is of something else; it stays as it is.
    """
    numbers: list[int] = json.loads(gather_text(json.dumps(_numbers(folder)))[0])
    for number in numbers:
        path, arrays, problem = _path(folder, number), {}, ""
        try:
            arrays = read_arrays(path, _KIND)
        except (DamagedError, OSError) as error:
            problem = str(error)
        if problems := [one for one in gather_text(problem) if one]:
            aside = folder.parent / f"damaged_{number}.npz"
            logging.warning("State %d is set aside as %s: %s", number, aside.name, problems[0])
            if is_first():
                path.replace(aside)
            continue
        facts = json.loads(str(arrays.pop("facts")))
        logging.info("Going on after state %d of %s.", number, folder)
        return Stored(number, _as_tree(arrays, like(facts), path), facts)
    if folder.is_dir() and (numbers or any(folder.iterdir())):
        logging.warning("No state in %s could be read; it begins again.", folder)
    return None


def _as_tree(arrays: Mapping[str, np.ndarray], like: Any, path: Path) -> Any:
    there, wanted = (
        {name: f"{array.dtype}{list(array.shape)}" for name, array in named.items()}
        for named in (arrays, _named(like))
    )
    if there != wanted:
        changed = [name for name in sorted({*there, *wanted}) if there.get(name) != wanted.get(name)]
        shown = "; ".join(
            f"{name} is {there.get(name, 'missing')}, expected {wanted.get(name, 'none')}"
            for name in changed[:3]
        )
        raise ChangedError(
            f"{path} is a state of something else, so it cannot be resumed ({shown}"
            f"{f' and {len(changed) - 3} more' if len(changed) > 3 else ''}). Take another --workdir, or --overwrite."
        )
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])


def _named(tree: Any) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(jax.device_get(tree))
    }


def _numbers(folder: Path) -> list[int]:
    """Of the states in a folder, newest first."""
    return sorted((int(path.stem) for path in folder.glob("*.npz") if path.stem.isdecimal()), reverse=True)


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number}.npz"
