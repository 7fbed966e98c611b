"""Whether maps find what the masks of the images mark, and whether they change with the weights.

What an earlier run kept is read.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from jaxtyping import Float
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.filters import sobel

from scalecov_jax.experiments.explain_inputs import Subject
from scalecov_jax.experiments.explain_scores import by_image, settle_targets, target_names, total_maps
from scalecov_jax.explanation import grad_cam
from scalecov_jax.explanation.faithfulness import parts_downwards, weight_randomisation
from scalecov_jax.explanation.full_grad import full_grad, gradient_size
from scalecov_jax.explanation.gradients import layer_gradients
from scalecov_jax.explanation.localisation import Located, Mask, chance, compare_methods, locate
from scalecov_jax.explanation.score_maps import binary_map, from_local_mean
from scalecov_jax.explanation.score_propagation import propagate_scores
from scalecov_jax.explanation.target import Target
from scalecov_jax.extraction import Features, cached_features
from scalecov_jax.models.folding import fold
from scalecov_jax.tables import kept_table

REFERENCE = "score_propagation"
MEASURES = Located._fields
LOCAL = 1 / 32  # sd of the Gaussian of local means, in widths of the image
_OTHER = [f"{measure}_other" for measure in MEASURES]


def localise(subject: Subject, folder: Path | None) -> pd.DataFrame:
    """Maps of every method beside the masks of the images.

    localised/ in the folder keeps the table.

    Returns:
        A row a map: weights, image, patient, label (such as the grade; empty if there is none), method, target (as asked for),
        explained (what that is for this image), smoothing (sd in pixels of the Gaussian that went over the map), marked (share of
        the pixels in the binary map), the measures hit, recall and precision (`explain.localisation.Located`), each also with
        _chance (of as many pixels drawn at random) and _other (of the method's map of an image of another patient on this mask;
        missing with a single patient).

    Raises:
        ValueError: Nothing is left of the masks at the size of the network.
    """
    path = folder and folder / "localised" / f"{subject.name}.csv"
    texts = ("weights", "image", "patient", "label", "method", "target", "explained")
    reading: Any = {"dtype": dict.fromkeys(texts, "str"), "na_values": {name: [""] for name in _OTHER}}
    return kept_table(path, lambda: _localise(subject), **reading)


def compare_maps(located: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Each method beside score propagation on the same images.

    Returns:
        A row for weights, target, smoothing, measure and method: mean over images, its 95 % interval over patients (low, high),
        means of chance and of maps of another patient (chance, other), the difference to score propagation with its interval, and
        p of the exact Wilcoxon test, also adjusted for the number of methods (holm); what a single patient cannot give is
        missing.
    """
    rows, nothing = [], (np.nan, np.nan)
    for names, own in located.groupby(["weights", "target", "smoothing"], sort=False):
        parts = {str(method): part for method, part in own.groupby("method", sort=False)}
        patients = parts[REFERENCE]["patient"].tolist()
        for measure in MEASURES:
            values = {method: part[measure].to_numpy(float) for method, part in parts.items()}
            for method, found in compare_methods(values, REFERENCE, patients, seed).items():
                means = parts[method][[f"{measure}_chance", f"{measure}_other"]].mean()
                ends = found.interval or nothing, found.difference_interval or nothing
                tested = found.difference, *ends[1], found.p, found.holm
                rows.append((*names, measure, method, found.mean, *ends[0], *means, *tested))
    names = "weights target smoothing measure method mean low high chance other"
    columns = f"{names} difference difference_low difference_high p holm"
    numbers = dict.fromkeys(("difference", "p", "holm"), float)
    return pd.DataFrame(rows, columns=columns.split()).astype(numbers)


def randomise(subject: Subject, folder: Path | None) -> pd.DataFrame:
    """How fast maps change while a network loses its weights from the output down.

    The target of an image stays that of the trained network: its predicted class is chosen once. Of score propagation the maps of
    the first target count.

    Returns:
        A row a part: weights, layer (the last that was made random), images, correlation with the map of the network itself
        (Spearman's, mean over images), sd (over images).
    """
    path = folder and folder / "randomised" / f"{subject.name}.npz"
    found = cached_features(path, lambda: _correlations(subject)).values
    rows = [(subject.name, part, len(x), float(x.mean()), float(x.std())) for part, x in found.items()]
    return pd.DataFrame(rows, columns=["weights", "layer", "images", "correlation", "sd"])


def _localise(subject: Subject) -> pd.DataFrame:
    """The map of another patient is that of the image before, for the first patient the last image."""
    rows: list[dict[str, Any]] = []
    waiting: list[tuple[int, str, Mask]] = []  # maps of the first patient, which no other comes before
    before: Any = None  # maps of the last image of the patient before
    patient, here = "", None
    tolerance = subject.settings.tolerance

    def finish(first: int, mask: Mask, maps: Any) -> None:
        """How maps of another patient find the lesions of an image, whose rows begin at `first`."""
        for row, (scores, high) in zip(rows[first:], maps, strict=False):
            row.update(zip(_OTHER, locate(scores, mask, high, tolerance), strict=True))

    for example, named, mask, maps in _each_image(subject):
        first = len(rows)
        where = {"weights": subject.name, "image": example.name, "patient": example.group}
        for names, (scores, high) in zip(named, maps, strict=True):
            random = chance(mask, int(high.sum()), tolerance)._asdict()
            row = {**where, "label": example.label or "", **names, "marked": float(high.mean())}
            row |= locate(scores, mask, high, tolerance)._asdict()
            row |= {f"{measure}_chance": value for measure, value in random.items()}
            rows.append(row | dict.fromkeys(_OTHER, np.nan))
        if example.group != patient:
            before = here
        patient, here = example.group, maps
        if before is None:
            waiting.append((first, patient, mask))
        else:
            finish(first, mask, before)
    if not rows:
        raise ValueError(
            f"Nothing is left of the masks of {len(subject.masked)} images at the size that {subject.name} takes; raise "
            "config.size."
        )
    for first, own, mask in waiting:
        if own != patient:
            finish(first, mask, here)
    return pd.DataFrame(rows)


