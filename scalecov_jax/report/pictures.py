"""Pictures that a run keeps as PNG files and names in a table, and the figures of a page that are made of them."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, UInt8
from PIL import Image as Pillow

from scalecov_jax.atomic import file_name, write_bytes
from scalecov_jax.imaging.decoding import decode_image, encode_png
from scalecov_jax.report.page import Image
from scalecov_jax.report.plots import image_grid

Pixels = UInt8[np.ndarray, "H W 3"]
SIGNED, POSITIVE = (-1.0, 1.0, "RdBu_r"), (0.0, 1.0, "inferno")


class Album:
    """Pictures of a run, written to pictures/ in its folder as they come; without a folder nothing is kept."""

    def __init__(self, folder: Path | None):
        self._folder, self._rows = folder, []
        if folder:
            (folder / "pictures").mkdir(exist_ok=True)

    def add(self, figure: str, row: str, title: str, pixels: Pixels) -> None:
        """Keep a picture with a title above it, in a row of a figure, whose name up to the first underscore is its kind."""
        if self._folder:
            file = f"pictures/{file_name(figure)}_{len(self._rows):04}.png"
            write_bytes(self._folder / file, encode_png(pixels))
            self._rows.append((figure, row, title, file))

    def table(self) -> pd.DataFrame:
        """Columns figure, row, title and file (relative to the folder)."""
        return pd.DataFrame(self._rows, columns=["figure", "row", "title", "file"]).astype("str")


def picture_figures(
    table: pd.DataFrame, folder: Path, captions: dict[str, str], **options: Any
) -> Iterator[Image]:
    """The figures of `Album.table`, each a grid, with captions by kind of figure; for options see `plots.image_grid`."""
    for name, rows in table.groupby("figure", sort=False):
        caption = captions[str(name).split("_")[0]]
        grid = {
            str(row): [(title, decode_image(folder / file)) for title, file in zip(x["title"], x["file"], strict=True)]
            for row, x in rows.groupby("row", sort=False)
        }  # fmt: skip
        said = "; ".join(f"{row}: {', '.join(title for title, _ in x if title)}" for row, x in grid.items())
        alt = f"{caption} {said}.".replace("\n", " ")
        yield replace(image_grid(grid, alt=alt, name=str(name), caption=caption, **options), wide=True)


def overlay(image: Pixels, map: Float[np.ndarray, "H W"], scale: tuple[float, float, str]) -> Pixels:
    """A map in the colours of a scale, laid over the image in grey."""
    low, high, colours = scale
    colour = matplotlib.colormaps[colours]((map - low) / (high - low))[..., :3]
    return _bytes(0.45 * _grey(image) + 0.55 * colour)


def signed_map(map: Float[np.ndarray, "H W"]) -> Pixels:
    """A map on its own scale, red above zero and blue below; 1 % of the pixels may lie beyond it."""
    most = float(np.quantile(np.abs(map), 0.99)) or float(np.abs(map).max()) or 1.0
    return _bytes(matplotlib.colormaps[SIGNED[2]](0.5 + 0.5 * np.asarray(map, float) / most)[..., :3])


def marked(image: Pixels, high: Bool[np.ndarray, "H W"]) -> Pixels:
    """The image in grey, marked pixels red."""
    grey = _grey(image)
    return _bytes(np.where(high[..., None], 0.3 * grey + 0.7 * np.array([0.85, 0.1, 0.1]), grey))


def black_and_white(high: Bool[np.ndarray, "H W"]) -> Pixels:
    """A binary map."""
    return _bytes(np.repeat(high[..., None], 3, 2).astype(float))


def blink(first: Pixels, second: Pixels) -> bytes:
    """A GIF that changes between two pictures every 0.7 seconds."""
    frames, buffer = [Pillow.fromarray(pixels) for pixels in (first, second)], io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=700, loop=0)
    return buffer.getvalue()


def _grey(image: Pixels) -> Float[np.ndarray, "H W 3"]:
    return np.repeat(image.mean(2, keepdims=True) / 255, 3, 2)


def _bytes(values: Float[np.ndarray, "H W 3"]) -> Pixels:
    return np.round(255 * values).astype(np.uint8)
