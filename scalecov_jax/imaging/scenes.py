"""Scenes: photographs' stand-in, rendered as a pure function of a key, a class and the object's share of the image.

A scene shows one textured object on a cluttered background. Its class is the pair of a texture and a shape; position, rotation,
aspect, colours, light, clutter and background are drawn independently of the class and of the size. The texture scales with the
object, as the surface of a real thing does when it comes nearer.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from scalecov_jax.compilation import jit
from scalecov_jax.imaging.image_set import Box, Example

SHAPES = ("disc", "triangle", "square", "star")
TEXTURES = ("striped", "ringed", "checkered", "sectored")
CLASSES = tuple(f"{texture}_{shape}" for shape in SHAPES for texture in TEXTURES)
SMALLEST, LARGEST = 0.02, 0.9

# A star polygon of n tips (radius 1) and n notches (radius q); q = cos(pi / n) makes it the regular polygon.
# NumPy, since no device may be asked for before several hosts have found each other; the cosines are those of float32.
_TIPS = np.array([24.0, 3.0, 4.0, 5.0], np.float32)
_NOTCHES = np.array([0.9914449, 0.49999997, 0.70710677, 0.45], np.float32)
_ANGLES = np.linspace(0, 2 * np.pi, 240, endpoint=False)  # hits every tip of every shape


def _radius(angle: Float[Array, "..."], shape: Int[Array, ""]) -> Float[Array, "..."]:
    """Distance of the outline from the centre: the line from a notch (q, 0) to a tip (cos(pi/n), sin(pi/n)), in polar form."""
    half = jnp.pi / jnp.asarray(_TIPS)[shape]
    phi = half - jnp.abs(jnp.mod(angle, 2 * half) - half)
    notch = jnp.asarray(_NOTCHES)[shape]
    x, y = jnp.cos(half) - notch, jnp.sin(half)
    return notch * y / (jnp.cos(half - phi) * y - jnp.sin(half - phi) * x)


def _texture(u: Float[Array, "H W"], v: Float[Array, "H W"], texture: Int[Array, ""]) -> Float[Array, "H W"]:
    """Pattern in [-1, 1] in the object's own coordinates (its outline has radius 1)."""
    return jax.lax.switch(
        texture,
        (
            lambda: jnp.sin(4.5 * jnp.pi * u),
            lambda: jnp.cos(4.5 * jnp.pi * jnp.hypot(u, v)),
            lambda: jnp.sin(3.0 * jnp.pi * u) * jnp.sin(3.0 * jnp.pi * v),
            lambda: jnp.sin(4.0 * jnp.arctan2(v, u)) * jnp.minimum(1.0, 3 * jnp.hypot(u, v)),
        ),
    )


def _colour(key: Key[Array, ""], luminance: Float[Array, ""], chroma: float) -> Float[Array, "3"]:
    tint = jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
    return jnp.clip(luminance + chroma * (tint - tint.mean()), 0.0, 1.0)


def _background(key: Key[Array, ""], x: Float[Array, "H W"], y: Float[Array, "H W"]) -> Float[Array, "H W 3"]:
    """Two colours mixed by smooth waves, with flat ellipses and bars lying about."""
    keys = jax.random.split(key, 4)
    first, second = (_colour(k, jax.random.uniform(k, minval=0.25, maxval=0.75), 0.25) for k in keys[:2])
    waves = jax.random.normal(keys[2], (4, 4))
    mix = jnp.stack([jnp.sin(12.0 * (w[0] * x + w[1] * y) + 6 * w[2]) for w in waves]).sum(0) / 5 + 0.5
    image = first[None, None] + (second - first)[None, None] * mix[..., None]

    def clutter(image: Array, key: Array) -> tuple[Array, None]:
        places, size, colours = jax.random.split(key, 3)
        centre = jax.random.uniform(places, (2,))
        angle, aspect = jax.random.uniform(jax.random.fold_in(places, 1), (2,))
        extent = jnp.exp(jax.random.uniform(size, minval=jnp.log(0.02), maxval=jnp.log(0.3)))
        cos, sin = jnp.cos(6.3 * angle), jnp.sin(6.3 * angle)
        u = (cos * (x - centre[0]) + sin * (y - centre[1])) / extent
        v = (cos * (y - centre[1]) - sin * (x - centre[0])) / (extent * (0.15 + 0.85 * aspect))
        cover = jnp.clip((1.0 - u * u - v * v) * extent * 60, 0.0, 1.0)[..., None]
        colour = _colour(colours, jax.random.uniform(colours, minval=0.1, maxval=0.9), 0.3)
        return image + 0.8 * cover * (colour[None, None] - image), None

    return jax.lax.scan(clutter, image, jax.random.split(keys[3], 6))[0]


