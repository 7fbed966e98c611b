"""Tiles of whole-slide images, where there is tissue, and what was read from them as GeoJSON."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import logging
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from skimage.filters import threshold_otsu

from scalecov_jax.atomic import file_name, write_bytes
from scalecov_jax.imaging.decoding import MAX_PIXELS
from scalecov_jax.imaging.folder import group_of, list_files
from scalecov_jax.imaging.image_set import ImageError, ImageSet, Pixels, Skipped, listed
from scalecov_jax.imaging.microns import LARGEST

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif")
_THUMBNAIL = 2048  # pixels of the longer side, at which tissue is looked for
_EVEN = 0.05  # saturation: where all of a slide differs by less, there is no tissue


def tiles(folder: str | Path, size: int = 256, mpp: float = 0.0, *, tissue: float = 0.5) -> ImageSet:
    """Tiles on a grid without overlap over all slides of a folder, each where enough of it is tissue.

    Tissue is what is more saturated than Otsu's threshold of the saturation of a thumbnail. A tile is read from the level at
    or above its resolution, and averaged down to it.

    Args:
        folder: With slides at any depth, or one slide.
        size: Height and width of tiles in pixels.
        mpp: Microns per pixel of the tiles; 0 for those of each slide.
        tissue: Least share of a tile.

    Returns:
        Columns name, group (patient as far as the name tells, else the slide), slide, source (the same), path, x and y (left and
        upper edge in pixels of the largest level), span (height and width there), mpp, width and height.

    Raises:
        ImportError: tiffslide is not installed.
        ValueError: No slide, none with tissue; slides that cannot be read, or whose mpp is unknown, or coarser than asked for:
            all of them at once.

    Source: Otsu 1979; the saturation of HSV as in most tools for slides.
    """
    folder = Path(folder).expanduser()
    paths = [path for path in list_files(folder)[0] if path.suffix.casefold() in SUFFIXES]
    paths = [folder] if folder.is_file() else paths
    if size < 1 or mpp < 0 or not np.isfinite(mpp):
        raise ValueError(f"size is {size} and mpp {mpp}; expected at least 1, and 0 or more.")
    if not paths:
        raise ValueError(f"{folder}: no slide; expected {', '.join(SUFFIXES)}.")
    rows, skipped, problems = [], [], []
    for path in paths:
        name = path.name if path == folder else path.relative_to(folder).as_posix()
        try:
            found = _grid(path, size, mpp, tissue)
        except ImageError as error:
            problems.append(f"{name}: {error.problem}")
            continue
        if not found[0]:
            skipped.append(Skipped(name, "no tissue", f"no tile of {size} pixels has {tissue:.0%} of it"))
        group = group_of(path) or name
        rows += [
            (f"{name} [x={x},y={y}]", group, name, name, path, x, y, found[1], found[2]) for x, y in found[0]
        ]
    if problems:
        raise ValueError(
            f"{folder}: {len(problems)} of {len(paths)} slides cannot be used: {listed(problems)}."
        )
    if not rows:
        raise ValueError(f"{folder}: no tile with tissue in {len(paths)} slides; choose smaller tiles.")
    columns = ["name", "group", "slide", "source", "path", "x", "y", "mpp", "span"]
    table = pd.DataFrame(rows, columns=columns)
    decode = partial(
        _tile, tuple(table[["name", "path", "x", "y", "span"]].itertuples(index=False, name=None)), size
    )
    logging.info("%d tiles of %d slides in %s.", len(table), table["slide"].nunique(), folder)
    return ImageSet(table.assign(width=size, height=size), decode, tuple(skipped))


def write_geojson(
    folder: str | Path, images: ImageSet, values: Mapping[str, Float[np.ndarray, " N"] | Sequence[float]]
) -> list[Path]:
    """Write what was read from tiles for QuPath 0.4 or later: one file `SLIDE.geojson` per slide, replaced if it is there.

    Each tile is a square of type tile, in pixels of the largest level, with one measurement per name in `values`.

    Args:
        folder: Made if it is not there.
        images: See `tiles`.
        values: One number per tile, by name, such as `{"grade": rcv.predict(features)}`.

    Returns:
        The files.

    Raises:
        ValueError: Images that are no tiles of slides; numbers that are not finite, or not one per tile: all at once.
        OSError: See `atomic.replacing`.

    Source: RFC 7946; QuPath, exporting annotations.
    """
    if not {"slide", "span"} <= {*images.table}:
        raise ValueError('These images are no tiles of slides; expected what images("slides:FOLDER") gives.')
    arrays = {str(name): np.asarray(given, np.float64) for name, given in values.items()}
    problems = [
        f"{name} has the shape {list(one.shape)}; expected [{len(images)}]"
        if one.shape != (len(images),)
        else f"{name} has {np.count_nonzero(~np.isfinite(one))} values that are not finite"
        for name, one in arrays.items()
        if one.shape != (len(images),) or not np.isfinite(one).all()
    ]
    if problems or not arrays:
        raise ValueError(f"Tiles cannot be written: {'; '.join(problems) or 'there are no values'}.")
    measurements = pd.DataFrame(arrays).to_dict("records")
    features: dict[str, list[dict[str, Any]]] = {}
    places = images.table[["slide", "name", "x", "y", "span"]].itertuples(index=False, name=None)
    for (slide, name, x, y, span), measured in zip(places, measurements, strict=True):
        ring = [[x, y], [x + span, y], [x + span, y + span], [x, y + span], [x, y]]
        features.setdefault(slide, []).append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"objectType": "tile", "name": name, "measurements": measured},
            }
        )
    written = []
    for slide, of_slide in features.items():
        written.append(Path(folder).expanduser() / f"{file_name(slide)}.geojson")
        content = json.dumps({"type": "FeatureCollection", "features": of_slide})
        write_bytes(written[-1], content.encode())
    return written


def _open(path: Path) -> Any:
    try:
        import tiffslide  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "Slides are read by tiffslide, which is not installed: pip install 'scalecov-jax[slides]'."
        ) from error
    try:
        return tiffslide.TiffSlide(path)
    except Exception as error:  # whatever the parsers run into
        raise ImageError(path.name, f"not a readable slide ({error or type(error).__name__})") from None


def _grid(path: Path, size: int, mpp: float, share: float) -> tuple[list[tuple[int, int]], float, int]:
    """Corners of the tiles of a slide, their microns per pixel, and their side in pixels of the largest level."""
    with _open(path) as slide:
        across, down = (float(slide.properties.get(f"tiffslide.mpp-{axis}") or 0) for axis in "xy")
        if not (0 < across <= LARGEST and down > 0):
            raise ImageError(
                path.name, "microns per pixel are not stated; write them into its resolution tags"
            )
        if abs(across / down - 1) > 0.01:
            raise ImageError(path.name, f"{across:g} x {down:g} microns per pixel; expected square pixels")
        if mpp and across > 1.1 * mpp:
            raise ImageError(path.name, f"it has {across:g} microns per pixel, coarser than {mpp:g}")
        side = round(size * mpp / across) if mpp else size
        width, height = slide.dimensions
        small = slide.get_best_level_for_downsample(max(width, height) / _THUMBNAIL)
        if np.prod(slide.level_dimensions[small]) > MAX_PIXELS:
            raise ImageError(path.name, f"no level of at most {MAX_PIXELS} pixels; write it as a pyramid")
        try:
            thumbnail = np.asarray(slide.get_thumbnail((_THUMBNAIL, _THUMBNAIL)).convert("RGB"))
        except Exception as error:
            raise ImageError(path.name, f"not a readable slide ({error or type(error).__name__})") from None
    shares = _shares(tissue_of(thumbnail), width, height, side)
    corners = [(int(x) * side, int(y) * side) for y, x in np.argwhere(shares >= share)]
    return corners, float(across) * side / size, side


def tissue_of(image: UInt8[np.ndarray, "H W 3"]) -> Bool[np.ndarray, "H W"]:
    """Where the saturation, (max - min) / max of the colours, is above Otsu's threshold; nowhere on an even image."""
    largest = image.max(-1).astype(np.float64)
    saturation = (largest - image.min(-1)) / np.maximum(largest, 1)
    if np.ptp(saturation) < _EVEN:
        return np.zeros(image.shape[:2], bool)
    return saturation > threshold_otsu(saturation)


