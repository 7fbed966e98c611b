"""Images with their nuclei, in whatever format a folder has them: one reader."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet

from scalecov_jax.imaging.annotations import (
    Annotation,
    Labels,
    is_regions,
    read_coco,
    read_geojson,
    read_mat,
    read_xml,
    whole_numbers,
)
from scalecov_jax.imaging.csv_file import absent, say
from scalecov_jax.imaging.decoding import MAX_PIXELS, SUFFIXES, decode_image, decode_mask
from scalecov_jax.imaging.folder import group_of, list_files, read_folder, with_sizes
from scalecov_jax.imaging.image_set import ImageError, ImageSet, Pixels, listed
from scalecov_jax.imaging.microns import with_mpp

PANNUKE_MPP = 0.25  # Gamper et al. 2020
_READERS: Mapping[str, Callable[[Path], Annotation | Labels]] = {
    ".mat": read_mat,
    ".geojson": read_geojson,
    ".xml": read_xml,
}
_LABEL_MAPS = ("instances", "inst_map", "inst")  # columns of parquet
_ROW_GROUP = 4 << 30
_SLIDE = re.compile(r"(TCGA-\w\w-\w{4}-\w+-\w+-\w+).*", re.IGNORECASE)


def instances(folder: str | Path) -> ImageSet:
    """Read all annotated images of a folder, at any depth.

    The format is found by what lies there, and must be one:

    - masks or label maps as image files (see `folder.read_folder`);
    - `.mat` files with inst_map, GeoJSON of QuPath or CellViT, or XML of Aperio ImageScope (MoNuSeg), of the same stem as the
      image, beside it or in another folder;
    - a COCO file of polygons or runs;
    - PanNuke: images.npy with masks.npy, or parquet with the columns image and instances (or inst_map). 0.25 um per pixel.

    Microns per pixel: a column mpp of index.csv, else what the XML tells, else the tags of TIFF files.

    Returns:
        Columns of `read_folder`, slide, and mpp where it is known; `group` is the patient as far as the table or names tell it.
        Masks are instance numbers (or the foreground, if that is what the files hold). Images without annotation have none.

    Raises:
        ValueError: Two formats (both are named), annotations of no image, and everything that is wrong with images: label maps
            of another size, outlines outside the image, files that cannot be read, mpp that cannot be.
    """
    folder = Path(folder).expanduser()
    files, _ = list_files(folder)
    by_suffix: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        by_suffix[path.suffix.casefold()].append(path)
    pairs = _array_pairs(by_suffix[".npy"])
    tables = [path for path in by_suffix[".parquet"] if _label_column(path)]
    plain = read_folder(folder) if any(by_suffix[suffix] for suffix in SUFFIXES) else None
    given = {
        "MATLAB": by_suffix[".mat"],
        "GeoJSON": by_suffix[".geojson"],
        "XML of regions": [path for path in by_suffix[".xml"] if is_regions(path)],
    }
    joined, apart = {}, []
    for kind, paths in given.items():
        found, problem = _of_images(plain, paths)
        joined |= {kind: found} if found else {}
        apart += [f"{kind}: {problem}"] if paths and not found else []
    coco = _coco(plain, by_suffix[".json"])
    kinds: dict[str, Path] = {kind: next(iter(found.values())) for kind, found in joined.items()}
    kinds |= {"COCO": coco[1]} if coco else {}
    if plain is not None and (masks := [one for one in plain.table["mask"] if one is not None]):
        kinds["masks"] = masks[0]
    kinds |= {"PanNuke arrays": pairs[0][1]} if pairs else {}
    kinds |= {"parquet": tables[0]} if tables else {}
    if len(kinds) > 1:
        named = " and ".join(f"{kind} (such as {path})" for kind, path in kinds.items())
        raise ValueError(
            f"{folder} holds annotations in {len(kinds)} formats: {named}; expected one. Move the others away."
        )
    if apart and not kinds:
        raise ValueError(f"{folder}: no annotation belongs to an image ({'; '.join(apart)}).")
    if pairs:
        return _arrays(folder, pairs)
    if tables:
        return _parquet(folder, tables)
    if plain is None:
        return read_folder(folder)  # which says what is expected
    plain = _with_slides(plain)
    found, file = coco or (next(iter(joined.values()), {}), None)
    return _annotated(plain, found, file)


@dataclass(frozen=True)
class _Drawn:
    """Images whose masks come from other files, or are drawn."""

    images: Callable[[int], Pixels]
    given: tuple[Annotation | Path | None, ...]

    def __call__(self, index: int) -> Pixels:
        """Decode an image and draw its mask.

        Raises:
            ImageError: See `annotations`.
        """
        pixels, given = self.images(index), self.given[index]
        if given is None:
            return pixels
        read = _read(given)
        return pixels._replace(
            mask=read.draw(*pixels.image.shape[:2]) if isinstance(read, Annotation) else read
        )


def _read(given: Annotation | Path) -> Annotation | Labels:
    return given if isinstance(given, Annotation) else _READERS[given.suffix.casefold()](given)


def _annotated(images: ImageSet, given: Mapping[int, Annotation | Path], file: Path | None) -> ImageSet:
    """The images with annotations at these places (of one `file`, if there is one), checked against the sizes of the images."""
    every = tuple(given.get(at) for at in range(len(images)))
    masks = [
        mask if one is None else file or one for mask, one in zip(images.table["mask"], every, strict=True)
    ]
    sized = with_sizes(
        ImageSet(images.table.assign(place=range(len(images))), _Drawn(images.decode, every), images.skipped)
    )
    problems = [skip.detail for skip in sized.skipped if skip.reason == "mask of another size"]
    told, columns = [], ["place", "name", "width", "height"]
    for at, name, width, height in sized.table[columns].itertuples(index=False):
        mpp, one = math.nan, every[at]
        try:
            read = None if one is None else _read(one)
            if isinstance(read, Annotation):
                mpp = read.mpp
                problems += [f"{name}: {problem}" for problem in read.problems(width, height)]
            elif read is not None and read.shape != (height, width):
                problems.append(
                    f"{name}: its label map has {read.shape[1]} x {read.shape[0]} pixels, the image {width} x {height}"
                )
        except ImageError as error:
            problems.append(str(error))
        told.append("" if math.isnan(mpp) else mpp)
    table = sized.table.drop(columns="place")
    table["mask"] = pd.Series([masks[at] for at in sized.table["place"]], table.index, dtype=object)
    stated = table["mpp"] if "mpp" in table else [None] * len(table)
    table["mpp"] = [other if absent(one) else one for one, other in zip(stated, told, strict=True)]
    found = ImageSet(table, sized.decode, sized.skipped)
    try:
        found = with_mpp(found)
    except ValueError as error:
        problems.append(str(error).rstrip("."))
    if problems:
        raise ValueError(f"{len(problems)} problems with annotated images: {listed(problems)}.")
    return found


def _with_slides(images: ImageSet) -> ImageSet:
    """The column slide: of the table, else from TCGA's names, else the group."""
    given = images.table["slide"] if "slide" in images.table else [None] * len(images)
    slides = [
        one or (found[1] if (found := _SLIDE.fullmatch(Path(name).stem)) else group)
        for one, name, group in zip(given, images.table["name"], images.table["group"], strict=True)
    ]
    return images.assign(slide=slides)