@partial(jit, static_argnames="size")
def render(
    key: Key[Array, ""],
    class_id: Int[Array, ""],
    ratio: Float[Array, ""],
    size: int = 128,
    place: Float[Array, "2"] | None = None,
) -> tuple[UInt8[Array, "size size 3"], Float[Array, "4"]]:
    """Render one scene.

    Args:
        key: Everything random comes from it.
        class_id: Index into `CLASSES`.
        ratio: Area of the object's bounding box / area of the image, in (0, 1).
        size: Height and width in pixels.
        place: Where the box lies in x and y, from 0 (left or top edge) to 1; drawn when absent. The centre of the box is the
            same for every ratio at 0.5 alone, the middle of the image.

    Returns:
        The image, and the box as (x_min, y_min, x_max, y_max) in pixels, edges not centres: its area is exactly
        ratio size^2.
    """
    keys = jax.random.split(key, 9)
    shape, texture = class_id // len(TEXTURES), class_id % len(TEXTURES)
    pixel = (jnp.arange(size) + 0.5) / size
    x, y = jnp.meshgrid(pixel, pixel)
    image = _background(keys[0], x, y)

    aspect = jnp.clip(jnp.exp(0.15 * jax.random.normal(keys[1])), ratio, 1 / ratio)
    extent = jnp.array([jnp.sqrt(ratio * aspect), jnp.sqrt(ratio / aspect)])
    corner = (jax.random.uniform(keys[2], (2,)) if place is None else place) * (1 - extent)
    rotation = jax.random.uniform(keys[3], maxval=2 * jnp.pi)
    outline = _radius(jnp.asarray(_ANGLES), shape)[:, None] * jnp.stack(
        [jnp.cos(_ANGLES + rotation), jnp.sin(_ANGLES + rotation)], axis=-1
    )
    lowest, highest = outline.min(0), outline.max(0)
    scale = (highest - lowest) / extent  # object units per image side

    def object_coordinates(dx: Array | float, dy: Array | float) -> tuple[Array, Array, Array]:
        u = (x - dx - corner[0]) * scale[0] + lowest[0]
        v = (y - dy - corner[1]) * scale[1] + lowest[1]
        cos, sin = jnp.cos(rotation), jnp.sin(rotation)
        u, v = cos * u + sin * v, cos * v - sin * u
        inside = _radius(jnp.arctan2(v, u), shape) - jnp.hypot(u, v)
        return u, v, inside * size / scale.mean()  # about pixels

    light = jax.random.uniform(keys[4], (2,), minval=-1.0, maxval=1.0)
    _, _, shadow = object_coordinates(*(0.06 * light * extent.mean()))
    image *= 1 - 0.45 * jnp.clip(0.5 + shadow / (1 + 0.04 * size * extent.mean()), 0.0, 1.0)[..., None]

    u, v, inside = object_coordinates(0.0, 0.0)
    dark, bright = jax.random.uniform(keys[5], (2,))
    colours = jnp.stack([_colour(keys[6], 0.35 * dark, 0.3), _colour(keys[7], 0.65 + 0.35 * bright, 0.3)])
    sharpness = jnp.clip(0.06 * size / scale.mean(), 1.0, 8.0)
    pattern = 0.5 + 0.5 * jnp.tanh(sharpness * _texture(u, v, texture))
    surface = colours[:1, None] + (colours[1:, None] - colours[:1, None]) * pattern[..., None]
    surface *= (
        1
        - 0.25 * ((x - corner[0]) / extent[0] - 0.5) * light[0]
        - 0.25 * ((y - corner[1]) / extent[1] - 0.5) * light[1]
    )[..., None]
    image += jnp.clip(0.5 + inside, 0.0, 1.0)[..., None] * (surface - image)

    image *= (1 + 0.3 * (light[0] * (0.5 - x) + light[1] * (0.5 - y)))[..., None]
    image += 0.02 * jax.random.normal(keys[8], (size, size, 1))
    box = jnp.concatenate([corner, corner + extent]) * size
    return jnp.round(255 * jnp.clip(image, 0.0, 1.0)).astype(jnp.uint8), box


def draw(
    key: Key[Array, ""], count: int, size: int = 128, smallest: float | Array = SMALLEST
) -> tuple[UInt8[Array, "N size size 3"], Int[Array, " N"], Float[Array, " N"]]:
    """Render scenes of random classes with log-uniform ratios in [smallest, 0.9].

    Returns:
        Images, class indices and ratios.
    """
    classes, ratios, scenes = jax.random.split(key, 3)
    class_ids = jax.random.randint(classes, (count,), 0, len(CLASSES))
    ratio = jnp.exp(jax.random.uniform(ratios, (count,), minval=jnp.log(smallest), maxval=jnp.log(LARGEST)))
    images, _ = jax.vmap(partial(render, size=size))(jax.random.split(scenes, count), class_ids, ratio)
    return images, class_ids, ratio


