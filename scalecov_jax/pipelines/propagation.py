"""Scores of images divided among pixels and layers, network by network; what an earlier run left in the folder is read."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scalecov_jax.checkpoints import Network
from scalecov_jax.explain.capture import capture
from scalecov_jax.explain.score_maps import (
    PRIORS,
    QUOTED_KERNELS,
    map_scores,
    quoted_fields,
    spread,
    spread_evenly,
)
from scalecov_jax.explain.score_propagation import (
    Parts,
    layer_names,
    peak_bytes,
    propagate_scores,
    relative_difference,
    sum_of_parts,
)
from scalecov_jax.explain.target import (
    Target,
    class_count,
    class_logit,
    predicted_logit,
    settled,
    severity,
)
from scalecov_jax.features import Features, cached_features
from scalecov_jax.images.example import Skipped, Source, resize_image
from scalecov_jax.models.folding import fold, folded
from scalecov_jax.models.receptive_field import layer_fields
from scalecov_jax.pipelines.explained_images import each_batch
from scalecov_jax.pipelines.settings import names
from scalecov_jax.report.propagation import Divided, Drawn

MOST_CLASSES = 10  # that "all" may mean
MOST_BYTES = 4 << 30  # of the arrays of one network, which are held in memory until they are written
_MAPS = (
    "input",
    "total",
)  # arrays of scores.npz that are no layers; like layers they are kept of some images
_NUMBERS = ("scores", "sums", "input_sums", "link", "targets")  # kept of all
_NAMED = {"predicted": predicted_logit, "severity": severity}


def class_targets(network: Network, target: Target, settings: Mapping[str, Any]) -> list[Target]:
    """The logits that config.classes asks for; the target of config.target where it is empty.

    Raises:
        ValueError: A class that the network has not, or all of too many.
    """
    given = names(settings["classes"])
    if given == ("all",):
        if (count := class_count(network)) > MOST_CLASSES:
            raise ValueError(
                f"config.classes is all, but the network has {count} classes; expected at most {MOST_CLASSES}: name some."
            )
        given = tuple(map(str, range(count)))
    wanted = [_NAMED[one](network) if one in _NAMED else class_logit(network, one) for one in given]
    return wanted or [target]


def check_propagation(
    networks: Mapping[str, Network],
    targets: Mapping[str, Target],
    source: Source,
    settings: Mapping[str, Any],
) -> None:
    """Refuse a prior that does not go with a network, and more arrays than can be held.

    Raises:
        ValueError: One of these.
    """
    for name, network in networks.items():
        if settings["prior"] == "quoted" and network.architecture.name != "dr_grader":
            raise ValueError(
                f"config.prior is quoted, but {name} is {network.architecture.name}; the source quotes receptive fields of "
                "dr_grader alone. Take true or published."
            )
        own = class_targets(network, targets[name], settings)
        if settings["prior"] == "quoted":
            size = settings["size"] or network.card.input_size
            module, variables = fold(network.module, network.variables, network.architecture.epsilon)
            kept = layer_names(module, variables, (1, size, size, 3), own[0].layer)
            if sum("conv" in one for one in kept) != len(QUOTED_KERNELS):
                raise ValueError(
                    f"config.prior is quoted, but the target lies at {own[0].layer}; the source quotes "
                    f"{len(QUOTED_KERNELS)} convolutions. "
                    "Take true or published, or a target behind conv15."
                )
        one = _image_bytes(network, own, settings)
        images = min(settings["kept"] or len(source), len(source))
        if one * images > MOST_BYTES:
            raise ValueError(
                f"{name}: the arrays of {images} images take {one * images / 2**30:.1f} GiB ({one / 2**20:.0f} MiB an image), "
                f"more than the {MOST_BYTES >> 30} GiB that are held; set config.kept to at most {MOST_BYTES // one} images, or "
                "name fewer classes."
            )


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
        kept = min(settings["kept"] or len(source), len(source))
        told.append(
            f"{name}: peak_bytes {peak_bytes(module, variables, shape, own)} in batches of {shape[0]}, "
            f"{_image_bytes(network, own, settings) * kept} bytes of scores"
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
    and layer_total (maps of the image) and layer_NAME (constants of a layer, at its own positions) of the first config.kept
    images, and of all images layer_scores, layer_sums (of all parts), layer_input_sums, layer_targets (names).

    Raises:
        ValueError: No image can be used; says why.
        FloatingPointError: Parts that are not finite.
    """
    rows: list[Divided] = []
    drawn: list[Drawn] = []
    undecoded: list[Skipped] = []
    for number, (name, network) in enumerate(networks.items()):
        own = class_targets(network, targets[name], settings)
        found = cached_features(
            folder / (f"scores_{name}.npz" if number else "scores.npz"),
            partial(_divide, network, name, own, source, settings),
        )
        arrays, indices = found.values, found.indices
        undecoded += found.skipped
        errors = relative_difference(arrays["sums"], arrays["scores"])
        size = settings["size"] or network.card.input_size
        for row, index in enumerate(indices):
            example = source[int(index)]
            for column, target in enumerate(arrays["targets"][row]):
                at = (row, column)
                rows.append(
                    Divided(
                        name,
                        example.name,
                        str(target),
                        float(arrays["scores"][at]),
                        float(arrays["sums"][at]),
                        float(errors[at]),
                        float(arrays["input_sums"][at]),
                    )
                )
                if row < min(settings["shown"], len(arrays["total"])):
                    here = slice(row, row + 1), slice(column, column + 1)
                    constants = {k: v[here] for k, v in arrays.items() if k not in (*_MAPS, *_NUMBERS)}
                    layers = spread_constants(constants, network, size, settings["prior"])
                    walk = {"input": arrays["input"][at], **{k: v[0, 0] for k, v in layers.items()}}
                    picture = resize_image(example.image, size)
                    drawn.append(Drawn(rows[-1], row + 1, column + 1, picture, arrays["total"][at], walk))
    return rows, drawn, undecoded


