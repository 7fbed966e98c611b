"""Tissue: histology's stand-in, sections stained with haematoxylin and eosin, rendered as a pure function of two keys.

Nests of cells with lumina lie in fibrous stroma, and every nucleus is known; red blood cells and specks of dye are there to be
mistaken for one. What sets one patient apart (size of nuclei, density, chromatin, stain, scanner) comes from one key, the place
from another. All is laid out in micrometres, so that the same keys at another size or magnification show the same place. The mean
area of nuclei is drawn independently of all else, and chromatin is as coarse in small nuclei as in large ones: besides the area
itself, only the share of the image that nuclei cover tells of it.
"""

from functools import partial
from math import ceil
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Int, Key, UInt8, UInt32

from scalecov_jax.compilation import jit
from scalecov_jax.imaging.image_set import ImageSet, Pixels
from scalecov_jax.imaging.noise_fields import ROW, Field, along_fibres, cell_borders, cell_site, discs, noise

MAGNIFICATIONS = (5.0, 8.0, 10.0, 15.0, 20.0, 30.0, 40.0)
Kind = Literal["any", "normal", "tumour"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CLASSES: tuple[Kind, Kind] = ("normal", "tumour")
SMALLEST, LARGEST = 25.0, 75.0  # mean nuclear areas of patients, um^2

_CLOSEST = 11.5  # um between cells of the densest patient
_REACH = 11.0  # um from the centre of the longest nucleus to its tip
# Optical densities of red, green and blue: Ruifrok & Johnston (2001), and Macenko et al. (2009, the usual reference slide).
_HAEMATOXYLIN = np.array([[0.65, 0.70, 0.29], [0.56, 0.72, 0.41]], np.float32)
_EOSIN = np.array([[0.07, 0.99, 0.11], [0.22, 0.80, 0.56]], np.float32)


class Traits(NamedTuple):
    """What the patient and the scanner share over all regions: areas in um^2, lengths in um, the rest relative."""

    area: Float[Array, ""]
    spread: Float[Array, ""]  # standard deviation of the log area of nuclei
    elongation: Float[Array, ""]  # mean log of length / width
    pitch: Float[Array, ""]  # from cell to cell
    coarseness: Float[Array, ""]  # contrast of the chromatin
    clump: Float[Array, ""]  # size of its clumps, um
    vesicular: Float[Array, ""]  # how much paler a nucleus is within its membrane
    nucleoli: Float[Array, ""]  # probability of each of two
    stroma: Float[Array, ""]  # share of the area, as a quantile of the normal distribution
    gaps: Float[Array, ""]  # likewise
    cytoplasm: Float[Array, "2"]  # haematoxylin and eosin in it
    borders: Float[Array, ""]  # of cells
    halo: Float[Array, ""]  # how much paler the cytoplasm is around a nucleus
    stains: Float[Array, "2 3"]  # optical densities of red, green and blue
    light: Float[Array, "3"]  # of the bare slide
    blur: Float[Array, ""]  # standard deviation, um


def traits(patient: Key[Array, ""], kind: Kind = "any") -> Traits:
    """Draw a patient; the area is log-normal within [25, 75] um^2 and independent of all other traits.

    Normal tissue and tumour change what is drawn of the nuclei: in tumour they are larger, closer together, more unlike each
    other (pleomorphic), with coarser chromatin and more nucleoli. Patients differ, so that the two overlap in each trait.
    """
    area, strength, mix, tint, white, others = jax.random.split(patient, 6)
    u = jax.random.uniform(others, (15,))
    middle, sd = jnp.sqrt(SMALLEST * LARGEST), jnp.log(LARGEST / SMALLEST) / 4
    share = jax.random.uniform(mix, (2, 1))
    stains = jnp.stack([jnp.asarray(_HAEMATOXYLIN), jnp.asarray(_EOSIN)])
    stains = stains[:, 0] + share * (stains[:, 1] - stains[:, 0])
    stains *= 1 + 0.08 * jax.random.normal(tint, (2, 3))
    drawn = Traits(
        area=middle * jnp.exp(sd * jax.random.truncated_normal(area, -2.0, 2.0)),
        spread=0.12 + 0.26 * u[0],
        elongation=0.1 + 0.3 * u[1],
        pitch=_CLOSEST + 5.5 * u[2],
        coarseness=0.2 + 0.4 * u[3],
        clump=0.9 + 0.4 * u[4],
        vesicular=0.1 + 0.45 * u[5],
        nucleoli=0.8 * u[6],
        stroma=-1.2 + 1.9 * u[7],
        gaps=-2.4 + 1.2 * u[8],
        cytoplasm=jnp.stack([0.06 + 0.16 * u[9], 0.3 + 0.3 * u[10]]),
        borders=0.05 + 0.5 * u[11],
        halo=0.3 * u[14],
        stains=stains * jnp.exp(0.22 * jax.random.truncated_normal(strength, -2.0, 2.0, (2, 1))),
        light=(0.88 + 0.11 * u[12]) * (1 - 0.03 * jax.random.uniform(white, (3,))),
        blur=0.12 + 0.3 * u[13],
    )
    if kind == "normal":
        return drawn._replace(
            area=0.75 * drawn.area,
            spread=0.1 + 0.14 * u[0],
            pitch=_CLOSEST + 2.5 + 3.0 * u[2],
            coarseness=0.15 + 0.25 * u[3],
            nucleoli=0.3 * u[6],
        )
    if kind == "tumour":
        return drawn._replace(
            area=1.1 * drawn.area,
            spread=0.2 + 0.18 * u[0],
            pitch=_CLOSEST + 3.0 * u[2],
            coarseness=0.3 + 0.35 * u[3],
            clump=1.15 * drawn.clump,
            nucleoli=0.2 + 0.7 * u[6],
        )
    return drawn


class _Nuclei(NamedTuple):
    """Lengths in um; of each nucleus 4 waves of the outline and 2 nucleoli."""

    x: Float[Array, " N"]
    y: Float[Array, " N"]
    length: Float[Array, " N"]  # half axes
    width: Float[Array, " N"]
    turn: Float[Array, " N"]
    waves: Float[Array, "N 4"]
    phases: Float[Array, "N 4"]
    stain: Float[Array, " N"]
    soft: Float[Array, " N"]  # width of the edge
    nucleoli: Float[Array, "N 3 2"]  # place in half axes, and radius
    shown: Float[Array, "N 2"]


def _architecture(seeds: UInt32[Array, "6"], t: Traits, x: Field, y: Field) -> tuple[Field, Field]:
    """Depth (um, about) inside the stroma and inside the white gaps: lumina, fat, and rifts along the stroma."""
    field = 0.9 * noise(seeds[0], x / 110, y / 110) + 0.4 * noise(seeds[1], x / 37, y / 37)
    rough = noise(seeds[2], x / 9, y / 9)
    stroma = (t.stroma - field + 0.05 * rough) * 30
    lumen = (noise(seeds[3], x / 60, y / 60) + 0.06 * rough + t.gaps) * 20
    rift = 4 * (noise(seeds[4], x / 90, y / 90) - 1.1) - jnp.abs(stroma - 6 - 3 * rough)
    fat, _ = discs(seeds[5], x, y, 55.0, 9.0, lambda i, j: 0.25 * (noise(seeds[4], i / 300, j / 300) - 0.6))
    return stroma, jnp.maximum(jnp.maximum(lumen, rift), fat)


def _nuclei(
    key: Key[Array, ""], t: Traits, seeds: UInt32[Array, "9"], extent: float
) -> tuple[_Nuclei, Int[Array, ""]]:
    """Draw all nuclei that may reach into the field; those that are there come first, and are counted.

    An outline is a (1 + sum_k c_k cos(k phi + d_k)) stretched to the aspect, with a such that the area is exact.
    """
    columns, rows = (ceil((extent / 2 + _REACH) / (_CLOSEST * step)) + 2 for step in (1, ROW))
    i, j = (m.ravel() for m in jnp.meshgrid(jnp.arange(-columns, columns + 1), jnp.arange(-rows, rows + 1)))
    keys = jax.vmap(lambda i, j: jax.random.fold_in(key, i * 65536 + j))(i, j)
    n = jax.vmap(lambda key: jax.random.truncated_normal(key, -2.0, 2.0, (24,)))(keys).T
    u = 0.5 + 0.5 * jax.lax.erf(n / np.sqrt(2)) / 0.9545
    x, y = (t.pitch * place for place in cell_site(seeds[6], i, j))
    stroma, gap = _architecture(seeds[:6], t, x, y)
    fibrous = stroma > 0
    crowd = 0.85 + 0.25 * noise(seeds[5], x / 40, y / 40)
    there = (u[0] < jnp.where(fibrous, 0.55 * crowd, crowd)) & (gap < -1.5)
    there &= (jnp.abs(x) < extent / 2 + _REACH) & (jnp.abs(y) < extent / 2 + _REACH)

    area = t.area * jnp.exp(t.spread * n[1] - t.spread**2 / 2)
    spindle = fibrous & (u[2] < 0.75)
    aspect = jnp.exp(jnp.where(spindle, 1.15 + 0.2 * n[3], t.elongation * (1 + 0.5 * n[3])))
    waves = jnp.stack([0.045, 0.05, 0.025, 0.02])[:, None] * n[4:8]
    radius = jnp.sqrt(area / jnp.pi / (1 + (waves**2).sum(0) / 2))
    aspect = jnp.clip(aspect, 1.0, (0.84 * _REACH / radius) ** 2)
    ahead = [along_fibres(seeds[7:], x + dx, y + dy)[1] for dx, dy in ((-2, 0), (2, 0), (0, -2), (0, 2))]
    turn = jnp.arctan2(ahead[0] - ahead[1], ahead[3] - ahead[2]) + 0.15 * n[8]
    table = _Nuclei(
        x=x,
        y=y,
        length=radius * jnp.sqrt(aspect),
        width=radius / jnp.sqrt(aspect),
        turn=jnp.where(spindle, turn, 2 * jnp.pi * u[8]),
        waves=waves.T,
        phases=2 * jnp.pi * u[9:13].T,
        stain=jnp.where(spindle, 1.15, 1.0) * jnp.exp(0.2 * n[13]),
        soft=0.2 + 0.5 * u[14] ** 2,
        nucleoli=jnp.stack([n[15:17] * 0.25, n[17:19] * 0.25, 0.5 + 0.5 * u[20:22]]).transpose(2, 0, 1),
        shown=jnp.stack([u[19] < t.nucleoli, u[22] < t.nucleoli / 2]).T.astype(jnp.float32),
    )
    order = jnp.argsort(~there, stable=True)
    return jax.tree.map(lambda column: column[order], table), there.sum()


def _draw(
    t: Traits, table: _Nuclei, count: Int[Array, ""], size: int, pixel: float
) -> Float[Array, "4 size size"]:
    """Lay the nuclei one over the other, each within its own window: number, cover, haematoxylin and halo."""
    half = ceil((_REACH + 1) / pixel) + 1
    padding = 2 * half + 2
    steps = jnp.arange(2 * half + 1) - half
    membrane = max(0.35, 0.6 * pixel)

    def body(k: Array, canvas: Array) -> Array:
        n = _Nuclei(*(column[k] for column in table))
        place = jnp.stack([n.y, n.x]) / pixel + size / 2 - 0.5
        corner = jnp.round(place).astype(jnp.int32)
        dx, dy = jnp.meshgrid(*((steps + corner[axis] - place[axis]) * pixel for axis in (1, 0)))
        cos, sin = jnp.cos(n.turn), jnp.sin(n.turn)
        u, v = cos * dx + sin * dy, cos * dy - sin * dx
        a, b = u / n.length, v / n.width
        rho = jnp.hypot(a, b) + 1e-3
        steep = jnp.hypot(a / n.length, b / n.width) / rho + 1e-3
        c, s = a / rho, b / rho
        outline = jnp.ones_like(rho)
        p, q = c, s
        for wave in range(4):  # cos and sin of (wave + 2) phi, by the addition theorem
            p, q = p * c - q * s, q * c + p * s
            outline += n.waves[wave] * (p * jnp.cos(n.phases[wave]) - q * jnp.sin(n.phases[wave]))
        depth = (outline - rho) / steep
        cover = jnp.clip(0.5 + depth / jnp.maximum(pixel, n.soft), 0.0, 1.0)
        rim = 0.35 / membrane * jnp.exp(-((depth / membrane - 0.6) ** 2))
        density = 1 - t.vesicular * (1 - rim) + 0.3 * rim
        for spot in range(2):
            away = n.nucleoli[2, spot] - jnp.hypot(a - n.nucleoli[0, spot], b - n.nucleoli[1, spot]) / steep
            density += 0.7 * n.shown[spot] * jnp.clip(0.5 + away / max(pixel, 0.4), 0.0, 1.0)
        old = jax.lax.dynamic_slice(canvas, (0, *(corner - half + padding)), (4, *dx.shape))
        halo = jnp.exp(-jnp.maximum(-depth, 0.0) / 0.7)
        new = jnp.stack(
            [
                jnp.where(depth > 0, k + 1.0, old[0]),
                old[1] + cover * (1 - old[1]),
                old[2] + cover * (n.stain * density - old[2]),
                jnp.maximum(old[3], halo),
            ]
        )
        return jax.lax.dynamic_update_slice(canvas, new, (0, *(corner - half + padding)))

    canvas = jnp.zeros((4, size + 2 * padding, size + 2 * padding))
    return jax.lax.fori_loop(0, count, body, canvas)[:, padding : padding + size, padding : padding + size]


def _photograph(
    key: Key[Array, ""], t: Traits, image: Float[Array, "H W 3"], pixel: float
) -> Float[Array, "H W 3"]:
    """Blur, light that falls off towards the corners and one side, and noise."""
    reach = ceil(1.2 / pixel)
    weights = jnp.exp(-0.5 * (jnp.asarray(np.arange(-reach, reach + 1)) * pixel / t.blur) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        margin = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        wide = jnp.pad(image, margin, mode="edge")
        shifts = (
            jax.lax.slice_in_dim(wide, k, k + image.shape[axis], axis=axis) for k in range(2 * reach + 1)
        )
        image = sum((w * shift for w, shift in zip(weights, shifts, strict=True)), jnp.zeros(()))

    tilt = jax.random.uniform(key, (3,), minval=-0.05, maxval=0.05)
    side = (jnp.arange(len(image)) + 0.5 - len(image) / 2) * pixel
    x, y = jnp.meshgrid(side, side)
    x, y = x / (len(image) * pixel), y / (len(image) * pixel)
    image *= (1 + tilt[0] * x + tilt[1] * y - (0.05 + tilt[2]) * (x * x + y * y))[..., None]
    return image + 0.012 * jax.random.normal(jax.random.fold_in(key, 1), image.shape)


@partial(jit, static_argnames=("size", "magnification", "kind"))
def render(
    patient: Key[Array, ""],
    region: Key[Array, ""],
    size: int = 1024,
    magnification: float = 40.0,
    kind: Kind = "any",
) -> tuple[UInt8[Array, "size size 3"], Int[Array, "size size"]]:
    """Render one region of one patient.

    Light follows Beer and Lambert: rgb = light exp(-(H h + E e)), where H and E are the amounts of haematoxylin and eosin, and
    h and e their optical densities in red, green and blue (Ruifrok & Johnston 2001).

    Args:
        patient: Stain, nuclei's mean area and shape, density, architecture and scanner come from it, see `Traits`.
        region: Everything else comes from it.
        size: Height and width in pixels.
        magnification: Of the objective; a pixel is 10 / magnification um. The field is centred on the same point at all
            sizes and magnifications.
        kind: See `traits`.

    Returns:
        The image, and for each pixel the number of its nucleus, 0 outside nuclei. Numbers may have gaps.
    """
    t = traits(patient, kind)
    pixel = 10 / magnification
    layout, cells, sensor = jax.random.split(region, 3)
    seeds = jax.random.bits(layout, (20,), jnp.uint32)
    axis = (jnp.arange(size) + 0.5 - size / 2) * pixel
    x, y = jnp.meshgrid(axis, axis)

    def texture(seed: Array, scale: float | Array, x: Array = x, y: Array = y) -> Array:
        """Noise with clumps of about `scale` um, averaged over a pixel."""
        return jnp.exp(-0.8 * (pixel / scale) ** 2) * noise(seed, x / scale, y / scale)

    def inside(depth: Array, soft: float) -> Array:
        return jnp.clip(0.5 + depth / max(pixel, soft), 0.0, 1.0)

    stroma, gap = _architecture(seeds[:6], t, x, y)
    stroma, tissue = inside(stroma, 4.0), 1 - inside(gap, 1.2)
    along, across = along_fibres(seeds[7:9], x, y)
    fibres = texture(seeds[9], 1.6, along / 7, across) + texture(seeds[10], 4.5, along / 5, across)
    loose = noise(seeds[11], x / 45, y / 45)
    grain = texture(seeds[12], 1.3) + texture(seeds[13], 3.5)
    between = cell_borders(seeds[6], x / t.pitch, y / t.pitch) * t.pitch
    border = jnp.exp(-((between / max(0.9, pixel)) ** 2)) / max(1.0, pixel / 0.9)

    table, count = _nuclei(cells, t, seeds[:9], size * pixel)
    number, cover, density, halo = _draw(t, table, count, size, pixel)
    clumps = jnp.tanh(1.2 * noise(seeds[14], x / t.clump, y / t.clump))
    clumps = clumps * jnp.exp(-0.8 * (pixel / t.clump) ** 2) + 0.4 * texture(seeds[15], 0.5)
    nuclear = 1.25 * density * jnp.clip(1 + t.coarseness * clumps, 0.25, 2.2)

    epithelium = 1 + 0.16 * grain + 0.15 * loose + t.borders * border
    collagen = jnp.clip(1.0 + 0.2 * fibres + 0.1 * grain + 0.2 * loose, 0.15, 2.5)
    eosin = tissue * (t.cytoplasm[1] * epithelium + stroma * (0.5 * collagen - t.cytoplasm[1] * epithelium))
    eosin *= 1 - t.halo * halo * (1 - cover) - 0.55 * cover
    basophil = tissue * t.cytoplasm[0] * (1 + 0.2 * grain) * (1 - 0.75 * stroma) * (1 - 0.4 * halo)
    haematoxylin = 0.01 + basophil + cover * (nuclear - basophil)

    bent = x + 2 * loose, y + 3 * texture(seeds[13], 25.0)
    blood, radius = discs(
        seeds[16], *bent, 8.2, 2.6, lambda i, j: 0.7 * (noise(seeds[17], i / 60, j / 60) - 0.9)
    )
    blood_cover = inside(blood, 0.3) * (1 - cover)
    eosin += blood_cover * (1.0 - 0.3 * jnp.clip(blood / radius, 0.0, 1.0) - 0.6 * eosin)
    speck, _ = discs(seeds[18], x, y, 34.0, 0.4, lambda i, j: 0.15 + 0 * i)
    dirt = inside(speck - 11.5 + loose, 0.5) * (1 - cover)

    absorbed = (haematoxylin + dirt)[..., None] * t.stains[:1, None]
    absorbed += (eosin + 0.015)[..., None] * t.stains[1:, None]
    image = t.light[None, None] * jnp.exp(-absorbed - 0.3 * dirt[..., None])
    image = _photograph(sensor, t, image, pixel)
    return jnp.round(255 * jnp.clip(image, 0.0, 1.0)).astype(jnp.uint8), number.astype(jnp.int32)


class _Regions(NamedTuple):
    """Renders the region with an index; region i does not depend on how many there are."""

    seed: int
    size: int
    magnification: float
    per_patient: int

    def __call__(self, index: int) -> Pixels:
        patient, region = divmod(index, self.per_patient)
        first, second = jax.random.split(jax.random.fold_in(jax.random.key(self.seed), patient))
        key = jax.random.fold_in(second, region)
        image, numbers = render(first, key, self.size, self.magnification)
        return Pixels(np.asarray(image), np.asarray(numbers))


def regions(
    count: int, seed: int, *, size: int = 1024, magnification: float = 40.0, per_patient: int = 1
) -> ImageSet:
    """Regions of patients with the number of the nucleus at each pixel, rendered when they are read.

    Args:
        count: Number of regions.
        seed: Same seed, same patients and regions.
        size: Height and width in pixels.
        magnification: Of the objective; a pixel is 10 / magnification um.
        per_patient: Consecutive regions that share a patient.
    """
    places = [divmod(index, per_patient) for index in range(count)]
    table = pd.DataFrame(
        {
            "name": [f"tissue_{patient:03d}_{region}" for patient, region in places],
            "group": [f"patient_{patient:03d}" for patient, _ in places],
            "magnification": magnification,
        }
    )
    return ImageSet(table, _Regions(seed, size, magnification, per_patient))


class _Patches(NamedTuple):
    """Renders the patch with an index: kinds change fastest but for the number within a kind."""

    seed: int
    per_class: int
    size: int
    magnification: float

    def __call__(self, index: int) -> Pixels:
        (patient, kind), number = divmod(index // self.per_class, len(CLASSES)), index % self.per_class
        first, second = jax.random.split(jax.random.fold_in(jax.random.key(self.seed), patient))
        region = jax.random.fold_in(second, kind * self.per_class + number)
        return Pixels(np.asarray(render(first, region, self.size, self.magnification, CLASSES[kind])[0]))


def patches(
    patients: int, per_class: int, seed: int, *, size: int = 128, magnification: float = 20.0
) -> ImageSet:
    """Rendered patches of normal tissue and of tumour of each patient, so that stain and scanner tell nothing of the class.

    Args:
        patients: Number of patients.
        per_class: Patches of each kind per patient.
        seed: Same seed, same patients and patches.
        size: Height and width in pixels.
        magnification: Of the objective; a pixel is 10 / magnification um.
    """
    places = [(p, kind, i) for p in range(patients) for kind in CLASSES for i in range(per_class)]
    table = pd.DataFrame(
        {
            "name": [f"patient_{p:03d}_{kind}_{i}" for p, kind, i in places],
            "group": [f"patient_{p:03d}" for p, _, _ in places],
            "label": [kind for _, kind, _ in places],
        }
    )
    return ImageSet(table, _Patches(seed, per_class, size, magnification))


def contact_sheet(seed: int, patients: int = 8, size: int = 128) -> UInt8[np.ndarray, "H W 3"]:
    """One row a patient, one column a magnification, from 5 on the left to 40 on the right, centred on one place."""
    columns = [regions(patients, seed, size=size, magnification=m) for m in MAGNIFICATIONS]
    return np.concatenate([np.concatenate([c[i].image for c in columns], axis=1) for i in range(patients)])
