"""What a fine-tuning leaves on disk after every epoch, so that it can go on after a kill: its state and its curve."""

import csv
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from scalecov_jax.atomic import replacing
from scalecov_jax.checkpoints import check_files
from scalecov_jax.training import TrainState


def restore(folder: Path, state: TrainState) -> tuple[TrainState, int]:
    """The newest state that can be read, and its epoch; `state` and 0 where there is none.

    What cannot be read is moved to `damaged_N` beside `folder`, with a warning: nothing is deleted, whatever the cause.
    """
    found = sorted((int(path.name) for path in folder.glob("*") if path.name.isdecimal()), reverse=True)
    for epoch in found:
        try:
            check_files(folder / str(epoch))
            with ocp.training.Checkpointer(str(folder)) as checkpointer:
                loaded = checkpointer.load(epoch, abstract_state=state)
                noted: Any = checkpointer.metadata(epoch).custom_metadata
            if noted["sha256"] != digest(loaded):
                raise ValueError("its values are not those that were written")
        except Exception as error:
            problem = " ".join(str(error).split())[:200]
            aside = folder.parent / f"damaged_{epoch}"
            logging.warning(
                "The checkpoint of epoch %d in %s is damaged and set aside as %s (%s).",
                epoch,
                folder,
                aside.name,
                problem,
            )
            shutil.rmtree(aside, ignore_errors=True)
            (folder / str(epoch)).rename(aside)
        else:
            logging.info("Going on after epoch %d of %s.", epoch, folder)
            return loaded, epoch
    if found:
        logging.warning("No checkpoint in %s could be read; training begins again.", folder)
    return state, 0


def digest(state: TrainState) -> str:
    """SHA-256 of all values, which orbax itself does not check."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(state)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def read_curve(path: Path) -> list[tuple[int, float, float]]:
    """Epoch, training MSE (px^2) and held-out MAE (px)."""
    with path.open(newline="") as file:
        return [(int(e), float(mse), float(mae)) for e, mse, mae in list(csv.reader(file))[1:]]


def write_curve(
    path: Path,
    curve: Sequence[tuple[int, float, float]],
    columns: tuple[str, str] = ("train_mse", "test_mae"),
) -> None:
    """Write `read_curve`'s rows; the file is replaced at once."""
    with replacing(path) as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows([("epoch", *columns), *curve])
