"""The tidy table of probe scores: one row a layer, split, condition and estimator."""

from typing import Literal, NamedTuple

Condition = Literal["trained", "random_weights", "shuffled_measure"]
Estimator = Literal["ols", "ridge"]
CONDITIONS: tuple[Condition, ...] = ("trained", "random_weights", "shuffled_measure")
ESTIMATORS: tuple[Estimator, ...] = ("ols", "ridge")


class Score(NamedTuple):
    """Held-out R2 of one probe on one split (one row of scores.csv).

    Attributes:
        architecture: Name of the network, such as inception_v3.
        weights: Name of the weights (the folder of the checkpoint).
        condition: trained, random_weights or shuffled_measure.
        concept: What was regressed, such as scale.
        image_class: The class whose images were used.
        layer: The layer whose pooled features were probed.
        split: Index of the random split.
        estimator: ols (minimum norm), ridge, or the name of another probe.
        alpha: Penalty chosen on the training part; None for other estimators than ridge.
        r2: Coefficient of determination on the held-out part.
    """

    architecture: str
    weights: str
    condition: Condition
    concept: str
    image_class: str
    layer: str
    split: int
    estimator: str
    alpha: float | None
    r2: float
