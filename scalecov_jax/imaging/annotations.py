"""Nuclei as annotation programs store them: outlines (QuPath, CellViT, Aperio, COCO), runs (COCO) and label maps (MATLAB)."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
from absl import logging
from defusedxml import ElementTree
from jaxtyping import Float, Int32, Int64
from skimage.draw import polygon

from scalecov_jax.imaging.decoding import MAX_PIXELS
from scalecov_jax.imaging.image_set import ImageError, listed

MAX_BYTES = 1 << 30
Ring = Float[np.ndarray, "_ 2"]  # x, y
Outline = tuple[tuple[Ring, ...], ...]  # polygons, each its exterior and then its holes
Labels = Int32[np.ndarray, "H W"]


class Runs(NamedTuple):
    """Pixels of one object: lengths of runs outside and inside by turns, down the columns of an image."""

    counts: Int64[np.ndarray, "_"]
    height: int
    width: int


@dataclass(frozen=True)
class Annotation:
    """The objects of one image.

    Attributes:
        objects: In pixels; the pixel in the upper left corner covers 0 to 1.
        centres: Whether vertices are centres of the outermost pixels instead, as `findContours` of OpenCV gives them.
        mpp: Microns per pixel, if the file tells.
        size: Width and height of the image that was annotated, if the file tells.
    """

    objects: tuple[Outline | Runs, ...]
    centres: bool = False
    mpp: float = math.nan
    size: tuple[int, int] | None = None

    def problems(self, width: int, height: int) -> list[str]:
        """What does not fit an image of this size: another size annotated, objects wholly outside, runs of another size.

        What is partly outside is cut at the border, where nuclei are not measured.
        """
        outside, problems = [], []
        if self.size and self.size != (width, height):
            problems.append(
                f"an image of {self.size[0]} x {self.size[1]} pixels was annotated, this has {width} x {height}"
            )
        for number, one in enumerate(self.objects, start=1):
            if isinstance(one, Runs):
                if (one.width, one.height) != (width, height):
                    problems.append(
                        f"runs of object {number} are of {one.width} x {one.height} pixels, the image has {width} x {height}"
                    )
                continue
            corners = np.concatenate([rings[0] for rings in one])
            low, high = corners.min(0), corners.max(0)
            if (high <= 0).any() or (low >= (width, height)).any():
                where = ", ".join(f"{a:g} to {b:g}" for a, b in zip(low, high, strict=True))
                outside.append(f"object {number} at x, y {where}")
        if outside:
            problems.append(
                f"{len(outside)} of {len(self.objects)} objects lie outside the image of {width} x {height} pixels "
                f"({listed(outside, 3)}); coordinates must be pixels of this image, not of the slide that it was cut from"
            )
        return problems

    def draw(self, height: int, width: int) -> Labels:
        """The label map, numbered from 1 in the order of the objects; of two at one pixel the later.

        A pixel belongs to an outline if its centre does, or where vertices are centres if it lies on the outline. So shapes that
        follow the edges of pixels come back exactly, and others are off by at most half a pixel at the border.
        """
        labels = np.zeros((height, width), np.int32, order="F")
        shift = 0.0 if self.centres else 0.5
        for number, one in enumerate(self.objects, start=1):
            if isinstance(one, Runs):
                columns = labels.T.reshape(-1)
                ends = np.cumsum(one.counts)
                for low, high in zip(ends[:-1:2], ends[1::2], strict=True):
                    columns[low:high] = number
                continue
            for exterior, *holes in one:
                pixels, *gaps = (
                    np.ravel_multi_index(
                        polygon(ring[:, 1] - shift, ring[:, 0] - shift, labels.shape), labels.shape
                    )
                    for ring in (exterior, *holes)
                )
                labels.flat[np.setdiff1d(pixels, np.concatenate(gaps)) if gaps else pixels] = number
        if lost := len(self.objects) - np.count_nonzero(np.unique(labels)):
            logging.log_first_n(
                logging.WARNING, "%d objects are smaller than a pixel or covered by others, here and elsewhere.", 1, lost
            )  # fmt: skip
        return labels


def read_geojson(path: Path) -> Annotation:
    """GeoJSON as QuPath and CellViT write it.

    - Of cells the nucleus is taken (`nucleusGeometry`) where it is given. Where there are cells or detections, annotations are
      regions that hold them, and are passed over.
    - Each polygon of a MultiPolygon annotation is an object, as in CellViT, which keeps all nuclei of a class in one; of a cell
      or detection it is a part.
    - In what CellViT writes, a list of nothing but MultiPolygons, vertices are centres of pixels.

    Raises:
        ImageError: No GeoJSON, coordinates that are no numbers, outlines of fewer than three vertices.

    Source: RFC 7946; QuPath, exporting annotations; CellViT (Hörst et al. 2024), its files of contours.
    """
    content = _json(path)
    features = content.get("features", [content]) if isinstance(content, dict) else content
    try:
        kinds = [(one.get("properties") or {}).get("objectType", "annotation") for one in features]
        if {"cell", "detection"} & {*kinds}:
            pairs = zip(features, kinds, strict=True)
            features = [one for one, kind in pairs if kind in ("cell", "detection")]
        objects, other = [], 0
        for one in features:
            whole = one.get("nucleusGeometry") or one["geometry"]
            shapes = {"Polygon": lambda given: [given], "MultiPolygon": list}.get(whole["type"])
            if shapes is None:
                other += 1
                continue
            polygons = tuple(tuple(map(_ring, rings)) for rings in shapes(whole["coordinates"]))
            separate = (one.get("properties") or {}).get("objectType", "annotation") == "annotation"
            objects += [(one,) for one in polygons] if separate else [polygons]
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ImageError(path.name, f"no GeoJSON of outlines ({_said(error)})") from None
    if other:
        logging.warning("%s: %d points and lines are no outlines, and are passed over.", path.name, other)
    multiple = all((one.get("geometry") or {}).get("type") == "MultiPolygon" for one in features)
    return Annotation(tuple(objects), centres=isinstance(content, list) and multiple)


def read_xml(path: Path) -> Annotation:
    """Regions of Aperio ImageScope, as MoNuSeg has them.

    Raises:
        ImageError: XML that cannot be read or is dangerous, vertices that are no numbers, regions of fewer than three.

    Source: Kumar et al. 2017, the files of the MoNuSeg challenge.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        root: Any = ElementTree.parse(path).getroot()
        objects = [
            ((_ring([(one.get("X"), one.get("Y")) for one in region.iter("Vertex")]),),)
            for region in root.iter("Region")
        ]
        mpp = float(root.get("MicronsPerPixel") or math.nan)
    except Exception as error:  # whatever the parsers of XML run into
        raise ImageError(path.name, f"no readable XML of regions ({_said(error)})") from None
    return Annotation(tuple(objects), mpp=mpp if mpp > 0 else math.nan)


