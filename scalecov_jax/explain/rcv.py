"""Regression concept vectors that know what they were fitted on."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from scalecov_jax.checkpoints import Network
from scalecov_jax.models.pruning import prune
from scalecov_jax.probes import linear
from scalecov_jax.probes.batch import ALPHAS, score_layers

STRIP = ("-v", "u-v", "u", "u+v", "+v")


class Rcv(NamedTuple):
    """The direction in a layer along which a concept measure grows.

    Attributes:
        measure: Name of the concept measure.
        layer: Whose pooled features it was fitted on.
        network: See `fingerprint`.
        direction: Of unit length.
        r2: Mean held-out R2 of the probe over splits.
    """

    measure: str
    layer: str
    network: str
    direction: Float[np.ndarray, " D"]
    r2: float


def fit_rcvs(
    network: Network,
    layer: str,
    features: Float[np.ndarray, "N D"],
    measures: Mapping[str, Float[np.ndarray, " N"]],
    splits: Bool[np.ndarray, "S N"],
) -> list[Rcv]:
    """Ridge regression of concept measures on the pooled features of a layer.

    The direction is fitted on all images, once; how far it can be trusted is the mean R2 on held-out parts of splits.

    Args:
        network: That computed the features.
        layer: Where.
        features: Pooled, as by `features.compute_features`.
        measures: Values of each concept measure.
        splits: True marks the training part; keep images of a group on one side (`splits.grouped_splits`).

    Raises:
        ValueError: See `score_layers`.

    Source: Graziani et al. 2018, Regression Concept Vectors; 2020 for pooling first. The published direction is that of the
        last fold; its R2 is that of the best.
    """
    targets = np.stack(list(measures.values()), 1).astype(np.float64)
    scores = score_layers({layer: features}, np.tile(targets[None], (len(splits), 1, 1)), splits)
    with jax.enable_x64(True):
        fit = linear.fit_ridge(
            jax.numpy.asarray(features, "float64"), jax.numpy.asarray(targets), jax.numpy.asarray(ALPHAS)
        )
        weights = np.asarray(fit.weights)
    origin = fingerprint(network, layer)
    return [
        Rcv(name, layer, origin, _unit(weights[:, column], name), float(scores.ridge[0, :, column].mean()))
        for column, name in enumerate(measures)
    ]


def fingerprint(network: Network, layer: str) -> str:
    """Identifies the network up to a layer by its variables; the same whole and cut after it."""
    module, variables = network.module, network.variables
    if layer in network.architecture.layers:
        module, variables = prune(module, variables, network.architecture, layer)
    digest = hashlib.sha256(network.architecture.name.encode())
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return f"{network.architecture.name}-{digest.hexdigest()[:12]}"


def strip(v: Float[np.ndarray, " D"], mean: Float[np.ndarray, " D"]) -> Float[np.ndarray, "5 D"]:
    """Directions from -v to +v of an RCV: `STRIP`, each of unit length.

    The strength of an objective does not change its images, only its direction does. So the way from -v to v leads through
    another direction: u, the part of the mean features that is orthogonal to v, which shows what the images have in common.

    Args:
        v: The RCV.
        mean: Features, averaged over the images that it was fitted on.

    Raises:
        ValueError: One is zero, or both are parallel.
    """
    v = v / max(np.linalg.norm(v), 1e-30)
    u = mean - (mean @ v) * v
    if not np.linalg.norm(u) > 1e-6 * np.linalg.norm(mean) or not v.any():
        raise ValueError("A strip needs an RCV and mean features that are not zero and not parallel.")
    u = u / np.linalg.norm(u)
    return np.stack([-v, (u - v) / np.sqrt(2), u, (u + v) / np.sqrt(2), v]).astype(np.float32)


def check_rcvs(network: Network, layer: str, rcvs: Sequence[Rcv]) -> None:
    """Make sure that RCVs belong to a layer of a network.

    Raises:
        ValueError: Some were fitted at another layer or on another network; names them all.
    """
    here = fingerprint(network, layer)
    problems = [
        f"the RCV of {one.measure} was fitted at {one.layer}, not at {layer}"
        if one.layer != layer
        else f"the RCV of {one.measure} was fitted on the network {one.network}, not on {here}"
        for one in rcvs
        if (one.layer, one.network) != (layer, here)
    ]
    if problems:
        raise ValueError(
            f"RCVs hold for the layer and the weights that they were fitted on alone: {'; '.join(problems)}. Fit them here."
        )


def _unit(weights: Any, name: str) -> np.ndarray:
    length = np.linalg.norm(weights)
    if not np.isfinite(length) or length == 0:
        raise ValueError(
            f"The RCV of {name} has length {length}: nothing can be regressed on these features."
        )
    return weights / length
