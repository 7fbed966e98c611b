"""Images with exactly one annotated object: folders in VOC layout (PASCAL VOC, ImageNet) and VOC as tfds prepared it."""

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, ParseError

import defusedxml
import defusedxml.ElementTree
import pandas as pd

from scalecov_jax.imaging.decoding import (
    SUFFIXES,
    decode_image,
    file_size,
    image_size,
    orientation,
    stored_size,
    turn_box,
)
from scalecov_jax.imaging.folder import group_of, list_files
from scalecov_jax.imaging.image_set import (
    MIN_IMAGES,
    Box,
    ImageError,
    ImageSet,
    Pixels,
    Skipped,
    count_reasons,
)
from scalecov_jax.imaging.prepared import open_tfds

IMAGE_FOLDERS = ("JPEGImages", "Images", "Data")
OTHER_CLASS = "another class"


class _Annotation(NamedTuple):
    """The one object of an image; `width` and `height` are the image's, in pixels."""

    encoded: Path | int
    box: Box
    width: int
    height: int
    name: str


class _Encoded(NamedTuple):
    """Images of a tfds data source as they are stored, or files."""

    records: Any
    places: Sequence[Path | int]
    names: Sequence[str]

    def __call__(self, index: int) -> Pixels:
        place = self.places[index]
        encoded = place if isinstance(place, Path) else self.records[place]["image"]
        return Pixels(decode_image(encoded, self.names[index]), file_bytes=file_size(encoded))


def _image_set(
    found: Sequence[_Annotation], skipped: Sequence[Skipped], image_class: str, records: Any = None
) -> ImageSet:
    found = sorted(found, key=lambda one: one.name)
    table = pd.DataFrame(
        {
            "name": [one.name for one in found],
            "group": [group_of(Path(one.name)) or one.name for one in found],
            "label": image_class,
            **{corner: [one.box[at] for one in found] for at, corner in enumerate(Box._fields)},
            "width": [one.width for one in found],
            "height": [one.height for one in found],
            **({"path": [one.encoded for one in found]} if records is None else {}),
        }
    )
    encoded = _Encoded(records, [one.encoded for one in found], [*table["name"]])
    return ImageSet(table, encoded, tuple(skipped))


def read_boxes(folder: str | Path, image_class: str) -> ImageSet:
    """Read the images that hold exactly one object altogether, of one class, from a folder in VOC layout.

    Annotations lie in `Annotations`, images in `JPEGImages`, `Images` or `Data` (ILSVRC), at any depth. An image is found by the
    file name in the XML, whatever its extension and case; where it is absent or `%s`, by the name of the XML. Boxes of the
    databases ImageNet or ILSVRC count from 0 to the width, all others from 1 to the width as in VOC; both become VOC's. Where
    EXIF turns an image, its box is turned with it if the XML gives the size of the stored pixels. Nothing is repaired: every
    annotation is used, or skipped with its reason.

    Args:
        folder: Holds `Annotations` and the images.
        image_class: Class name as it stands in the XML (a wnid for ImageNet).

    Raises:
        ValueError: No such folder, no object of the class (the nearest name is given), or fewer than 10
            usable images.

    Source: Everingham et al., The PASCAL VOC Challenge 2007 Development Kit (annotation format); Graziani et
        al., On the Scale Invariance in State of the Art CNNs Trained on ImageNet, MAKE 2021 (one box each).
    """
    folder = Path(folder).expanduser()
    annotation_folder = folder / "Annotations"
    image_folders = [folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()]
    if not annotation_folder.is_dir() or not image_folders:
        raise ValueError(
            f"{folder}: {'' if folder.is_dir() else 'no such folder; '}expected the subfolders Annotations "
            f"(XML files) and {' or '.join(IMAGE_FOLDERS)}, as in PASCAL VOC."
        )
    images = _index_images(image_folders)
    found: dict[Path, _Annotation] = {}
    skipped: list[Skipped] = []
    present: Counter[str] = Counter()
    for xml in sorted(annotation_folder.rglob("*.xml")):
        try:
            root = _parse(xml)
            objects = root.findall("object")
            labels = [_text(item, "name") for item in objects]
            present.update(labels)
            _check_single(labels, image_class)
            path, name = _find_image(root, xml, images)
            if path in found:
                raise _SkipError("image annotated twice", f"{name} has another annotation")
            width, height, exif = _check_size(root, path)
            database = root.findtext("source/database", "").casefold()
            first = 0 if "imagenet" in database or "ilsvrc" in database else 1
            box = turn_box(_check_box(_corners(objects[0]), width, height, first), width, height, exif)
            width, height = image_size(path, name)
            found[path] = _Annotation(path, box, width, height, name)
        except _SkipError as skip:
            skipped.append(Skipped(xml.relative_to(annotation_folder).as_posix(), *skip.args))
    _check_enough(len(found), skipped, image_class, present, str(folder))
    return _image_set([*found.values()], skipped, image_class)


