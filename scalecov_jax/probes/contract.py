"""What a probe is, and what it may be asked to read."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float


class Probe(NamedTuple):
    """A way to read concept measures from features: two pure functions in JAX."""

    name: str  # for messages and tables
    # training features and targets to whatever `predict` needs (any pytree). Features come divided by their sd over all images
    # and centred by the training part, in float64
    fit: Callable[[Float[Array, "N D"], Float[Array, "N M"]], Any]
    # that and features of other images, standardised alike, to one row an image and one column a target
    predict: Callable[[Any, Float[Array, "K D"]], Float[Array, "K M"]]
    # raises ValueError for targets [S, N, M] that the probe cannot read; none when absent
    check: Callable[[np.ndarray], None] | None = None


def check_problem(
    features: Mapping[str, np.ndarray], targets: np.ndarray, splits: np.ndarray, allow_constant: bool = False
) -> None:
    """Check that every part of every split of targets [S, N, M] can be fitted or scored; True marks the training part.

    Raises:
        ValueError: No layer, shapes that do not fit together, values that are not finite, a part of a split with fewer than
            two images or on which a target is constant; lists all of them.
    """
    problems = _shapes(features, targets, splits) or [
        *_values(features, targets),
        *_parts(targets, splits, allow_constant),
    ]
    if problems:
        raise ValueError("\n".join(problems))


def check_positive(name: str, values: np.ndarray) -> np.ndarray:
    """The values as float64.

    Raises:
        ValueError: There is none, or one is not a positive number.
    """
    numbers = np.atleast_1d(np.asarray(values, np.float64))
    if numbers.ndim > 1 or not numbers.size or not (np.isfinite(numbers) & (numbers > 0)).all():
        raise ValueError(f"{name} must be positive numbers, got {numbers.tolist()}.")
    return numbers


def _shapes(features: Mapping[str, np.ndarray], targets: np.ndarray, splits: np.ndarray) -> list[str]:
    if splits.ndim != 2 or splits.dtype != bool:
        return [
            f"Splits must be booleans [S, N], True where an image trains; got {splits.dtype} {list(splits.shape)}."
        ]
    problems = [] if features else ["There is no layer to probe."]
    if targets.ndim != 3 or targets.shape[:2] != splits.shape or not targets.shape[2]:
        problems.append(
            f"Targets must be [S, N, M] = {[*splits.shape, 1]} for one measure on these splits, got {list(targets.shape)}; "
            "repeat a measure with np.tile(measure[:, None], (S, 1, 1))."
        )
    bad = {name: list(x.shape) for name, x in features.items() if x.ndim != 2 or len(x) != splits.shape[1]}
    if bad:
        problems.append(
            f"Features must be [N, D] with one row for each of the {splits.shape[1]} images of the splits, got "
            + ", ".join(f"{shape} for {name}" for name, shape in bad.items())
            + "."
        )
    return problems


def _values(features: Mapping[str, np.ndarray], targets: np.ndarray) -> list[str]:
    bad = ", ".join(name for name, values in features.items() if not np.isfinite(values).all())
    problems = [f"Features of the layers {bad} hold NaN or infinity; check the weights and the images."]
    return problems[: bool(bad)] + ["The targets hold NaN or infinity."] * (not np.isfinite(targets).all())


def _parts(targets: np.ndarray, splits: np.ndarray, allow_constant: bool) -> list[str]:
    problems = []
    for part, masks in (("training", splits), ("held-out", ~splits)):
        counts = masks.sum(1)
        if few := [f"split {split} has {counts[split]} images" for split in np.flatnonzero(counts < 2)]:
            problems.append(f"The {part} part of {', '.join(few)}; at least 2 are needed.")
        constant = [
            str(split)
            for split, mask in enumerate(masks)
            if not allow_constant and counts[split] > 1 and (np.ptp(targets[split, mask], axis=0) == 0).any()
        ]
        if constant:
            problems.append(
                f"A target is constant on the {part} part of split {', '.join(constant)}: R2 is undefined there. Take larger "
                "parts (fewer folds), or splits that are stratified by the measure."
            )
    return problems
