"""A folder of images as researchers have them: at any depth, with masks beside them, a table, or a subfolder per class."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from scalecov_jax.imaging.csv_file import (
    absent,
    find_column,
    join,
    name_column,
    number,
    read_csv,
    same_file,
    say,
)
from scalecov_jax.imaging.decoding import (
    SUFFIXES,
    decode_image,
    decode_mask,
    file_size,
    image_size,
    mask_size,
    orientation,
    stored_size,
)
from scalecov_jax.imaging.image_set import (
    MIN_IMAGES,
    ImageError,
    ImageSet,
    Pixels,
    Skipped,
    count_reasons,
    listed,
)

INDEX = "index.csv"
# What a table may say of an image, by the names of its column.
COLUMNS = {
    "mask": ("mask",),
    "labels": ("labels",),
    "group": ("group", "patient", "patient_id", "slide", "case"),
    "label": ("class_index", "label", "class"),
    "slide": ("slide", "slide_id"),
    "magnification": ("magnification",),
    "mpp": ("mpp", "microns_per_pixel", "mpp_x"),
    "grade": (
        "level", "grade", "diagnosis", "retinopathy grade", "adjudicated_dr_grade", "dr_grade", "diabetic_retinopathy",
    ),
    "side": ("side", "eye", "laterality"),
}  # fmt: skip
_ANNOTATION = re.compile(r"(?P<stem>.+?)[_-](?P<kind>mask|masks|labels?|labelled|instances)", re.IGNORECASE)
_IMAGE = re.compile(r"(?P<stem>.+)_(image|original)", re.IGNORECASE)
_MASK_FOLDERS = {"mask": "mask", "masks": "mask", "label": "labels", "labels": "labels"}
# Whose image it is, by names that are in use.
_PATIENTS = (
    re.compile(r"(?P<group>TCGA-\w\w-\w{4})(-.*)?", re.IGNORECASE),
    re.compile(r"(?P<group>\d+)_\d+_\w+_original"),  # patient_size_region, as in the Janowczyk set
    re.compile(r"(?P<group>.+?)[_-](left|right|od|os)([_-].*)?", re.IGNORECASE),
    re.compile(r"(?P<group>.+?)[ _-]*\[.*\bx=\d.*\]"),  # a tile as QuPath writes it
    re.compile(r"(?P<group>.+?)_x\d+_y\d+", re.IGNORECASE),
)
_SIDES = {"left": "left", "right": "right", "os": "left", "od": "right", "l": "left", "r": "right"}
_SIDE = re.compile(r".+[_-](?P<side>left|right|od|os)([_-].*)?", re.IGNORECASE)


class Files(NamedTuple):
    """Images as files, and the mask of each where there is one; `labels` says that a mask holds instance numbers."""

    images: tuple[Path, ...]
    masks: tuple[Path | None, ...]
    labels: tuple[bool, ...]

    def __call__(self, index: int) -> Pixels:
        """Decode one image and its mask.

        Raises:
            ImageError: One of them cannot be decoded, or the mask has another size.
        """
        path, at = self.images[index], self.masks[index]
        image, mask = decode_image(path, path.name), None
        if at is not None:
            mask = decode_mask(at, at.name, labels=self.labels[index])
            if mask.shape != image.shape[:2] and mask.shape == stored_size(path, path.name)[::-1]:
                mask = turned(mask, orientation(path, path.name))
            if mask.shape != image.shape[:2]:
                raise ImageError(
                    path.name,
                    f"its mask {at.name} has {mask.shape[1]} x {mask.shape[0]} pixels, the image {image.shape[1]} x "
                    f"{image.shape[0]}; expected the same",
                )
        return Pixels(image, mask, file_size(path))


def turned(mask: np.ndarray, exif: int) -> np.ndarray:
    """A mask drawn on stored pixels, turned as the EXIF orientation of its image says; see `decoding.turn_box`."""
    mask = mask.T if exif in (5, 6, 7, 8) else mask
    mask = mask[:, ::-1] if exif in (2, 3, 6, 7) else mask
    return mask[::-1] if exif in (3, 4, 7, 8) else mask


def read_folder(folder: str | Path, *, needs: str = "") -> ImageSet:
    """All images of a folder, at any depth, in the order of their names, and what its files and its table say of them.

    Names are paths in the folder. An image `x.png` or `x_image.png` has the mask `x_mask.*` or `x_labels.*` beside it (also
    with -), or a file of its stem in a folder masks/ or labels/ beside its own (images/x.png, masks/x.png). Hidden files are
    passed over; links to folders are followed.

    The table is index.csv in the folder, or in the one around it if it names images of this folder; where it `needs` something,
    the one CSV file that has it. Its lines find their images as in `csv_file.join`; see `COLUMNS` for what it may say. A column
    mask or labels names files relative to the table, and these are no images then. Where neither it nor the name of a file tells
    the patient or slide, an image is a group of its own.

    Args:
        folder: Where the files are.
        needs: A key of `COLUMNS` that the table must have; images for which it says nothing are skipped.

    Returns:
        Columns name, group, path, mask (a path or None), and those of `COLUMNS` that the table has, as text. What the table names
        but the folder does not hold is skipped with its reason.

    Raises:
        ValueError: No such folder, no image in it, a table that cannot be read or names masks that are not there or lie outside:
            all problems of the table at once.
    """
    folder = Path(folder).expanduser()
    files, skipped = list_files(folder)
    images = [path for path in files if path.suffix.casefold() in SUFFIXES]
    table = _open_table(folder, needs)
    listed_masks, masks_of_table = _listed_masks(table) if table is not None else ({}, set())
    masks, masks_by_name = _masks_beside(files, images)
    images = [path for path in images if path.resolve() not in masks_of_table | masks_by_name]
    if not images:
        problem = "no image" if folder.is_dir() else "no such folder"
        raise ValueError(
            f"{folder}: {problem}; expected a folder of images at any depth ({', '.join(sorted(SUFFIXES))}), one in VOC layout, "
            "or scenes."
        )
    names = [path.relative_to(folder).as_posix() for path in images]
    rows = pd.DataFrame({"name": names, "path": images})
    lines, given = pd.Series(dtype=int), {}
    if table is not None:
        lines = join(table, names)
        for column, known in COLUMNS.items():
            of = find_column(table, *known)
            if of is not None and column not in ("mask", "labels"):
                rows[column] = pd.Series({at: table.at[line, of] for at, line in lines.items()}, dtype=object)
        # A table that names masks speaks for all images; what lies beside others is then chance.
        if listed_masks:
            masks = {images[at]: listed_masks[line] for at, line in lines.items() if line in listed_masks}  # pyright: ignore
        if Path(table.attrs["path"]).parent == folder:
            unused = table.loc[~table.index.isin([*lines]), name_column(table)]
            skipped += [
                Skipped(name, "no such image file", f"line {line}") for line, name in unused.items() if name
            ]
        given = {at: one for at, one in rows.get("group", pd.Series()).items() if not absent(one)}
    guessed = [group_of(path) for path in images]
    if (count := len({*guessed} - {""})) and not given:
        say(
            f"{folder}: {count} patients or slides are taken from the names of the files, such as {max(guessed)}."
        )
    rows["group"] = [
        given.get(at, guess or name) for at, (guess, name) in enumerate(zip(guessed, names, strict=True))
    ]
    kinds, paths = zip(*(masks.get(path, ("", None)) for path in images), strict=True)
    rows["mask"] = pd.Series(paths, dtype=object)
    decode = Files(tuple(images), paths, tuple(kind == "labels" for kind in kinds))
    found = ImageSet(rows, decode, tuple(skipped))
    if not needs:
        return found
    known = np.array([not absent(one) for one in rows[needs]])
    if not known.any():
        raise ValueError(f"{folder}: no image has a {needs} in the table.")
    named = rows.index.isin(lines.index)
    return found.where(
        known, f"no {needs}", ["the cell is empty" if one else "no line names it" for one in named]
    )


def with_sizes(images: ImageSet) -> ImageSet:
    """The images with width and height, read from their headers; those without a readable header, or whose mask has another size,
    are skipped.
    """
    sizes, problems, reasons = [], [], []
    for name, path, mask in images.table[["name", "path", "mask"]].itertuples(index=False):
        size, problem = (1, 1), ("", "")
        try:
            size = image_size(path, name)
            if mask is not None:
                other = mask_size(mask)
                if other not in (size, stored_size(path, name)):
                    problem = (
                        "mask of another size",
                        f"{mask.name}: {other}, the image is {size} (width, height)",
                    )
        except ImageError as error:
            problem = ("unreadable image", str(error))
        sizes.append(size)
        reasons.append(problem[0])
        problems.append(problem[1])
    width, height = np.array(sizes).T
    images = images.assign(width=width, height=height)
    for reason in dict.fromkeys(filter(None, reasons)):
        bad = np.array([one == reason for one in reasons], bool)
        images = images.where(~bad, reason, problems)
        reasons, problems = (
            [one for one, out in zip(texts, bad, strict=True) if not out] for texts in (reasons, problems)
        )
    return images


def annotated(images: ImageSet, magnification: float = 0.0, *, needed: bool = True) -> ImageSet:
    """Images with masks of nuclei: those with a mask of their size, and their magnification as a number.

    Args:
        images: See `read_folder`.
        magnification: Of the images whose magnification the table does not state; else 10 over their microns per pixel.
        needed: Whether images of unknown magnification are skipped.

    Raises:
        ValueError: Nothing is usable; says why.
    """
    if magnification < 0 or not np.isfinite(magnification):
        raise ValueError(f"The magnification is {magnification}; expected such as 40, or 0 if it is unknown.")
    given = images.table.get("magnification", pd.Series([""] * len(images)))
    stated = np.array([_magnification(text) or magnification for text in given.fillna("")])
    if "mpp" in images.table:
        stated = np.where(stated > 0, stated, np.nan_to_num(10 / images.column("mpp").astype(float)))
    images = images.assign(magnification=stated)
    has_mask = np.array([one is not None for one in images.table["mask"]])
    images = images.where(has_mask, "no annotation", ["neither a mask nor labels"] * len(images))
    if needed:
        images = images.where(images.column("magnification") > 0, "unknown magnification")
    images = with_sizes(images) if len(images) and "path" in images.table and not images.sized else images
    if not len(images):
        reasons = ", ".join(f"{reason} {count}" for reason, count in count_reasons(images.skipped).items())
        raise ValueError(
            f"No usable annotated image ({reasons}; {images.skipped[0].detail}). Images need a mask of the same size "
            "beside them, such as x_mask.png or x_labels.png, or in a column of index.csv, and a magnification (index.csv or "
            "config.magnification)."
        )
    return images


def class_folders(images: ImageSet) -> ImageSet:
    """Images in one subfolder per class, and within it perhaps one per patient or slide: columns label and group.

    Raises:
        ValueError: An image beside the subfolders, or other than two of them with images.
    """
    parts = [name.split("/") for name in images.table["name"]]
    classes = sorted({part[0] for part in parts if len(part) > 1})
    if len(classes) != 2 or any(len(part) == 1 for part in parts):
        raise ValueError(
            f"The images lie in {len(classes)} subfolders ({listed(classes) or 'none'}); expected two, one per class, each with "
            "one folder per patient."
        )
    groups = [
        part[1] if len(part) > 2 else group for part, group in zip(parts, images.table["group"], strict=True)
    ]
    return images.assign(label=[part[0] for part in parts], group=groups)


def enough(images: ImageSet, where: str) -> ImageSet:
    """The images.

    Raises:
        ValueError: Fewer than 10; says what was left out.
    """
    if len(images) < MIN_IMAGES:
        left = ", ".join(f"{reason} {count}" for reason, count in count_reasons(images.skipped).items())
        raise ValueError(
            f"{where}: {len(images)} usable images; at least {MIN_IMAGES} are needed (left out: {left or 'none'})."
        )
    return images


def list_files(folder: Path) -> tuple[list[Path], list[Skipped]]:
    """Files of a folder at any depth in the order of their paths, without hidden ones, and what cannot be followed or named."""
    files, skipped = [], []
    for path in _walk(folder, (os.path.realpath(folder),), skipped):
        try:
            str(path).encode()
        except UnicodeEncodeError:
            skipped.append(
                Skipped(os.fsencode(path).decode("utf-8", "replace"), "name that is not UTF-8", str(folder))
            )
        else:
            files.append(path)
    return sorted(files), skipped


def _walk(folder: Path, above: Sequence[str], skipped: list[Skipped]) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except NotADirectoryError:
        return
    except OSError as error:
        if len(above) > 1:
            skipped.append(Skipped(folder.name, "unreadable folder", str(error)))
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith((".", "__MACOSX")):
            continue
        if not entry.is_dir():
            if entry.is_file():
                yield path
        elif (real := os.path.realpath(path)) in above:
            skipped.append(Skipped(str(path), "link to a folder around it", real))
        else:
            yield from _walk(path, (*above, real), skipped)


def group_of(path: Path) -> str:
    """Patient or slide, as far as the name of a file tells it; else empty."""
    stem = path.stem.removesuffix("_image")
    return next((found["group"] for pattern in _PATIENTS if (found := pattern.fullmatch(stem))), "")


def side_of(text: str) -> str:
    """Left or right, from a word or the name of a file; else empty."""
    found = _SIDE.fullmatch(Path(text).stem)
    return _SIDES.get((found["side"] if found else text).strip().casefold(), "")


def _open_table(folder: Path, needs: str) -> pd.DataFrame | None:
    """The table of a folder: index.csv, or the one CSV file that has what is needed."""
    if (folder / INDEX).is_file():
        paths = [folder / INDEX]
    else:
        paths = sorted(
            path for path in folder.glob("*") if path.suffix.casefold() == ".csv" and path.is_file()
        )
    around = folder.parent / INDEX
    if not paths and not needs and around.is_file():
        table = read_csv(around)
        column = find_column(table, "file", "image")
        inside = (
            []
            if column is None
            else [*table[column].str.replace("\\", "/").str.startswith(f"{folder.name}/")]
        )
        return table if any(inside) else None
    tables = [read_csv(path) for path in paths]
    if needs:
        fit = [table for table in tables if find_column(table, *COLUMNS[needs])]
        if len(fit) != 1:
            problem = (
                f"{len(fit)} of {len(paths)} CSV files have a column of a {needs}" if paths else "no CSV file"
            )
            if not folder.is_dir():
                problem = "no such folder"
            have = "; ".join(
                f"{path.name}: {', '.join(filter(None, table.columns))}"
                for path, table in zip(paths, tables, strict=True)
            )
            raise ValueError(
                f"{folder}: {problem}{f' ({have})' * bool(have)}; expected one, with a column {' or '.join(COLUMNS[needs])} and "
                f"one that names the images; call it {INDEX} to choose it."
            )
        return fit[0]
    return tables[0] if [path.name for path in paths] == [INDEX] else None


_Masks = dict[Any, tuple[str, Path]]


def _listed_masks(table: pd.DataFrame) -> tuple[_Masks, set[Path]]:
    """Kind and file of the mask by line of the table, where labels go before masks; and all files that are masks."""
    at = Path(table.attrs["path"]).parent
    found, every, problems, names = {}, set(), [], name_column(table)
    for kind in ("mask", "labels"):
        column = find_column(table, *COLUMNS[kind])
        for line, text in table[column].items() if column is not None else ():
            if not text:
                continue
            path = at / text.replace("\\", "/")
            if same_file(text, table.at[line, names]):  # pyright: ignore[reportArgumentType]
                problems.append(f"line {line}: {text} is its own mask")
            elif not path.resolve().is_relative_to(at.resolve()):
                problems.append(f"line {line}: {text} lies outside")
            elif not path.is_file():
                problems.append(f"line {line}: no file {text}")
            else:
                found[line] = (kind, path.resolve())
                every.add(path.resolve())
    if problems:
        raise ValueError(f"{table.attrs['path']}: {listed(problems)}.")
    return found, every


def _masks_beside(files: Sequence[Path], images: Sequence[Path]) -> tuple[_Masks, set[Path]]:
    """Likewise by image, from the names of files and folders."""
    by_stem: dict[tuple[Path, str], tuple[Path, ...]] = {}
    for path in images:
        pair = _IMAGE.fullmatch(path.stem)
        for stem in {path.stem, pair["stem"] if pair else path.stem}:
            key = (path.parent, stem.casefold())
            by_stem[key] = (*by_stem.get(key, ()), path)
    found, every = {}, set()
    for path in files:
        if path.suffix.casefold() not in (*SUFFIXES, ".npy"):
            continue
        named, kind, of = _ANNOTATION.fullmatch(path.stem.removesuffix(".ome")), "", ()
        if named:
            kind = "mask" if named["kind"].casefold().startswith("mask") else "labels"
            of = by_stem.get((path.parent, named["stem"].casefold()), ())
        elif path.parent.name.casefold() in _MASK_FOLDERS:
            kind = _MASK_FOLDERS[path.parent.name.casefold()]
            around = path.parent.parent
            of = next(
                (
                    by_stem[key]
                    for key in ((around / "images", path.stem.casefold()), (around, path.stem.casefold()))
                    if key in by_stem
                ),
                (),
            )
        for image in of:
            if image != path:
                every.add(path.resolve())
                if image not in found or kind == "labels":
                    found[image] = (kind, path)
    return found, every


def _magnification(text: object) -> float:
    """40x, 40X or 40; 0 for anything that states none."""
    try:
        return float(text) if isinstance(text, float) else number(re.sub(r"\s*[xX]$", "", str(text).strip()))
    except ValueError:
        return 0.0
