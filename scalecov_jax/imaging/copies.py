"""Images that are copies of others, equal byte for byte or to the eye: they belong on one side of a split.

A copy on the other side of a split is known by heart, and R2 is high on noise.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Int, UInt64
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from scalecov_jax.imaging.decoding import thumbnail
from scalecov_jax.imaging.image_set import ImageError, ImageSet

# Bits of 255 in which copies may differ. Of photographs saved again (JPEG quality 60, 90 % of the size, 10 % brighter, or all of
# it) at most 18 did; different photographs (VOC 2007) differed in at least 54, retinas in 38, histology in 102.
NEAR = 26
MOST = 100_000  # files that are compared by eye, each with each, in about a minute


def with_copies_together(images: ImageSet) -> ImageSet:
    """The same images, where copies are of one group, with all of their groups.

    Copies are files that are equal byte for byte, and those whose `perceptual_hash` differs in at most `NEAR` bits, such as a
    photograph saved again, smaller or brighter. Patches and tiles are
    compared as the files that they are cut from; images that are no files, such as rendered ones, stay as they are.
    """
    if "path" not in images.table:
        return images
    places = images.table["path"].reset_index(drop=True).drop_duplicates()
    files, at = [*places], places.index.to_numpy()
    equal = _equal(files)
    pairs = np.concatenate([equal, _near(files)])
    if not len(pairs):
        return images
    names, numbers = np.unique(images.column("group").astype(str), return_inverse=True)
    of = _parts(numbers[at[pairs]], len(names))
    first = {part: names[group] for group, part in reversed([*enumerate(of)])}
    more, same = (len(files) - len({*_parts(each, len(files))}) for each in (pairs, equal))
    original, copy = images.table["name"].iloc[at[pairs[0]]]
    logging.warning(
        "%d of %d images are copies of others (%d byte for byte, %d to the eye), such as %s of %s; copies are kept in one group.",
        more, len(files), same, more - same, copy, original,
    )  # fmt: skip
    return images.assign(group=[first[of[number]] for number in numbers])


def _parts(pairs: Int[np.ndarray, "P 2"], count: int) -> Int[np.ndarray, " N"]:
    """Which of `count` things are connected by pairs."""
    links = coo_array((np.ones(len(pairs)), tuple(pairs.T)), shape=(count, count))
    return connected_components(links, directed=False)[1]


def _equal(files: Sequence[Path]) -> Int[np.ndarray, "P 2"]:
    by_size, by_content = defaultdict(list), defaultdict(list)
    for at, path in enumerate(files):
        by_size[path.stat().st_size].append(at)
    for size, places in by_size.items():
        for at in places if len(places) > 1 else ():
            by_content[size, hashlib.sha256(files[at].read_bytes()).digest()].append(at)
    pairs = [(places[0], at) for places in by_content.values() for at in places[1:]]
    return np.array(pairs, int).reshape(-1, 2)


def _near(files: Sequence[Path]) -> Int[np.ndarray, "P 2"]:
    if len(files) > MOST:
        logging.warning(
            "Of %d images only copies byte for byte are looked for, which takes at most %d.", len(files), MOST
        )
        return np.zeros((0, 2), int)
    with ThreadPoolExecutor() as pool:
        hashes = [*tqdm(pool.map(_hash, files), "copies", len(files), leave=False, unit="image", delay=2)]
    known = np.array([at for at, one in enumerate(hashes) if one is not None], int)
    words = np.array([one for one in hashes if one is not None]).reshape(-1, 4).T.copy()
    pairs = []
    for one, at in enumerate(known):
        differ = np.bitwise_count(words[:, one, None] ^ words[:, one + 1 :]).sum(0, dtype=np.uint16)
        pairs += [(at, other) for other in known[one + 1 :][differ <= NEAR]]
    return np.array(pairs, int).reshape(-1, 2)


def _hash(path: Path) -> UInt64[np.ndarray, "4"] | None:
    facts = path.stat()
    return perceptual_hash(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=MOST)
def perceptual_hash(path: Path, *version: int) -> UInt64[np.ndarray, "4"] | None:
    """Which of the 255 lowest frequencies of an image are above their median: they outlast compression, scaling and brightness.

    Args:
        path: Of the image; it is read as grey, 64 x 64 pixels.
        version: Size and time of the file, so that a file that has changed is read again.

    Returns:
        The signs of the cosine transform [16, 16] without its mean, less their median, as 256 bits; None of an image that is of
        one colour or cannot be read, which is no copy of another.

    Source: Zauner 2010, Implementation and benchmarking of perceptual image hash functions; 64 bits there, with which retinas of
        two patients differ no more than copies do.
    """
    try:
        grey = thumbnail(path, 64)
    except ImageError:  # it is skipped, with the reason, when it is used
        return None
    if np.ptp(grey) < 3:
        return None
    waves = np.asarray(dctn(grey.astype(float), norm="ortho"))[:16, :16].ravel()
    waves[0] = -np.inf
    return np.packbits(waves > np.median(waves[1:])).view(np.uint64)
