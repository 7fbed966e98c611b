"""A source of images by name: a folder in VOC layout, prepared tfds, or scenes."""

from pathlib import Path

from scalecov_jax.images import scenes
from scalecov_jax.images.boxes import read_boxes, tfds_boxes
from scalecov_jax.images.example import Skipped, Source

SCENES = "scenes"


def open_source(
    images: str, image_class: str, *, count: int = 0, seed: int = 0, size: int = 128
) -> tuple[Source, tuple[Skipped, ...]]:
    """Open the images of one class that hold exactly one object.

    Args:
        images: `scenes`, `tfds:<data_dir>` (VOC 2007, prepared) or a folder in VOC layout.
        image_class: Class name, such as car; for scenes such as striped_disc.
        count: Number of scenes; folders are read whole.
        seed: Of the scenes.
        size: Height and width of the scenes in pixels.

    Returns:
        The source, and what was left out with the reasons.

    Raises:
        ValueError: See `read_boxes`, `tfds_boxes` and `scenes.examples`.
    """
    if images == SCENES:
        return scenes.examples(image_class, count, seed, size), ()
    if images.startswith("tfds:"):
        source = tfds_boxes(Path(images.removeprefix("tfds:")), "train+validation", image_class)
    else:
        source = read_boxes(images, image_class)
    return source, source.skipped
