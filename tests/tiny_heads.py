"""A regression small enough for ten heads in a test, and what heads predict."""

import numpy as np

N, D, SEEDS = 600, 24, tuple(range(3, 13))
LONG = {"epochs": 150, "batch_size": 128}


def make_problem(count, width, seeds=3, seed=0):
    """Features of unequal scales, one of them constant and one silent on the first part; targets of mean 500, sd 300 px."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, width)) + 0.5 * rng.normal(size=(count, 1))
    signal = features @ rng.normal(size=width) / np.sqrt(width)
    targets = 500 + 300 * (signal + 0.3 * rng.normal(size=count)) / np.hypot(signal.std(), 0.3)
    train = rng.random((seeds, count)) < np.linspace(0.6, 0.8, seeds)[:, None]
    features = features * rng.lognormal(sigma=2, size=width) + rng.normal(size=width)
    features[:, 1] = 0.7
    features[train[0], 2] = 0.0
    return features.astype(np.float32), targets.astype(np.float32), train


def predict(fit, features):
    return np.asarray(fit.kernel, np.float64) @ features.T + np.asarray(fit.bias, np.float64)[:, None]
