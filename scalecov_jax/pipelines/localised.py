"""Maps of several methods beside the masks of the images, network by network; what an earlier run left in the folder is read."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float
from PIL import Image
from scipy.ndimage import gaussian_filter

from scalecov_jax.checkpoints import Network
from scalecov_jax.explain import grad_cam
from scalecov_jax.explain.capture import capture
from scalecov_jax.explain.full_grad import full_grad, gradient_size
from scalecov_jax.explain.gradients import layer_gradients
from scalecov_jax.explain.localisation import Mask, chance, locate
from scalecov_jax.explain.score_maps import binary_map
from scalecov_jax.explain.score_propagation import propagate_scores
from scalecov_jax.explain.target import Target, settled
from scalecov_jax.images.example import ImageError, Source
from scalecov_jax.images.folder import Subset
from scalecov_jax.models.folding import fold
from scalecov_jax.pipelines.explained_images import each_batch
from scalecov_jax.pipelines.propagation import class_targets, target_names, total_maps
from scalecov_jax.pipelines.settings import names
from scalecov_jax.report.localisation import Localised
from scalecov_jax.tables import read_table, write_table


def masked(source: Source, images: str) -> Subset:
    """The images of a source whose mask holds something; those that cannot be decoded are left to others to name.

    Raises:
        ValueError: There is none.
    """
    found = []
    for index in range(len(source)):
        try:
            mask = source[index].mask
        except ImageError:
            continue
        if mask is not None and np.any(mask):
            found.append(index)
    if not found:
        raise ValueError(
            f"config.localisation needs masks, but none of the {len(source)} images of {images} has one with anything in it; "
            "expected config.images=retina, annotated:FOLDER, or a folder with an index.csv that has a column mask."
        )
    return Subset(source, found)


def localise(
    folder: Path,
    networks: Mapping[str, Network],
    targets: Mapping[str, Target],
    source: Source,
    settings: Mapping[str, Any],
) -> list[Localised]:
    """The rows of localisation.csv.

    Args:
        folder: Of the run.
        networks: By name.
        targets: Of each.
        source: Images with masks; see `masked`.
        settings: See configs/explain.py.
    """
    rows: list[Localised] = []
    for name, network in networks.items():
        path = folder / "localised" / f"{name}.csv"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_table(path, Localised, _localise(name, network, targets[name], source, settings))
        rows += read_table(path, Localised)
    return rows


def compared_maps(
    network: Network,
    module: Any,
    variables: Any,
    inputs: Array,
    targets: Sequence[Target],
    settings: Mapping[str, Any],
) -> dict[str, Float[np.ndarray, "N T H W"]]:
    """Maps of one batch by every method, of the size of the images; score propagation comes first.

    Args:
        network: As loaded.
        module: Its module with batch normalisation folded.
        variables: Of this.
        inputs: Preprocessed images.
        targets: With weights.
        settings: See configs/explain.py; Grad-CAM reads the layers of config.layer.
    """
    size = inputs.shape[1]
    parts = propagate_scores(module, variables, inputs, targets)
    first = jax.tree.map(lambda one: np.moveaxis(np.asarray(one), 0, 1), parts)
    maps = {
        "score_propagation": total_maps(first, network, size, settings["prior"]),
        "gradient_x_input": first.inputs,
        "gradient": np.moveaxis(np.asarray(gradient_size(parts)), 0, 1),
        "full_grad": np.moveaxis(np.asarray(full_grad(module, variables, inputs, targets)), 0, 1),
    }
    for layer in names(settings["layer"]):
        drawn = []
        for target in targets:
            computed = layer_gradients(module, variables, inputs, layer, target)
            low = grad_cam.grad_cam(computed.activations, computed.gradients, signed=settings["signed"])
            drawn.append(np.asarray(grad_cam.upsample(low, size, size)))
        maps[f"grad_cam {layer}"] = np.stack(drawn, 1)
    return maps


def _localise(
    weights: str, network: Network, target: Target, source: Source, settings: Mapping[str, Any]
) -> list[Localised]:
    """Rows of one network; the map of another patient is that of the image before, for the first patient the last one."""
    rows: list[Localised] = []
    waiting: list[tuple[int, Mask]] = []
    before: tuple[str, Any] = ("", None)  # a patient, and maps of one of their images
    here: tuple[str, Any] = ("", None)

    def finish(first: int, mask: Mask, marked: Any) -> None:
        """Fill in how maps of another patient find the lesions of an image, whose rows begin at `first`."""
        for number, (scores, high) in enumerate(marked, start=first):
            other = locate(scores, mask, high, settings["tolerance"])
            rows[number] = rows[number]._replace(
                hit_other=other.hit, recall_other=other.recall, precision_other=other.precision
            )

    for example, named, mask, marked in _each_image(weights, network, target, source, settings):
        first = len(rows)
        for (method, asked, told, sd), (scores, high) in zip(named, marked, strict=True):
            found = locate(scores, mask, high, settings["tolerance"])
            random = chance(mask, int(high.sum()), settings["tolerance"])
            where = weights, example.name, example.group, example.label or ""
            rows.append(Localised(*where, method, asked, told, sd, float(high.mean()), *found, *random))
        if example.group != here[0]:
            before = here
        here = example.group, marked
        if before[1] is None:
            waiting.append((first, mask))
        else:
            finish(first, mask, before[1])
    if not rows:
        raise ValueError(
            f"Nothing is left of the masks of {len(source)} images at the size that {weights} takes; raise config.size."
        )
    for first, mask in waiting:
        if rows[first].patient != here[0]:
            finish(first, mask, here[1])
    return rows


def _each_image(
    weights: str, network: Network, target: Target, source: Source, settings: Mapping[str, Any]
) -> Iterator[Any]:
    """Example, names of its maps (method, target as asked for and as it is, smoothing), mask, and maps with their binary maps."""
    module, variables = fold(network.module, network.variables, network.architecture.epsilon)
    variables = jax.device_put(variables)
    own = class_targets(network, target, settings)
    given = names(settings["classes"]) or (settings["target"],)
    asked = given if len(given) == len(own) else tuple(map(str, range(len(own))))  # all
    for inputs, valid, indices in each_batch(network, source, [], settings, f"{weights}, masks"):
        output = capture(module, variables, inputs, (own[0].layer,))[own[0].layer]
        fixed = [settled(one, output) for one in own]
        told = target_names(network, settings, fixed, len(valid))
        maps = compared_maps(network, module, variables, inputs, fixed, settings)
        for row in np.flatnonzero(valid).tolist():
            example = source[int(indices[row])]
            mask = _square(example.mask, inputs.shape[1])
            if not mask.any():  # of lesions below a pixel nothing is left
                continue
            named, marked = [], []
            for method, column, sd in product(
                maps, range(len(own)), map(float, names(settings["smoothing"]))
            ):
                one = np.asarray(maps[method][row, column], np.float32)
                one = gaussian_filter(one, sd, mode="constant") if sd else one
                named.append((method, asked[column], str(told[column][row]), sd))
                marked.append((one, binary_map(one, settings["deviations"])))
            yield example, named, mask, marked


def _square(mask: Any, size: int) -> Mask:
    """A mask resized as its image is, by taking single pixels."""
    values = np.asarray(mask)
    picture = Image.fromarray(values.astype(np.uint8 if values.dtype == bool else np.int32))
    return np.asarray(picture.resize((size, size), Image.Resampling.NEAREST)).astype(np.int64)
