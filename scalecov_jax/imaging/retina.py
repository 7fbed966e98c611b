"""Retinas: fundus photographs' stand-in, rendered as a pure function of keys and a grade, with the lesions' mask.

Grades follow the international clinical scale of diabetic retinopathy, in numbers of rendered lesions:

| grade | microaneurysms | haemorrhages | exudates | more |
|---|---|---|---|---|
| 0 none | 0 | 0 | 0 | |
| 1 mild | 3-10 | 0 | 0 | |
| 2 moderate | 5-14 | 3-7 | 3-9 | |
| 3 severe | 8-16 | 20-32 | 4-14 | |
| 4 proliferative | 8-16 | 6-24 | 4-14 | 2-4 large haemorrhages, 1-3 tufts of new vessels |

Eyes have things that are no lesions too: drusen (paler and softer than exudates, around the macula), pigment (brown, large,
blurred), a bright reflex, and dust on the lens (grey).

Source: Wilkinson et al. 2003, Ophthalmology 110:1677-1682, for the order of the signs; the numbers are this renderer's.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from scalecov_jax.compilation import jit
from scalecov_jax.imaging.image_set import Example

GRADES = ("0", "1", "2", "3", "4")
KINDS = ("microaneurysm", "haemorrhage", "exudate", "large_haemorrhage", "new_vessels")
# Fewest and most lesions of each kind, by grade.
FEWEST = np.array([[0, 0, 0, 0, 0], [3, 0, 0, 0, 0], [5, 3, 3, 0, 0], [8, 20, 4, 0, 0], [8, 6, 4, 2, 1]])
MOST = np.array([[0, 0, 0, 0, 0], [10, 0, 0, 0, 0], [14, 7, 9, 0, 0], [16, 32, 14, 0, 0], [16, 24, 14, 4, 3]])
# Of each kind: smallest and largest radius as a share of the image's side, red, green and blue light that is left or added.
_RADII = np.array(
    [[0.005, 0.008], [0.010, 0.021], [0.007, 0.018], [0.045, 0.085], [0.030, 0.055]], np.float32
)
_TINTS = np.array(
    [
        [-0.25, -0.24, -0.10],
        [-0.34, -0.26, -0.10],
        [0.25, 0.42, 0.22],
        [-0.40, -0.28, -0.10],
        [-0.2, -0.25, -0.1],
    ],
    np.float32,
)
_DISC = 0.495  # radius of the visible retina, of the side
_NODES = 28  # of each vessel
_VESSELS = 12
_LARGE = KINDS.index("large_haemorrhage")  # and the kinds after it

_Change = Callable[[Array, Array, Array], Array]  # of a window, at x and y


def _vessels(key: Key[Array, ""], disc: Float[Array, "2"], side: Float[Array, ""]) -> Float[Array, "V 4"]:
    """Points x, y, radius along four arcades from the disc and two branches of each; the fourth number is 1 for veins."""
    bend, fork, widths = jax.random.split(key, 3)
    step = jnp.linspace(0.0, 1.0, _NODES)
    wiggle = jax.random.normal(bend, (_VESSELS, 3))
    sign = jnp.array([1.0, -1.0, 1.0, -1.0])
    reach = jnp.array([0.75, 0.75, 0.35, 0.35])  # temporal arcades around the macula, nasal ones away from it
    across = jnp.array([-1.0, -1.0, 0.6, 0.6])
    t = step[None]
    x = disc[0] + side * (across * reach)[:, None] * t * (0.6 + 0.4 * t)
    y = disc[1] + sign[:, None] * (0.30 * jnp.sin(2.2 * t) + 0.04 * wiggle[:4, :1] * t)
    x, y = (line + 0.012 * jnp.sin(9 * t + wiggle[:4, 1:2]) * t for line in (x, y))
    width = (0.0085 + 0.002 * jax.random.uniform(widths, (4, 1))) * (1 - 0.6 * t)
    start = jax.random.randint(fork, (8,), 4, 18)
    parent = jnp.arange(8) % 4
    outward = jnp.where(jnp.arange(8) < 4, 1.0, -1.0)
    angle = jnp.arctan2(y[parent, start + 2] - y[parent, start], x[parent, start + 2] - x[parent, start])
    angle = angle + outward * (0.6 + 0.15 * wiggle[4:, 0])
    turned = angle[:, None] + 0.5 * wiggle[4:, 1:2] * t
    length = 0.3 * t
    bx = x[parent, start][:, None] + length * jnp.cos(turned)
    by = y[parent, start][:, None] + length * jnp.sin(turned)
    bwidth = 0.6 * width[parent, start][:, None] * (1 - 0.7 * t)
    points = jnp.stack(
        [jnp.concatenate(pair).reshape(-1) for pair in ((x, bx), (y, by), (width, bwidth))], -1
    )
    vein = jnp.repeat(jnp.concatenate([jnp.arange(4) % 3 == 0, parent % 3 == 0]), _NODES)
    return jnp.concatenate([points, vein[:, None]], -1)


def _paint(canvas: Float[Array, "S S K"], centre: Float[Array, "2"], reach: float, change: _Change) -> Array:
    """Change only the window within `reach` of a place, all in shares of the side: painting costs what is painted."""
    size, channels = canvas.shape[0], canvas.shape[2]
    width = min(size, 2 * math.ceil(reach * size) + 4)
    start = jnp.clip(jnp.round(centre[::-1] * size).astype(int) - width // 2, 0, size - width)
    corner = (start[0], start[1], 0)
    x, y = jnp.meshgrid(*((start[axis] + jnp.arange(width) + 0.5) / size for axis in (1, 0)))
    changed = change(jax.lax.dynamic_slice(canvas, corner, (width, width, channels)), x, y)
    return jax.lax.dynamic_update_slice(canvas, changed, corner)


def _draw_vessels(points: Float[Array, "P 4"], size: int) -> Float[Array, "S S 1"]:
    """How much of each pixel the vessels darken: the largest cover of any segment between two points."""
    nodes = points.reshape(_VESSELS, _NODES, 4)
    starts, ends = (part.reshape(-1, 4) for part in (nodes[:, :-1], nodes[:, 1:]))

    def segment(cover: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        a, b = pair
        d = b[:2] - a[:2]

        def darken(window: Array, x: Array, y: Array) -> Array:
            t = jnp.clip(((x - a[0]) * d[0] + (y - a[1]) * d[1]) / (d @ d + 1e-9), 0.0, 1.0)
            away = jnp.hypot(x - a[0] - t * d[0], y - a[1] - t * d[1])
            inside = jnp.clip(0.5 + (a[2] - away) * size, 0.0, 1.0) * jnp.minimum(1.0, 0.35 + a[2] * 100)
            return jnp.maximum(window, (inside * (0.75 + 0.25 * a[3]))[..., None])

        return _paint(cover, (a[:2] + b[:2]) / 2, 0.045, darken), None

    return jax.lax.scan(segment, jnp.zeros((size, size, 1)), (starts, ends))[0]


def _blob(
    key: Key[Array, ""], place: Float[Array, "2"], radius: Array, soft: Array | float, x: Array, y: Array
) -> Float[Array, "H W"]:
    """The cover of a lobed ellipse."""
    shape = jax.random.uniform(key, (4,))
    dx, dy = x - place[0], y - place[1]
    angle = jnp.arctan2(dy, dx)
    outline = radius * (1 + 0.25 * (shape[0] - 0.5) * jnp.cos(2 * angle + 6.3 * shape[1]))
    outline = outline * (1 + 0.3 * (shape[2] - 0.5) * jnp.cos(3 * angle + 6.3 * shape[3]))
    return jnp.clip(0.5 + (outline - jnp.hypot(dx, dy)) / soft, 0.0, 1.0)


@partial(jit, static_argnames="size")
def render(
    key: Key[Array, ""], grade: Int[Array, ""], size: int = 256, left: Bool[Array, ""] | bool = False
) -> tuple[UInt8[Array, "size size 3"], UInt8[Array, "size size"]]:
    """Render one eye.

    Args:
        key: Everything random comes from it.
        grade: 0 to 4.
        size: Height and width in pixels.
        left: Of the left eye: the disc lies left of the macula.

    Returns:
        The image, and the mask of lesions: 0, or the number of the kind in `KINDS` plus 1.
    """
    keys = jax.random.split(key, 12)
    pixel = (jnp.arange(size) + 0.5) / size
    x, y = jnp.meshgrid(pixel, pixel)
    side = jnp.where(left, -1.0, 1.0)
    jitter = 0.02 * jax.random.normal(keys[0], (4,))
    disc = jnp.array([0.5, 0.5]) + jnp.stack([side * (0.21 + jitter[0]), jitter[1]])
    macula = jnp.array([0.5, 0.5]) + jnp.stack([side * (-0.08 + jitter[2]), jitter[3]])

    tone = jax.random.normal(keys[1], (3,))  # pigmentation moves all colours together, and each a little
    base = jnp.array([0.72, 0.38, 0.16]) * (1 + 0.10 * tone[0]) + jnp.array([0.0, 0.03, 0.03]) * tone
    waves = jax.random.normal(keys[2], (6, 3))
    texture = sum(jnp.sin(25 * (w[0] * x + w[1] * y) + 6 * w[2]) for w in waves) / 6
    light = 1 + jax.random.uniform(keys[3], (2,), minval=-0.4, maxval=0.4) @ jnp.stack(
        [x - 0.5, y - 0.5]
    ).reshape(2, -1)
    light = light.reshape(size, size)
    image = base.reshape(1, 1, 3) * (light * (1 + 0.05 * texture))[..., None]
    dark = jnp.exp(-((x - macula[0]) ** 2 + (y - macula[1]) ** 2) / (2 * 0.05**2))
    image = image * (1 - dark[..., None] * jnp.array([0.25, 0.40, 0.30]).reshape(1, 1, 3))
    away = jnp.hypot((x - disc[0]) / 0.9, y - disc[1])
    nerve = jnp.clip(0.5 + (0.065 - away) * 60, 0.0, 1.0)[..., None]
    cup = jnp.clip(0.5 + (0.028 - away) * 60, 0.0, 1.0)[..., None]
    pale = jnp.array([0.95, 0.72, 0.42]).reshape(1, 1, 3) + 0.08 * cup
    image = image + nerve * (pale - image)
    cover = _draw_vessels(_vessels(keys[4], disc, side), size)
    image = image * (1 - cover * jnp.array([0.35, 0.55, 0.45]).reshape(1, 1, 3))

    def confuse(image: Array, given: tuple[Array, Array]) -> tuple[Array, None]:
        """The first ten are drusen, then four of pigment."""
        key, number = given
        where, how = jax.random.split(key)
        u, amount = jax.random.uniform(where, (2,)), jax.random.uniform(how, (2,))
        drusen = number < 10
        distance = jnp.where(drusen, 0.10, 0.36) * jnp.sqrt(u[0])
        centre = jnp.where(drusen, macula, 0.5)
        place = centre + distance * jnp.stack([jnp.cos(6.3 * u[1]), jnp.sin(6.3 * u[1])])
        radius = jnp.where(drusen, 0.006 + 0.006 * amount[0], 0.012 + 0.02 * amount[0])
        tint = jnp.where(drusen, jnp.array([0.10, 0.09, 0.01]), jnp.array([-0.12, -0.09, -0.05]))
        tint = tint * (amount[1] > 0.4) * (0.4 + amount[1])
        soft = jnp.where(drusen, 0.012, 0.03)

        def draw(window: Array, x: Array, y: Array) -> Array:
            return window + _blob(key, place, radius, soft, x, y)[..., None] * tint.reshape(1, 1, 3)

        return _paint(image, place, 0.056, draw), None

    image, _ = jax.lax.scan(confuse, image, (jax.random.split(keys[5], 14), jnp.arange(14)))

    # All that a grade could have is drawn; what it has not is invisible.
    fewest, most = jnp.asarray(FEWEST)[grade], jnp.asarray(MOST)[grade]
    counts = jax.random.randint(keys[6], (len(KINDS),), fewest, most + 1)
    kinds = np.repeat(np.arange(len(KINDS)), MOST.max(0))
    ranks = np.concatenate([np.arange(count) for count in MOST.max(0)])
    sharp = 1.5 / size
    plain = jax.random.uniform(keys[11], minval=0.4, maxval=1.0)  # how well this eye shows its lesions

    def lesion(reach: float, canvas: Array, given: tuple[Array, Array, Array]) -> tuple[Array, None]:
        key, kind, rank = given
        where, how = jax.random.split(key)
        u, amount = jax.random.uniform(where, (2,)), jax.random.uniform(how, (2,))
        distance = (_DISC - 0.07) * jnp.sqrt(u[0])
        place = 0.5 + distance * jnp.stack([jnp.cos(6.3 * u[1]), jnp.sin(6.3 * u[1])])
        to_disc = place - disc  # none on the optic disc
        place = jnp.where(jnp.hypot(to_disc[0], to_disc[1]) < 0.09, 2 * macula - place, place)
        low, high = jnp.asarray(_RADII)[kind]
        radius = low + (high - low) * amount[0]
        shown = rank < counts[kind]
        tint = jnp.asarray(_TINTS)[kind] * (0.5 + 0.7 * amount[1]) * plain * shown

        def draw(window: Array, x: Array, y: Array) -> Array:
            cover = _blob(key, place, radius, sharp, x, y)
            # A tuft of new vessels is a net of thin curls within its outline.
            curls = jnp.sin((x - place[0]) * 300 + 3 * jnp.sin((y - place[1]) * 160 + 6 * u[0]))
            net = cover * (jnp.abs(curls) < 0.45)
            drawn = jnp.where(kind == KINDS.index("new_vessels"), net, cover)
            mask = jnp.where(shown & (cover > 0.5), kind + 1.0, window[..., 3])
            return jnp.concatenate(
                [window[..., :3] + drawn[..., None] * tint.reshape(1, 1, 3), mask[..., None]], -1
            )

        return _paint(canvas, place, reach, draw), None

    lesion_keys = jax.random.split(keys[7], len(kinds))
    canvas = jnp.concatenate([image, jnp.zeros((size, size, 1))], -1)
    for part in (kinds < _LARGE, kinds >= _LARGE):  # each with the window that its largest needs
        reach = 1.3 * float(_RADII[kinds[part]].max())
        given = lesion_keys[part], jnp.asarray(kinds[part]), jnp.asarray(ranks[part])
        canvas, _ = jax.lax.scan(partial(lesion, reach), canvas, given)
    image, mask = canvas[..., :3], canvas[..., 3].astype(jnp.uint8)

    reflex = jax.random.uniform(keys[8], (5,))
    arc = jnp.hypot(x - 0.5 - 0.3 * (reflex[0] - 0.5), y - 0.5 - 0.3 * (reflex[1] - 0.5)) - (
        0.25 + 0.15 * reflex[2]
    )
    image = image + (0.12 * (reflex[3] > 0.5) * jnp.exp(-((arc / 0.02) ** 2)) * (x > reflex[4]))[..., None]
    for number in range(3):  # dust
        dust = jax.random.uniform(jax.random.fold_in(keys[9], number), (3,))
        cover = _blob(keys[9], 0.2 + 0.6 * dust[:2], 0.006 + 0.01 * dust[2], 0.01, x, y)
        image = image - 0.10 * (dust[2] > 0.5) * cover[..., None]
    rim = jnp.hypot(x - 0.5, y - 0.5)
    image = image * (1 - 0.5 * (rim / 0.5) ** 4)[..., None]
    image = image + 0.015 * jax.random.normal(keys[10], (size, size, 3))
    seen = rim < _DISC
    image = jnp.where(seen[..., None], jnp.clip(image, 0.0, 1.0), 0.0)
    return jnp.round(255 * image).astype(jnp.uint8), jnp.where(seen, mask, 0).astype(jnp.uint8)


def examples(count: int, seed: int, size: int = 256) -> list[Example]:
    """Eyes as a source: label is the grade, mask the lesions, group the patient, of whom there are two eyes one after the other.

    The eyes of a patient have the same grade in four of five patients, else neighbouring ones.

    Args:
        count: Number of eyes; the last patient has one if it is odd.
        seed: Same seed, same eyes.
        size: Height and width in pixels.
    """
    grades, worse, eyes = jax.random.split(jax.random.key(seed), 3)
    patients = -(-count // 2)
    first = jax.random.randint(grades, (patients,), 0, len(GRADES))
    second = jnp.where(
        jax.random.bernoulli(worse, 0.2, (patients,)), jnp.where(first < 4, first + 1, 3), first
    )
    grade = jnp.stack([first, second], 1).reshape(-1)[:count]
    left = jnp.arange(count) % 2 == 1
    found = []
    for index, key in enumerate(jax.random.split(eyes, count)):
        image, mask = jax.device_get(render(key, grade[index], size, left[index]))
        names = f"patient_{index // 2:05d}", f"retina_{index:05d}"
        found.append(Example(image, str(int(grade[index])), None, mask, *names))
    return found


def contact_sheet(seed: int, columns: int = 6, size: int = 256) -> UInt8[np.ndarray, "H W 3"]:
    """One row a grade."""
    count = len(GRADES) * columns
    keys, grades = jax.random.split(jax.random.key(seed), count), jnp.repeat(jnp.arange(len(GRADES)), columns)
    images = [render(key, grade, size)[0] for key, grade in zip(keys, grades, strict=True)]
    rows = np.stack(images).reshape(len(GRADES), columns, size, size, 3)
    return rows.transpose(0, 2, 1, 3, 4).reshape(len(GRADES) * size, columns * size, 3)
