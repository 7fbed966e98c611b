"""Ridge and least squares on all layers at once: what of `ridge` and `split_ridge` is asked for, in float64, and its limits.

Every number here has one definition. Features are divided by their sd over all N images, no measure entering; the intercept is
free; the penalty of each training part minimises its own leave-one-out error; R2 is against the mean of the held-out part.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from threadpoolctl import ThreadpoolController
from tqdm.auto import tqdm

from scalecov_jax import compilation
from scalecov_jax.probes import ridge, split_ridge
from scalecov_jax.probes.contract import check_positive, check_problem
from scalecov_jax.probes.splits import padded

jit = partial(compilation.jit, products=True)

ALPHAS = np.logspace(-1, 6, 15)
CHUNK = 2000  # targets at a time, at most


class ProbeScores(NamedTuple):
    """Held-out R2 of each layer, split and target, and the penalty that ridge chose on the training part."""

    ols: Float[np.ndarray, "L S M"]
    ridge: Float[np.ndarray, "L S M"]
    alpha: Float[np.ndarray, "L S M"]


class Inference(NamedTuple):
    """Ridge on every layer; L layers, S splits, N images, G groups of images, M concept measures."""

    # held-out R2 of every split, of the measures and then of the shuffled ones
    r2: Float[np.ndarray, "L S MO"]
    # penalty of every split, by exact leave-one-out inside its training part
    alpha: Float[np.ndarray, "L S MO"]
    inner: Float[np.ndarray, "L S MO"]  # leave-one-out R2 inside the training part at that penalty
    # held-out R2 of least squares, where there are shuffled measures; else [L, S, 0]
    ols: Float[np.ndarray, "L S _"]
    # r2 when a group of images is taken out of the whole experiment; 0 where it is not defined
    without: Float[np.ndarray, "L S G M"]
    # whether it is defined: the held-out part without the group still has two different measures
    defined: Bool[np.ndarray, "S G M"]
    # dual coefficients of the fit to each training part, 0 in held-out rows
    dual: Float[np.ndarray, "L S N M"]
    errors: Float[np.ndarray, "L N M"]  # measure minus prediction of each image by the fit to all others
    leverage: Float[np.ndarray, "L N M"]  # of each image in the fit to all images
    dual_all: Float[np.ndarray, "L N M"]  # dual coefficients of the fit to all images
    alpha_all: Float[np.ndarray, "L M"]  # penalty of that fit, by exact leave-one-out
    # its effective degrees of freedom, the intercept and nuisance measures included
    dof: Float[np.ndarray, "L M"]


@contextmanager
def float64(threads: int = 1) -> Iterator[None]:
    """Solve in float64, on the host where the accelerator has none (TPU), and with one thread for linear algebra.

    float64 is a property of these small systems, not of the process: the forward pass stays float32. LAPACK's own threads gain
    nothing on matrices of this size; several wait for each other where another process is busy, or layers are solved side by side
    (tenfold here), and on many cores they can corrupt memory (jax issue 39292). Only one large system is worth more `threads`.
    """
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    device = jax.devices("cpu")[0] if jax.default_backend() == "tpu" else chosen
    with jax.enable_x64(True), jax.default_device(device), _libraries().limit(limits=threads):
        yield


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # to find them takes longer than many a solve


def score_layers(
    features: Mapping[str, Float[np.ndarray, "N _"]],
    targets: Float[np.ndarray, "N M"] | Float[np.ndarray, "S N M"],
    splits: Bool[np.ndarray, "S N"],
    alphas: Float[np.ndarray, " A"] = ALPHAS,
    scaling: ridge.Scaling = "each",
    *,
    progress: str | None = None,
) -> ProbeScores:
    """Probe every layer on every split with least squares and ridge; targets are [S, N, M] where each split has its own.

    Equal in float64 to scikit-learn's LinearRegression and RidgeCV, fitted to training parts of
    StandardScaler().fit_transform(features). Parts may differ in size.

    Raises:
        ValueError: See `contract.check_problem`; penalties that are not positive.
    """
    problem = _problem(features, targets, splits, alphas)
    found = _every_layer(_both, features, problem, scaling=scaling, progress=progress)
    return ProbeScores(*found)


def held_out(
    features: Mapping[str, Float[np.ndarray, "N _"]],
    targets: Float[np.ndarray, "N M"] | Float[np.ndarray, "S N M"],
    splits: Bool[np.ndarray, "S N"],
    *,
    alphas: Float[np.ndarray, " A"] = ALPHAS,
    allow_constant: bool = False,
    progress: str | None = None,
) -> split_ridge.HeldOut:
    """Ridge alone, as in `score_layers`; of thousands of targets too, such as permuted measures, in chunks of equal size.

    With `allow_constant` R2 is NaN where a target is constant on a part of a split, as permuted measures of few groups may be.
    """
    problem = _problem(features, targets, splits, alphas, allow_constant=allow_constant)
    count = problem.shared.shape[1]
    chunks = max(1, -(-count // CHUNK))
    width = -(-count // chunks)
    found = []
    for start in range(0, chunks * width, width) if width else [0]:
        columns = np.arange(start, start + width) % max(count, 1)
        part = problem._replace(shared=problem.shared[:, columns])
        found.append(_every_layer(_held_out, features, part, progress=progress))
    joined = (np.concatenate(values, axis=-1) for values in zip(*found, strict=True))
    scores = split_ridge.HeldOut(*(values[..., : count + problem.own.shape[2]] for values in joined))
    if not allow_constant:
        return scores
    spread = np.array([[np.ptp(targets[part], axis=0) for part in (mask, ~mask)] for mask in splits])
    constant: Any = (spread == 0).any(1)
    return scores._replace(r2=np.where(constant[None], np.nan, scores.r2))


def infer(
    features: Mapping[str, Float[np.ndarray, "N _"]],
    targets: Float[np.ndarray, "N M"],
    splits: Bool[np.ndarray, "S N"],
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    shuffled: Float[np.ndarray, "S N O"] | None = None,
    nuisances: Float[np.ndarray, "N K"] | None = None,
    alphas: Float[np.ndarray, " A"] = ALPHAS,
    progress: str | None = None,
) -> Inference:
    """Fit ridge to every layer and split, leaving out images and groups in turn.

    Groups are the patients, slides or source images of the images, what another sample would draw afresh; each image when absent.
    Of the measures `shuffled` in each split held-out scores are wanted and nothing else. With them come the scores of least
    squares, since both take a decomposition of each training part. Nuisances are fitted without a penalty beside the intercept.

    Raises:
        ValueError: See `contract.check_problem`; nuisances that are not one row an image, or so many that nothing is left.
    """
    problem = _problem(features, targets, splits, alphas, nuisances)
    if shuffled is not None:
        problem = problem._replace(own=shuffled)
    members = grouping(groups, len(targets))
    found = Inference(*_every_layer(_infer, features, problem, members, progress=progress))
    return found._replace(defined=found.defined[0] > 0)


def fit(
    features: Float[np.ndarray, "N D"],
    targets: Float[np.ndarray, "N M"],
    parts: Bool[np.ndarray, "P N"] | None = None,
    alphas: Float[np.ndarray, " A"] | None = ALPHAS,
    scaling: ridge.Scaling = "each",
    *,
    scale_over: Bool[np.ndarray, "P N"] | None = None,
) -> ridge.Linear:
    """Fit a linear probe to each of several parts of the images, one part of all when absent.

    Features are scaled by the sd over all images, or over those of `scale_over` where some must have no influence. Penalties are
    chosen by exact leave-one-out inside the part; None for least squares of minimum norm.

    Returns:
        Weights [P, D, M] in the units of the features, intercepts and penalties [P, M], in NumPy.

    Raises:
        ValueError: Penalties that are not positive.
    """
    if alphas is not None:
        alphas = np.sort(check_positive("Penalties", alphas))
    parts = np.ones((1, len(features)), bool) if parts is None else parts
    rows, weight = padded(parts)
    x, y = (np.asarray(values, np.float64) for values in (features, targets))
    samples, sample_of = np.unique(
        np.ones_like(parts) if scale_over is None else scale_over, axis=0, return_inverse=True
    )
    found = [np.empty((len(parts), *shape)) for shape in ((x.shape[1], y.shape[1]), y.shape[1:], y.shape[1:])]
    with float64():
        for number, sample in enumerate(samples):
            own = np.flatnonzero(sample_of == number)
            by = _standardisation(x, sample.astype(np.float64), scaling=scaling)
            z = (x - np.asarray(by.mean)) / np.asarray(by.scale)
            for values, fitted in zip(found, _fit(z, y, rows[own], weight[own], alphas), strict=True):
                values[own] = fitted
            found[0][own] /= np.asarray(by.scale)[:, None]
            found[1][own] -= np.einsum("d,pdm->pm", np.asarray(by.mean), found[0][own])
    return ridge.Linear(*found)


def _fit(z: np.ndarray, y: np.ndarray, rows: np.ndarray, weight: np.ndarray, alphas: Any) -> ridge.Linear:
    if 2 * z.shape[1] < rows.shape[1]:
        return jax.device_get(_fit_primal(z, y, rows, weight, alphas))
    # One compilation for all widths.
    dual, alpha = jax.device_get(_fit_dual(z @ z.T, y, rows, weight, alphas))
    weights = np.stack([z[at].T @ one for at, one in zip(rows, dual, strict=True)])
    mean, middle = (
        np.stack([w @ values[at] / w.sum() for at, w in zip(rows, weight, strict=True)]) for values in (z, y)
    )
    return ridge.Linear(weights, middle - np.einsum("pd,pdm->pm", mean, weights), alpha)


def weights_of(
    features: Float[np.ndarray, "N D"], dual: Float[np.ndarray, "P N M"], targets: Float[np.ndarray, "N M"]
) -> tuple[Float[np.ndarray, "P D M"], Float[np.ndarray, "P M"], Float[np.ndarray, " D"]]:
    """Weights and intercepts in the units of the features from dual coefficients, and the sd of each feature (1 if constant).

    `dual` is 0 for images that had no part in a fit; without nuisances each column sums to 0.
    """
    with float64():
        x = features.astype(np.float64)
        scale = np.asarray(_standardisation(x, scaling="each").scale)
        weights = (x / np.square(scale)).T @ dual
        part = (dual != 0).any(2)
        part[~part.any(1)] = True  # a fit that reads nothing is the mean of its images, all as good as any
        mean, middle = (part @ values / part.sum(1, keepdims=True) for values in (x, targets))
        return weights, middle - np.einsum("pd,pdm->pm", mean, weights), scale


def ranks(features: Mapping[str, Float[np.ndarray, "N _"]]) -> dict[str, int]:
    """Linearly independent features of each layer about their mean, up to the rounding of float32.

    Pooling is linear: a sum of two 1x1 convolutions of 64 channels (ResNet50's add_1) has 256 pooled features of rank 128.
    """
    return dict(zip(features, map(int, _every_layer(_rank, features)[0]), strict=True))


def grouping(groups: Sequence[Any] | np.ndarray | None, count: int) -> split_ridge.Groups:
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
    return split_ridge.Groups(rows, weight, of)  # pyright: ignore[reportArgumentType]


class _Problem(NamedTuple):
    """What is the same for all layers: targets of all splits and those of each, splits, penalties, unpenalised columns."""

    shared: Float[Any, "N M"]
    own: Float[Any, "S N O"]
    parts: split_ridge.Parts
    alphas: Float[Any, " A"]
    unpenalised: Float[Any, "N K"]


def _problem(
    features: Mapping[str, np.ndarray],
    targets: np.ndarray,
    splits: np.ndarray,
    alphas: np.ndarray,
    nuisances: np.ndarray | None = None,
    allow_constant: bool = False,
) -> _Problem:
    common, empty = targets.ndim == 2, np.empty((*splits.shape, 0))
    of_splits = np.broadcast_to(targets, (len(splits), *targets.shape)) if common else targets  # a view
    check_problem(features, of_splits, splits, allow_constant)
    shared, own = (targets, empty) if common else (np.empty((splits.shape[1], 0)), targets)
    return _Problem(
        np.asarray(shared, np.float64),
        np.asarray(own, np.float64),
        split_ridge.Parts(*padded(~splits), *padded(splits)),  # pyright: ignore[reportArgumentType]
        np.sort(check_positive("Penalties", alphas)),
        _unpenalised(nuisances, splits.shape[1]),
    )


def _every_layer(
    one: Callable[..., Any],
    features: Mapping[str, np.ndarray],
    *shared: Any,
    scaling: ridge.Scaling = "each",
    progress: str | None = None,
) -> list[np.ndarray]:
    """Apply `one` to the Gram matrix of each layer and stack what it returns.

    On a CPU as many layers run side by side as there are processors; elsewhere all of them are one vectorised call.
    """

    def run(values: np.ndarray) -> Any:
        # Options of JAX belong to the thread.
        with jax.enable_x64(True), jax.default_device(device):
            return jax.device_get(one(_gram(values.astype(np.float64), scaling=scaling), *shared))

    with float64(), tqdm(total=len(features), desc=progress, unit="layer", disable=progress is None) as bar:
        device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
        if not (workers := layers_at_once()):
            grams = jnp.stack(
                [_gram(values.astype(np.float64), scaling=scaling) for values in features.values()]
            )
            found = jax.device_get(_vectorised(one)(grams, *shared))
            bar.update(len(features))
            return [np.asarray(values) for values in found]
        with ThreadPoolExecutor(workers, "layer") as pool:
            futures = [pool.submit(run, values) for values in features.values()]
            for future in futures:
                future.add_done_callback(lambda _: bar.update())
            found = [future.result() for future in futures]
    return [np.stack(values) for values in zip(*found, strict=True)]


@cache
def _vectorised(one: Callable[..., Any]) -> Callable[..., Any]:
    """The same for the Gram matrices [L, N, N] of all layers."""
    return jit(lambda grams, *shared: jax.vmap(one, (0, *(None for _ in shared)))(grams, *shared))


def layers_at_once() -> int:
    """Layers that run side by side, 0 where all of them are one call."""
    return min(8, os.cpu_count() or 1) if jax.default_backend() in ("cpu", "tpu") else 0


_standardisation = jit(ridge.standardisation, static_argnames="scaling")


@partial(jit, static_argnames="scaling")
def _gram(features: Float[Array, "N D"], scaling: ridge.Scaling) -> Float[Array, "N N"]:
    z = ridge.standardise(features, ridge.standardisation(features, scaling=scaling))
    return z @ z.T


@jit
def _both(gram: Float[Array, "N N"], problem: _Problem) -> tuple[Any, ...]:
    shared, own, parts, alphas, columns = problem
    found = split_ridge.held_out(ridge.decompose(gram, columns), gram, shared, own, parts, alphas, ols=True)
    return found.ols, found.r2, found.alpha


@jit
def _held_out(gram: Float[Array, "N N"], problem: _Problem) -> tuple[Any, ...]:
    shared, own, parts, alphas, columns = problem
    return split_ridge.held_out(ridge.decompose(gram, columns), gram, shared, own, parts, alphas)[:3]


@jit
def _infer(gram: Float[Array, "N N"], problem: _Problem, groups: split_ridge.Groups) -> tuple[Any, ...]:
    targets, own, parts, alphas, columns = problem
    spectrum = ridge.decompose(gram, columns)
    held = split_ridge.held_out(spectrum, gram, targets, own, parts, alphas, ols=own.shape[2] > 0)
    nothing = jnp.zeros((len(own), 0))
    without, defined, dual = jax.lax.map(
        lambda one: split_ridge.without_each_group(spectrum, one[0], parts, one[1], groups),
        (targets.T, held.alpha[:, : targets.shape[1]].T),
    )
    whole = ridge.fit(spectrum, targets, alphas)
    last = (1, 2, 0)
    return (
        *held[:3],
        nothing if held.ols is None else held.ols,
        *(values.transpose(last) for values in (without, defined, dual)),
        whole.errors,
        whole.leverage,
        whole.dual,
        whole.alpha,
        ridge.degrees_of_freedom(spectrum, whole.alpha),
    )


@jit
def _rank(gram: Float[Array, "N N"]) -> tuple[Array]:
    mean = gram.mean(0)
    centred = gram - mean[None] - mean[:, None] + mean.mean()
    floor = jnp.square(10 * jnp.finfo(jnp.float32).eps) * jnp.trace(centred)
    return ((jnp.linalg.eigvalsh(centred, symmetrize_input=False) > floor).sum(),)


@jit
def _fit_primal(
    z: Float[Array, "N D"],
    targets: Float[Array, "N M"],
    rows: Int[Array, "P n"],
    weight: Float[Array, "P n"],
    alphas: Float[Array, " A"] | None,
) -> ridge.Linear:
    return ridge.over_splits(
        lambda part: ridge.linear(z[part[0]], targets[part[0]], alphas, part[1]), (rows, weight)
    )


@jit
def _fit_dual(
    gram: Float[Array, "N N"],
    targets: Float[Array, "N M"],
    rows: Int[Array, "P n"],
    weight: Float[Array, "P n"],
    alphas: Float[Array, " A"] | None,
) -> tuple[Float[Array, "P n M"], Float[Array, "P M"]]:
    def one(part: tuple[Array, Array]) -> tuple[Array, Array]:
        at, weight = part
        inside = gram[at[:, None], at[None]] * weight[:, None] * weight[None]
        spectrum, y = ridge.decompose(inside, ridge.constant(weight)), targets[at] * weight[:, None]
        if alphas is None:
            return ridge.least_squares(spectrum, y), jnp.zeros(y.shape[1], y.dtype)
        found = ridge.fit(spectrum, y, alphas)
        return found.dual, found.alpha

    return ridge.over_splits(one, (rows, weight))


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
    varies = scale > 1e-9 * np.abs(nuisances).max(0)
    vectors, values, _ = np.linalg.svd(centred[:, varies] / scale[varies], full_matrices=False)
    basis = np.concatenate([constant, vectors[:, values > 1e-9]], axis=1)
    if count - basis.shape[1] < 3:
        raise ValueError(
            f"{basis.shape[1] - 1} independent nuisance measures leave nothing of {count} images; take fewer."
        )
    return basis