def check_class(image_class: str) -> int:
    """Index of a class in `CLASSES`.

    Raises:
        ValueError: There is no such class; names the nearest.
    """
    if image_class not in CLASSES:
        near = get_close_matches(image_class, CLASSES, n=3)
        raise ValueError(
            f"No scene class is called {image_class!r}; "
            + (f"did you mean {' or '.join(near)}? " if near else "")
            + f"There are {', '.join(CLASSES)}."
        )
    return CLASSES.index(image_class)


def examples(image_class: str, count: int, seed: int, size: int = 128) -> list[Example]:
    """Scenes of one class as a source, with log-uniform ratios in [0.02, 0.9].

    Args:
        image_class: One of `CLASSES`.
        count: Number of scenes.
        seed: Same seed, same scenes; the scenes of two classes differ in everything.
        size: Height and width in pixels.

    Raises:
        ValueError: There is no such class.
    """
    class_id = check_class(image_class)
    ratios, scenes = jax.random.split(jax.random.fold_in(jax.random.key(seed), class_id))
    ratio = jnp.exp(jax.random.uniform(ratios, (count,), minval=jnp.log(SMALLEST), maxval=jnp.log(LARGEST)))
    images, boxes = jax.vmap(partial(render, size=size), (0, None, 0))(
        jax.random.split(scenes, count), jnp.asarray(class_id), ratio
    )
    return [
        Example(image, image_class, Box(x_min + 1, y_min + 1, x_max, y_max), None, name, name)
        for image, (x_min, y_min, x_max, y_max), name in zip(
            np.asarray(images),
            np.asarray(boxes, float).tolist(),
            (f"{image_class}_{index:04d}" for index in range(count)),
            strict=True,
        )
    ]


def growing(
    image_class: str, count: int, ratios: Sequence[float] | np.ndarray, seed: int, size: int = 128
) -> list[Example]:
    """Objects of one class, each rendered at every ratio in the middle of its image.

    Nothing but the size of the object and its shadow changes: shape, rotation, colours, light, background, clutter and noise
    stay; the aspect does too, but for ratios so near 1 that the box would stick out of the image.

    Args:
        image_class: One of `CLASSES`.
        count: Number of objects.
        ratios: Areas of the box / area of the image, in (0, 1].
        seed: Same seed, same objects; `examples` draws others from it.
        size: Height and width in pixels.

    Returns:
        Examples, all ratios of the first object first; `group` is the object.

    Raises:
        ValueError: There is no such class, or a ratio outside (0, 1].
    """
    class_id = check_class(image_class)
    if outside := [f"{ratio:g}" for ratio in ratios if not 0 < ratio <= 1]:
        raise ValueError(f"Ratios of {', '.join(outside)}; an object's share of the image lies in (0, 1].")
    # Beyond the numbers of the classes, from which `examples` draws.
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), len(CLASSES) + class_id), count)
    middle = jnp.full(2, 0.5)
    grow = jax.vmap(lambda key, ratio: render(key, jnp.asarray(class_id), ratio, size, middle), (None, 0))
    shares = jnp.asarray(ratios, jnp.float32)
    found: list[Example] = []
    for index, key in enumerate(keys):
        images, boxes = grow(key, shares)
        group = f"{image_class}_growing_{index:04d}"
        found += [
            Example(
                image,
                image_class,
                Box(x_min + 1, y_min + 1, x_max, y_max),
                None,
                group,
                f"{group}_{ratio:.4f}",
            )
            for image, (x_min, y_min, x_max, y_max), ratio in zip(
                np.asarray(images), np.asarray(boxes, float).tolist(), ratios, strict=True
            )
        ]
    return found


def contact_sheet(seed: int, columns: int = 9, size: int = 128) -> UInt8[np.ndarray, "H W 3"]:
    """One row a class, the object growing from the smallest to the largest ratio from left to right."""
    ratio = np.geomspace(SMALLEST, LARGEST, columns)
    count = len(CLASSES) * columns
    images, _ = jax.vmap(partial(render, size=size))(
        jax.random.split(jax.random.key(seed), count),
        jnp.repeat(jnp.arange(len(CLASSES)), columns),
        jnp.tile(jnp.asarray(ratio, jnp.float32), len(CLASSES)),
    )
    rows = np.asarray(images).reshape(len(CLASSES), columns, size, size, 3)
    return rows.transpose(0, 2, 1, 3, 4).reshape(len(CLASSES) * size, columns * size, 3)