def _of_images(images: ImageSet | None, paths: Sequence[Path]) -> tuple[dict[int, Path], str]:
    """Annotation files by the place of their image; those in its own folder, else beside its folder, else anywhere."""
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        by_stem[path.stem.removesuffix(".ome").casefold()].append(path)
    found, used = {}, set()
    for at, image in enumerate([] if images is None else images.table["path"]):
        alike = [
            *by_stem[image.name.casefold()],
            *by_stem[image.stem.removesuffix(".ome").removesuffix("_image").casefold()],
        ]
        near = [
            [path for path in alike if path.parent == image.parent],
            [
                path
                for path in alike
                if path.parent.parent == image.parent.parent or path.parent.parent == image.parent
            ],
            alike,
        ]
        best = next(filter(None, near), [])
        if len(best) > 1:
            raise ValueError(
                f"{image.name} has {len(best)} annotations: {listed([*map(str, best)])}; expected one."
            )
        if best:
            found[at] = best[0]
            used.add(best[0])
    unused = [path.name for path in paths if path not in used]
    none = "no image" if images is None else f"{len(images)} images, such as {images.table['name'].iloc[0]}"
    problem = (
        f"{len(unused)} files of which none has the stem of an image, such as {listed(unused, 2)}; {none}"
    )
    if found and unused:
        say(f"{len(unused)} annotations belong to no image: {listed(unused, 3)}.")
    return found, problem


