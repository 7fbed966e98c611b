"""What was computed already, on disk: features of single images and measures, by the content of the image.

A key is a digest of all that values depend on, so that nothing stale is ever found. Files are always whole, and runs and
processes can share them.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8

from scalecov_jax.atomic import digest, if_whole, kept_arrays, read_table, write_arrays, write_table
from scalecov_jax.checkpoints import Network
from scalecov_jax.imaging.image_set import Example

LIMIT = 10 * 2**30
_KIND = "features of an image 1"


def network_key(network: Network, dtype: Any, pooling: str) -> str:
    """Digest of all that features depend on beside the image and the layer.

    That is the variables and the module, the preprocessing, the precision, the pooling, the device, JAX, our own code.
    """
    device = jax.devices()[0]
    facts = (repr(network.module), network.card.preprocessing, jax.numpy.dtype(dtype).name, pooling)
    leaves = jax.tree.flatten_with_path(network.variables)[0]
    named = (part for path, leaf in leaves for part in (jax.tree_util.keystr(path), np.asarray(leaf)))
    return digest(repr((*facts, device.platform, device.device_kind, jax.__version__, _code())), *named)


@cache
def _code() -> str:
    package = Path(__file__).parent
    paths = (package / "extraction.py", *sorted((package / "models").glob("*.py")))
    return digest(*(path.read_text(encoding="utf-8") for path in paths))


def image_key(network: str, image: UInt8[np.ndarray, "H W 3"]) -> str:
    """Digest of an image as the network gets it, and of the network."""
    return digest(network, image)[:40]


def content_hash(example: Example) -> str:
    """SHA-256 of the decoded pixels, the mask, the box, the size of the file, and microns per pixel where they are known."""
    box = example.box and tuple(map(float, example.box))
    return digest(
        example.image, example.mask, f"{box} {example.file_bytes}{f' {example.mpp}' if example.mpp else ''}"
    )


class FeatureStore(NamedTuple):
    """A folder of pooled features, one file an image, by `image_key`."""

    folder: Path  # made when it is first written to
    limit: int = LIMIT  # bytes that `trim` leaves at most

    def read(self, key: str, layers: Sequence[str]) -> dict[str, Float[np.ndarray, " D"]] | None:
        """The features of an image at all of `layers`, or None."""
        path = self._path(key)
        features = kept_arrays(path, _KIND)
        if features is None or not {*layers} <= {*features}:
            return None
        with suppress(OSError):  # it may have been trimmed since
            os.utime(path)  # the last to go
        return {layer: features[layer] for layer in layers}

    def write(self, key: str, features: Mapping[str, Float[np.ndarray, " D"]]) -> None:
        """Keep the features of an image beside those of other layers; raises as `atomic.write_arrays`."""
        path = self._path(key)
        write_arrays(path, {**(kept_arrays(path, _KIND) or {}), **features}, _KIND, shared=True)

    def trim(self) -> int:
        """Delete what was not used for longest until the limit holds; the number of files that went."""
        files = []
        for path in self.folder.glob("*/*"):
            with suppress(FileNotFoundError):  # another process trims too
                facts = path.stat()
                files.append((facts.st_mtime_ns, facts.st_size, path))
        excess, gone = sum(size for _, size, _ in files) - self.limit, 0
        for _, size, path in sorted(files):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess, gone = excess - size, gone + 1
        return gone

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npz"


_COLUMNS = {"image": str, "content": str, "measure": str, "value": float}


class MeasureCache:
    """A tidy CSV table of values by image name, `content_hash` and full name of the measure; safe to use from threads.

    A measure whose definition changes needs a new name.
    """

    def __init__(self, path: Path | None):
        """Read the table at `path` if it exists and is whole; without a path nothing is kept."""
        self.path, self._lock, self._changed = path, Lock(), False
        self._values: dict[tuple[str, str, str], float] = {}
        if path is not None and (table := if_whole(path, partial(read_table, dtype=_COLUMNS))) is not None:
            self._values = {tuple(key): value for *key, value in table.itertuples(index=False, name=None)}

    def get(self, image: str, content: str, measure: str) -> float | None:
        """The value, if it is known."""
        return self._values.get((image, content, measure))

    def add(self, image: str, content: str, measure: str, value: float) -> None:
        """Keep a value until `write`."""
        with self._lock:
            self._values[image, content, measure] = value
            self._changed = True

    def write(self) -> None:
        """Write the table, sorted, if anything was added since it was read or written."""
        with self._lock:
            changed, rows = self._changed, sorted(self._values.items())
            self._changed = False
        if changed and self.path is not None:
            write_table(self.path, pd.DataFrame([(*key, value) for key, value in rows], columns=[*_COLUMNS]))
