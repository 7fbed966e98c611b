"""The paper-size probing problem against the same loops in scikit-learn, in one run.

13 InceptionV3 layers, 441 images, 25 splits of 70/30, 10 penalties, three conditions (trained, shuffled measure, random
weights), least squares and ridge. Prints seconds, the ratio and the largest difference in R2.

  python benchmarks/probe_speed.py
"""

import time

import numpy as np
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from scalecov_jax.probes.batch import ProbeScores, score_layers
from scalecov_jax.probes.splits import random_splits, shuffled

WIDTHS = {"mixed0": 256, "mixed1": 288, "mixed2": 288}
WIDTHS |= {f"mixed{i}": 768 for i in range(3, 8)}
WIDTHS |= {"mixed8": 1280, "mixed9": 2048, "mixed10": 2048, "pre_softmax": 1000, "softmax": 1000}
IMAGES, SPLITS, ALPHAS = 441, 25, np.logspace(-1, 6, 10)


def make_features(seed: int, latent: np.ndarray) -> dict[str, np.ndarray]:
    """Correlated features of a few latent variables and noise, as pooled features are."""
    rng = np.random.default_rng(seed)
    return {
        layer: (
            np.maximum(latent @ rng.normal(size=(40, width)), 0) + 0.3 * rng.normal(size=(IMAGES, width))
        ).astype(np.float32)
        for layer, width in WIDTHS.items()
    }


def ours(trained, random_weights, real, control, splits) -> tuple[ProbeScores, ProbeScores]:
    """All three conditions: two calls, since the shuffled measure shares the features of the trained network."""
    return (
        score_layers(trained, np.stack([real, control], -1), splits, ALPHAS),
        score_layers(random_weights, real[..., None], splits, ALPHAS),
    )


def scikit_learn(features, targets, splits, label) -> tuple[np.ndarray, np.ndarray, float]:
    """The loop that a researcher would write, one fit a layer and split; and the seconds spent in RidgeCV alone."""
    ridge_seconds = 0.0
    ols, ridge = np.zeros((2, len(features), len(splits)))
    for row, values in enumerate(tqdm(features.values(), desc=label, leave=False)):
        for split, train in enumerate(splits):
            scaler = StandardScaler().fit(values[train].astype(np.float64))
            x, x_test = (scaler.transform(values[part].astype(np.float64)) for part in (train, ~train))
            y, y_test = targets[split][train], targets[split][~train]
            ols[row, split] = r2_score(y_test, LinearRegression().fit(x, y).predict(x_test))
            start = time.perf_counter()
            ridge[row, split] = r2_score(y_test, RidgeCV(ALPHAS).fit(x, y).predict(x_test))
            ridge_seconds += time.perf_counter() - start
    return ols, ridge, ridge_seconds


def main() -> None:
    """Time both and compare."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(IMAGES, 40))
    measure = latent[:, 0] + 0.5 * rng.normal(size=IMAGES)
    splits = random_splits(IMAGES, SPLITS, seed=0)
    real, control = np.tile(measure, (SPLITS, 1)), shuffled(measure, SPLITS, seed=0)
    trained, random_weights = make_features(1, latent), make_features(2, rng.normal(size=latent.shape))

    start = time.perf_counter()
    ours(trained, random_weights, real, control, splits)
    compiled = time.perf_counter() - start
    start = time.perf_counter()
    first, second = ours(trained, random_weights, real, control, splits)
    seconds = time.perf_counter() - start

    start = time.perf_counter()
    peers = [
        scikit_learn(trained, real, splits, "scikit-learn trained"),
        scikit_learn(trained, control, splits, "scikit-learn shuffled"),
        scikit_learn(random_weights, real, splits, "scikit-learn random"),
    ]
    peer_seconds = time.perf_counter() - start

    mine = [(first.ols[..., 0], first.ridge[..., 0]), (first.ols[..., 1], first.ridge[..., 1])]
    mine.append((second.ols[..., 0], second.ridge[..., 0]))
    n_train = int(splits[0].sum())
    apart = np.array([not 0.5 < width / n_train < 2 for width in WIDTHS.values()])
    differences = np.array(
        [
            [np.abs(a - b).max(1) for a, b in zip(m, p[:2], strict=True)]
            for m, p in zip(mine, peers, strict=True)
        ]
    )
    print(f"scalecov_jax   {seconds:7.2f} s   (first call, with compilation, {compiled:.2f} s)")
    print(f"scikit-learn   {peer_seconds:7.2f} s")
    ridge_seconds = sum(peer[2] for peer in peers)
    print(
        f"ratio          {peer_seconds / seconds:7.2f}   (to RidgeCV alone, {ridge_seconds:.2f} s: {ridge_seconds / seconds:.2f})"
    )
    print(
        f"largest difference in R2: ridge {differences[:, 1].max():.1e}, ols {differences[:, 0][:, apart].max():.1e}"
    )
    print("(ols without the layers of 0.5 < D / n_train < 2, where it amplifies rounding)")


if __name__ == "__main__":
    main()
