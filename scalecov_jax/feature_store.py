"""Pooled features on disk, one file an image, found by what they were computed from; runs and processes can share them."""

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jaxtyping import Float, UInt8

from scalecov_jax.checkpoints import Network

LIMIT = 10 * 2**30


class FeatureStore(NamedTuple):
    """A folder of features.

    Attributes:
        folder: Made when it is first written to.
        limit: Bytes that `trim` leaves at most.
    """

    folder: Path
    limit: int = LIMIT


def network_key(network: Network, dtype: Any, pooling: str) -> bytes:
    """Digest of all that features depend on beside the image and the layer.

    The variables and the module, the preprocessing, the precision, the pooling, the device, JAX, our own code: whatever differs
    gives another key, so that nothing stale is ever found.
    """
    digest = hashlib.blake2b(digest_size=16)
    device = jax.devices()[0]
    facts = (repr(network.module), network.card.preprocessing, jax.numpy.dtype(dtype).name, pooling)
    digest.update(repr((*facts, device.platform, device.device_kind, jax.__version__, _code())).encode())
    for path, leaf in jax.tree.flatten_with_path(network.variables)[0]:
        values = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype.str} {values.shape}".encode())
        digest.update(values.data)
    return digest.digest()


@cache
def _code() -> str:
    package = Path(__file__).parent
    digest = hashlib.blake2b(digest_size=16)
    for path in (package / "features.py", *sorted((package / "models").glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def image_key(network: bytes, image: UInt8[np.ndarray, "H W 3"]) -> str:
    """Digest of an image as the network gets it, and of the network."""
    digest = hashlib.blake2b(network, digest_size=20)
    digest.update(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def read(store: FeatureStore, key: str, layers: Sequence[str]) -> dict[str, Float[np.ndarray, " D"]] | None:
    """The features of an image at all of `layers`, or None; a file that cannot be read is as good as none."""
    path = _path(store, key)
    features = _load(path)
    if features is None or not {*layers} <= {*features}:
        return None
    with suppress(OSError):  # it may have been trimmed since
        os.utime(path)  # the last to go
    return {layer: features[layer] for layer in layers}


def write(store: FeatureStore, key: str, features: Mapping[str, Float[np.ndarray, " D"]]) -> None:
    """Keep the features of an image beside those of other layers. The file is always whole: it is written beside and renamed.

    Raises:
        OSError: The disk is full, or the folder cannot be written to.
    """
    path = _path(store, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    features = {**(_load(path) or {}), **features}
    descriptor, beside = tempfile.mkstemp(".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, **features)  # pyright: ignore[reportArgumentType]
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def trim(store: FeatureStore) -> int:
    """Delete what was not used for longest until the limit holds; the number of files that went."""
    files = []
    for path in store.folder.glob("*/*"):
        try:
            facts = path.stat()
        except FileNotFoundError:  # another process trims too
            continue
        files.append((facts.st_mtime_ns, facts.st_size, path))
    excess, gone = sum(size for _, size, _ in files) - store.limit, 0
    for _, size, path in sorted(files):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess, gone = excess - size, gone + 1
    return gone


def _load(path: Path) -> dict[str, np.ndarray] | None:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {layer: file[layer] for layer in file.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        logging.warning("%s is damaged (%s); its image is computed anew.", path, error)
        return None


def _path(store: FeatureStore, key: str) -> Path:
    return store.folder / key[:2] / f"{key}.npz"
