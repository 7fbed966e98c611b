"""Whether a map tells what the network does: insertion and deletion, the pointing game, and randomised weights."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float
from scipy.stats import binomtest, spearmanr

from scalecov_jax.checkpoints import Network, random_network
from scalecov_jax.compilation import jit
from scalecov_jax.explanation.capture import capture
from scalecov_jax.explanation.target import Target
from scalecov_jax.imaging.image_set import Box

Maps = Float[np.ndarray, "N H W"]
Flags = Bool[np.ndarray, " N"]

SMALL = 0.25  # share of the image below which an object is small


class Curves(NamedTuple):
    """The target while pixels come or go in the order of a map, at shares 0, 1/T, ..., 1 of the pixels."""

    insertion: Float[Array, "N T1"]  # from the baseline to the image; high at once where the map is faithful
    deletion: Float[Array, "N T1"]  # from the image to the baseline; low at once where the map is faithful


class Pointing(NamedTuple):
    """The pointing game of two ways to point, on the same images."""

    images: int  # their number
    hits: int  # images where the map's largest value lies in the box
    centre_hits: int  # images whose centre lies in the box
    only_map: int  # hits of the map alone
    only_centre: int  # hits of the centre alone
    p: float  # of the exact two-sided McNemar test on these two


class Exchanged(NamedTuple):
    """Hits of maps beside those of maps that are exchanged among the images."""

    hits: int  # see `hits`
    expected: float  # mean number of hits of exchanged maps
    p: float  # one-sided permutation p value


class Randomised(NamedTuple):
    """Maps of a network whose layers are random from the output down to `layer`, beside those of the network."""

    layer: str  # the last part that was made random
    correlation: Float[np.ndarray, " N"]  # Spearman's, of each image; 0 where one of the maps is constant


@partial(jit, static_argnames=("module", "steps"))
def insertion_deletion(
    module: nn.Module,
    variables: Any,
    inputs: Float[Array, "N H W 3"],
    maps: Float[Array, "N H W"],
    baseline: Float[Array, "N H W 3"],
    target: Target,
    steps: int = 16,
) -> Curves:
    """Replace pixels by those of a baseline (such as `blurred` images), in the order of a map, in T = `steps` steps.

    Maps have the size of the images; pixels of equal value go in the order of rows and columns.

    Source: Petsiuk, Das and Saenko 2018, RISE, section 4.1.
    """
    count, height, width = maps.shape
    flat = maps.reshape(count, -1)
    order = jnp.argsort(-flat, axis=1, stable=True)
    rank = jnp.argsort(order, axis=1).reshape(maps.shape)

    def at(share: Array) -> tuple[Array, Array]:
        first = (rank < share * height * width)[..., None]
        pairs = jnp.where(first, inputs, baseline), jnp.where(first, baseline, inputs)
        inserted, deleted = (
            target(capture(module, variables, one, (target.layer,))[target.layer]) for one in pairs
        )
        return inserted, deleted

    inserted, deleted = jax.lax.map(at, jnp.linspace(0, 1, steps + 1))
    return Curves(inserted.T, deleted.T)


def area_under(curves: Float[Array, "N T1"] | Float[np.ndarray, "N T1"]) -> Float[np.ndarray, " N"]:
    """Area under each curve over shares 0 to 1, by the trapezoidal rule."""
    values = np.asarray(curves, np.float64)
    return (values[:, 1:] + values[:, :-1]).mean(1) / 2


def blurred(inputs: Float[Array, "N H W 3"], sigma: float = 10.0) -> Float[Array, "N H W 3"]:
    """Images without detail: a Gaussian of `sigma` pixels along both axes; what lies outside counts nothing."""
    for axis in (1, 2):
        at = jnp.arange(inputs.shape[axis])
        kernel = jnp.exp(-jnp.square((at[:, None] - at[None]) / sigma) / 2)
        kernel = kernel / kernel.sum(1, keepdims=True)
        inputs = jnp.moveaxis(jnp.tensordot(kernel, inputs, (1, axis)), 0, axis)
    return inputs


def hits(maps: Maps, boxes: Sequence[Box], tolerance: int = 0) -> Flags:
    """Whether the largest value of each map lies in the box of its image, or misses it by `tolerance` pixels at most.

    A map that is nowhere above zero points nowhere and misses. Boxes are 1-based and inclusive, in pixels of the map.

    Source: Zhang et al. 2016, Top-down Neural Attention by Excitation Backprop, section 4.1.
    """
    _check_boxes(len(maps), boxes)
    return _inside(*points(maps), boxes, tolerance)


def centre_hits(height: int, width: int, boxes: Sequence[Box]) -> Flags:
    """Whether the centre of each image lies in its box: what pointing achieves without looking."""
    count = len(boxes)
    return _inside(np.full(count, (width + 1) / 2), np.full(count, (height + 1) / 2), boxes, 0)


def pointing_game(hit: Flags, centre: Flags) -> Pointing:
    """Compare `hits` of a map with `centre_hits` of the same images by the exact McNemar test.

    Source: McNemar 1947; exact binomial form.
    """
    only_map, only_centre = int((hit & ~centre).sum()), int((centre & ~hit).sum())
    differ = only_map + only_centre
    p = float(binomtest(only_map, differ).pvalue) if differ else 1.0
    return Pointing(len(hit), int(hit.sum()), int(centre.sum()), only_map, only_centre, p)


def exchange_test(maps: Maps, boxes: Sequence[Box], *, permutations: int = 2000, seed: int = 0) -> Exchanged:
    """The pointing game against maps of the other images: does a map follow the object, or where objects usually are?

    Source: a permutation test of independence; with it a map gains nothing from pointing where most boxes are.
    """
    _check_boxes(len(maps), boxes)
    x, y = points(maps)
    inside = np.stack([_inside(x, y, [box] * len(x), 0) for box in boxes])  # of image i, the point of map j
    count, own = len(boxes), int(inside.trace())
    rng = np.random.default_rng(seed)
    drawn = [int(inside[np.arange(count), rng.permutation(count)].sum()) for _ in range(permutations)]
    expected = float(inside.sum() / count)
    return Exchanged(own, expected, (1 + sum(one >= own for one in drawn)) / (1 + permutations))


def pointing_strata(hit: Flags, centre: Flags, share: Float[np.ndarray, " N"]) -> dict[str, Pointing]:
    """`pointing_game` over all images, and over those whose object is small; a stratum without images is left out.

    A large box is hard to miss from the centre, so all images together say little of where a map points. `share` is the area of
    the box, as a share of its image; small is below a quarter.

    Source: Zhang et al. 2016, section 4.1: `difficult` images have objects below a quarter of the image, and besides them one of
        another category, which images with one object do not have.
    """
    strata = {"all": np.ones(len(hit), bool), "small": np.asarray(share) < SMALL}
    return {name: pointing_game(hit[one], centre[one]) for name, one in strata.items() if one.any()}


def parts_downwards(network: Network, size: int = 0) -> tuple[str, ...]:
    """Modules at the top of the network that have weights, from the output down; `size` is that of images, its own when 0."""
    order: dict[str, None] = {}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if len(context.module.path) == 1:
            order[context.module.path[0]] = None
        return call(*args, **kwargs)

    size = size or network.card.input_size
    with nn.intercept_methods(note):
        jax.eval_shape(
            network.module.apply, network.variables, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        )
    return tuple(name for name in reversed(order) if name in network.variables["params"])


def randomise_downwards(network: Network, parts: Sequence[str], seed: int = 0) -> Iterator[tuple[str, Any]]:
    """Variables of the network with more and more of its parts random, from the output down, and the last part made random.

    Parts are modules at the top of the network; random weights are drawn as in `checkpoints.random_network`.

    Raises:
        ValueError: The network has no such parts.

    Source: Adebayo et al. 2018, Sanity Checks for Saliency Maps, section 3 (cascading randomisation).
    """
    there = network.variables["params"]
    if missing := [part for part in parts if part not in there]:
        raise ValueError(
            f"The network has no parts {', '.join(missing)} with weights; there are {', '.join(there)}."
        )
    random = random_network(network, seed).variables
    variables = {name: dict(collection) for name, collection in network.variables.items()}
    for part in parts:
        variables = {
            name: {key: random[name][key] if key == part else value for key, value in collection.items()}
            for name, collection in variables.items()
        }
        yield part, variables


def weight_randomisation(
    network: Network,
    maps: Callable[[Any], Maps],
    parts: Sequence[str],
    seed: int = 0,
) -> list[Randomised]:
    """Rank correlation of maps with those of a network that forgets, layer by layer from the output down.

    A map that hardly changes does not show what the network has learnt. `maps` makes them from variables.

    Source: Adebayo et al. 2018, Sanity Checks for Saliency Maps.
    """
    original = np.asarray(maps(network.variables))
    return [
        Randomised(part, rank_correlation(original, np.asarray(maps(variables))))
        for part, variables in randomise_downwards(network, parts, seed)
    ]


def rank_correlation(first: Maps, second: Maps) -> Float[np.ndarray, " N"]:
    """Spearman's correlation of the pixels of every two maps; 0 where one is constant, as it then says nothing of the other."""
    values = np.zeros(len(first))
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        if np.ptp(a) > 0 and np.ptp(b) > 0:
            values[index] = spearmanr(a.ravel(), b.ravel()).statistic  # pyright: ignore[reportAttributeAccessIssue]
    return values


def points(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Column and row of the largest value of each map, from 1; outside of every box where nothing is above zero."""
    flat = np.asarray(maps).reshape(len(maps), -1)
    rows, columns = np.unravel_index(flat.argmax(1), maps.shape[1:])
    nowhere = np.where(flat.max(1) > 0, 0.0, np.inf)
    return columns + 1.0 + nowhere, rows + 1.0 + nowhere


def _inside(x: np.ndarray, y: np.ndarray, boxes: Sequence[Box], tolerance: int) -> np.ndarray:
    left, top, right, bottom = np.array(boxes, float).reshape(-1, 4).T
    across = (x >= left - tolerance) & (x <= right + tolerance)
    return across & (y >= top - tolerance) & (y <= bottom + tolerance)


def _check_boxes(count: int, boxes: Sequence[Box]) -> None:
    if len(boxes) != count:
        raise ValueError(f"{len(boxes)} boxes for {count} maps; expected one each.")
