"""A source of images by name: a folder in VOC layout, prepared tfds, an annotated folder, scenes, or retinas."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from scalecov_jax.images import retina, scenes
from scalecov_jax.images.annotated import MaskedImages, read_annotated
from scalecov_jax.images.boxes import BoxImages, read_boxes, tfds_boxes
from scalecov_jax.images.example import MIN_IMAGES, Skipped, Source

SCENES = "scenes"
RETINA = "retina"


def open_source(
    images: str, image_class: str, *, count: int = 0, seed: int = 0, size: int = 128
) -> tuple[Source, tuple[Skipped, ...]]:
    """Open the images of one class: those that hold exactly one object, or all of an annotated folder.

    Args:
        images: `scenes`, `retina`, `tfds:<data_dir>` (VOC 2007, prepared), a folder in VOC layout, or `annotated:<folder>` of
            images with masks or labels (see `annotated.read_annotated`), which have no classes.
        image_class: Class name, such as car; for scenes such as striped_disc; for annotated folders and retinas only a name.
        count: Number of scenes or retinas; folders are read whole.
        seed: Of what is rendered.
        size: Height and width of what is rendered, in pixels.

    Returns:
        The source, and what was left out with the reasons.

    Raises:
        ValueError: See `read_boxes`, `tfds_boxes`, `read_annotated` and `scenes.examples`; fewer than 10 annotated images.
    """
    if images == SCENES:
        return scenes.examples(image_class, count, seed, size), ()
    if images == RETINA:
        return retina.examples(count, seed, size), ()
    if images.startswith("annotated:"):
        # The magnification of concept measures is that of the image, whatever it is.
        folder = read_annotated(images.removeprefix("annotated:"), magnification=1.0)
        if len(folder) < MIN_IMAGES:
            raise ValueError(
                f"{images}: {len(folder)} usable annotated images; at least {MIN_IMAGES} are needed."
            )
        return MaskedImages(folder), folder.skipped
    if images.startswith("tfds:"):
        source = tfds_boxes(Path(images.removeprefix("tfds:")), "train+validation", image_class)
    else:
        source = read_boxes(images, image_class)
    return source, source.skipped


def regroup(source: Source, group_of: Callable[[str], str]) -> Source:
    """The same images with the groups that `group_of` gives their names.

    Raises:
        ValueError: What `group_of` raises, for all images in one message.
    """
    if isinstance(source, BoxImages):
        items = source.annotations
    else:
        items = source.folder.files if isinstance(source, MaskedImages) else [*source]  # pyright: ignore[reportGeneralTypeIssues]
    regrouped, problems = [], []
    for item in items:
        try:
            regrouped.append(item._replace(group=group_of(item.name)))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(" ".join(problems[:10]) + more)
    if isinstance(source, BoxImages):
        return dataclasses.replace(source, annotations=tuple(regrouped))
    if isinstance(source, MaskedImages):
        return MaskedImages(dataclasses.replace(source.folder, files=tuple(regrouped)))
    return regrouped
