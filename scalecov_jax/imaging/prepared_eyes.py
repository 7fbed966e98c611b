"""Eyes trimmed once and kept on disk, for trainings that read each of them many times."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from tqdm import tqdm

from scalecov_jax.atomic import replacing
from scalecov_jax.imaging.image_set import ImageError, ImageSet, Skipped

CHUNK = 64  # eyes between two notes of what is done


class PreparedEyes(NamedTuple):
    """Eyes on disk.

    Attributes:
        images: Read from the file when they are indexed.
        kept: Index among the eyes, of each image.
        skipped: Those that cannot be used, with the reason.
    """

    images: UInt8[np.ndarray, "N size size 3"]
    kept: Int[np.ndarray, " N"]
    skipped: tuple[Skipped, ...]


def prepare_eyes(eyes: ImageSet, path: Path, size: int, label: str = "") -> PreparedEyes:
    """Trim all eyes into `path`, or go on where an earlier run stopped; what is done is noted beside it, in `<stem>.json`.

    Args:
        eyes: Whatever their size.
        path: An `.npy` file of the size of all of them, 3 size^2 bytes each.
        size: Height and width in pixels.
        label: Of the progress bar.

    Raises:
        ValueError: None of them can be used; says why.
    """
    note = path.with_suffix(".json")
    state = json.loads(note.read_text()) if note.exists() else {"done": 0, "kept": [], "skipped": []}
    shape = (len(eyes), size, size, 3)
    mode = "r+" if note.exists() else "w+"
    images = np.lib.format.open_memmap(path, mode, np.uint8, shape)
    with (
        ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as threads,
        tqdm(total=len(eyes), initial=state["done"], desc=label, unit="eye") as bar,
    ):
        while state["done"] < len(eyes):
            chunk = range(state["done"], min(state["done"] + CHUNK, len(eyes)))
            for index, image in zip(chunk, threads.map(lambda index: _read(eyes, index), chunk), strict=True):
                if isinstance(image, ImageError):
                    state["skipped"].append((eyes.table["name"].iloc[index], "no usable eye", image.problem))
                else:
                    images[len(state["kept"])] = image
                    state["kept"].append(index)
            images.flush()
            state["done"] = chunk.stop
            with replacing(note) as partial:
                partial.write_text(json.dumps(state))
            bar.update(len(chunk))
    skipped = tuple(Skipped(*one) for one in state["skipped"])
    if not state["kept"]:
        told = "; ".join(f"{one.name}: {one.detail}" for one in skipped[:5])
        raise ValueError(f"None of the {len(eyes)} eyes {label} can be used ({told}).")
    return PreparedEyes(images[: len(state["kept"])], np.array(state["kept"]), skipped)


def _read(eyes: ImageSet, index: int) -> UInt8[np.ndarray, "size size 3"] | ImageError:
    try:
        return eyes[index].image
    except ImageError as error:
        return error
