"""Probes of all layers and splits against looped peers, and the statistics of a whole run, in one run.

1. The paper's size: 13 InceptionV3 layers, 441 images, 25 splits of 70/30, 10 penalties; one measure, then 1,000 permuted ones.
   Features are divided by their sd over all images beforehand, so that all solve the same problems. Prints seconds, ratios and
   the largest difference in mean R2.
2. The statistics of a run: 19 layers, 334 images, 25 splits, 15 penalties; trained, random and shuffled; least squares; intervals
   over images, nuisances, pixels, 1,000 permutations, vectors and tables, as scripts/probe.py computes them, beside the two
   forward passes of ResNet50 that precede them.

The peers need `pip install .[benchmarks]`; --quick takes every fifth split of theirs and multiplies by five.

  python benchmarks/probe_speed.py
"""

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import statsmodels.api as sm
from himalaya.kernel_ridge import KernelRidgeCV
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from scalecov_jax import checkpoints
from scalecov_jax.concepts.compute import Measured
from scalecov_jax.experiments.probe_memory import probe_class
from scalecov_jax.experiments.probe_settings import Settings
from scalecov_jax.experiments.probe_tables import class_tables
from scalecov_jax.extraction import Features, dry_run
from scalecov_jax.imaging.image_set import Example
from scalecov_jax.models.architecture import get_architecture
from scalecov_jax.models.pruning import abstract_variables
from scalecov_jax.probes import evaluate
from scalecov_jax.probes.splits import random_splits

WIDTHS = {"mixed0": 256, "mixed1": 288, "mixed2": 288}
WIDTHS |= {f"mixed{i}": 768 for i in range(3, 8)}
WIDTHS |= {"mixed8": 1280, "mixed9": 2048, "mixed10": 2048, "pre_softmax": 1000, "softmax": 1000}
IMAGES, SPLITS, ALPHAS, PERMUTED = 441, 25, np.logspace(-1, 6, 10), 1000
RESNET50 = [
    *(256,) * 3,
    *(512,) * 4,
    *(1024,) * 6,
    *(2048,) * 3,
    2048,
    1000,
    1000,
]  # add_1 .. add_16, avg_pool, head


def make_features(widths: dict[str, int], latent: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Features of a few latent variables and noise, correlated as pooled features are."""
    rng = np.random.default_rng(seed)
    features = {}
    for layer, width in widths.items():
        x = np.maximum(latent @ rng.normal(size=(latent.shape[1], width)), 0)
        features[layer] = (x + 0.3 * rng.normal(size=x.shape)).astype(np.float32)
    return features


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


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds of the first call, with compilation, and of the fastest of three more."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        found = call()
        seconds.append(time.perf_counter() - start)
    return seconds[0], min(seconds[1:]), found


def against_peers(every: int) -> None:
    """One measure, and permuted ones."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(IMAGES, 40))
    features = {
        layer: StandardScaler().fit_transform(x.astype(np.float64))
        for layer, x in make_features(WIDTHS, latent, 0).items()
    }
    measure = latent[:, :1] + 0.5 * rng.normal(size=(IMAGES, 1))
    permuted = np.concatenate([rng.permutation(measure) for _ in range(PERMUTED)], axis=1)
    splits = random_splits(IMAGES, SPLITS, seed=0)
    for name, targets, peers in (
        ("one measure", measure, {"scikit-learn RidgeCV": ridge, "statsmodels OLS": least_squares}),
        (
            f"{PERMUTED:,} permuted measures",
            permuted,
            {"scikit-learn RidgeCV per target": ridge, "himalaya KernelRidgeCV": kernel_ridge},
        ),
    ):
        first, seconds, found = timed(
            lambda targets=targets: evaluate.held_out(features, targets, splits, alphas=ALPHAS)
        )
        print(f"{name:<24} ours {seconds:7.2f} s   (first call, with compilation, {first:.2f} s)")
        for peer, fit in peers.items():
            took, scores = loop(fit, features, targets, splits, every, peer)
            gap = np.abs(scores.mean(1) - found.r2[:, ::every].mean(1)).max()
            same = f", mean R2 differs by {gap:.1e}" if fit is ridge else ""
            print(f"  {peer:<34}{took:8.2f} s   ratio {took / seconds:6.2f}{same}")


def whole_run() -> None:
    """What scripts/probe.py computes between the last forward pass and the report."""
    count, rng = 334, np.random.default_rng(1)
    latent = rng.normal(size=(count, 40))
    widths = {f"layer_{number}": width for number, width in enumerate(RESNET50)}
    features = {
        condition: Features(make_features(widths, seen, number), np.arange(count), ())
        for number, (condition, seen) in enumerate(
            (("trained", latent), ("random_weights", rng.normal(size=latent.shape)))
        )
    }
    source = [
        Example(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8), None, None, None, f"{i}", f"{i}")
        for i in range(count)
    ]
    values = np.concatenate(
        [latent[:, :1] + rng.normal(size=(count, 1)), rng.normal(size=(count, 6))], axis=1
    )
    names = tuple(map(str, range(count)))
    measured = Measured(values, names, names, np.arange(count), ())
    settings = Settings(nuisances=(*Settings().nuisances, "file_size"), permutations=1000)
    labels = {"architecture": "resnet50", "weights": "w", "image_class": "car"}

    def statistics() -> None:
        class_tables("w", {"car": probe_class(features, measured, source, settings, labels)})

    first, seconds, _ = timed(statistics)
    print(f"statistics of a run      ours {seconds:7.2f} s   (first call, with compilation, {first:.2f} s)")
    family = get_architecture("resnet50")
    blank = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), abstract_variables(family.module(), family)
    )
    network = checkpoints.network(blank, checkpoints.Card("resnet50", {}, "tf", 299, "benchmark"))
    forward = dry_run(checkpoints.random_network(network, 0), 2 * count, family.layers)
    print(
        f"  two forward passes of ResNet50, 299 px {forward.seconds:6.1f} s   ({forward.images_per_second:.1f} images/s), "
        f"{100 * seconds / forward.seconds:.0f} % of them"
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # statsmodels: more features than images
    whole_run()
    against_peers(5 if "--quick" in sys.argv else 1)