def _coco(images: ImageSet | None, paths: Sequence[Path]) -> tuple[dict[int, Annotation], Path] | None:
    """Annotations by the place of the image, from all COCO files."""
    places: dict[str, list[int]] = defaultdict(list)
    for at, name in enumerate([] if images is None else images.table["name"]):
        places[Path(name).name].append(at)
    found, last, problems, names = {}, None, [], 0
    for path in paths:
        if (given := read_coco(path)) is None:
            continue
        last, names = path, names + len(given)
        for name, annotation in given.items():
            parts = Path(name.replace("\\", "/")).parts
            alike = places[parts[-1]]
            if len(alike) > 1:
                assert images is not None
                alike = [
                    at for at in alike if Path(images.table["name"].iloc[at]).parts[-len(parts) :] == parts
                ]
            if len(alike) > 1 or found.keys() & {*alike}:
                problems.append(f"{path.name}: {name} names several images, or one twice")
            found |= dict.fromkeys(alike, annotation)
    if problems:
        raise ValueError(f"{listed(problems)}.")
    if last is not None and not found:
        assert images is None or len(images)
        example = "none" if images is None else images.table["name"].iloc[0]
        raise ValueError(
            f"{last}: none of its {names} images lies in the folder, whose images are such as {example}."
        )
    return (found, last) if found and last is not None else None


def _set(folder: Path, names: Sequence[str], decode: Callable[[int], Pixels]) -> ImageSet:
    groups = [group_of(Path(name)) or name for name in names]
    say(
        f"{folder}: read as PanNuke, {PANNUKE_MPP} um per pixel; where names tell no patient, each image is its own group."
    )
    masks = pd.Series([folder] * len(names), dtype=object)  # there is one for each
    table = pd.DataFrame({"name": names, "group": groups, "slide": groups, "mask": masks, "mpp": PANNUKE_MPP})
    return ImageSet(table, decode)


def _array_pairs(paths: Sequence[Path]) -> list[tuple[Path, Path]]:
    """images.npy with the masks.npy beside it, or at the same place with masks for images in its folders."""
    known, pairs = {*paths}, []
    for path in paths:
        if path.name.casefold() != "images.npy":
            continue
        twin = Path(
            *("masks" if part.casefold() == "images" else part for part in path.parent.parts), "masks.npy"
        )
        pairs += [(path, one) for one in (path.with_name("masks.npy"), twin) if one in known][:1]
    return pairs


def _arrays(folder: Path, pairs: Sequence[tuple[Path, Path]]) -> ImageSet:
    names, places, problems = [], [], []
    for images, masks in pairs:
        try:
            shapes = [_array(path).shape for path in (images, masks)]
            first, second = shapes
            if (
                len(first) != 4
                or first[3] != 3
                or second != (*first[:3], 6)
                or math.prod(first[1:3]) > MAX_PIXELS
            ):
                raise ValueError(f"arrays {[*first]} and {[*second]}; expected [N, H, W, 3] and [N, H, W, 6]")
        except (ValueError, OSError) as error:
            problems.append(f"{images.relative_to(folder)} and {masks.relative_to(folder)}: {error}")
            continue
        at = images.parent.relative_to(folder).as_posix()
        names += [f"{at}/{index}".removeprefix("./") for index in range(first[0])]
        places += [(images, masks, index) for index in range(first[0])]
    if problems:
        raise ValueError(f"{folder}: {listed(problems)}.")
    found = _set(folder, names, partial(_array_pixels, tuple(names), tuple(places)))
    height, width = _array(pairs[0][0]).shape[1:3]
    same = all(_array(images).shape[1:3] == (height, width) for images, _ in pairs)
    return found.assign(width=width, height=height) if same else found


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # whatever the parser of the header runs into
        raise ValueError(f"{path.name} is no array of numbers ({error})") from None


