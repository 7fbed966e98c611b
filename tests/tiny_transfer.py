"""Patches and results of two networks, made up, for the tests of the report of the transfer."""

import numpy as np

from scalecov_jax.images.example import Skipped
from scalecov_jax.images.patches import MAGNIFICATIONS, Patches
from scalecov_jax.report.transfer_result import NetworkResult
from scalecov_jax.transfer import results
from scalecov_jax.transfer.comparison import Prediction, random_name

LAYERS = ("stem", "mixed0", "mixed1", "avg_pool")
NETWORKS = (("inception_v3", "tiny-inception"), ("resnet50", "tiny-resnet"))
ERRORS = {"whole": 0.5, "pruned": 0.3, "scratch": 0.8}  # as shares of the area
SKIPPED = [
    Skipped("s1 at 40X, x=0, y=0", "no whole nucleus", "64 pixels"),
    Skipped("b", "no whole nucleus", ""),
]


def tiny_patches(groups=8, names=None):
    rng = np.random.default_rng(0)
    magnification = np.tile(np.repeat(MAGNIFICATIONS, 3), groups)
    area = 0.55 * magnification**2 * rng.uniform(0.8, 1.2, len(magnification))
    group = np.repeat(names or [f"patient {index}" for index in range(groups)], 3 * len(MAGNIFICATIONS))
    return Patches([None] * len(area), area, magnification, group, group, tuple(SKIPPED))


def train_parts(patches, seeds, fixed=False):
    groups = np.unique(patches.group)
    parts = {}
    for seed in range(seeds):
        held_out = np.random.default_rng(0 if fixed else seed).permutation(groups)[: len(groups) // 3 + 1]
        parts[seed] = ~np.isin(patches.group, held_out)
    return parts


def tiny_results(
    patches, seeds=4, errors=ERRORS, trainables=("head", "ridge"), layers=None, fixed=False, repeat=False
):
    """Networks whose predictions err by a share of the area, other at every patch and seed."""
    train, compared = train_parts(patches, seeds, fixed), []
    layers = layers or dict.fromkeys(range(seeds), "mixed1")
    for architecture, weights in NETWORKS:
        predictions = []
        for trainable in trainables:
            for seed, mask in train.items():
                test = np.flatnonzero(~mask)
                for number, (model, share) in enumerate(errors.items()):
                    rng = np.random.default_rng((0 if repeat else seed, number, len(architecture)))
                    sizes = share * rng.uniform(0.9, 1.1, len(test)) * rng.choice([-1, 1], len(test))
                    area = patches.area[test] * (1 + sizes)
                    curve = [(e, 2e4 / e, 90.0 / e + seed) for e in (1, 2, 3)] if trainable == "all" else ()
                    predictions.append(
                        Prediction(
                            *(architecture, weights if model != "scratch" else random_name(weights), model),
                            layers[seed] if model == "pruned" else "avg_pool",
                            *(trainable, seed, test, area, tuple(curve)),
                        )
                    )
        sweep = []
        for condition in ("trained", "random_weights"):
            for head in ("ridge", "head") if "all" not in trainables else ():
                values = {
                    layer: np.stack(
                        [
                            patches.area * (1 + 0.1 * depth + 0.01 * seed + (condition != "trained"))
                            for seed in train
                        ]
                    )
                    for depth, layer in enumerate(LAYERS, start=1)
                }
                sweep += results.sweep_scores(weights, condition, head, values, patches, train)
        evaluated = results.evaluate_predictions(predictions, patches, train)
        comparisons = results.compare_models(evaluated, patches, weights)
        costs = {"whole": (23_000_000, 5.7e9), "pruned": (9_000_000, 4.0e9), "scratch": (23_000_000, 5.7e9)}
        compared.append(
            NetworkResult(architecture, weights, evaluated, comparisons, sweep, layers, "target", costs)
        )
    adjusted = iter(results.adjust([c for one in compared for c in one.comparisons]))
    return [one._replace(comparisons=[next(adjusted) for _ in one.comparisons]) for one in compared]
