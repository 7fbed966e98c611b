"""What a pass over images leaves on disk, so that it can go on after a kill: its sums and how far it came."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from scalecov_jax.checkpoints import check_files
from scalecov_jax.hosts import gather_text, is_first, on_first
from scalecov_jax.probes.sums import Sums, empty
from scalecov_jax.streaming.stream_sums import State, Unreadable


def resume(folder: Path, fingerprint: Mapping[str, str]) -> State:
    """The newest state in `folder` that can be read; that before the first image where there is none.

    What cannot be read is moved to `damaged_N` beside `folder`, with a warning: nothing is deleted, whatever the cause. All hosts
    read together, from a folder that they share.

    A fingerprint holds what determines the sums, by name: images, weights, settings.

    Raises:
        ValueError: The states were made with another fingerprint; names every difference.
    """
    found: list[int] = json.loads(gather_text(json.dumps(_numbers(folder)))[0])
    for number in found:
        state, problem = None, ""
        try:
            state = _load(folder, number, fingerprint)
        except ChangedError:
            raise
        except Exception as error:
            problem = " ".join(str(error).split())[:200] or type(error).__name__
        problems = [one for one in gather_text(problem) if one]
        if state is not None and not problems:
            logging.info("Going on after state %d of %s.", number, folder)
            return state
        aside = folder.parent / f"damaged_{number}"
        logging.warning(
            "State %d in %s is damaged and set aside as %s (%s).", number, folder, aside.name, problems[0]
        )
        if is_first():
            shutil.rmtree(aside, ignore_errors=True)
            (folder / str(number)).rename(aside)
    if found:
        logging.warning("No state in %s could be read; the pass begins again.", folder)
    return State()


def keeper(folder: Path, fingerprint: Mapping[str, str]) -> Callable[[State], None]:
    """A function that writes a state to `folder`, where the last two are kept; all hosts call it, the first one writes.

    It raises ValueError where a state cannot be written, as when the disk is full; those before are kept.
    """

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished)

    def keep(state: State) -> None:
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.sums))
        noted = {
            "sha256": _digest(state),
            "fingerprint": dict(fingerprint),
            "unreadable": [list(one) for one in state.unreadable],
            "shape": {name: [len(sums), len(sums[0].x), len(sums[0].y)] for name, sums in state.sums.items()},
        }

        def check_room() -> None:
            if (free := shutil.disk_usage(folder).free) < size:
                raise OSError(f"{free / 1e6:.0f} MB are free")

        try:
            on_first(check_room)
            ocp.save(str(folder.absolute() / str(state.flushes)), _tree(state.sums), custom_metadata=noted)
        except (OSError, ValueError) as error:
            problem = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{folder} has no room for a state of {size / 1e6:.0f} MB, or cannot be written to ({problem}). The states "
                "before are kept: make room and pass --resume."
            ) from error
        if is_first():
            for number in _numbers(folder)[2:]:
                shutil.rmtree(folder / str(number))

    on_first(prepare)
    return keep


def differences(earlier: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What changed from one fingerprint to another, in words; empty if nothing did."""
    return "; ".join(
        f"{name}: {earlier.get(name)}, now {now.get(name)}"
        for name in dict.fromkeys((*earlier, *now))
        if earlier.get(name) != now.get(name)
    )


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 of the bytes of arrays, its first 16 digits."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


class ChangedError(ValueError):
    """A state of something else."""


def _load(folder: Path, number: int, fingerprint: Mapping[str, str]) -> State:
    path = folder.absolute() / str(number)
    check_files(path)
    noted: Any = ocp.metadata(str(path)).custom_metadata
    if changed := differences(noted["fingerprint"], fingerprint):
        raise ChangedError(
            f"The sums in {folder} were made from something else, so they cannot be resumed ({changed}). Take another --workdir, "
            "or --overwrite."
        )
    shape = noted["shape"].items()
    blank = {name: [empty(np.zeros(d), np.zeros(m))] * folds for name, (folds, d, m) in shape}
    loaded: Any = ocp.load(str(path), _tree(blank))
    state = State(
        number,
        {name: [Sums(**loaded[name][str(k)]) for k in range(len(loaded[name]))] for name in noted["shape"]},
        tuple(Unreadable(*one) for one in noted["unreadable"]),
    )
    if noted["sha256"] != _digest(state):
        raise ValueError("its values are not those that were written")
    return state


def _numbers(folder: Path) -> list[int]:
    """Of the states in a folder, newest first."""
    return sorted((int(path.name) for path in folder.glob("*") if path.name.isdecimal()), reverse=True)


def _tree(layers: Mapping[str, Sequence[Sums]]) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    return {
        name: {
            str(k): {field: np.asarray(x) for field, x in one._asdict().items()} for k, one in enumerate(sums)
        }
        for name, sums in layers.items()
    }


def _digest(state: State) -> str:
    return digest(*(np.asarray(value) for sums in state.sums.values() for one in sums for value in one))
