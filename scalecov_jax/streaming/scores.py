"""From the scores of streamed folds to the result of a class and the rows of its layers.csv."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from scalecov_jax.checkpoints import Network
from scalecov_jax.concepts.compute import Measured
from scalecov_jax.design import Design
from scalecov_jax.experiment import ClassResult
from scalecov_jax.features import pooled_features
from scalecov_jax.images.example import Skipped
from scalecov_jax.probes.permutation import compare_orders
from scalecov_jax.probes.streamed_ridge import FoldRcvs, FoldScores
from scalecov_jax.rcv import Rcv
from scalecov_jax.scores import Condition, Score
from scalecov_jax.streaming.stream_sums import Unreadable


class FoldRow(NamedTuple):
    """Ridge at one layer over the folds (a row of layers.csv of a streamed run).

    `r2` is the mean over folds, `r2_sd` their sd (ddof 1), `lowest` and `highest` the extremes; `inner` is read by the training
    folds of each other; `alpha` is a geometric mean; `p` and `p_family` as in `permutation.Permutation`.
    """

    weights: str
    concept: str
    image_class: str
    layer: str
    images: int
    folds: int
    r2: float
    r2_sd: float
    lowest: float
    highest: float
    inner: float
    alpha: float
    ols: float
    p: float | None
    p_family: float | None


class Solved(NamedTuple):
    """The scores and vectors of one pass and the images that could not be read."""

    scores: FoldScores
    rcvs: Mapping[str, FoldRcvs]
    unreadable: tuple[Unreadable, ...]


def layer_widths(network: Network, layers: Sequence[str], size: int | None) -> dict[str, int]:
    """Features of each layer D; nothing is computed."""
    size = size or network.card.input_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    shapes = jax.eval_shape(
        lambda variables, pixels: pooled_features(
            network.module, variables, pixels, tuple(layers), network.card.preprocessing
        ),
        network.variables,
        images,
    )
    return {layer: shapes[layer].shape[1] for layer in layers}


def class_result(
    solved: Mapping[Condition, Solved],
    measured: Measured,
    folds: np.ndarray,
    layers: Sequence[str],
    design: Design,
    names: tuple[str, str, str],
    widths: dict[str, int],
    origins: Mapping[str, str],
    pooling: str,
) -> ClassResult:
    """What was measured on the images of one class; there is no evidence.

    Args:
        solved: Scores of the passes; columns of targets are the measures, those shuffled for each fold, those in every order.
        measured: The images and their measures.
        folds: The fold of each.
        layers: In the order of the scores.
        design: What was regressed.
        names: Of the architecture, the weights, and the class of images.
        widths: Features of each layer D.
        origins: Fingerprint of the network at each layer.
        pooling: How maps became features.
    """
    trained, vectors, unreadable = solved["trained"]
    count = len(design.concepts)
    scores = []
    conditions: tuple[Condition, ...] = ("trained", "shuffled_measure", "random_weights")
    for condition in conditions:
        one = solved["random_weights"].scores if condition == "random_weights" else trained
        for column, concept in enumerate(design.concepts):
            for row, layer in enumerate(layers):
                for split in range(one.ridge.shape[1]):
                    # Every fold has a shuffled measure of its own.
                    place = count * (1 + split) + column if condition == "shuffled_measure" else column
                    at = (row, split, place)
                    head = (names[0], names[1], condition, concept, names[2], layer, split)
                    scores.append(Score(*head, "ols", None, float(one.ols[at])))
                    scores.append(Score(*head, "ridge", float(one.alpha[at]), float(one.ridge[at])))
    kept = np.ones(len(folds), bool)
    kept[[one.row for one in unreadable]] = False
    n_train = int(kept.sum() - kept[folds == 0].sum())
    ranks = {
        layer: int(rank) if rank < n_train - 1 else widths[layer]
        for layer, rank in zip(layers, trained.rank.max(1), strict=True)
    }
    rows = np.flatnonzero(kept)
    return ClassResult(
        tuple(scores),
        None,
        measured.indices[rows],
        tuple(measured.names[row] for row in rows),
        tuple(measured.groups[row] for row in rows),
        n_train,
        widths,
        ranks,
        tuple(Skipped(one.name, one.reason, one.detail) for one in unreadable),
        (),
        tuple(
            Rcv(
                concept, names[2], names[1], layer, origins[layer], pooling, float(one.alpha[m]),
                float(trained.ridge[row, :, m].mean()), float(one.sigma[m]), float(one.intercept[0, m]),
                one.weights[0, :, m], one.pattern[:, m], one.scale, one.mean,
            )
            for row, (layer, one) in enumerate(vectors.items())
            for m, concept in enumerate(design.concepts)
        ),
        {layer: one.weights[1:] for layer, one in vectors.items()},
    )  # fmt: skip


def fold_rows(
    solved: Solved, result: ClassResult, layers: Sequence[str], design: Design, names: tuple[str, str, str]
) -> list[FoldRow]:
    """One row for each measure and layer; see `class_result` for the arguments."""
    found, count = solved.scores, len(design.concepts)
    tests = None
    if design.permutations:
        folds = found.ridge.shape[1]
        mean = found.ridge.mean(1)
        permuted = mean[:, count * (1 + folds) :].reshape(len(layers), design.permutations, count)
        every = np.concatenate([mean[:, :count, None], permuted.transpose(0, 2, 1)], axis=2)
        tests = compare_orders(every)
    rows = []
    for m, concept in enumerate(design.concepts):
        for k, layer in enumerate(layers):
            r2 = found.ridge[k, :, m]
            rows.append(
                FoldRow(
                    names[1],
                    concept,
                    names[2],
                    layer,
                    len(result.indices),
                    len(r2),
                    float(r2.mean()),
                    float(r2.std(ddof=1)),
                    float(r2.min()),
                    float(r2.max()),
                    float(found.inner[k, :, m].mean()),
                    float(np.exp(np.log(found.alpha[k, :, m]).mean())),
                    float(found.ols[k, :, m].mean()),
                    None if tests is None else float(tests.p[k, m]),
                    None if tests is None else float(tests.p_family[k, m]),
                )
            )
    return rows