def is_regions(path: Path) -> bool:
    """Whether an XML file is one of Aperio ImageScope, by its first element."""
    try:
        with path.open("rb") as file:
            return next(iter(ElementTree.iterparse(file, ("start",))))[1].tag == "Annotations"
    except Exception:
        return False


def read_coco(path: Path) -> dict[str, Annotation] | None:
    """Objects by name of the image from a COCO file: polygons and runs, these also as compressed text.

    Crowds (`iscrowd`), which are several objects each, are passed over.

    Returns:
        None for JSON that is no COCO.

    Raises:
        ImageError: No JSON; all objects that cannot be read.

    Source: cocodataset.org, data format; the text of runs as in maskApi of its API.
    """
    content = _json(path)
    if not isinstance(content, dict) or not {"images", "annotations"} <= {*content}:
        return None
    objects: dict[Any, list] = {}
    problems, names, sizes = [], {}, {}
    try:
        sizes = {
            one["id"]: (int(one["width"]), int(one["height"]))
            for one in content["images"]
            if one.get("width") and one.get("height")
        }
        names = {one["id"]: str(one["file_name"]) for one in content["images"]}
        every = [one for one in content["annotations"] if not one.get("iscrowd")]
        crowds = len(content["annotations"]) - len(every)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ImageError(path.name, f"no COCO file ({_said(error)})") from None
    if crowds and not every:
        raise ImageError(
            path.name, f"all {crowds} annotations have iscrowd 1; set it to 0 if each is one object"
        )
    if crowds:
        logging.warning("%s: %d crowds are several objects each, and are passed over.", path.name, crowds)
    for at, one in enumerate(every):
        try:
            given = one["segmentation"]
            found: Outline | Runs = (
                _runs(given)
                if isinstance(given, dict)
                else tuple((_ring(np.reshape(ring, (-1, 2))),) for ring in given)
            )
            if not isinstance(given, dict) and not found:
                raise ValueError("an empty segmentation")
            objects.setdefault(one["image_id"], []).append(found)
            if one["image_id"] not in names:
                raise ValueError(f"image_id {one['image_id']} is no image of the file")
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            problems.append(f"annotation {one.get('id', at)}: {_said(error)}")
    if problems:
        raise ImageError(path.name, listed(problems))
    return {name: Annotation(tuple(objects.get(key, ())), size=sizes.get(key)) for key, name in names.items()}


