"""What was measured already: one tidy CSV table, found by the content of the image."""

import hashlib
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from scalecov_jax.images.example import Example
from scalecov_jax.tables import read_table, write_table


class _Row(NamedTuple):
    image: str
    content: str
    measure: str
    value: float


class MeasureCache:
    """Values by image name, content and full name of the measure; safe to use from threads.

    The file is always whole: it is written beside and then renamed. A measure whose definition changes needs a new name.
    """

    def __init__(self, path: Path | None):
        """Read the table at `path` if it exists; without a path nothing is kept.

        Raises:
            ValueError: The file is no such table.
        """
        self.path = path
        self._lock = Lock()
        self._changed = False
        self._values: dict[tuple[str, str, str], float] = {}
        if path is not None and path.exists():
            try:
                rows = read_table(path, _Row)
            except ValueError as error:
                raise ValueError(
                    f"{error} It should hold measures computed earlier; delete it to compute them again."
                ) from None
            self._values = {row[:3]: row.value for row in rows}

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
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_table(self.path, _Row, (_Row(*key, value) for key, value in rows))


def content_hash(example: Example) -> str:
    """SHA-256 of the decoded pixels, the mask, the box and the size of the file."""
    digest = hashlib.sha256()
    for array in (example.image, example.mask):
        if array is None:
            digest.update(b"none")
        else:
            digest.update(f"{array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    box = example.box and tuple(map(float, example.box))
    digest.update(f"{box} {example.file_bytes}".encode())
    return digest.hexdigest()
