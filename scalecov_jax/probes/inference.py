"""Ridge on all layers and splits with everything that inference needs, from one factorisation a layer.

`batch.score_layers` standardises every feature by the training part of each split, so that each split has a factorisation of
its own. Here each feature is divided by its sd over all images; no measure enters. One factorisation then serves all splits,
penalties, targets and permutations, and the experiments without one image or group. R2 changes by some thousandths, except where
a feature is almost constant in a training part and speaks up in the held-out one, which does less harm here.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from scalecov_jax.probes import deletion, spectral
from scalecov_jax.probes.batch import ALPHAS
from scalecov_jax.probes.contract import check_positive, check_problem
from scalecov_jax.probes.splits import padded

CHUNK = 1000  # permuted targets at a time


class Inference(NamedTuple):
    """Ridge on every layer; L layers, S splits, N images, G groups of images, M concept measures.

    Attributes:
        r2: Held-out R2 of every split.
        alpha: Penalty of every split, by exact leave-one-out inside its training part.
        inner: Leave-one-out R2 inside the training part at that penalty.
        without: r2 when a group of images is taken out of the whole experiment; 0 where it is not defined.
        defined: Whether it is defined: the held-out part without the group still has two different measures.
        errors: Measure minus prediction of each image by the fit to all others.
        leverage: Of each image in the fit to all images.
        alpha_all: Penalty of the fit to all images, by exact leave-one-out.
        dof: Effective degrees of freedom of that fit, the intercept and nuisance measures included.
        r2_left_out: Leave-one-out R2 of all images.
    """

    r2: Float[np.ndarray, "L S M"]
    alpha: Float[np.ndarray, "L S M"]
    inner: Float[np.ndarray, "L S M"]
    without: Float[np.ndarray, "L S G M"]
    defined: Bool[np.ndarray, "S G M"]
    errors: Float[np.ndarray, "L N M"]
    leverage: Float[np.ndarray, "L N M"]
    alpha_all: Float[np.ndarray, "L M"]
    dof: Float[np.ndarray, "L M"]
    r2_left_out: Float[np.ndarray, "L M"]


def infer(
    features: Mapping[str, Float[np.ndarray, "N _"]],
    targets: Float[np.ndarray, "N M"],
    splits: Bool[np.ndarray, "S N"],
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    nuisances: Float[np.ndarray, "N K"] | None = None,
    alphas: Float[np.ndarray, " A"] = ALPHAS,
    progress: str | None = None,
) -> Inference:
    """Fit ridge to every layer and split, leaving out images and groups in turn.

    Args:
        features: Of each layer.
        targets: Concept measures, the same for all splits.
        splits: True marks the training part.
        groups: Patient, slide or source image of each image, what would be drawn anew in another sample; each image when absent.
        nuisances: Measures that are fitted without a penalty beside the intercept, in every training part.
        alphas: Penalties to choose from.
        progress: Label of a progress bar on stderr; none when absent.

    Raises:
        ValueError: See `contract.check_problem`; nuisances that are not one row an image, or so many that nothing is left.
    """
    _check(features, targets, splits, alphas)
    parts, y = _parts(splits), np.asarray(targets, np.float64)
    members = grouping(groups, len(y))

    def one(gram: Array, unpenalised: Array) -> Any:
        return _infer(gram, unpenalised, y, parts, np.asarray(alphas, np.float64), members)

    found = _every_layer(one, features, nuisances, progress)
    held, without, defined, left, r2_left_out = (list(values) for values in zip(*found, strict=True))
    stacked = [
        np.stack(values)
        for values in (*zip(*held, strict=True), without, *zip(*left, strict=True), r2_left_out)
    ]
    return Inference(*stacked[:4], defined[0] > 0, *stacked[4:])  # pyright: ignore[reportCallIssue]


def held_out(
    features: Mapping[str, Float[np.ndarray, "N _"]],
    targets: Float[np.ndarray, "N M"],
    splits: Bool[np.ndarray, "S N"],
    *,
    alphas: Float[np.ndarray, " A"] = ALPHAS,
    progress: str | None = None,
) -> deletion.HeldOut:
    """Held-out R2, penalty and inner R2 of every layer, split and target, without what `infer` adds: arrays [L, S, M]."""
    every = _chunks(features, targets, splits, alphas, progress)
    r2, alpha, inner = (np.stack(values) for values in zip(*every, strict=True))
    return deletion.HeldOut(r2, alpha, inner)  # pyright: ignore[reportArgumentType]


def mean_r2(
    features: Mapping[str, Float[np.ndarray, "N _"]],
    targets: Float[np.ndarray, "N M"],
    splits: Bool[np.ndarray, "S N"],
    *,
    alphas: Float[np.ndarray, " A"] = ALPHAS,
    progress: str | None = None,
) -> Float[np.ndarray, "L M"]:
    """Mean over splits of the held-out R2 of ridge for thousands of targets, such as permuted measures; see `infer`.

    Targets go through in chunks of equal size; see `deletion.held_out` for the precision.
    """
    return np.stack([one.r2.mean(0) for one in _chunks(features, targets, splits, alphas, progress)])


def _chunks(
    features: Mapping[str, np.ndarray],
    targets: np.ndarray,
    splits: np.ndarray,
    alphas: np.ndarray,
    progress: str | None,
) -> list[deletion.HeldOut]:
    """`deletion.HeldOut` of each layer, `CHUNK` targets at a time."""
    _check(features, targets, splits, alphas)
    parts, y = _parts(splits), np.asarray(targets, np.float64)
    count = y.shape[1]
    width = min(CHUNK, count)
    starts = range(0, count, width)
    chunks = [np.take(y, np.arange(start, start + width) % count, axis=1) for start in starts]

    def one(gram: Array, unpenalised: Array) -> deletion.HeldOut:
        found = [
            _held_out(gram, unpenalised, chunk, parts, np.asarray(alphas, np.float64)) for chunk in chunks
        ]
        joined = (np.concatenate(values, axis=-1)[..., :count] for values in zip(*found, strict=True))
        return deletion.HeldOut(*joined)  # pyright: ignore[reportArgumentType]

    return _every_layer(one, features, None, progress)


def grouping(groups: Sequence[Any] | np.ndarray | None, count: int) -> deletion.Groups:
    """Rows of each group, in the order of their names; every image its own group when `groups` is None.

    Raises:
        ValueError: Not one group an image, or fewer than two groups.
    """
    if groups is None:
        groups = np.arange(count)
    if len(groups) != count:
        raise ValueError(f"{len(groups)} groups for {count} images; expected one each.")
    names, of = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"All {count} images belong to one group ({names[0]}); inference over groups needs at least two."
        )
    rows, weight = padded(of[None] == np.arange(len(names))[:, None])
    return deletion.Groups(rows, weight, of)  # pyright: ignore[reportArgumentType]


def plan_memory(layers: int, images: int, splits: int, groups: int, measures: int, held_out: int) -> int:
    """Bytes that `infer` takes at its largest on a machine with as many workers as layers run side by side.

    For each worker the Gram matrix, its eigenvectors and the operator with room for temporaries (8 N^2), the solves of one split
    (4 T N + 2 T G); and the results of all layers.
    """
    worker = 8 * images**2 + 4 * held_out * images + 2 * held_out * groups + splits * held_out * measures
    results = layers * measures * (splits * (3 + groups) + 2 * images)
    return 8 * (_workers() * worker + results)


def _every_layer(
    one: Callable[[Array, Array], Any],
    features: Mapping[str, np.ndarray],
    nuisances: np.ndarray | None,
    progress: str | None,
) -> list[Any]:
    """Apply `one` to the Gram matrix of each layer, as many side by side as there are processors."""
    count = len(next(iter(features.values())))
    unpenalised = _unpenalised(nuisances, count)
    device = jax.devices("cpu")[0] if jax.default_backend() == "tpu" else None

    def run(values: np.ndarray) -> Any:
        with jax.enable_x64(True), jax.default_device(device):
            return jax.device_get(one(_gram(values.astype(np.float64)), jnp.asarray(unpenalised)))

    # LAPACK's own threads gain nothing on matrices of this size, and fight with each other where several layers run.
    with (
        threadpool_limits(1),
        ThreadPoolExecutor(_workers(), "layer") as pool,
        tqdm(total=len(features), desc=progress, unit="layer", disable=progress is None) as bar,
    ):
        futures = [pool.submit(run, values) for values in features.values()]
        for future in futures:
            future.add_done_callback(lambda _: bar.update())
        return [future.result() for future in futures]


def _workers() -> int:
    return min(8, os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1


@jax.jit
def _gram(features: Float[Array, "N D"]) -> Float[Array, "N N"]:
    by = spectral.standardisation(features, jnp.ones(len(features), features.dtype))
    z = spectral.standardise(features, by)
    return z @ z.T


@jax.jit
def _infer(
    gram: Float[Array, "N N"],
    unpenalised: Float[Array, "N K"],
    targets: Float[Array, "N M"],
    parts: deletion.Parts,
    alphas: Float[Array, " A"],
    groups: deletion.Groups,
) -> tuple[deletion.HeldOut, Array, Array, deletion.LeftOut, Array]:
    layer = deletion.factorise(gram, unpenalised)
    held = deletion.held_out(layer, targets, parts, alphas)
    without, defined = jax.lax.map(
        lambda pair: deletion.without_each_group(layer, pair[0], parts, pair[1], groups),
        (targets.T, held.alpha.T),
    )
    left = deletion.leave_one_out(layer, targets, alphas)
    spread = jnp.square(targets - targets.mean(0)[None]).sum(0)
    last = (1, 2, 0)
    return (
        held,
        without.transpose(last),
        defined.transpose(last),
        left,
        1 - jnp.square(left.errors).sum(0) / spread,
    )


@jax.jit
def _held_out(
    gram: Array, unpenalised: Array, targets: Array, parts: deletion.Parts, alphas: Array
) -> deletion.HeldOut:
    return deletion.held_out(deletion.factorise(gram, unpenalised), targets, parts, alphas)


def _parts(splits: Bool[np.ndarray, "S N"]) -> deletion.Parts:
    return deletion.Parts(*padded(~splits), *padded(splits))  # pyright: ignore[reportArgumentType]


def _unpenalised(nuisances: np.ndarray | None, count: int) -> Float[np.ndarray, "N K"]:
    """Orthonormal basis of the constant and the nuisance measures; measures that depend on others add nothing."""
    constant = np.full((count, 1), count**-0.5)
    if nuisances is None:
        return constant
    if nuisances.ndim != 2 or len(nuisances) != count or not np.isfinite(nuisances).all():
        raise ValueError(
            f"Nuisance measures must be finite numbers [N, K] with one row for each of the {count} images, got "
            f"{list(nuisances.shape)}."
        )
    centred = nuisances - nuisances.mean(0)
    scale = np.linalg.norm(centred, axis=0)
    centred = (
        centred[:, scale > 1e-9 * np.abs(nuisances).max(0)] / scale[scale > 1e-9 * np.abs(nuisances).max(0)]
    )
    vectors, values, _ = np.linalg.svd(centred, full_matrices=False)
    basis = np.concatenate([constant, vectors[:, values > 1e-9]], axis=1)
    if count - basis.shape[1] < 3:
        raise ValueError(
            f"{basis.shape[1] - 1} independent nuisance measures leave nothing of {count} images; take fewer."
        )
    return basis


def _check(
    features: Mapping[str, np.ndarray], targets: np.ndarray, splits: np.ndarray, alphas: np.ndarray
) -> None:
    if targets.ndim != 2:
        raise ValueError(f"Targets must be [N, M], one column a measure, got {list(targets.shape)}.")
    check_positive("Penalties", alphas)
    # One target at a time as a view: check_problem wants the targets of every split.
    check_problem(features, np.broadcast_to(targets, (len(splits), *targets.shape)), splits)