def read_mat(path: Path) -> Labels:
    """`inst_map` of a MATLAB file; nothing else in it is read.

    Raises:
        ImageError: MATLAB 7.3 or no MATLAB, no matrix `inst_map` of numbers, more than 80 million pixels; numbers that are
            negative or not whole.
    """
    inside = {name: (shape, kind) for name, shape, kind in _mat(path, lambda: scipy.io.whosmat(path))}
    shape, kind = inside.get("inst_map", ((), "absent"))
    numbers = kind in ("double", "single", "logical") or kind.startswith(("int", "uint"))
    if len(shape) != 2 or not numbers or math.prod(shape) > MAX_PIXELS:
        has = ", ".join(f"{name} ({kind} {list(shape)})" for name, (shape, kind) in inside.items())
        raise ImageError(
            path.name, f"holds {has or 'nothing'}; expected a matrix inst_map of at most {MAX_PIXELS} numbers"
        )
    values = _mat(path, lambda: scipy.io.loadmat(path, variable_names=["inst_map"])["inst_map"])
    return whole_numbers(values, path.name)


def _mat(path: Path, read: Callable[[], Any]) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        return read()
    except NotImplementedError:
        raise ImageError(path.name, "a file of MATLAB 7.3; save it with -v7") from None
    except Exception as error:  # whatever SciPy's parser runs into
        raise ImageError(path.name, f"no readable MATLAB file ({_said(error)})") from None


def whole_numbers(values: np.ndarray, name: str) -> Labels:
    """Instance numbers of any type as int32.

    Raises:
        ImageError: They are negative, not whole, not finite or too large.
    """
    if not (np.isfinite(values).all() and (values == np.round(values)).all() and values.min(initial=0) >= 0):
        raise ImageError(
            name, "numbers that are negative, not whole or not finite; expected instance numbers"
        )
    if values.max(initial=0) > np.iinfo(np.int32).max:
        return np.unique(values, return_inverse=True)[1].reshape(values.shape).astype(np.int32)
    return values.astype(np.int32)


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise ImageError(path.name, f"no readable JSON ({_said(error)})") from None


def _ring(points: Sequence[Any] | np.ndarray) -> Ring:
    ring = np.asarray(points, np.float64)
    ring = ring[:, :2] if ring.ndim == 2 and ring.shape[1] >= 2 else np.empty((0, 2))
    if len(ring) < 3 or not np.isfinite(ring).all():
        raise ValueError(f"an outline of {len(ring)} vertices; expected at least 3, of finite numbers")
    return ring


def _runs(given: dict[str, Any]) -> Runs:
    height, width = map(int, given["size"])
    text = given["counts"]
    counts = np.array(_counts(text) if isinstance(text, str) else text, np.int64)
    if not 0 < height * width <= MAX_PIXELS or (counts < 0).any() or counts.sum() != height * width:
        raise ValueError(f"runs of {counts.sum()} pixels for an image of {width} x {height}")
    return Runs(counts, height, width)


def _counts(text: str) -> list[int]:
    """Numbers of 5 bits per character, lowest first; from the fourth on as differences to the last but one."""
    counts, value, bits = [], 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or bits > 60:
            raise ValueError(f"{character!r} in the text of runs")
        value |= (code & 31) << bits
        bits += 5
        if code & 32:
            continue
        value -= (1 << bits) if code & 16 else 0
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, bits = 0, 0
    return counts


def _said(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