def tfds_boxes(data_dir: str | Path, split: str, image_class: str, name: str = "voc/2007") -> ImageSet:
    """Read the images that hold exactly one object, of one class, from a prepared tfds VOC.

    Reads array_record files through `as_data_source`, without TensorFlow; never downloads. VOC in tfds holds
    VOC's own 1-based corners divided by the image size, so multiplying gives them back (rounded to a
    thousandth of a pixel, which removes the rounding of float32).

    Args:
        data_dir: Folder of prepared datasets; `data_dir/name/VERSION` is read, the newest version.
        split: As in tfds: `train`, `test[:50%]`.
        image_class: Class name as tfds spells it.
        name: Dataset with its configuration.

    Raises:
        ValueError: Not prepared, prepared in another format, an unknown split, no object of the class, or
            fewer than 10 usable images.

    Source: https://www.tensorflow.org/datasets/catalog/voc
    """
    data_dir = Path(data_dir).expanduser()
    records, features = open_tfds(data_dir, split, name)
    names = features["objects"]["label"].names
    found: list[_Annotation] = []
    skipped: list[Skipped] = []
    present: Counter[str] = Counter()
    for index, record in enumerate(records):
        image_name = record["image/filename"].decode()
        try:
            labels = [names[label] for label in record["objects"]["label"]]
            present.update(labels)
            _check_single(labels, image_class)
            width, height = _header_size(record["image"], image_name)
            y_min, x_min, y_max, x_max = (float(value) for value in record["objects"]["bbox"][0])
            corners = (x_min * width, y_min * height, x_max * width, y_max * height)
            box = _check_box(Box(*(round(value, 3) for value in corners)), width, height, first=1)
            found.append(_Annotation(index, box, width, height, image_name))
        except _SkipError as skip:
            skipped.append(Skipped(image_name, *skip.args))
    _check_enough(len(found), skipped, image_class, present, f"{data_dir / name}, split {split}")
    return _image_set(found, skipped, image_class, records)


class _SkipError(Exception):
    """Leaves one annotation out; holds reason and detail."""


def _index_images(folders: list[Path]) -> dict[str, list[tuple[Path, str]]]:
    """Images by file name, with and without extension and in any case: path and the name to show."""
    images = defaultdict(list)
    for folder in {folder.resolve(): folder for folder in folders}.values():  # one may be a link to another
        for path in list_files(folder)[0]:
            if path.suffix.casefold() in SUFFIXES:
                for key in {_plain(path.name), _plain(path.name).casefold(), _stem(path.name)}:
                    images[key].append((path, path.relative_to(folder).as_posix()))
    return images


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _stem(name: str) -> str:
    name = _plain(name).casefold()
    return name.rpartition(".")[0] if Path(name).suffix in SUFFIXES else name


def _parse(xml: Path) -> Element:
    try:
        root = defusedxml.ElementTree.fromstring(xml.read_bytes(), forbid_dtd=True)
    except defusedxml.DefusedXmlException as error:
        raise _SkipError("forbidden XML", f"a document type or entity ({type(error).__name__})") from None
    except (ParseError, ValueError, LookupError, OSError) as error:
        raise _SkipError("malformed XML", str(error)) from None
    if root.tag != "annotation":
        raise _SkipError("malformed XML", f"the root is <{root.tag}>, expected <annotation>")
    return root


def _text(parent: Element, tag: str) -> str:
    text = parent.findtext(tag, "").strip()
    if not text:
        raise _SkipError("missing field", f"<{parent.tag}> has no <{tag}>")
    return text


def _number(parent: Element, tag: str) -> float:
    text = _text(parent, tag)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _SkipError("not a number", f"<{tag}> is {text!r}")
    return value


def _corners(item: Element) -> Box:
    bounds = item.find("bndbox")
    if bounds is None:
        raise _SkipError("missing field", "<object> has no <bndbox>")
    return Box(*(_number(bounds, tag) for tag in ("xmin", "ymin", "xmax", "ymax")))


def _check_single(labels: list[str], image_class: str) -> None:
    if not labels:
        raise _SkipError("no object", "the annotation lists no object")
    if image_class not in labels:
        raise _SkipError(OTHER_CLASS, ", ".join(sorted(set(labels))))
    if len(labels) > 1:
        raise _SkipError("several objects", f"{len(labels)} objects: {', '.join(sorted(set(labels)))}")


