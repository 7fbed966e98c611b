"""Rows of the tables of covariance as an operation."""

from collections.abc import Iterable
from typing import NamedTuple

METRICS = ("raw", "standardised")


class Change(NamedTuple):
    """What moves in the features when objects grow (one row of change.csv).

    Attributes:
        architecture: Name of the network.
        weights: Name of the weights.
        condition: trained, random_weights or shuffled_measure (the probe's; the objects grow in any case).
        estimator: ols or ridge.
        image_class: Class of the scenes and of the growing objects.
        layer: The layer.
        width: Features D.
        measure: What the probe was fitted to: r, sqrt_r or log_r.
        metric: raw features, or standardised by their sd over all scenes.
        rcv: Share of the change along the RCV.
        rcv_low: End of its 95 % interval over objects.
        rcv_high: The other end.
        pattern: Share along the pattern of the probe.
        best: Share along the best single direction, which bounds both.
        random: Mean share along random directions.
        chance: 1 / D.
        published_step: Share of the change that phi + sigma v foretells.
        smallest_step: That phi + sigma v / |v|^2 foretells.
        pattern_step: That phi + sigma a / v.a foretells.
        best_step: That the best common translation foretells.
        own_step: That the best translation of each object foretells.
    """

    architecture: str
    weights: str
    condition: str
    estimator: str
    image_class: str
    layer: str
    width: int
    measure: str
    metric: str
    rcv: float
    rcv_low: float
    rcv_high: float
    pattern: float
    best: float
    random: float
    chance: float
    published_step: float
    smallest_step: float
    pattern_step: float
    best_step: float
    own_step: float


class Linearity(NamedTuple):
    """How well a measure is read (one row of linearity.csv); the first fields as in `Change`.

    Attributes:
        r2: On the half of the scenes that was not fitted, mean over splits.
        r2_sd: Over splits.
        r2_median: Over splits; to be read where one split fails.
        r2_within: Of the change read within growing objects against the true change.
        slope: Of the one on the other.
        factor: |v|^2, by which the published step overshoots.
    """

    architecture: str
    weights: str
    condition: str
    estimator: str
    image_class: str
    layer: str
    measure: str
    r2: float
    r2_sd: float
    r2_median: float
    r2_within: float
    slope: float
    factor: float


class Angle(NamedTuple):
    """How alike two probes of the ratio are (one row of angles.csv); the first fields as in `Change`.

    Attributes:
        kind: splits (two halves of a class), classes, or layers.
        other: The class or layer of the second probe; that of the first for splits.
        metric: raw or standardised: cosine between RCVs. pattern: between their patterns, standardised. readings or errors:
            correlation on common held-out scenes.
        value: Mean over splits.
        sd: Over splits.
        chance: 1 / sqrt(D), the sd of the cosine of random directions; None for correlations.
    """

    architecture: str
    weights: str
    condition: str
    estimator: str
    image_class: str
    layer: str
    kind: str
    other: str
    metric: str
    value: float
    sd: float
    chance: float | None


class Transfer(NamedTuple):
    """R2 of the ratio read by a probe of one class in scenes of another (one row of transfer.csv).

    Attributes:
        test_class: Class of the scenes; those of the probe's own class are its held-out half.
        r2: Median over splits.
        r2_low: Of the worst split.
        r2_high: Of the best.
        r2_own_intercept: Median, after the intercept was fitted to the scenes read.
    """

    architecture: str
    weights: str
    condition: str
    estimator: str
    image_class: str
    test_class: str
    layer: str
    r2: float
    r2_low: float
    r2_high: float
    r2_own_intercept: float


class Reading(NamedTuple):
    """A measure read from one growing object at one size (one row of readings.csv)."""

    architecture: str
    weights: str
    condition: str
    estimator: str
    image_class: str
    layer: str
    measure: str
    object: int
    ratio: float
    read: float


class Tables(NamedTuple):
    """All rows of one or several networks."""

    change: list[Change]
    linearity: list[Linearity]
    angles: list[Angle]
    transfer: list[Transfer]
    readings: list[Reading]


def join(parts: Iterable[Tables]) -> Tables:
    """The rows of several networks or conditions in one."""
    parts = list(parts)
    return Tables(
        [row for part in parts for row in part.change],
        [row for part in parts for row in part.linearity],
        [row for part in parts for row in part.angles],
        [row for part in parts for row in part.transfer],
        [row for part in parts for row in part.readings],
    )


def select(tables: Tables, weights: str, estimator: str) -> Tables:
    """The rows of one network and one estimator."""
    wanted = (weights, estimator)
    return Tables(
        [row for row in tables.change if (row.weights, row.estimator) == wanted],
        [row for row in tables.linearity if (row.weights, row.estimator) == wanted],
        [row for row in tables.angles if (row.weights, row.estimator) == wanted],
        [row for row in tables.transfer if (row.weights, row.estimator) == wanted],
        [row for row in tables.readings if (row.weights, row.estimator) == wanted],
    )
