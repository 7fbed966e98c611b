"""Size of the stored image, which tells how much it is scaled when it is fed to a network."""

from scalecov_jax.images.example import Example


def image_width(example: Example) -> float:
    """Concept measure: width of the image in pixels."""
    return float(example.image.shape[1])


def image_height(example: Example) -> float:
    """Concept measure: height of the image in pixels."""
    return float(example.image.shape[0])


def image_area(example: Example) -> float:
    """Concept measure: width times height of the image in pixels."""
    return image_width(example) * image_height(example)
