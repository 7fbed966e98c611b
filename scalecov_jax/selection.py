"""From scores to the layer to cut at."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from scalecov_jax.scores import ESTIMATORS, Estimator


class Selected(NamedTuple):
    """The layer that an estimator selects, with mean and sd (ddof 1) of its R2 over classes and splits."""

    estimator: Estimator
    layer: str
    r2_mean: float
    r2_sd: float


def select_layer(scores: pd.DataFrame, layers: Sequence[str], estimator: Estimator) -> Selected:
    """The peak over layers of the trained network.

    ols: the published rule, the mean over classes and splits of exp(R2 - 1), which keeps the far negative R2 of least squares
    from drowning the rest. ridge: the mean R2. Of equal layers the first wins.

    Scores are those of one network and concept, as by `probe_tables.score_table`; layers are candidates, from input to output.

    Raises:
        ValueError: A layer has no score.

    Source: Graziani et al. 2021, section 3.5; the averaging on exp(R2 - 1) is that of the authors' notebook Averaging_results.
    """
    wanted = (scores["condition"] == "trained") & (scores["estimator"] == estimator)
    r2 = scores[wanted & scores["layer"].isin(layers)].groupby("layer")["r2"].apply(np.array)
    if missing := [layer for layer in layers if layer not in r2]:
        raise ValueError(f"No {estimator} score of the trained network at {', '.join(missing)}.")
    criterion = {"ols": lambda values: np.exp(values - 1).mean(), "ridge": np.mean}[estimator]
    layer = max(layers, key=lambda name: criterion(r2[name]))
    values = r2[layer]
    return Selected(
        estimator, layer, float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0
    )


def select_layers(scores: pd.DataFrame, layers: Sequence[str]) -> tuple[Selected, ...]:
    """`select_layer` for every estimator."""
    return tuple(select_layer(scores, layers, estimator) for estimator in ESTIMATORS)


def interpolates(ratio: float) -> bool:
    """Whether 0.5 < D / n_train < 2: there the R2 of least squares tells of the sample size and not of the layer.

    Least squares fits any n_train targets exactly once D reaches n_train; on pure noise its held-out R2 is about
    -D / (n_train - D - 2) below and -n_train / (D - n_train - 1) above (isotropic Gaussian features).
    """
    return 0.5 < ratio < 2