def _each_image(subject: Subject) -> Iterator[Any]:
    """Example, names of its maps (method, target as asked for and as it is, smoothing), mask, and maps with their binary maps."""
    settings, (module, variables) = subject.settings, subject.folded()
    for inputs, valid, indices in subject.batches(subject.masked, []):
        own = settle_targets(module, variables, inputs, subject.targets)
        explained = target_names(subject, own, len(valid))
        maps = compared_maps(subject, module, variables, inputs, own)
        for row in np.flatnonzero(valid).tolist():
            example = subject.masked[int(indices[row])]
            mask = _square(example.mask, inputs.shape[1])
            if not mask.any():  # of lesions below a pixel nothing is left
                continue
            named, marked = [], []
            for method, column, sd in product(maps, range(len(own)), settings.smoothing):
                scores = np.asarray(maps[method][row, column], np.float32)
                scores = gaussian_filter(scores, sd, mode="constant") if sd else scores
                names = method, subject.asked[column], str(explained[row, column]), sd
                named.append(dict(zip(("method", "target", "explained", "smoothing"), names, strict=True)))
                marked.append((scores, binary_map(scores, settings.deviations)))
            yield example, named, mask, marked


def compared_maps(
    subject: Subject, module: Any, variables: Any, inputs: Any, targets: list[Target]
) -> dict[str, Float[np.ndarray, "N T H W"]]:
    """Maps of a batch of preprocessed images by every method, of the size of the images; score propagation comes first."""
    size, settings = inputs.shape[1], subject.settings
    parts = propagate_scores(module, variables, inputs, targets)
    first, pixels = by_image(parts), np.asarray(inputs)
    total = total_maps(first, subject.network, size, settings.prior)
    edges = [[sobel(image[..., colour]) for colour in range(3)] for image in pixels]
    maps = {
        REFERENCE: total,
        f"{REFERENCE} local": from_local_mean(total, np.asarray(first.gradients), pixels, LOCAL * size),
        f"{REFERENCE} unsigned": np.abs(total),
        "sobel": np.repeat(np.max(edges, 1)[:, None], len(targets), 1),  # the same for all targets
        "gradient_x_input": first.inputs,
        "gradient": np.moveaxis(np.asarray(gradient_size(parts)), 0, 1),
        "full_grad": np.moveaxis(np.asarray(full_grad(module, variables, inputs, targets)), 0, 1),
    }
    for layer in settings.layer:
        drawn = []
        for target in targets:
            computed = layer_gradients(module, variables, inputs, layer, target)
            low = grad_cam.grad_cam(computed.activations, computed.gradients, signed=settings.signed)
            drawn.append(np.asarray(grad_cam.upsample(low, size, size)))
        maps[f"grad_cam {layer}"] = np.stack(drawn, 1)
    return maps


def _correlations(subject: Subject) -> Features:
    """Rank correlations of each image, by the last part that was made random."""
    settings, network, size = subject.settings, subject.network, subject.size
    module, variables = subject.folded()
    skipped, prepared, indices = [], [], []
    for inputs, valid, places in subject.batches(subject.source, skipped):
        (own,) = settle_targets(module, variables, inputs, subject.targets[:1])
        prepared.append((inputs, valid, own))
        indices.append(places[valid])

    method = cast(grad_cam.Method, settings.method)

    def drawn(variables: Any, inputs: Any, own: Target) -> np.ndarray:
        if settings.method == REFERENCE:
            parts = by_image(propagate_scores(module, variables, inputs, [own]))
            return total_maps(parts, network, size, settings.prior)[:, 0].astype(np.float32)
        computed = layer_gradients(module, variables, inputs, settings.layer[0], own)
        maps = grad_cam.cam(method, computed.activations, computed.gradients, signed=settings.signed)
        return np.asarray(maps)

    def maps(variables: Any) -> np.ndarray:
        _, changed = fold(network.module, variables, network.architecture.epsilon)
        return np.concatenate([drawn(changed, inputs, own)[valid] for inputs, valid, own in prepared])

    results = weight_randomisation(network, maps, parts_downwards(network, size), settings.seed)
    values = {result.layer: result.correlation for result in results}
    return Features(values, np.concatenate(indices), tuple(skipped))


def _square(mask: Any, size: int) -> Mask:
    """A mask resized as its image is, by taking single pixels."""
    values = np.asarray(mask)
    picture = Image.fromarray(values.astype(np.uint8 if values.dtype == bool else np.int32))
    return np.asarray(picture.resize((size, size), Image.Resampling.NEAREST)).astype(np.int64)
