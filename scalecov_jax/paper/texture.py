"""Texture in the layers of a network (IMVIP 2019): R2 as published, on the images of the fit, and R2 on images held out."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from scalecov_jax.probes.evaluate import fit, score_layers
from scalecov_jax.probes.permutation import shuffled
from scalecov_jax.probes.splits import grouped_splits

LAYERS = {
    "inception_v3": ("conv2d_3", "conv2d_5", "mixed0", "mixed3", "mixed6", "mixed7", "mixed9"),
    "resnet50": ("add_1", "add_3", "add_7", "add_13", "add_16"),
}
"""Of InceptionV3 as published; of ResNet50 the ends of its stages, and one more in the longest two."""
PUBLISHED_LAYERS = ("conv2d_3", "conv2d_5", "mixed0", "mixed3", "mixed7", "mixed8")
PUBLISHED: dict[str, tuple[tuple[float, ...], ...]] = {
    "glcm_asm": (
        (0.867, 0.925, 0.947, 0.987, 0.987, 0.989),
        (0.890, 0.890, 0.931, 0.992, 0.991, 0.992),
        (0.845, 0.927, 0.970, 0.997, 0.996, 0.994),
    ),
    "glcm_energy": (
        (0.904, 0.949, 0.959, 0.991, 0.990, 0.991),
        (0.928, 0.929, 0.958, 0.994, 0.991, 0.992),
        (0.899, 0.953, 0.981, 0.998, 0.996, 0.994),
    ),
    "glcm_contrast": (
        (0.984, 0.991, 0.987, 0.996, 0.994, 0.993),
        (0.990, 0.994, 0.992, 0.997, 0.990, 0.988),
        (0.987, 0.992, 0.991, 0.998, 0.992, 0.986),
    ),
    "glcm_correlation": (
        (0.875, 0.923, 0.932, 0.985, 0.984, 0.982),
        (0.878, 0.919, 0.939, 0.987, 0.978, 0.974),
        (0.869, 0.917, 0.954, 0.995, 0.992, 0.987),
    ),
    "glcm_dissimilarity": (
        (0.985, 0.994, 0.989, 0.997, 0.995, 0.994),
        (0.996, 0.996, 0.995, 0.998, 0.992, 0.991),
        (0.995, 0.997, 0.996, 0.999, 0.995, 0.989),
    ),
}
"""In-sample R2 of random, pretrained and fine-tuned weights at `PUBLISHED_LAYERS` (printed as conv2d_3, conv2d_5, 5b, 6a, 6e,
7a); 10 repetitions. Source: Graziani et al. 2019, the authors' notebook."""

Part = Literal["in_sample", "held_out"]


class TextureScore(NamedTuple):
    """R2 of one probe (a row of scores.csv).

    Attributes:
        weights: random, pretrained or fine_tuned.
        layer: Whose pooled features are read.
        width: Features D.
        concept: What is read.
        shuffled: Whether the concept was shuffled over the images.
        images: Images n.
        n_fit: Images the probe was fitted to.
        part: Scored on these (in_sample) or on the others (held_out).
        estimator: ols or ridge.
        split: Number.
        r2: Against the mean of the images it is scored on.
    """

    weights: str
    layer: str
    width: int
    concept: str
    shuffled: bool
    images: int
    n_fit: int
    part: Part
    estimator: str
    split: int
    r2: float


def in_sample_r2(
    features: Mapping[str, Float[np.ndarray, "N _"]], targets: Float[np.ndarray, "R N M"]
) -> Float[np.ndarray, "L R M"]:
    """R2 of least squares on the images that it was fitted to, as published.

    With D >= N - 1 independent features it is 1 whatever the targets are; for targets that features know nothing of it is
    D / (N - 1) on average.

    Args:
        features: Of each layer.
        targets: R sets of M measures.

    Source: Graziani et al. 2019.
    """
    repeats, count, measures = targets.shape
    columns = targets.transpose(1, 0, 2).reshape(count, -1)
    spread = np.square(columns - columns.mean(0)).sum(0)
    scores = []
    for values in features.values():
        weights, intercept, _ = fit(values, columns, alphas=None)
        missed = columns - values.astype(np.float64) @ weights[0] - intercept[0]
        scores.append(1 - np.square(missed).sum(0) / spread)
    return np.reshape(scores, (len(features), repeats, measures))


def score_texture(
    weights: str,
    features: Mapping[str, Float[np.ndarray, "N _"]],
    measures: Mapping[str, Float[np.ndarray, " N"]],
    groups: Sequence[str],
    *,
    splits: int,
    seed: int,
) -> list[TextureScore]:
    """Both R2 of all measures at all layers, of the measures and of shuffled ones.

    Args:
        weights: For the rows.
        features: Of each layer.
        measures: Concept measures.
        groups: Patient of each image; held-out images are of other patients.
        splits: Number of splits S; in-sample fits need none.
        seed: Of splits and shuffling.

    Raises:
        ValueError: See `score_layers` and `grouped_splits`.
    """
    real = np.stack(list(measures.values()), 1).astype(np.float64)
    masks = grouped_splits(groups, splits, seed)
    control = shuffled(real, splits, seed, groups)
    inside = in_sample_r2(features, np.concatenate([real[None], control]))
    outside = score_layers(
        features, np.concatenate([np.tile(real[None], (splits, 1, 1)), control], axis=-1), masks
    )
    count, width = real.shape
    rows = []
    for at, (layer, values) in enumerate(features.items()):
        for column, concept in enumerate(measures):

            def add(
                is_shuffled: bool, n_fit: int, part: Part, estimator: str, split: int, r2: float,
                layer: str = layer, concept: str = concept, features: int = values.shape[1],
            ) -> None:  # fmt: skip
                rows.append(
                    TextureScore(
                        weights, layer, features, concept, is_shuffled, count, n_fit, part, estimator, split, float(r2)
                    )
                )  # fmt: skip

            add(False, count, "in_sample", "ols", 0, inside[at, 0, column])
            for split, mask in enumerate(masks):
                add(True, count, "in_sample", "ols", split, inside[at, 1 + split, column])
                for name, r2 in (("ols", outside.ols), ("ridge", outside.ridge)):
                    add(False, int(mask.sum()), "held_out", name, split, r2[at, split, column])
                    add(True, int(mask.sum()), "held_out", name, split, r2[at, split, width + column])
    return rows
