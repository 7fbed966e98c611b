"""Eyes trimmed once and kept on disk, for trainings that read each of them many times."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Int, UInt8
from tqdm import tqdm

from scalecov_jax.atomic import digest, if_whole, read_json, write_json
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
    """Trim all eyes into `path`, or go on where an earlier run stopped or the file is damaged.

    What is done is noted beside it, in `<stem>.json`, with a digest of every chunk of eyes.

    Args:
        eyes: Whatever their size.
        path: An `.npy` file of the size of all of them, 3 size^2 bytes each.
        size: Height and width in pixels.
        label: Of the progress bar.

    Raises:
        ValueError: None of them can be used; says why.
        OSError: The disk is full, or the folder cannot be written to.
    """
    note, shape = path.with_suffix(".json"), (len(eyes), size, size, 3)
    chunks = _whole_chunks(path, note, shape)
    images = np.lib.format.open_memmap(path, "r+" if chunks else "w+", np.uint8, shape)
    with path.open(
        "r+b"
    ) as file:  # a full disk would end the process without a word, when the pages are written
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
    done, kept = (chunks[-1]["stop"], sum(len(one["kept"]) for one in chunks)) if chunks else (0, 0)
    with (
        ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as threads,
        tqdm(total=len(eyes), initial=done, desc=label, unit="eye") as bar,
    ):
        while done < len(eyes):
            chunk: dict[str, Any] = {"kept": [], "skipped": [], "stop": min(done + CHUNK, len(eyes))}
            indices, first = range(done, chunk["stop"]), kept
            for index, image in zip(indices, threads.map(partial(_read, eyes), indices), strict=True):
                if isinstance(image, ImageError):
                    chunk["skipped"].append((eyes.table["name"].iloc[index], "no usable eye", image.problem))
                else:
                    images[kept] = image
                    chunk["kept"].append(index)
                    kept += 1
            images.flush()
            chunks.append({**chunk, "sha256": digest(images[first:kept])})
            done = chunk["stop"]
            write_json(note, {"chunks": chunks})
            bar.update(len(indices))
    skipped = tuple(Skipped(*one) for chunk in chunks for one in chunk["skipped"])
    if not kept:
        told = "; ".join(f"{one.name}: {one.detail}" for one in skipped[:5])
        raise ValueError(f"None of the {len(eyes)} eyes {label} can be used ({told}).")
    indices = [index for chunk in chunks for index in chunk["kept"]]
    return PreparedEyes(images[:kept], np.array(indices), skipped)


def _whole_chunks(path: Path, note: Path, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """What is noted of the chunks, up to the first that is not on disk as it was written."""
    noted = if_whole(note, read_json)
    if noted is None:
        return []
    chunks, first = noted["chunks"], 0
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        if (images.dtype, images.shape) != (np.uint8, shape):
            raise ValueError(f"it is {images.dtype}{list(images.shape)}, expected uint8{list(shape)}")
        for number, chunk in enumerate(chunks):
            stop = first + len(chunk["kept"])
            if digest(images[first:stop]) != chunk["sha256"]:
                logging.warning("%s is damaged from image %d on, which are trimmed again.", path, first)
                return chunks[:number]
            first = stop
    except Exception as error:  # whatever numpy makes of a damaged header
        logging.warning("%s is damaged (%s); all eyes are trimmed again.", path, error)
        return []
    return chunks


def _read(eyes: ImageSet, index: int) -> UInt8[np.ndarray, "size size 3"] | ImageError:
    try:
        return eyes[index].image
    except ImageError as error:
        return error
