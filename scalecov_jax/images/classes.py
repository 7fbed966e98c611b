"""Patches of two classes and of known patients: rendered tissue, a folder a class, or prepared patch_camelyon."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from scalecov_jax.images import tissue
from scalecov_jax.images.boxes import SUFFIXES, open_tfds
from scalecov_jax.images.example import Example, decode_image

CLASSES = ("normal", "tumour")


@dataclass(frozen=True)
class ClassImages:
    """A source of patches whose classes and patients are known before they are decoded.

    Attributes:
        class_names: Two; the second is the one that is detected.
        classes: 0 or 1, of each patch.
        groups: Patient or slide of each patch.
        read: Gives the patch with this index.
    """

    class_names: tuple[str, str]
    classes: tuple[int, ...]
    groups: tuple[str, ...]
    read: Callable[[int], Example]

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: int, /) -> Example:
        """Read one patch."""
        return self.read(range(len(self))[index])


def tissue_patches(
    patients: int, per_class: int, seed: int, *, size: int = 128, magnification: float = 20.0
) -> ClassImages:
    """Rendered patches of both kinds of tissue of each patient, so that stain and scanner tell nothing of the class.

    Args:
        patients: Number of patients.
        per_class: Patches of each kind a patient.
        seed: Same seed, same patients and patches.
        size: Height and width in pixels.
        magnification: Of the objective; a pixel is 10 / magnification um.
    """
    places = [(p, kind, i) for p in range(patients) for kind in range(2) for i in range(per_class)]

    def read(index: int) -> Example:
        patient, kind, number = places[index]
        first, second = jax.random.split(jax.random.fold_in(jax.random.key(seed), patient))
        region = jax.random.fold_in(second, kind * per_class + number)
        image, _ = tissue.render(first, region, size, magnification, CLASSES[kind])
        group = f"patient_{patient:03d}"
        name = f"{group}_{CLASSES[kind]}_{number}"
        return Example(np.asarray(image), CLASSES[kind], None, None, group, name)

    kinds = tuple(kind for _, kind, _ in places)
    return ClassImages(CLASSES, kinds, tuple(f"patient_{patient:03d}" for patient, _, _ in places), read)


def class_folders(folder: str | Path) -> ClassImages:
    """A folder with one subfolder a class, in alphabetical order; within it one folder a patient or slide, holding the images.

    An image that lies in the folder of its class itself counts as a patient of its own.

    Raises:
        ValueError: No such folder, other than two classes, or a class without images.
    """
    folder = Path(folder)
    found = sorted(path for path in folder.glob("*") if path.is_dir())
    images = {
        path.name: sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES) for path in found
    }
    empty = [name for name, paths in images.items() if not paths]
    if len(images) != 2 or empty:
        problem = "no such folder" if not folder.is_dir() else f"classes {', '.join(images) or 'none'}"
        problem += f", no image in {', '.join(empty)}" * bool(empty)
        raise ValueError(
            f"{folder}: {problem}; expected two, one a class, with images ({', '.join(SUFFIXES)}) in one folder a patient."
        )
    paths = [(kind, path) for kind, name in enumerate(images) for path in images[name]]
    first, second = images
    names = [path.relative_to(folder).as_posix() for _, path in paths]
    parts = [path.relative_to(folder).parts for _, path in paths]
    groups = tuple(part[1] if len(part) > 2 else name for part, name in zip(parts, names, strict=True))

    def read(index: int) -> Example:
        kind, path = paths[index]
        image = decode_image(path, names[index])
        return Example(image, (first, second)[kind], None, None, groups[index], names[index])

    return ClassImages((first, second), tuple(kind for kind, _ in paths), groups, read)


def camelyon_patches(data_dir: str | Path, split: str = "train") -> ClassImages:
    """`patch_camelyon` as tfds prepared it (array_record), read without TensorFlow and never downloaded.

    It names no patient, so that each patch counts as one: intervals over patients are then over patches, and too narrow.

    Args:
        data_dir: Folder of prepared datasets.
        split: As in tfds.

    Raises:
        ValueError: Not prepared, prepared in another format, or an unknown split.

    Source: https://www.tensorflow.org/datasets/catalog/patch_camelyon
    """
    records, _ = open_tfds(Path(data_dir), split, "patch_camelyon")
    kept = [(int(record["label"]), record["id"].decode()) for record in records]
    names = tuple(name for _, name in kept)

    def read(index: int) -> Example:
        image = decode_image(records[index]["image"], names[index])
        return Example(image, CLASSES[kept[index][0]], None, None, names[index], names[index])

    return ClassImages(CLASSES, tuple(kind for kind, _ in kept), names, read)


def open_classes(
    images: str, *, patients: int = 0, per_class: int = 0, seed: int = 0, size: int = 128
) -> ClassImages:
    """Open patches of two classes by name.

    Args:
        images: `tissue`, `tfds:<data_dir>` for patch_camelyon, or a folder with one folder a class.
        patients: See `tissue_patches`.
        per_class: See `tissue_patches`.
        seed: Of the tissue.
        size: Of the tissue, in pixels.
    """
    if images == "tissue":
        return tissue_patches(patients, per_class, seed, size=size)
    if images.startswith("tfds:"):
        return camelyon_patches(images.removeprefix("tfds:"))
    return class_folders(images)
