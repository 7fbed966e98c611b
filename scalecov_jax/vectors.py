"""Regression concept vectors: the directions in a layer along which a concept measure grows, and what they were fitted on."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from scalecov_jax.atomic import DamagedError, read_arrays, write_arrays
from scalecov_jax.checkpoints import Network, fingerprints
from scalecov_jax.extraction import Features
from scalecov_jax.probes import evaluate

Vector = Literal["filter", "pattern"]
VECTORS: tuple[Vector, ...] = ("filter", "pattern")
STRIP = ("-v", "u-v", "u", "u+v", "+v")
_KIND = "RCVs 2"
_ARRAYS = ("weights", "pattern", "scale", "mean")


@dataclass(frozen=True)
class Rcv:
    """A linear probe of one concept at one layer, fitted by ridge to all images of a class.

    It has two vectors. The filter w reads the concept: the measure is predicted as features @ w + intercept. The pattern a says
    how the features change with the concept: Cov(x, y) / Var(y) of each feature. They differ where features are correlated, since
    the filter also subtracts what disturbs the reading.

    Source: Graziani et al. 2018, Regression Concept Vectors (there by least squares); Haufe et al. 2014, On the interpretation of
        weight vectors of linear models in multivariate neuroimaging; Pahde et al. 2022, Navigating Neural Space (patterns).
    """

    measure: str  # name of the concept measure
    image_class: str  # the images it was fitted on; empty where they have no class
    weights_name: str  # name of the weights of the network
    layer: str  # whose pooled features it was fitted on
    network: str  # see `checkpoints.fingerprints`; empty for features that came without a network
    pooling: str  # how maps became features
    alpha: float  # the penalty of ridge, on features divided by `scale`
    r2: float  # mean held-out R2 of the probe over splits
    sigma: float  # standard deviation of the measure over the images
    intercept: float  # of the filter
    weights: Float[np.ndarray, " D"]  # the filter, in units of the measure per unit of the feature
    pattern: Float[np.ndarray, " D"]  # in units of the feature per unit of the measure
    scale: Float[np.ndarray, " D"]  # standard deviation of each feature over the images; 1 of a constant one
    mean: Float[np.ndarray, " D"]  # mean of each feature over the images

    def vector(self, kind: Vector | str = "filter") -> Float[np.ndarray, " D"]:
        """The filter or the pattern, of unit length.

        Raises:
            ValueError: It has no length, since nothing can be read from the features, or there is no such vector.
        """
        if kind not in VECTORS:
            raise ValueError(f"An RCV has no vector {kind!r}; expected one of {', '.join(VECTORS)}.")
        values = self.weights if kind == "filter" else self.pattern
        length = np.linalg.norm(values)
        if not length > 0:
            raise ValueError(
                f"The {kind} of {self.measure} at {self.layer} has length 0: nothing can be read from these features."
            )
        return values / length

    @property
    def direction(self) -> Float[np.ndarray, " D"]:
        """The filter, of unit length."""
        return self.vector()

    def predict(self, features: Features | Float[np.ndarray, "N _"]) -> Float[np.ndarray, " N"]:
        """The measure that the filter reads, features @ w + intercept.

        Raises:
            ValueError: Features of another layer, network or pooling, or of another width.
        """
        return self._values(features) @ self.weights + self.intercept

    def step(
        self,
        features: Features | Float[np.ndarray, "N _"],
        sigmas: float = 1.0,
        kind: Vector = "filter",
    ) -> Float[np.ndarray, "N _"]:
        """Features moved by as much as the measure grows by some of its standard deviations.

        Along the filter by the shortest way on which its reading grows so, phi + sigmas sigma w / |w|^2; along the pattern as
        features grow with the measure on average, phi + sigmas sigma a.

        Raises:
            ValueError: See `predict` and `vector`.
        """
        unit = self.vector(kind)
        move = unit / np.linalg.norm(self.weights) if kind == "filter" else self.pattern
        return self._values(features) + sigmas * self.sigma * move[None]

    def save(self, path: str | Path) -> None:
        """Write it to a file of its own, which `load_rcv` reads."""
        save_rcvs(Path(path).expanduser(), [self])

    def _values(self, features: Features | np.ndarray) -> Float[np.ndarray, "N D"]:
        if isinstance(features, Features):
            check_origin(self, features)
            features = features.values[self.layer]
        if features.ndim != 2 or features.shape[1] != len(self.weights):
            raise ValueError(
                f"The RCV of {self.measure} at {self.layer} reads features [N, {len(self.weights)}], got {list(features.shape)}; "
                f"take the pooled features ({self.pooling}) of that layer."
            )
        return np.asarray(features, np.float64)


def make_rcvs(
    measures: Mapping[str, Float[np.ndarray, " N"]],
    features: Mapping[str, Float[np.ndarray, "N _"]],
    fits: Mapping[str, tuple[Float[np.ndarray, "_ M"], Float[np.ndarray, " M"], Float[np.ndarray, " _"]]],
    alpha: Float[np.ndarray, "L M"],
    r2: Float[np.ndarray, "L M"],
    *,
    networks: Mapping[str, str] | None = None,
    weights_name: str = "",
    image_class: str = "",
    pooling: str = "gap",
) -> list[Rcv]:
    """RCVs of every measure and layer.

    Of each layer `fits` are weights and intercepts of the fit to all images, and the sd of each feature (`evaluate.weights_of`);
    `alpha` are the penalties of these fits, `r2` is held out, such as the mean over splits of `evaluate.held_out`. Features that
    came without a network have no fingerprint in `networks`.
    """
    targets = np.stack(list(measures.values()), 1).astype(np.float64)
    centred = targets - targets.mean(0)
    named = {"image_class": image_class, "weights_name": weights_name, "pooling": pooling}
    found = []
    for at, (layer, values) in enumerate(features.items()):
        weights, intercept, scale = fits[layer]
        mean = values.mean(0, dtype=np.float64)
        with evaluate.float64():
            pattern = (values - mean).T @ centred / np.square(centred).sum(0)
        of_layer: Any = {
            "layer": layer,
            "network": (networks or {}).get(layer, ""),
            "scale": scale,
            "mean": mean,
        }
        vectors = {"weights": weights, "pattern": pattern}
        numbers = {"alpha": alpha[at], "r2": r2[at], "sigma": targets.std(0), "intercept": intercept}
        found += layer_rcvs(measures, numbers, vectors, **named, **of_layer)
    return found


def layer_rcvs(
    measures: Iterable[str],
    numbers: Mapping[str, Any],
    vectors: Mapping[str, Any],
    **common: Any,
) -> list[Rcv]:
    """RCVs of one layer from numbers [M], vectors [D, M], and what they have in `common`."""
    found = []
    for m, name in enumerate(measures):
        own: Any = {field: float(values[m]) for field, values in numbers.items()}
        own |= {field: values[:, m] for field, values in vectors.items()}
        found.append(Rcv(measure=name, **common, **own))
    return found


def fit_rcvs(
    network: Network,
    layer: str,
    features: Float[np.ndarray, "N D"],
    measures: Mapping[str, Float[np.ndarray, " N"]],
    splits: Bool[np.ndarray, "S N"],
    *,
    pooling: str = "gap",
    alphas: Float[np.ndarray, " A"] = evaluate.ALPHAS,
) -> list[Rcv]:
    """RCVs of one layer, where no probe run has written them; splits should keep images of a group on one side.

    Raises:
        ValueError: See `evaluate.infer`.
    """
    targets = np.stack(list(measures.values()), 1).astype(np.float64)
    found = evaluate.infer({layer: features}, targets, splits, alphas=alphas)
    weights, intercept, scale = evaluate.weights_of(features, found.dual_all, targets)
    return make_rcvs(
        measures,
        {layer: features},
        {layer: (weights[0], intercept[0], scale)},
        found.alpha_all,
        found.r2.mean(1),
        networks=fingerprints(network, [layer]),
        pooling=pooling,
    )


def check_origin(rcv: Rcv, features: Features) -> None:
    """Make sure that an RCV may be used on features.

    Raises:
        ValueError: They are of another layer, network or pooling; says which.
    """
    if rcv.layer not in features.values:
        raise ValueError(
            f"The RCV of {rcv.measure} was fitted at {rcv.layer}; these features are of {', '.join(features.values)}."
        )
    here = features.origins.get(rcv.layer, "")
    if rcv.network and here and here != rcv.network:
        raise ValueError(
            f"The RCV of {rcv.measure} at {rcv.layer} was fitted on the network {rcv.network}; these features are of {here}. "
            "RCVs are valid for the weights that they were fitted on alone; fit it again."
        )
    if features.pooling and features.pooling != rcv.pooling:
        raise ValueError(
            f"The RCV of {rcv.measure} at {rcv.layer} was fitted on features pooled by {rcv.pooling}; these were pooled by "
            f"{features.pooling}."
        )


def check_rcvs(network: Network, layer: str, rcvs: Sequence[Rcv]) -> None:
    """Make sure that RCVs belong to a layer of a network.

    Raises:
        ValueError: Some were fitted at another layer or on another network; names them all.
    """
    here = fingerprints(network, [layer])[layer]
    problems = [
        f"the RCV of {one.measure} was fitted at {one.layer}, not at {layer}"
        if one.layer != layer
        else f"the RCV of {one.measure} was fitted on the network {one.network or 'of unknown origin'}, not on {here}"
        for one in rcvs
        if (one.layer, one.network) != (layer, here)
    ]
    if problems:
        raise ValueError(
            f"RCVs are valid for the layer and the weights that they were fitted on alone: {'; '.join(problems)}. Fit them here."
        )


def save_rcvs(path: Path, rcvs: Sequence[Rcv]) -> None:
    """Write RCVs to one .npz file, at once: a table of their facts as JSON, and the arrays of each."""
    arrays, facts = {}, []
    for number, one in enumerate(rcvs):
        fields = asdict(one)
        for name in _ARRAYS:
            arrays[f"{name}_{number}"] = fields.pop(name)
        facts.append(fields)
    write_arrays(path, {**arrays, "facts": json.dumps(facts)}, _KIND)


def load_rcvs(path: str | Path) -> list[Rcv]:
    """Read RCVs that a probe run or `Rcv.save` wrote.

    Raises:
        ValueError: There is no such file, or it holds something else.
    """
    try:
        arrays = read_arrays(Path(path).expanduser(), _KIND)
    except FileNotFoundError:
        raise ValueError(f"There is no file {path}; expected rcvs.npz of a probe run.") from None
    except DamagedError as error:
        raise ValueError(f"{error} Expected rcvs.npz of a probe run.") from error
    facts: list[Any] = json.loads(str(arrays["facts"]))
    return [Rcv(**one | {name: arrays[f"{name}_{at}"] for name in _ARRAYS}) for at, one in enumerate(facts)]


def load_rcv(
    path: str | Path, measure: str = "", layer: str = "", *, image_class: str = "", weights_name: str = ""
) -> Rcv:
    """The one RCV of a file that fits what is asked for; empty names fit all.

    Raises:
        ValueError: None fits, or several do; names those that are there.
    """
    every = load_rcvs(path)
    wanted = {"measure": measure, "layer": layer, "image_class": image_class, "weights_name": weights_name}
    fitting = [
        one for one in every if all(value in ("", getattr(one, name)) for name, value in wanted.items())
    ]
    if len(fitting) == 1:
        return fitting[0]
    asked = ", ".join(f"{name} {value!r}" for name, value in wanted.items() if value) or "any RCV"
    there = "; ".join(
        f"{one.measure} at {one.layer}"
        + f" of {one.image_class}" * bool(one.image_class)
        + f" ({one.weights_name})"
        for one in (fitting or every)[:20]
    )
    raise ValueError(
        f"{path}: {'several RCVs fit' if fitting else 'there is no RCV of'} {asked}; there are {there}. Name one of them."
    )


def rcv_table(
    rcvs: Mapping[str, Sequence[Rcv]], by_split: Mapping[str, Mapping[str, Float[np.ndarray, "S D M"]]]
) -> pd.DataFrame:
    """How far each vector can be relied on (rcvs.csv).

    Of each class RCVs layer by layer, the concepts of a layer in the order of the filters `by_split`.

    Returns:
        Columns weights, concept, image_class, layer, norm (of the filter, in units of the measure per unit of the features), r2
        (held out, mean over splits), alpha (penalty of the fit to all images), mean_angle and largest_angle (degrees, between
        the filters of different splits; missing for a single split), mean_cosine and least_cosine (with the filters of the other
        classes; missing for a single class).
    """
    rows = []
    for image_class, own in rcvs.items():
        seen: dict[str, int] = {}
        for at, one in enumerate(own):
            column = seen[one.layer] = seen.get(one.layer, -1) + 1
            angles = np.degrees(np.arccos(_cosines(by_split[image_class][one.layer][:, :, column])))
            others = [every[at].weights for name, every in rcvs.items() if name != image_class]
            cosines = _cosines(np.stack([one.weights, *others]))[: len(others)]
            row = {"weights": one.weights_name, "concept": one.measure, "image_class": image_class}
            row |= {"layer": one.layer, "norm": np.linalg.norm(one.weights), "r2": one.r2, "alpha": one.alpha}
            row |= dict(zip(("mean_angle", "largest_angle"), _extent(angles, np.max), strict=True))
            row |= dict(zip(("mean_cosine", "least_cosine"), _extent(cosines, np.min), strict=True))
            rows.append(row)
    return pd.DataFrame(rows)


def _extent(values: np.ndarray, end: Any) -> tuple[float, float]:
    return (values.mean(), end(values)) if values.size else (math.nan, math.nan)


def _cosines(vectors: Float[np.ndarray, "K D"]) -> Float[np.ndarray, " P"]:
    """Of all pairs, those with the first vector in front; vectors of length 0 are at right angles to all."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    return np.clip((unit @ unit.T)[np.triu_indices(len(vectors), 1)], -1, 1)


def strip(v: Float[np.ndarray, " D"], mean: Float[np.ndarray, " D"]) -> Float[np.ndarray, "5 D"]:
    """Directions from -v to +v of an RCV: `STRIP`, each of unit length.

    The strength of an objective does not change its images, only its direction does. So the way from -v to v leads through
    another direction: u, the part of the mean features that is orthogonal to v, which shows what the images have in common.

    The mean of the features is that over the images that the RCV was fitted on.

    Raises:
        ValueError: One is zero, or both are parallel.
    """
    v = v / max(np.linalg.norm(v), 1e-30)
    u = mean - (mean @ v) * v
    if not np.linalg.norm(u) > 1e-6 * np.linalg.norm(mean) or not v.any():
        raise ValueError("A strip needs an RCV and mean features that are not zero and not parallel.")
    u = u / np.linalg.norm(u)
    return np.stack([-v, (u - v) / np.sqrt(2), u, (u + v) / np.sqrt(2), v]).astype(np.float32)
