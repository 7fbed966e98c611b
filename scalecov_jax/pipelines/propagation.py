"""Scores of images divided among pixels and layers, network by network; what an earlier run left in the folder is read."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scalecov_jax.checkpoints import Network
from scalecov_jax.explain.capture import capture
from scalecov_jax.explain.score_maps import map_scores, spread, spread_evenly
from scalecov_jax.explain.score_propagation import (
    Parts,
    layer_names,
    peak_bytes,
    propagate_scores,
    sum_of_parts,
)
from scalecov_jax.explain.target import Target, class_count, class_index, class_logit, settled
from scalecov_jax.feature_cache import cached_features
from scalecov_jax.features import Features
from scalecov_jax.images.example import Skipped, Source, resize_image
from scalecov_jax.models.folding import fold, folded
from scalecov_jax.models.receptive_field import layer_fields
from scalecov_jax.pipelines.explained_images import each_batch
from scalecov_jax.pipelines.settings import names
from scalecov_jax.report.propagation import Divided, Drawn

MOST_CLASSES = 10  # that "all" may mean
_OWN = ("input", "total", "scores", "sums", "link", "targets")  # arrays of scores.npz that are no layers


def class_targets(network: Network, target: Target, settings: Mapping[str, Any]) -> list[Target]:
    """The logits that config.classes asks for; the target of config.target where it is empty.

    Raises:
        ValueError: A class that the network has not, or all of too many.
    """
    return [class_logit(network, one) for one in _classes(network, settings)] or [target]


def needed_memory(
    networks: Mapping[str, Network],
    targets: Mapping[str, Target],
    source: Source,
    settings: Mapping[str, Any],
) -> str:
    """Bytes of memory of the largest step of each network, and bytes of its scores.npz, in words; nothing is computed."""
    told = []
    for name, network in networks.items():
        size = settings["size"] or network.card.input_size
        shape = (min(settings["batch_size"], len(source)), size, size, 3)
        module, variables = fold(network.module, network.variables, network.architecture.epsilon)
        own = class_targets(network, targets[name], settings)
        images = jax.ShapeDtypeStruct(shape, jnp.float32)
        parts = jax.eval_shape(partial(propagate_scores, module), variables, images, own)
        kept = sum(one.size for one in (parts.inputs, parts.inputs, *parts.constants.values()))
        told.append(
            f"{name}: peak_bytes {peak_bytes(module, variables, shape, own)} in batches of {shape[0]}, "
            f"{kept * 4 * len(source) // shape[0]} bytes of scores"
        )
    return "\n".join(told)


def divide_scores(
    folder: Path,
    networks: Mapping[str, Network],
    targets: Mapping[str, Target],
    source: Source,
    settings: Mapping[str, Any],
) -> tuple[list[Divided], list[Drawn], list[Skipped]]:
    """The rows of scores.csv, what is drawn, and images that could not be decoded.

    The arrays of the first network are in scores.npz and those of the others in scores_NAME.npz, image by class: layer_input
    and layer_total (maps of the image), layer_NAME (constants of a layer, at its own positions), layer_scores, layer_sums (of
    all parts), layer_targets (names).

    Raises:
        ValueError: No image can be decoded.
        FloatingPointError: Parts that are not finite.
    """
    rows: list[Divided] = []
    drawn: list[Drawn] = []
    undecoded: list[Skipped] = []
    for number, (name, network) in enumerate(networks.items()):
        own = class_targets(network, targets[name], settings)
        arrays, indices, skipped = cached_features(
            folder / (f"scores_{name}.npz" if number else "scores.npz"),
            partial(_divide, network, name, own, source, settings),
        )
        undecoded += skipped
        size = settings["size"] or network.card.input_size
        for row, index in enumerate(indices):
            example = source[int(index)]
            for column, target in enumerate(arrays["targets"][row]):
                at = (row, column)
                score, total = float(arrays["scores"][at]), float(arrays["sums"][at])
                rows.append(
                    Divided(
                        name,
                        example.name,
                        str(target),
                        score,
                        total,
                        abs(total - score) / (abs(score) or 1.0),
                        float(arrays["input"][at].sum(dtype=np.float64)),
                    )
                )
                if row < settings["shown"]:
                    here = slice(row, row + 1), slice(column, column + 1)
                    layers = _spread({k: v[here] for k, v in arrays.items() if k not in _OWN}, network, size)
                    walk = {"input": arrays["input"][at], **{k: v[0, 0] for k, v in layers.items()}}
                    picture = resize_image(example.image, size)
                    drawn.append(Drawn(rows[-1], row + 1, picture, arrays["total"][at], walk))
    return rows, drawn, undecoded


def _classes(network: Network, settings: Mapping[str, Any]) -> Sequence[int]:
    given = names(settings["classes"])
    if given != ("all",):
        return [class_index(network, one) for one in given]
    if (count := class_count(network)) > MOST_CLASSES:
        raise ValueError(
            f"config.classes is all, but the network has {count} classes; expected at most {MOST_CLASSES}: name some."
        )
    return range(count)


def _divide(
    network: Network, label: str, targets: Sequence[Target], source: Source, settings: Mapping[str, Any]
) -> Features:
    """Parts and maps of all images that can be decoded."""
    size = settings["size"] or network.card.input_size
    module, variables = fold(network.module, network.variables, network.architecture.epsilon)
    variables = jax.device_put(variables)
    order = layer_names(module, variables, (1, size, size, 3), targets[0].layer)
    skipped: list[Skipped] = []
    found: list[dict[str, np.ndarray]] = []
    for inputs, valid, indices in each_batch(network, source, skipped, settings, label):
        own = list(targets)
        if any(target.weights is None for target in own):  # the largest logit: which one, once for each image
            output = capture(module, variables, inputs, (own[0].layer,))[own[0].layer]
            own = [settled(target, output) for target in own]
        parts = jax.device_get(propagate_scores(module, variables, inputs, own))
        parts = jax.tree.map(lambda one, valid=valid: np.moveaxis(one, 0, 1)[valid], parts)
        if not len(parts.scores):
            continue
        sums = sum_of_parts(parts)
        if not np.isfinite(sums).all():
            bad = [source[int(one)].name for one in indices[valid][~np.isfinite(sums).all(1)]]
            raise FloatingPointError(
                f"The parts of the score of {', '.join(bad[:5])} are not finite; check the weights."
            )
        told = [_target_names(network, settings, target, len(valid)) for target in own]
        found.append(
            {
                **{layer: parts.constants[layer] for layer in order},  # which the walk follows
                "input": parts.inputs,
                "total": _total(parts, network, size).astype(np.float32),
                "scores": parts.scores,
                "sums": sums,
                "link": parts.link,
                "targets": np.array(told).T[valid],
                "indices": indices[valid],
            }
        )
    if not found:
        raise ValueError(f"None of the {len(source)} images in {settings['images']} can be decoded.")
    arrays = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
    return Features(arrays, arrays.pop("indices"), tuple(skipped))


def _target_names(
    network: Network, settings: Mapping[str, Any], target: Target, images: int
) -> Sequence[str]:
    """What is explained of each image: its class, or the RCV."""
    if settings["target"].startswith("rcv:") and not settings["classes"]:
        return [settings["target"].removeprefix("rcv:")] * images
    weights = np.asarray(target.weights)
    classes = np.broadcast_to(weights, (images, weights.shape[-1])).argmax(1)
    known = network.card.class_names
    return [known[one] if known else str(one) for one in classes]


def _total(parts: Parts, network: Network, size: int) -> Float[np.ndarray, "N T H W"]:
    """All parts on the image; what belongs to no place is spread evenly, so that the map adds up to the score."""
    constants = {name: np.asarray(one) for name, one in parts.constants.items()}
    total = np.asarray(parts.inputs) + spread_evenly(np.asarray(parts.link), size, size)
    for one in _spread(constants, network, size).values():
        total += one
    return total


def _spread(
    constants: Mapping[str, Float[np.ndarray, "N T *P"]], network: Network, size: int
) -> dict[str, Float[np.ndarray, "N T H W"]]:
    """The constants of each layer on the image, by the Gaussian prior of its receptive field."""
    with_maps = [name for name, one in constants.items() if one.ndim == 4]
    fields = layer_fields(folded(network.module), size, size, with_maps)
    maps = {}
    for name, one in constants.items():
        if field := fields.get(name):
            axes = [spread(axis, count, size) for axis, count in zip(field, one.shape[-2:], strict=True)]
            maps[name] = map_scores(one, *axes)
        else:
            whole = one.sum(tuple(range(2, one.ndim)), dtype=np.float64)
            maps[name] = spread_evenly(whole, size, size)
    return maps
