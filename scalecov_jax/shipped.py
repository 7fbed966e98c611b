"""What comes with the package: embedded networks, configurations and scripts.

A clone has them beside the package, a wheel inside it, in folders of the same names.
"""

from pathlib import Path

_PACKAGE = Path(__file__).parent
_SHIPPED = _PACKAGE / "_shipped"
ROOT = _SHIPPED if _SHIPPED.is_dir() else _PACKAGE.parent


def find(path: str | Path) -> Path:
    """A path as it is given, or, where nothing is there, the same relative path of what comes with the package."""
    given = Path(path).expanduser()
    return given if given.is_absolute() or given.exists() or not (ROOT / given).exists() else ROOT / given
