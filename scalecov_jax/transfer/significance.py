"""Whether one network errs less than another: exact tests over seeds, correction for many tests."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata


class Paired(NamedTuple):
    """Comparison of two networks over the same seeds."""

    mean_difference: float  # mean of first - second
    sd_difference: float  # its standard deviation over seeds (ddof 1)
    wins: int  # seeds with first < second; wins of the first for errors, of the second for kappa
    ties: int  # seeds with first = second
    p: float  # exact two-sided p of the Wilcoxon signed-rank test
    smallest_p: float  # what p would be if all differences that are not 0 had one sign


def compare(first: Float[np.ndarray, " S"], second: Float[np.ndarray, " S"]) -> Paired:
    """Wilcoxon signed-rank test over S seeds, exact with ties and zeros.

    With d = first - second, zeros dropped and n left, W = sum of the (mid-)ranks of |d| where d > 0. Under the null hypothesis
    all 2^n signs are equally likely, and p = min(1, 2 min(P(W <= w), P(W >= w))), no less than 2 / 2^n. If all d are 0, p = 1.

    Raises:
        ValueError: Fewer than 2 seeds, or values that are not finite.

    Source: Wilcoxon 1945, Individual Comparisons by Ranking Methods; zeros and ties as in Pratt & Gibbons 1981, Concepts of
        Nonparametric Theory, chapter 3.
    """
    if len(first) < 2:
        raise ValueError(f"A comparison needs at least 2 seeds, got {len(first)}.")
    bad = np.flatnonzero(~(np.isfinite(first) & np.isfinite(second)))
    if len(bad):
        raise ValueError(f"{len(bad)} of {len(first)} pairs are not finite, at {bad[:10].tolist()}.")
    difference = first.astype(np.float64) - second
    nonzero = difference[difference != 0]
    return Paired(
        float(difference.mean()),
        float(difference.std(ddof=1)),
        int((difference < 0).sum()),
        int((difference == 0).sum()),
        _signed_rank_p(nonzero),
        min(1.0, 2.0 ** (1 - len(nonzero))),
    )


def _signed_rank_p(difference: Float[np.ndarray, " n"]) -> float:
    ranks = (2 * rankdata(np.abs(difference))).astype(np.int64)  # doubled, so that mid-ranks are integers
    chance = np.zeros(ranks.sum() + 1)  # of each sum of the positive ranks
    chance[0] = 1.0
    for rank in ranks:
        with_rank = np.concatenate([np.zeros(rank), chance[: len(chance) - rank]])
        chance = (chance + with_rank) / 2
    positive = ranks[difference > 0].sum()
    tail = min(positive, ranks.sum() - positive)
    return min(1.0, 2 * float(chance[: tail + 1].sum()))


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p values of m tests for the family-wise error: p_(i) -> max over j <= i of min(1, (m - j + 1) p_(j)), rising p.

    Returns:
        Adjusted values, in the order given.

    Raises:
        ValueError: Values outside [0, 1].

    Source: Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure.
    """
    bad = [index for index, value in enumerate(p) if not 0 <= value <= 1]
    if bad:
        raise ValueError(f"{len(bad)} of {len(p)} p values lie outside [0, 1], at {bad[:10]}.")
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, (len(p) - np.arange(len(p))) * np.asarray(p, np.float64)[order])
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted.tolist()