def _shares(mask: Bool[np.ndarray, "H W"], width: int, height: int, side: int) -> np.ndarray:
    """Mean of a thumbnail's mask over each square of the grid; the pixel at each thumbnail's place where squares are smaller."""
    rows, columns = height // side, width // side
    sums = np.pad(mask.cumsum(0).cumsum(1), ((1, 0), (1, 0))).astype(float)

    def edges(count: int, of: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
        at = np.arange(count + 1) * side * pixels / of
        low = np.minimum(np.floor(at[:-1]).astype(int), pixels - 1)
        return low, np.clip(np.round(at[1:]).astype(int), low + 1, pixels)

    top, bottom = edges(rows, height, mask.shape[0])
    left, right = edges(columns, width, mask.shape[1])
    total = sums[bottom][:, right] - sums[top][:, right] - sums[bottom][:, left] + sums[top][:, left]
    return total / np.outer(bottom - top, right - left)


def _tile(places: tuple[tuple[str, Path, int, int, int], ...], size: int, index: int) -> Pixels:
    name, path, x, y, side = places[index]
    with _open(path) as slide:
        level = slide.get_best_level_for_downsample(side / size * 1.001)
        pixels = max(round(side / slide.level_downsamples[level]), 1)
        try:
            image = slide.read_region((x, y), level, (pixels, pixels)).convert("RGB")
        except Exception as error:
            raise ImageError(name, f"not a readable slide ({error or type(error).__name__})") from None
    return Pixels(np.array(image.resize((size, size), Image.Resampling.BOX) if pixels != size else image))