def _image_bytes(network: Network, targets: Sequence[Target], settings: Mapping[str, Any]) -> int:
    """Of the arrays that are kept of one image; nothing is computed."""
    size = settings["size"] or network.card.input_size
    module, variables = fold(network.module, network.variables, network.architecture.epsilon)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    parts = jax.eval_shape(partial(propagate_scores, module), variables, images, targets)
    return 4 * sum(one.size for one in (parts.inputs, parts.inputs, *parts.constants.values()))


def _divide(
    network: Network, label: str, targets: Sequence[Target], source: Source, settings: Mapping[str, Any]
) -> Features:
    """Parts and maps of all images that can be decoded."""
    size = settings["size"] or network.card.input_size
    module, variables = fold(network.module, network.variables, network.architecture.epsilon)
    variables = jax.device_put(variables)
    order = layer_names(module, variables, (1, size, size, 3), targets[0].layer)
    skipped: list[Skipped] = []
    maps: list[dict[str, np.ndarray]] = []
    numbers: list[dict[str, np.ndarray]] = []
    for inputs, valid, indices in each_batch(network, source, skipped, settings, label):
        own = list(targets)
        if any(target.weights is None for target in own):  # the largest logit: which one, once for each image
            output = capture(module, variables, inputs, (own[0].layer,))[own[0].layer]
            own = [settled(target, output) for target in own]
        parts = propagate_scores(module, variables, inputs, own)
        parts = jax.device_get(parts._replace(gradients=parts.gradients[..., :0]))  # not read here
        parts = jax.tree.map(lambda one, valid=valid: np.moveaxis(one, 0, 1)[valid], parts)
        if not len(parts.scores):
            continue
        sums = sum_of_parts(parts)
        if not np.isfinite(sums).all():
            bad = [source[int(one)].name for one in indices[valid][~np.isfinite(sums).all(1)]]
            raise FloatingPointError(
                f"The parts of the score of {', '.join(bad[:5])} are not finite; check the weights."
            )
        numbers.append(
            {
                "scores": parts.scores,
                "sums": sums,
                "input_sums": parts.inputs.sum((2, 3), dtype=np.float64),
                "link": parts.link,
                "targets": np.array(target_names(network, settings, own, len(valid))).T[valid],
                "indices": indices[valid],
            }
        )
        if room := (settings["kept"] or len(source)) - sum(len(one["input"]) for one in maps):
            parts = jax.tree.map(lambda one, room=room: one[:room], parts)
            maps.append(
                {
                    **{layer: parts.constants[layer] for layer in order},  # which the walk follows
                    "input": parts.inputs,
                    "total": total_maps(parts, network, size, settings["prior"]).astype(np.float32),
                }
            )
    if not numbers:
        told = "; ".join(f"{one.name}: {one.detail}" for one in skipped[:5])
        raise ValueError(f"None of the {len(source)} images in {settings['images']} can be used ({told}).")
    arrays = {name: np.concatenate([one.pop(name) for one in maps]) for name in [*maps[0]]}
    arrays |= {name: np.concatenate([one[name] for one in numbers]) for name in numbers[0]}
    return Features(arrays, arrays.pop("indices"), tuple(skipped))