def _array_pixels(names: Sequence[str], places: Sequence[tuple[Path, Path, int]], index: int) -> Pixels:
    images, masks, at = places[index]
    try:
        values, channels = np.asarray(_array(images)[at]), np.asarray(_array(masks)[at])
    except (ValueError, OSError, IndexError) as error:
        raise ImageError(names[index], str(error)) from None
    if values.dtype != np.uint8 and (
        not np.isfinite(values).all() or values.min() < 0 or not 1 < values.max() <= 255
    ):
        raise ImageError(names[index], f"values from {values.min():g} to {values.max():g}; expected 0 to 255")
    labels = np.zeros(channels.shape[:2], np.int32)
    for channel in range(5):  # the last is the background
        numbers = whole_numbers(channels[..., channel], names[index])
        labels = np.where(numbers > 0, numbers + labels.max(), labels)
    return Pixels(np.round(values).astype(np.uint8), labels)


def _label_column(path: Path) -> str | None:
    try:
        columns = parquet.read_schema(path).names
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no readable parquet file ({error}).") from None
    return next((one for one in _LABEL_MAPS if one in columns), None) if "image" in columns else None


def _parquet(folder: Path, paths: Sequence[Path]) -> ImageSet:
    names, places = [], []
    for path in paths:
        with parquet.ParquetFile(path) as file:
            row = 0
            for group in range(file.num_row_groups):
                meta = file.metadata.row_group(group)
                if meta.total_byte_size > _ROW_GROUP:
                    raise ValueError(
                        f"{path}: row group {group} is of {meta.total_byte_size} bytes; write smaller ones."
                    )
                names += [
                    f"{path.relative_to(folder).with_suffix('').as_posix()}/{row + at}"
                    for at in range(meta.num_rows)
                ]
                places += [(path, group, at) for at in range(meta.num_rows)]
                row += meta.num_rows
    return _set(folder, names, partial(_row_pixels, tuple(names), tuple(places)))


@lru_cache(maxsize=2)
def _row_group(path: Path, group: int, changed: int) -> Any:
    del changed  # only tells versions of the file apart
    with parquet.ParquetFile(path) as file:
        return file.read_row_group(group, columns=["image", _label_column(path)])


def _row_pixels(names: Sequence[str], places: Sequence[tuple[Path, int, int]], index: int) -> Pixels:
    path, group, at = places[index]
    name = names[index]
    try:
        columns = [*_row_group(path, group, path.stat().st_mtime_ns).slice(at, 1).to_pylist()[0].values()]
        image, given = columns
        pixels = decode_image(_bytes(image), name)
        height, width = pixels.shape[:2]
        if isinstance(given, list):
            labels = _stacked([decode_mask(_bytes(one), name) > 0 for one in given], height, width)
        else:
            labels = decode_mask(_bytes(given), name, labels=True).astype(np.int32)
    except (ValueError, OSError, KeyError, TypeError, IndexError) as error:
        raise error if isinstance(error, ImageError) else ImageError(name, str(error)) from None
    if labels.shape != (height, width):
        raise ImageError(
            name,
            f"its label map has {labels.shape[1]} x {labels.shape[0]} pixels, the image {width} x {height}",
        )
    return Pixels(pixels, labels)


def _bytes(cell: Any) -> bytes:
    content = cell["bytes"] if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        raise ValueError(f"a cell of {type(content).__name__}; expected the bytes of an image file")
    return content


def _stacked(masks: Sequence[np.ndarray], height: int, width: int) -> Labels:
    labels = np.zeros((height, width), np.int32)
    for number, mask in enumerate(masks, start=1):
        if mask.shape != labels.shape:
            raise ValueError(
                f"the mask of object {number} has {mask.shape[1]} x {mask.shape[0]} pixels, the image {width} x {height}"
            )
        labels[mask] = number
    return labels
