"""Images with exactly one annotated object: folders in VOC layout (VOC, ImageNet) and prepared tfds."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, ParseError

import defusedxml
import defusedxml.ElementTree
import numpy as np

from scalecov_jax.images.example import (
    MIN_IMAGES,
    Box,
    Example,
    ImageError,
    Skipped,
    count_reasons,
    decode_image,
    file_size,
    image_size,
)

IMAGE_FOLDERS = ("JPEGImages", "Images")
SUFFIXES = (".jpg", ".jpeg", ".png")
OTHER_CLASS = "another class"


class Annotation(NamedTuple):
    """The one object of an image; `width` and `height` are the image's, in pixels; `path` is None in tfds."""

    path: Path | None
    box: Box
    width: int
    height: int
    label: str
    name: str
    group: str


@dataclass(frozen=True)
class BoxImages:
    """A sequence of examples whose pixels are decoded when an item is read.

    Attributes:
        annotations: One an example, sorted by name.
        skipped: Every other annotation that was found, with the reason.
        encoded: Gives the path or the bytes of the image with this index.
    """

    annotations: tuple[Annotation, ...]
    skipped: tuple[Skipped, ...]
    encoded: Callable[[int], Path | bytes]

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int, /) -> Example:
        """Decode one image.

        Raises:
            ImageError: It cannot be decoded.
        """
        encoded = self.encoded(index)
        image = decode_image(encoded, self.annotations[index].name)
        return self.outline(index)._replace(image=image, file_bytes=file_size(encoded))

    def outline(self, index: int, /) -> Example:
        """What is known of an image without decoding it; `image` has its size and is black."""
        _, box, width, height, label, name, group = self.annotations[index]
        return Example(np.broadcast_to(np.uint8(0), (height, width, 3)), label, box, None, group, name)


def read_boxes(folder: str | Path, image_class: str) -> BoxImages:
    """Read the images that hold exactly one object altogether, of one class, from a folder in VOC layout.

    Annotations lie in `Annotations`, images in `JPEGImages` or `Images`, both flat or in subfolders (one a
    synset). The file name in the XML may lack its extension; where it is absent or `%s`, the name of the XML
    counts. Boxes whose database is ImageNet or ILSVRC count from 0 to the width, all others from 1 to the
    width as in VOC; both become VOC's. Nothing is repaired: every annotation is used, or skipped with its
    reason.

    Args:
        folder: Holds `Annotations` and the images.
        image_class: Class name as it stands in the XML (a wnid for ImageNet).

    Raises:
        ValueError: No such folder, no object of the class (the nearest name is given), or fewer than 10
            usable images.

    Source: Everingham et al., The PASCAL VOC Challenge 2007 Development Kit (annotation format); Graziani et
        al., On the Scale Invariance in State of the Art CNNs Trained on ImageNet, MAKE 2021 (one box each).
    """
    folder = Path(folder)
    annotation_folder = folder / "Annotations"
    image_folders = [folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()]
    if not annotation_folder.is_dir() or not image_folders:
        raise ValueError(
            f"{folder}: {'' if folder.is_dir() else 'no such folder; '}expected the subfolders Annotations "
            f"(XML files) and {' or '.join(IMAGE_FOLDERS)}, as in PASCAL VOC."
        )
    images = _index_images(image_folders)
    found: dict[Path, Annotation] = {}
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
            width, height = _check_size(root, path)
            database = root.findtext("source/database", "").casefold()
            first = 0 if "imagenet" in database or "ilsvrc" in database else 1
            box = _check_box(_corners(objects[0]), width, height, first)
            found[path] = Annotation(path, box, width, height, image_class, name, group=name)
        except _SkipError as skip:
            skipped.append(Skipped(xml.relative_to(annotation_folder).as_posix(), *skip.args))
    _check_enough(len(found), skipped, image_class, present, str(folder))
    ordered = sorted(found.items(), key=lambda item: item[1].name)
    return BoxImages(
        tuple(item[1] for item in ordered), tuple(skipped), partial(getitem, [path for path, _ in ordered])
    )


def tfds_boxes(data_dir: str | Path, split: str, image_class: str, name: str = "voc/2007") -> BoxImages:
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
    records, features = open_tfds(Path(data_dir), split, name)
    names = features["objects"]["label"].names
    found: list[tuple[int, Annotation]] = []
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
            annotation = Annotation(None, box, width, height, image_class, image_name, group=image_name)
            found.append((index, annotation))
        except _SkipError as skip:
            skipped.append(Skipped(image_name, *skip.args))
    _check_enough(len(found), skipped, image_class, present, f"{Path(data_dir) / name}, split {split}")
    found.sort(key=lambda item: item[1].name)
    annotations = tuple(annotation for _, annotation in found)
    return BoxImages(annotations, tuple(skipped), _Encoded(records, [index for index, _ in found]))


class _Encoded(NamedTuple):
    """Images of a tfds data source as they are stored."""

    records: Any
    indices: list[int]

    def __call__(self, index: int) -> bytes:
        return self.records[self.indices[index]]["image"]


class _SkipError(Exception):
    """Leaves one annotation out; holds reason and detail."""


def _index_images(folders: list[Path]) -> dict[str, list[tuple[Path, str]]]:
    """Images by file name, with and without extension: path and the name to show."""
    images = defaultdict(list)
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                for key in (path.name, path.stem):
                    images[key].append((path, path.relative_to(folder).as_posix()))
    return images


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
    wanted = xml.stem if given in ("", "%s") else Path(given.replace("\\", "/")).name
    found = images.get(wanted, [])
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


def _check_size(root: Element, path: Path) -> tuple[int, int]:
    """Width and height of the image file, which the XML must not contradict (0 or absent says nothing)."""
    actual = _header_size(path, path.name)
    size = root.find("size")
    for tag, expected in zip(("width", "height"), actual, strict=True):
        given = 0 if size is None or not size.findtext(tag, "").strip() else _number(size, tag)
        if given not in (0, expected):
            raise _SkipError("size differs", f"<{tag}> is {given:g}, the image is {actual[0]} x {actual[1]}")
    return actual


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
        raise ValueError(
            f"{where}: no object of class {image_class!r}"
            f"{f'; did you mean {spelt[nearest[0]]!r}?' if nearest else '.'} "
            f"Objects present: {_listed(present)}. {reasons}."
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


def open_tfds(data_dir: Path, split: str, name: str) -> tuple[Any, Any]:
    """Records of a split, images left encoded, and the features of the dataset."""
    import tensorflow_datasets as tfds

    prepare = (
        "Nothing is downloaded here; prepare it once where TensorFlow is installed: "
        f"tfds.builder({name!r}, data_dir={str(data_dir)!r}, file_format='array_record')"
        ".download_and_prepare()"
    )
    # The whole name must match: an interrupted preparation leaves 5.0.0.incomplete... behind.
    folders = [path.parent for path in (data_dir / name).glob("*/dataset_info.json")]
    versions = [path for path in folders if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    if not versions:
        raise ValueError(f"{data_dir / name}: no prepared dataset. {prepare}.")
    builder = tfds.builder_from_directory(max(versions, key=lambda path: [*map(int, path.name.split("."))]))
    try:
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})  # pyright: ignore[reportCallIssue]
    except NotImplementedError:
        problem = "prepared in another format than array_record; prepare it so in another data_dir"
    except (KeyError, ValueError) as error:
        problem = f"cannot read split {split!r} ({error}); splits: {', '.join(builder.info.splits)}"
    else:
        return records, builder.info.features
    raise ValueError(f"{builder.data_path}: {problem}.")
