"""Names in the tables of probe scores; `experiments.probe_tables.score_table` makes them."""

from typing import Literal

Condition = Literal["trained", "random_weights", "shuffled_measure"]
Estimator = Literal["ols", "ridge"]
CONDITIONS: tuple[Condition, ...] = ("trained", "random_weights", "shuffled_measure")
ESTIMATORS: tuple[Estimator, ...] = ("ols", "ridge")
