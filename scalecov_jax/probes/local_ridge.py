"""Local ridge: one linear probe for each cluster of images."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scalecov_jax.probes import ridge
from scalecov_jax.probes.contract import Probe, check_positive
from scalecov_jax.probes.evaluate import ALPHAS

ITERATIONS = 100  # of Lloyd's algorithm at most; it mostly settles within 20


class LocalFit(NamedTuple):
    """A linear probe for the images nearest to each centre."""

    centres: Float[Array, "C D"]  # in the space of standardised features
    weights: Float[Array, "C D M"]  # of each centre and target
    intercept: Float[Array, "C M"]  # of each centre and target
    alpha: Float[Array, "C M"]  # the penalty of each centre and target


def local_ridge(clusters: int = 3, minimum: int = 20, alphas: Sequence[float] | np.ndarray = ALPHAS) -> Probe:
    """A ridge regression for each k-means cluster of the training images; a new image is read by that of the nearest centre.

    Clusters are found in the space of standardised features: k-means++ with a fixed key, then Lloyd's algorithm. In a cluster
    features are centred, but keep the scale of the whole training part.

    A cluster of fewer than `minimum` images takes the ridge of all of them. Penalties are chosen for each cluster and target by
    exact leave-one-out.

    Raises:
        ValueError: No cluster, a minimum below 2, or a penalty that is not positive.

    Source: Graziani's rcvtool (local linear regression on k-means clusters, there by least squares); Arthur and Vassilvitskii
    2007, k-means++; Lloyd 1982, Least Squares Quantization in PCM.
    """
    if clusters < 1 or minimum < 2:
        raise ValueError(
            f"A local ridge needs at least 1 cluster of at least 2 images, got clusters={clusters}, minimum={minimum}."
        )
    alphas = check_positive("Penalties", np.asarray(alphas))

    def fit(z: Float[Array, "N D"], targets: Float[Array, "N M"]) -> LocalFit:
        return _fit(z, targets, clusters, minimum, jnp.asarray(alphas))

    return Probe("local_ridge", fit, predict)


def predict(fit: LocalFit, features: Float[Array, "K D"]) -> Float[Array, "K M"]:
    """Concept measures that the nearest centre's probe reads from standardised features."""
    members = _members(features, fit.centres)
    read = jnp.einsum("kd,cdm->ckm", features, fit.weights) + fit.intercept[:, None]
    return jnp.einsum("ck,ckm->km", members, read)


def _fit(
    z: Float[Array, "N D"],
    targets: Float[Array, "N M"],
    clusters: int,
    minimum: int,
    alphas: Float[Array, " A"],
) -> LocalFit:
    centres = _k_means(z, clusters)
    members = _members(z, centres)
    weight = jnp.where(members.sum(1, keepdims=True) >= minimum, members, 1.0)
    return LocalFit(centres, *jax.lax.map(lambda one: ridge.linear(z, targets, alphas, one), weight))


def _k_means(z: Float[Array, "N D"], clusters: int) -> Float[Array, "C D"]:
    key = jax.random.key(0)
    centres = z[jax.random.randint(key, (1,), 0, len(z))]
    for index in range(1, clusters):
        odds = jnp.log(_squared_distances(z, centres).min(1))
        chosen = jax.random.categorical(jax.random.fold_in(key, index), odds)
        centres = jnp.concatenate([centres, z[chosen][None]])

    def unsettled(state: tuple[Array, Array, Array]) -> Array:
        before, centres, iteration = state
        return (iteration < ITERATIONS) & (before != centres).any()

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        _, centres, iteration = state
        members = _members(z, centres)
        counts = members.sum(1)[:, None]
        means = members @ z / jnp.maximum(counts, 1.0)
        return centres, jnp.where(counts > 0, means, centres), iteration + 1

    return jax.lax.while_loop(
        unsettled, step, (jnp.full_like(centres, jnp.inf), centres, jnp.zeros((), int))
    )[1]


def _members(z: Float[Array, "N D"], centres: Float[Array, "C D"]) -> Float[Array, "C N"]:
    """1 at the centre that is nearest to each row, 0 at the others."""
    nearest = jnp.argmin(_squared_distances(z, centres), axis=1)
    return jax.nn.one_hot(nearest, len(centres), dtype=z.dtype, axis=0)


def _squared_distances(z: Float[Array, "N D"], centres: Float[Array, "C D"]) -> Float[Array, "N C"]:
    return jnp.stack([jnp.square(z - centre[None]).sum(1) for centre in centres], axis=1)
