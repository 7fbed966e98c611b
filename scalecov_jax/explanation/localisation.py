"""Whether the pixels that a map marks are those of a mask, such as the lesions of a retina."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.ndimage import maximum_filter
from scipy.stats import hypergeom
from skimage.measure import label

from scalecov_jax.explanation.faithfulness import points
from scalecov_jax.probes.statistics import Interval, clustered_bootstrap
from scalecov_jax.transfer.significance import compare, holm

Map = Float[np.ndarray, "H W"]
Mask = Bool[np.ndarray, "H W"] | Integer[np.ndarray, "H W"]


class Located(NamedTuple):
    """How well a map finds the lesions of an image."""

    hit: float  # whether its highest pixel lies in a lesion; see `lesion_hit`
    recall: float  # share of lesions that are marked; see `lesion_recall`
    precision: float  # area under precision and recall of the pixels; see `average_precision`


class Compared(NamedTuple):
    """A method over images, beside the reference."""

    mean: float  # over images
    # 95 %, by the bootstrap over patients; None with fewer than two patients, as the next four
    interval: Interval | None
    difference: float | None = None  # mean of the method minus the reference
    difference_interval: Interval | None = None  # 95 %, of this
    p: float | None = None  # exact Wilcoxon signed-rank test of the patients' mean differences
    holm: float | None = None  # p adjusted for the number of methods


def lesions(mask: Mask) -> Integer[np.ndarray, "H W"]:
    """Number of the lesion that each pixel belongs to, from 1; pixels of one value that touch, at corners too, are one lesion.

    Raises:
        ValueError: The mask is empty.
    """
    if not np.any(mask):
        raise ValueError("A mask without any lesion cannot be found; leave such images out.")
    return np.asarray(label(np.asarray(mask).astype(np.int64), connectivity=2))


def lesion_hit(scores: Map, mask: Mask, tolerance: int = 0) -> bool:
    """The pointing game: whether the highest pixel lies in a lesion, or no more than `tolerance` pixels off along either axis.

    A map that is nowhere above zero points nowhere and misses.

    Source: Zhang et al. 2016, Top-down Neural Attention by Excitation Backprop, section 4.1, with a mask in place of a box.
    """
    (x,), (y,) = points(scores[None])
    if not np.isfinite(x):
        return False
    row, column = int(y) - 1, int(x) - 1
    near = (
        slice(max(0, row - tolerance), row + tolerance + 1),
        slice(max(0, column - tolerance), column + tolerance + 1),
    )
    return bool(np.any(mask[near]))


def lesion_recall(marked: Bool[np.ndarray, "H W"], mask: Mask) -> float:
    """Share of the lesions that hold a marked pixel."""
    numbers = lesions(mask)
    return len(np.unique(numbers[marked & (numbers > 0)])) / int(numbers.max())


def average_precision(scores: Map, mask: Mask) -> float:
    """Area under the curve of precision and recall of the pixels: sum_n (R_n - R_(n-1)) P_n over the values, from the highest.

    Pixels of equal value come together. It is the mean over pixels of the mask of the precision from their value on.

    Raises:
        ValueError: The mask is empty, or a value is not finite.
    """
    inside = np.asarray(mask) > 0
    if not inside.any():
        raise ValueError("A mask without any lesion has no precision; leave such images out.")
    if bad := int((~np.isfinite(scores)).sum()):
        raise ValueError(f"{bad} of {inside.size} values of a map are not finite; check the weights.")
    own, every = np.sort(scores[inside]), np.sort(scores, axis=None)
    found, marked = (len(values) - np.searchsorted(values, own) for values in (own, every))
    return float((found / marked).mean())


def relevance_mass(scores: Map, mask: Mask) -> float:
    """Share of the positive values of a map that lies in a mask; 0 where none is positive.

    Source: Arras et al. 2022, CLEVR-XAI: a Benchmark Dataset for the Ground Truth Evaluation of Neural Network Explanations.
    """
    positive = np.maximum(np.asarray(scores, np.float64), 0)
    return float(positive[np.asarray(mask) > 0].sum() / max(positive.sum(), 1e-300))


def locate(scores: Map, mask: Mask, marked: Bool[np.ndarray, "H W"], tolerance: int = 0) -> Located:
    """All three measures of a map, with the pixels `marked` that stand out; see `score_maps.binary_map`."""
    return Located(
        float(lesion_hit(scores, mask, tolerance)),
        lesion_recall(marked, mask),
        average_precision(scores, mask),
    )


def chance(mask: Mask, marked: int, tolerance: int = 0) -> Located:
    """What pixels drawn at random reach: expected hit, recall of `marked` pixels, and the share of lesion pixels.

    A lesion of a pixels of P is missed by m pixels with probability C(P - a, m) / C(P, m). Scattered pixels meet more lesions
    than the same number in patches, so a map of patches may lie below this level; maps of other images are the fairer baseline.
    """
    sizes, inside = np.bincount(lesions(mask).ravel())[1:], np.asarray(mask) > 0
    around = maximum_filter(inside.astype(np.uint8), 2 * tolerance + 1, mode="constant")
    recall = float(hypergeom.sf(0, mask.size, sizes, marked).mean())
    return Located(float(around.mean()), recall, float(inside.mean()))


def compare_methods(
    values: Mapping[str, Float[np.ndarray, " N"]], reference: str, patients: Sequence[str], seed: int = 0
) -> dict[str, Compared]:
    """Means of a measure over images, and each method's difference to a reference on the same images.

    The images of a patient are drawn together by the bootstrap, and enter the test as their mean.
    """
    names, of = np.unique(np.asarray(patients), return_inverse=True)
    first, groups = values[reference], np.asarray(patients)
    zero = np.zeros(len(of))
    found = {}
    for method, own in values.items():
        if len(names) < 2:
            found[method] = Compared(float(own.mean()), None)
            continue
        one = Compared(float(own.mean()), clustered_bootstrap(own, zero, groups, seed=seed))
        if method != reference:
            means = [np.bincount(of, each) / np.bincount(of) for each in (own, first)]
            one = one._replace(
                difference=float((own - first).mean()),
                difference_interval=clustered_bootstrap(own, first, groups, seed=seed),
                p=compare(*means).p,
            )
        found[method] = one
    tested = [method for method, one in found.items() if one.p is not None]
    adjusted = holm([found[method].p or 0.0 for method in tested])
    return found | {m: found[m]._replace(holm=p) for m, p in zip(tested, adjusted, strict=True)}