def target_names(
    network: Network, settings: Mapping[str, Any], targets: Sequence[Target], images: int
) -> list[Sequence[str]]:
    """What is explained of each image, target by target: its class, the RCV, or severity."""
    given = names(settings["classes"]) or (settings["target"],)
    told = []
    for number, target in enumerate(targets):
        label = given[number] if number < len(given) else ""
        if label == "severity" or label.startswith("rcv:"):
            told.append([label.removeprefix("rcv:")] * images)
            continue
        weights = np.asarray(target.weights)
        classes = np.broadcast_to(weights, (images, weights.shape[-1])).argmax(1)
        known = network.card.class_names
        told.append([known[one] if known else str(one) for one in classes])
    return told


def total_maps(parts: Parts, network: Network, size: int, prior: str) -> Float[np.ndarray, "N T H W"]:
    """All parts on the image; what belongs to no place is spread evenly, so that with the true prior they add up to the score."""
    constants = {name: np.asarray(one) for name, one in parts.constants.items()}
    total = np.asarray(parts.inputs) + spread_evenly(np.asarray(parts.link), size, size)
    for _, one in _each_spread(constants, network, size, prior):
        total += one
    return total


def spread_constants(
    constants: Mapping[str, Float[np.ndarray, "N T *P"]], network: Network, size: int, prior: str = "true"
) -> dict[str, Float[np.ndarray, "N T H W"]]:
    """The constants of each layer on the image, by a prior of its receptive field; see `score_maps.PRIORS`."""
    return {name: one.astype(np.float32) for name, one in _each_spread(constants, network, size, prior)}


def _each_spread(
    constants: Mapping[str, Float[np.ndarray, "N T *P"]], network: Network, size: int, prior: str
) -> Iterator[tuple[str, Float[np.ndarray, "N T H W"]]]:
    """One layer at a time, since together they take many times the memory of the image."""
    with_maps = [name for name, one in constants.items() if one.ndim == 4]
    fields = layer_fields(folded(network.module), size, size, with_maps)
    if prior == "quoted":
        convolutions = [name for name in with_maps if "conv" in name]
        axes = zip(*(fields[name] or () for name in convolutions), strict=True)
        quoted = zip(*(quoted_fields(axis) for axis in axes), strict=True)
        fields |= dict(zip(convolutions, quoted, strict=True))
    for name, one in constants.items():
        if field := fields.get(name):
            axes = [
                spread(axis, count, size, PRIORS[prior])
                for axis, count in zip(field, one.shape[-2:], strict=True)
            ]
            yield name, map_scores(one, *axes)
        else:
            whole = one.sum(tuple(range(2, one.ndim)), dtype=np.float64)
            yield name, spread_evenly(whole, size, size)
