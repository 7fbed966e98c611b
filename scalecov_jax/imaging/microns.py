"""Microns per pixel (mpp) of images: where they are told, and how images are brought to one."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from PIL import Image

from scalecov_jax.imaging.csv_file import absent, number
from scalecov_jax.imaging.image_set import Example, ImageSet, listed

LARGEST = 10.0  # what is more is the resolution of a print, such as 72 or 300 dots per inch, and says nothing
_ENLARGED = 1.1  # at most, since what is drawn larger has no more detail


def with_mpp(images: ImageSet) -> ImageSet:
    """The same images with a column mpp of numbers, NaN where it is unknown; unchanged where nothing is known.

    A column mpp of the table goes before the tags of TIFF files.

    Raises:
        ValueError: Values of the table that are no number, zero, negative, or more than 10; all of them at once.
    """
    given = images.table["mpp"] if "mpp" in images.table else pd.Series([""] * len(images))
    paths = images.table["path"] if "path" in images.table else [None] * len(images)
    found, problems = [], []
    for name, text, path in zip(images.table["name"], given, paths, strict=True):
        unknown = math.isnan(text) if isinstance(text, float) else absent(text)
        value = tiff_mpp(path) if unknown and path is not None else math.nan
        if not unknown:
            try:
                value = float(text) if isinstance(text, float) else number(text)
                if not 0 < value <= LARGEST:
                    raise ValueError
            except ValueError:
                problems.append(f"{name}: {text!r}")
        found.append(value)
    if problems:
        raise ValueError(
            f"The mpp of {len(problems)} of {len(images)} images is not usable ({listed(problems)}); expected microns per pixel, "
            f"above 0 and at most {LARGEST:g}, such as 0.25, or an empty cell where it is unknown."
        )
    if np.isfinite(found).any():
        return images.assign(mpp=found)
    return replace(images, table=images.table.drop(columns="mpp", errors="ignore"))


def tiff_mpp(path: Path) -> float:
    """Microns per pixel from the resolution tags of a TIFF file (inches, centimetres; microns as ImageJ writes them).

    Returns:
        NaN of other files, without a unit, where width and height differ by more than 1 %, or where it is more than 10.
    """
    if path.suffix.casefold() not in (".tif", ".tiff"):
        return math.nan
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            unit = (file.imagej_metadata or {}).get("unit", "")
            if unit in ("micron", "um", "µm", "\\u00B5m"):
                across, down = page.resolution
            elif page.resolutionunit in (2, 3):
                across, down = page.get_resolution("MICROMETER")
            else:
                return math.nan
        mpp = 1 / across
        return mpp if mpp <= LARGEST and abs(across / down - 1) <= 0.01 else math.nan
    except Exception:  # whatever the parser runs into; a damaged file is reported when it is decoded
        return math.nan


def resampled(images: ImageSet, mpp: float) -> ImageSet:
    """The images at this mpp: pixels averaged (box filter), of masks the nearest taken.

    Raises:
        ValueError: Images of unknown mpp, or such that would be enlarged by more than a tenth; all of them at once.
    """
    has = images.column("mpp").astype(float) if "mpp" in images.table else np.full(len(images), np.nan)
    names = images.table["name"].to_numpy()
    unknown = [*names[~np.isfinite(has)]]
    coarse = [f"{name}: {one:g}" for name, one in zip(names, has, strict=True) if one > _ENLARGED * mpp]
    problems = []
    if unknown:
        problems.append(
            f"the mpp of {len(unknown)} of {len(images)} images is unknown ({listed(unknown)}); give it in a column mpp of "
            "index.csv"
        )
    if coarse:
        problems.append(
            f"{len(coarse)} images are coarser ({listed(coarse)}); choose {np.nanmax(has):g} or more, or leave them out"
        )
    if problems:
        raise ValueError(f"Images cannot be brought to {mpp:g} microns per pixel: {'; '.join(problems)}.")
    new = images.map(partial(_resample, mpp=mpp)).assign(mpp=mpp)
    if not images.sized:
        return new
    sides = {
        name: np.maximum(np.round(images.column(name) * has / mpp).astype(int), 1)
        for name in ("width", "height")
    }
    return new.assign(**sides)


def _resample(example: Example, mpp: float) -> Example:
    height, width = example.image.shape[:2]
    assert example.mpp is not None
    new = [max(round(side * example.mpp / mpp), 1) for side in (height, width)]
    if new == [height, width]:
        return example
    image = np.array(Image.fromarray(example.image).resize((new[1], new[0]), Image.Resampling.BOX))
    if example.mask is None:
        return example._replace(image=image)
    rows, columns = (
        ((np.arange(to) + 0.5) * of / to).astype(int) for to, of in zip(new, (height, width), strict=True)
    )
    return example._replace(image=image, mask=example.mask[rows][:, columns])
