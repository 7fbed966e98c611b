"""Textures as pure functions of a seed and of places: noise, strewn discs, borders of cells, and fibres.

Every value follows from its own place, hence a field is the same at every size and magnification. Places are arrays of any one
shape S; places where nothing else is said, and lengths, are in micrometres.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

Field = Float[Array, "*S"]  # over pixels or nuclei
Seed = UInt32[Array, ""]

ROW = 0.87  # rows of cells are closer than columns, as in a honeycomb


def lattice_hash(seed: Seed, i: Int[Array, "*S"], j: Int[Array, "*S"]) -> tuple[Field, Field]:
    """Two numbers in [0, 1) for every point (i, j) of a lattice.

    Source: lowbias32, an integer hash of C. Wellons (Prospecting for hash functions, 2018); i and j are mixed in by odd factors.
    """
    h = seed + i.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + j.astype(jnp.uint32) * jnp.uint32(0x85EBCA77)
    h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * jnp.uint32(0x846CA68B)
    h ^= h >> 16
    return (h & 0xFFFF).astype(jnp.float32) / 65536, (h >> 16).astype(jnp.float32) / 65536


def noise(seed: Seed, x: Field, y: Field) -> Field:
    """Gradient noise on a unit lattice turned by a random angle: mean 0, variance about 1.

    Between the gradients g of the four corners c around p, g_c . (p - c), it fades by 6 t^5 - 15 t^4 + 10 t^3.

    Args:
        seed: Of the gradients and the angle.
        x: In periods of the lattice: micrometres over the size of a clump.
        y: Likewise.

    Source: Perlin 2002, Improving noise (the fade; here gradients lie in a square).
    """
    turn = 6.2832 * seed.astype(jnp.float32) / 2.0**32
    x, y = jnp.cos(turn) * x + jnp.sin(turn) * y, jnp.cos(turn) * y - jnp.sin(turn) * x
    i, j = jnp.floor(x), jnp.floor(y)
    x, y = x - i, y - j
    i, j = i.astype(jnp.int32), j.astype(jnp.int32)
    fade = [t * t * t * (t * (t * 6 - 15) + 10) for t in (x, y)]

    def corner(di: int, dj: int) -> Array:
        a, b = lattice_hash(seed, i + di, j + dj)
        return (2 * a - 1) * (x - di) + (2 * b - 1) * (y - dj)

    upper = corner(0, 0) + fade[0] * (corner(1, 0) - corner(0, 0))
    lower = corner(0, 1) + fade[0] * (corner(1, 1) - corner(0, 1))
    return 4.2 * (upper + fade[1] * (lower - upper))


def discs(
    seed: Seed, x: Field, y: Field, pitch: float, smallest: float, present: Callable[[Array, Array], Array]
) -> tuple[Field, Field]:
    """Round things strewn about: depth inside the disc of the point's own lattice cell, and the radius of that disc.

    A disc lies wholly within its cell, hence no other cell need be looked at.

    Args:
        seed: Of places, radii and presence; seed + 1 is used as well.
        x: In um, and so are y, pitch, smallest and both results.
        y: Likewise.
        pitch: Side of a cell.
        smallest: Least radius; the largest is 0.42 pitch.
        present: Probability of a disc, given x and y of the middle of its cell.

    Returns:
        The depth, negative outside the disc and -1000 in a cell without one; the radius.
    """
    i, j = jnp.floor(x / pitch), jnp.floor(y / pitch)
    a, b = lattice_hash(seed, i.astype(jnp.int32), j.astype(jnp.int32))
    c, d = lattice_hash(seed + 1, i.astype(jnp.int32), j.astype(jnp.int32))
    radius = smallest + (0.42 * pitch - smallest) * c
    free = 1 - 2 * radius / pitch
    there = d < present((i + 0.5) * pitch, (j + 0.5) * pitch)
    depth = radius - jnp.hypot(
        x - (i + 0.5 + (a - 0.5) * free) * pitch, y - (j + 0.5 + (b - 0.5) * free) * pitch
    )
    return jnp.where(there, depth, -1e3), radius


def cell_site(seed: Seed, i: Int[Array, "*S"], j: Int[Array, "*S"]) -> tuple[Field, Field]:
    """Place x, y in pitches of the cell in column i and row j of a shaken honeycomb, whose rows are `ROW` pitches apart."""
    a, b = lattice_hash(seed, i, j)
    return i + 0.5 * (j & 1) + 0.15 + 0.7 * a, ROW * (j + 0.15 + 0.7 * b)


def cell_borders(seed: Seed, x: Field, y: Field) -> Field:
    """How much further the second nearest `cell_site` is than the nearest, in pitches: 0 on the border of two cells.

    Args:
        seed: Of the sites.
        x: In pitches.
        y: In pitches.

    Source: Worley 1996, A cellular texture basis function (F2 - F1).
    """
    row = jnp.floor(y / ROW).astype(jnp.int32)
    first = second = jnp.full(x.shape, 9.0)
    for dj in (-1, 0, 1):
        column = jnp.floor(x - 0.5 * ((row + dj) & 1)).astype(jnp.int32)
        for di in (-1, 0, 1):
            a, b = cell_site(seed, column + di, row + dj)
            distance = jnp.hypot(x - a, y - b)
            second = jnp.minimum(second, jnp.maximum(first, distance))
            first = jnp.minimum(first, distance)
    return second - first


def along_fibres(seed: UInt32[Array, "2"], x: Field, y: Field) -> tuple[Field, Field]:
    """Coordinates in um along and across wavy fibres, of a direction of the seed's own, from x and y in um."""
    wave = 20 * noise(seed[0], x / 130, y / 130) + 3 * noise(seed[1], x / 27, y / 27)
    turn = 6.2832 * seed[0].astype(jnp.float32) / 2.0**32 + 1
    return jnp.cos(turn) * x + jnp.sin(turn) * y, jnp.cos(turn) * y - jnp.sin(turn) * x + wave
