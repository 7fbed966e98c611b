"""What a pass over images leaves on disk, so that it can go on after a kill: its sums and how far it came."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scalecov_jax.probes.sums import empty
from scalecov_jax.states import ChangedError, newest_state, write_state
from scalecov_jax.streaming.stream_sums import State, Unreadable

MOST = 20_000  # folds, features of a layer, or targets


def resume(folder: Path, fingerprint: Mapping[str, str]) -> State:
    """The newest state in `folder` that is whole; that before the first image where there is none. See `states.newest_state`.

    A fingerprint holds what determines the sums, by name: images, weights, settings.

    Raises:
        ValueError: The states were made with another fingerprint; names every difference.
    """

    def like(noted: dict[str, Any]) -> Any:
        if changed := differences(noted["fingerprint"], fingerprint):
            raise ChangedError(
                f"The sums in {folder} were made from something else, so they cannot be resumed ({changed}). Take another "
                "--workdir, or --overwrite."
            )
        shape = noted["shape"].items()
        if any(max(sizes) > MOST for _, sizes in shape):
            raise ChangedError(
                f"The sums in {folder} claim more than {MOST:,} folds or features; expected those of a run."
            )
        return {name: [empty(np.zeros(d), np.zeros(m))] * folds for name, (folds, d, m) in shape}

    if (stored := newest_state(folder, like)) is None:
        return State()
    sums = {name: stored.tree[name] for name in stored.facts["shape"]}  # trees are sorted by name
    return State(stored.number, sums, tuple(Unreadable(*one) for one in stored.facts["unreadable"]))


def keeper(folder: Path, fingerprint: Mapping[str, str]) -> Callable[[State], None]:
    """A function that writes a state to `folder`, see `states.write_state`."""

    def keep(state: State) -> None:
        noted = {
            "fingerprint": dict(fingerprint),
            "unreadable": [list(one) for one in state.unreadable],
            "shape": {name: [len(sums), len(sums[0].x), len(sums[0].y)] for name, sums in state.sums.items()},
        }
        write_state(folder, state.flushes, state.sums, noted)

    return keep


def differences(earlier: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What changed from one fingerprint to another, in words; empty if nothing did."""
    return "; ".join(
        f"{name}: {earlier.get(name)}, now {now.get(name)}"
        for name in dict.fromkeys((*earlier, *now))
        if earlier.get(name) != now.get(name)
    )
