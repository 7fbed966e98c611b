"""Any probe on every layer and split: held-out scores under one contract."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from tqdm.auto import tqdm

from scalecov_jax.compilation import jit
from scalecov_jax.probes import ridge
from scalecov_jax.probes.contract import Probe, check_positive, check_problem
from scalecov_jax.probes.evaluate import ALPHAS, float64
from scalecov_jax.probes.kernel_ridge import kernel_ridge
from scalecov_jax.probes.local_ridge import local_ridge
from scalecov_jax.probes.logistic import logistic

Score = Callable[[Float[Array, "K M"], Float[Array, "K M"]], Float[Array, " M"]]


def linear_ridge(alphas: Sequence[float] | np.ndarray = ALPHAS) -> Probe:
    """The probe of `ridge.linear`; penalties to choose from by exact leave-one-out."""
    alphas = check_positive("Penalties", np.asarray(alphas))
    return Probe("ridge", lambda z, targets: ridge.linear(z, targets, jnp.asarray(alphas)), ridge.predict)


_OLS = Probe("ols", ridge.linear, ridge.predict)
_PROBES = linear_ridge(), _OLS, kernel_ridge(), logistic(), local_ridge()
PROBES: dict[str, Probe] = {probe.name: probe for probe in _PROBES}


def r2(predictions: Float[Array, "K M"], targets: Float[Array, "K M"]) -> Float[Array, " M"]:
    """1 - SSE / SST against the mean of the held-out targets; for 0 and 1 this is the Brier skill score."""
    return ridge.r2(predictions, targets, jnp.ones(len(targets), targets.dtype))


def cross_validate(
    probe: Probe,
    features: Mapping[str, Float[np.ndarray, "N _"]],
    targets: Float[np.ndarray, "S N M"],
    splits: Bool[np.ndarray, "S N"],
    *,
    scaling: ridge.Scaling = "each",
    score: Score = r2,
    progress: str | None = None,
) -> Float[np.ndarray, "L S M"]:
    """Fit a probe to the training part of every layer and split and score it on the held-out part, in float64.

    It is compiled once for each width of a layer and size of the training part. The probe is traced on all of them before
    anything is computed.

    Each split has its own targets, so that one may hold shuffled ones. Features are divided here by their sd over all images, and
    centred by the training part of each split. `score` makes one number a target of predictions and held-out targets.

    Raises:
        ValueError: See `check_problem`; or the probe fails, is not traceable, or returns another shape or values that are not
            finite: names the probe, the layer and the shapes.
    """
    check_problem(features, targets, splits)
    if probe.check is not None:
        probe.check(targets)
    sizes = splits.sum(1)
    groups = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
    scores = np.empty((len(features), len(splits), targets.shape[2]))
    with (
        float64(),
        tqdm(total=scores[..., 0].size, desc=progress, unit="fit", disable=progress is None) as bar,
    ):
        targets = targets.astype(np.float64)
        for layer, values in features.items():
            for group in groups:
                x = jax.ShapeDtypeStruct(values.shape, np.float64)
                _try(probe, layer, (score, scaling, x, targets[group], *_indices(splits[group])))
        for index, (layer, values) in enumerate(features.items()):
            x = values.astype(np.float64)
            for group in groups:
                parts = _indices(splits[group])
                scores[index, group] = _scores(probe, score, scaling, x, targets[group], *parts)
                bar.update(len(group))
            if bad := [str(split) for split in np.flatnonzero(~np.isfinite(scores[index]).all(1))]:
                raise ValueError(
                    f"Probe {probe.name!r} gives NaN or infinity on layer {layer!r} of {values.shape[1]} features, in split "
                    f"{', '.join(bad)}; a constant feature is 0 everywhere after standardisation, and there may be more features "
                    "than images: does it divide by a variance, or invert a matrix without a penalty?"
                )
    return scores


@partial(jit, static_argnames=("probe", "score", "scaling"))
def _scores(
    probe: Probe,
    score: Score,
    scaling: ridge.Scaling,
    features: Float[Array, "N D"],
    targets: Float[Array, "S N M"],
    train: Array,
    test: Array,
) -> Float[Array, "S M"]:
    z = ridge.standardise(features, ridge.standardisation(features, scaling=scaling))

    def one_split(arguments: tuple[Array, Array, Array]) -> Array:
        y, train, test = arguments
        mean = z[train].mean(0)[None]
        fit = probe.fit(z[train] - mean, y[train])
        predictions = probe.predict(fit, z[test] - mean)
        _check_floats(
            "predict", predictions, (len(test), y.shape[1]), "one row an image, one column a target"
        )
        result = score(predictions.astype(y.dtype), y[test])
        _check_floats("score", result, y.shape[1:], "one number a target")
        return jnp.where(jnp.isfinite(predictions).all(0), result, jnp.nan)

    return jax.lax.map(one_split, (targets, train, test))


def _try(probe: Probe, layer: str, arguments: tuple[Any, ...]) -> None:
    """Trace one layer and size of the training part, without computing."""
    *_, features, targets, train, test = arguments
    try:
        _scores.program().eval_shape(probe, *arguments)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        reason = (
            f"it is not pure JAX ({type(error).__name__}); write it with jax.numpy, without NumPy, scikit-learn or Python "
            "branches on values"
        )
        cause = error
    except Exception as error:
        reason, cause = f"{type(error).__name__}: {error}", error
    else:
        return
    raise ValueError(
        f"Probe {probe.name!r} cannot be used on layer {layer!r}, where fit gets features "
        f"{[train.shape[1], features.shape[1]]} and targets {[train.shape[1], targets.shape[2]]} and predict gets features "
        f"{[test.shape[1], features.shape[1]]}: {reason}"
    ) from cause


def _check_floats(name: str, values: Any, shape: tuple[int, ...], meaning: str) -> None:
    if not isinstance(values, jax.Array | np.ndarray):
        raise TypeError(
            f"{name} returns {type(values).__name__}; expected an array {list(shape)}, {meaning}."
        )
    if values.shape != shape or not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(
            f"{name} returns {values.dtype} {list(values.shape)}; expected floats {list(shape)}, {meaning}."
        )


def _indices(masks: Bool[np.ndarray, "S N"]) -> tuple[np.ndarray, np.ndarray]:
    """Of the training and the held-out images, one row a split; all parts have the same size."""
    train, test = (np.nonzero(part)[1].reshape(len(masks), -1) for part in (masks, ~masks))
    return train, test
