"""All layers and splits from one factorisation a layer against looped peers, in one run.

13 InceptionV3 layers, 441 images, 25 splits of 70/30, 10 penalties; one measure, then 1,000 permuted ones. Features are divided
by their sd over all images beforehand, so that all solve the same problems. Prints seconds, ratios, and the largest difference
in R2. The peers need `pip install .[benchmarks]`; --quick takes every fifth split of theirs and multiplies by five.

  python benchmarks/inference_speed.py
"""

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import statsmodels.api as sm
from himalaya.kernel_ridge import KernelRidgeCV
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from scalecov_jax.probes import inference
from scalecov_jax.probes.splits import random_splits

WIDTHS = {"mixed0": 256, "mixed1": 288, "mixed2": 288}
WIDTHS |= {f"mixed{i}": 768 for i in range(3, 8)}
WIDTHS |= {"mixed8": 1280, "mixed9": 2048, "mixed10": 2048, "pre_softmax": 1000, "softmax": 1000}
IMAGES, SPLITS, ALPHAS, PERMUTED = 441, 25, np.logspace(-1, 6, 10), 1000


def make_problem() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Standardised features of a few latent variables and noise, a measure with its permutations, and splits."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(IMAGES, 40))
    features = {}
    for layer, width in WIDTHS.items():
        x = np.maximum(latent @ rng.normal(size=(40, width)), 0) + 0.3 * rng.normal(size=(IMAGES, width))
        features[layer] = StandardScaler().fit_transform(x.astype(np.float32).astype(np.float64))
    measure = latent[:, 0] + 0.5 * rng.normal(size=IMAGES)
    permuted = np.stack([rng.permutation(measure) for _ in range(PERMUTED)], axis=1)
    return (
        features,
        np.concatenate([measure[:, None], permuted], axis=1),
        random_splits(IMAGES, SPLITS, seed=0),
    )


def r2(y: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Held-out R2 of every target."""
    return 1 - np.square(y - predicted).sum(0) / np.square(y - y.mean(0)).sum(0)


def loop(
    fit: Callable[[np.ndarray, np.ndarray], Any],
    features: dict[str, np.ndarray],
    targets: np.ndarray,
    splits: np.ndarray,
    every: int,
    label: str,
) -> tuple[float, np.ndarray]:
    """One fit a layer and split; seconds for all splits, and R2 [L, S, M] of those that were fitted."""
    start, scores = time.perf_counter(), []
    for x in tqdm(features.values(), desc=label, leave=False):
        for train in splits[::every]:
            predict = fit(x[train], targets[train])
            scores.append(r2(targets[~train], predict(x[~train])))
    seconds = (time.perf_counter() - start) * len(splits) / len(splits[::every])
    return seconds, np.reshape(scores, (len(features), -1, targets.shape[1]))


def ridge(x: np.ndarray, y: np.ndarray) -> Any:
    """scikit-learn, exact leave-one-out, a penalty a target."""
    fit = RidgeCV(ALPHAS, alpha_per_target=y.shape[1] > 1).fit(x, y)
    return lambda new: fit.predict(new).reshape(len(new), -1)


def least_squares(x: np.ndarray, y: np.ndarray) -> Any:
    """As rcvtool fits them."""
    fit = sm.OLS(y[:, 0], sm.add_constant(x)).fit()
    return lambda new: fit.predict(sm.add_constant(new))[:, None]


def kernel_ridge(x: np.ndarray, y: np.ndarray) -> Any:
    """himalaya, five-fold (it has no exact leave-one-out)."""
    fit = KernelRidgeCV(alphas=ALPHAS, fit_intercept=True, warn=False).fit(x, y)
    return fit.predict


def ours(
    features: dict[str, np.ndarray], targets: np.ndarray, splits: np.ndarray
) -> tuple[float, float, Any]:
    """Seconds of the first call, with compilation, and of the fastest of three more."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        found = inference.held_out(features, targets, splits, alphas=ALPHAS)
        seconds.append(time.perf_counter() - start)
    return seconds[0], min(seconds[1:]), found


def main() -> None:
    """Time all of them and compare."""
    warnings.simplefilter("ignore")  # statsmodels: more features than images
    features, targets, splits = make_problem()
    every = 5 if "--quick" in sys.argv else 1
    memory = inference.plan_memory(13, IMAGES, SPLITS, IMAGES, 1, int((~splits[0]).sum()))
    print(f"planned memory of infer: {memory / 1e6:.0f} MB")
    one = targets[:, :1]
    first, seconds, found = ours(features, one, splits)
    print(f"one measure            ours {seconds:7.2f} s   (first call, with compilation, {first:.2f} s)")
    for name, fit in (("scikit-learn RidgeCV", ridge), ("statsmodels OLS", least_squares)):
        took, scores = loop(fit, features, one, splits, every, name)
        gap = f", R2 differs by {np.abs(scores - found.r2[:, ::every]).max():.1e}" if fit is ridge else ""
        print(f"  {name:<34}{took:8.2f} s   ratio {took / seconds:6.2f}{gap}")
    many = targets[:, 1:]
    first, seconds, found = ours(features, many, splits)
    print(f"{PERMUTED:,} permuted measures ours {seconds:7.2f} s   (first call {first:.2f} s)")
    for name, fit in (("scikit-learn RidgeCV per target", ridge), ("himalaya KernelRidgeCV", kernel_ridge)):
        took, scores = loop(fit, features, many, splits, every, name)
        gap = np.abs(scores.mean(1) - found.r2[:, ::every].mean(1)).max()
        print(f"  {name:<34}{took:8.2f} s   ratio {took / seconds:6.2f}, mean R2 differs by {gap:.1e}")


if __name__ == "__main__":
    main()