def _find_image(root: Element, xml: Path, images: dict[str, list[tuple[Path, str]]]) -> tuple[Path, str]:
    given = root.findtext("filename", "").strip()
    # Only the last part: an annotation must not reach files outside the image folder.
    wanted = _plain(xml.stem if given in ("", "%s") else PureWindowsPath(given).name)
    # The very name first; then in any case; then whatever the extension.
    keys = (wanted, wanted.casefold(), _stem(wanted))
    found = next((images[key] for key in keys if key in images), [])
    if len(found) > 1:
        found = [pair for pair in found if pair[0].parent.name == xml.parent.name] or found
    if not found:
        raise _SkipError("missing image file", wanted)
    if len(found) > 1:
        raise _SkipError("several image files", f"{wanted}: {', '.join(name for _, name in found)}")
    return found[0]


def _header_size(source: Path | bytes, name: str) -> tuple[int, int]:
    try:
        return image_size(source, name)
    except ImageError as error:
        raise _SkipError("unreadable image", str(error)) from None


def _check_size(root: Element, path: Path) -> tuple[int, int, int]:
    """Width and height that the XML speaks of, and the EXIF orientation that is still to be applied to its box.

    It must not contradict the image (0 or absent says nothing), as it is stored or as it is shown.
    """
    shown, size = _header_size(path, path.name), root.find("size")
    given = [
        0 if size is None or not size.findtext(tag, "").strip() else _number(size, tag)
        for tag in ("width", "height")
    ]
    if all(one in (0, other) for one, other in zip(given, shown, strict=True)):
        return *shown, 1
    stored = stored_size(path, path.name)
    if all(one in (0, other) for one, other in zip(given, stored, strict=True)):
        return *stored, orientation(path, path.name)
    raise _SkipError(
        "size differs", f"<size> is {given[0]:g} x {given[1]:g}, the image is {shown[0]} x {shown[1]}"
    )


def _check_box(box: Box, width: int, height: int, first: int) -> Box:
    """Check corners that count from `first` (0: edges, 1: inclusive pixels); return them as VOC's."""
    corners = ", ".join(f"{tag}={value:g}" for tag, value in box._asdict().items())
    given = f"{corners} in {width} x {height} pixels"
    if not all(math.isfinite(value) for value in box):
        raise _SkipError("not a number", given)
    if box.x_max < box.x_min or box.y_max < box.y_min:
        raise _SkipError("inverted box", given)
    # Equal corners are a slip of the mouse, though one pixel wide where corners are inclusive.
    if box.x_max == box.x_min or box.y_max == box.y_min:
        raise _SkipError("zero-area box", given)
    if min(box.x_min, box.y_min) < first or box.x_max > width or box.y_max > height:
        raise _SkipError("box outside the image", given)
    return box._replace(x_min=box.x_min + 1 - first, y_min=box.y_min + 1 - first)


def _check_enough(
    usable: int, skipped: list[Skipped], image_class: str, present: Counter[str], where: str
) -> None:
    reasons = f"Skipped: {_listed(Counter(count_reasons(skipped)))}"
    # The first bad annotations in full: what is merely another class or a crowd needs no mending.
    bad = [skip for skip in skipped if skip.reason not in (OTHER_CLASS, "several objects")]
    if bad:
        reasons += f" ({'; '.join(f'{skip.name}: {skip.reason}: {skip.detail}' for skip in bad[:3])})"
    if image_class not in present:
        spelt = {name.casefold(): name for name in present}
        nearest = get_close_matches(image_class.casefold(), spelt, n=1)
        parted = (name for name in present if "," in name and image_class in map(str.strip, name.split(",")))
        whole = next(parted, "")
        comma = f" The comma in {whole!r} parts it; give it in Python, as ({whole!r},)." * bool(whole)
        raise ValueError(
            f"{where}: no object of class {image_class!r}"
            f"{f'; did you mean {spelt[nearest[0]]!r}?' if nearest else '.'} "
            f"Objects present: {_listed(present)}. {reasons}.{comma}"
        )
    if usable < MIN_IMAGES:
        raise ValueError(
            f"{where}: {usable} usable images with exactly one object, a {image_class!r}; at least "
            f"{MIN_IMAGES} are needed. {reasons}. Add images, correct the annotations, or choose another class "
            f"(objects present: {_listed(present)})."
        )


def _listed(counts: Counter[str], most: int = 30) -> str:
    listed = ", ".join(f"{name} {count}" for name, count in counts.most_common(most)) or "none"
    return listed + (f" and {len(counts) - most} more" if len(counts) > most else "")
