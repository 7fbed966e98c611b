"""Files and folders that appear under their name only when they are complete."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Where to write a file or folder that takes the place of `path` when the block ends; `NAME.partial.SUFFIX` beside it.

    If the block raises, what it wrote is deleted and `path` stays as it was; so does a folder that is not empty, which no other
    replaces. What a killed process left is deleted by the next writer.

    Args:
        path: Of the file or folder; folders above it are made.
        shared: Several processes or threads may write `path` at the same time: each takes a name of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{secrets.token_hex(4)}" if shared else ""
    partial = path.with_name(f"{path.stem}{own}.partial{path.suffix}")
    _delete(partial)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        _delete(partial)
        raise


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
