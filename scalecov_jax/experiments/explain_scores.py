"""Scores of images divided among pixels and layers; what an earlier run kept is read.

docs/score_propagation.md has the formulas.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float

from scalecov_jax.atomic import write_bytes
from scalecov_jax.checkpoints import Network
from scalecov_jax.experiments.explain_inputs import Subject
from scalecov_jax.experiments.explain_maps import joined
from scalecov_jax.explanation import score_maps, score_propagation
from scalecov_jax.explanation.capture import capture
from scalecov_jax.explanation.target import Target, settled
from scalecov_jax.extraction import Features, cached_features
from scalecov_jax.imaging.decoding import resize_image
from scalecov_jax.imaging.image_set import Skipped
from scalecov_jax.models.folding import folded
from scalecov_jax.models.receptive_field import layer_fields
from scalecov_jax.report.pictures import Album, black_and_white, blink, marked, signed_map

MOST_BYTES = 4 << 30  # of the arrays of one network, which are held in memory until they are written
_COLUMNS = 6  # of a walk
# Arrays of scores.npz that are no layers: maps, kept of some images as layers are, and numbers, kept of all.
_NO_LAYERS = ("input", "total", "scores", "sums", "input_sums", "link", "targets")


def check_scores(subject: Subject) -> None:
    """Refuse a prior that does not go with a network, and more arrays than can be held.

    Raises:
        ValueError: One of these.
    """
    settings, name, family = subject.settings, subject.name, subject.network.architecture.name
    if settings.prior == "quoted" and family != "dr_grader":
        raise ValueError(
            f"config.prior is quoted, but {name} is {family}; the source quotes receptive fields of dr_grader alone. Take "
            "true or published."
        )
    if settings.prior == "quoted":
        at = subject.targets[0].layer
        layers = score_propagation.layer_names(*subject.folded(), (1, subject.size, subject.size, 3), at)
        if sum("conv" in layer for layer in layers) != len(score_maps.QUOTED_KERNELS):
            raise ValueError(
                f"config.prior is quoted, but the target lies at {at}; the source quotes "
                f"{len(score_maps.QUOTED_KERNELS)} convolutions. Take true or published, or a target behind conv15."
            )
    each, images = _image_bytes(subject), _most_kept(subject)
    if each * images > MOST_BYTES:
        raise ValueError(
            f"{name}: the arrays of {images} images take {each * images / 2**30:.1f} GiB ({each / 2**20:.0f} MiB an image), more "
            f"than the {MOST_BYTES >> 30} GiB that are held; set config.kept to at most {MOST_BYTES // each} images, or name "
            "fewer classes."
        )


def needed_memory(subject: Subject) -> str:
    """Bytes of memory of the largest step, and bytes of scores.npz, in words; nothing is computed."""
    images = min(subject.settings.batch_size, len(subject.source))
    shape = (images, subject.size, subject.size, 3)
    peak = score_propagation.peak_bytes(*subject.folded(), shape, subject.targets)
    kept = _image_bytes(subject) * _most_kept(subject)
    return f"{subject.name}: peak_bytes {peak} in batches of {images}, {kept} bytes of scores"


def divide_scores(subject: Subject, path: Path | None) -> tuple[pd.DataFrame, Features]:
    """Scores of all images and what their parts add up to.

    The file keeps the arrays, image by class: layer_input and layer_total (maps of the image) and layer_NAME (constants of a
    layer, at its own positions) of the first config.kept images, and of all images layer_scores, layer_sums (of all parts),
    layer_input_sums, layer_link, layer_targets (names).

    Returns:
        A row an image and target: weights, image, target (the class, by name where the network knows it; or the RCV), logit (the
        score), sum_of_parts (of the input and of the constants of all layers), relative_error (|sum_of_parts - logit| /
        |logit|), input (sum of the input part alone); and the arrays.

    Raises:
        ValueError: No image can be used; says why.
        FloatingPointError: Parts that are not finite.
    """
    found = cached_features(path, partial(_divide, subject))
    arrays: dict[str, Any] = found.values
    names = [subject.source[int(index)].name for index in found.indices]
    columns = {
        "target": arrays["targets"],
        "logit": arrays["scores"].astype(float),
        "sum_of_parts": arrays["sums"],
        "relative_error": score_propagation.relative_difference(arrays["sums"], arrays["scores"]),
        "input": arrays["input_sums"],
    }
    named = {"weights": subject.name, "image": np.repeat(names, len(subject.targets))}
    return pd.DataFrame({**named, **{name: values.ravel() for name, values in columns.items()}}), found


def kept_shares(table: pd.DataFrame, found: Features) -> pd.DataFrame:
    """How much of its score each total map holds (column held), of the images whose arrays are kept."""
    sums = found.values["total"].sum((2, 3), dtype=np.float64).ravel()
    rows = table.iloc[: len(sums)]
    return rows[["weights", "image", "target"]].assign(held=sums / rows["logit"].replace(0.0, 1.0))


def draw_scores(subject: Subject, found: Features, album: Album, folder: Path) -> None:
    """Maps of the first images, and walks from the last layer to the input; also writes blink/*.gif."""
    settings, size, asked = subject.settings, subject.size, subject.asked
    arrays: dict[str, Any] = found.values
    (folder / "blink").mkdir(exist_ok=True)
    for row in range(min(settings.shown, len(arrays["total"]))):
        example = subject.source[int(found.indices[row])]
        picture = resize_image(example.image, size)
        for column, target in enumerate(arrays["targets"][row]):
            at, name = (row, column), f"{subject.name}_{row + 1:03}"
            total = arrays["total"][at]
            high = score_maps.binary_map(total, settings.deviations)
            over = marked(picture, high)
            write_bytes(folder / "blink" / f"{name}_{column + 1:02}.gif", blink(picture, over))
            line = str(target) if asked[column] == target else f"{asked[column]}: {target}"
            sums = f"logit {arrays['scores'][at]:.6g}, sum {arrays['sums'][at]:.6g}"
            figure = f"maps_{name}"
            album.add(figure, line, example.name[-28:], picture)
            album.add(figure, line, sums, signed_map(total))
            album.add(figure, line, f"> {settings.deviations:g} sd", black_and_white(high))
            album.add(figure, line, "over the image", over)
            here = slice(row, row + 1), slice(column, column + 1)
            constants = {layer: values[here] for layer, values in arrays.items() if layer not in _NO_LAYERS}
            layers = spread_constants(constants, subject.network, size, settings.prior)
            parts = {"input": arrays["input"][at], **{layer: maps[0, 0] for layer, maps in layers.items()}}
            least = 1e-6 * np.abs(total).sum()  # less is rounding
            walk = [
                (f"{layer[-24:]}\n{map.sum(dtype=np.float64):.4g}", signed_map(map))
                for layer, map in reversed(parts.items())
                if np.abs(map).sum() > least or layer == "input"
            ]
            whole = f"total\n{total.sum(dtype=np.float64):.4g}", signed_map(total)
            walk = [(example.name[-24:], picture), whole, *walk]
            for number, (title, pixels) in enumerate(walk):
                first = number // _COLUMNS * _COLUMNS
                line_of_walk = line if not first else f"from {walk[first][0].splitlines()[0]}"
                album.add(f"walk_{name}_{column + 1:02}", line_of_walk, title, pixels)


def target_names(subject: Subject, targets: Sequence[Target], images: int) -> np.ndarray:
    """What is explained of each image, image by target: its class, the RCV, or (cumulative) severity."""
    names, known = [], subject.network.card.class_names
    for label, target in zip(subject.asked, targets, strict=True):
        if label in ("severity", "cumulative") or label.startswith("rcv:"):
            names.append([label.removeprefix("rcv:")] * images)
            continue
        weights = np.asarray(target.weights)
        classes = np.broadcast_to(weights, (images, weights.shape[-1])).argmax(1)
        names.append([known[index] if known else str(index) for index in classes])
    return np.array(names).T


def settle_targets(module: Any, variables: Any, inputs: Any, targets: Sequence[Target]) -> list[Target]:
    """Targets whose weights, where they depend on the logits, are chosen once for each image."""
    if all(target.weights is not None for target in targets):
        return [*targets]
    layer = targets[0].layer
    output = capture(module, variables, inputs, (layer,))[layer]
    return [settled(target, output) for target in targets]


def by_image(parts: score_propagation.Parts) -> score_propagation.Parts:
    """Parts in host memory, image by target."""
    return jax.tree.map(lambda values: np.moveaxis(np.asarray(values), 0, 1), jax.device_get(parts))


def total_maps(
    parts: score_propagation.Parts, network: Network, size: int, prior: str
) -> Float[np.ndarray, "N T H W"]:
    """All parts on the image; what belongs to no place is spread evenly, so that with the true prior they add up to the score."""
    constants = {name: np.asarray(values) for name, values in parts.constants.items()}
    total = np.asarray(parts.inputs) + score_maps.spread_evenly(np.asarray(parts.link), size, size)
    for _, maps in _each_spread(constants, network, size, prior):
        total += maps
    return total


def spread_constants(
    constants: Mapping[str, Float[np.ndarray, "N T *P"]], network: Network, size: int, prior: str = "true"
) -> dict[str, Float[np.ndarray, "N T H W"]]:
    """The constants of each layer on the image, by a prior of its receptive field; see `score_maps.PRIORS`."""
    return {name: maps.astype(np.float32) for name, maps in _each_spread(constants, network, size, prior)}


def _each_spread(
    constants: Mapping[str, Float[np.ndarray, "N T *P"]], network: Network, size: int, prior: str
) -> Iterator[tuple[str, Float[np.ndarray, "N T H W"]]]:
    """One layer at a time, since together they take many times the memory of the image."""
    with_maps = [name for name, values in constants.items() if values.ndim == 4]
    fields = layer_fields(folded(network.module), size, size, with_maps)
    if prior == "quoted":
        convolutions = [name for name in with_maps if "conv" in name]
        axes = zip(*(fields[name] or () for name in convolutions), strict=True)
        quoted = zip(*(score_maps.quoted_fields(axis) for axis in axes), strict=True)
        fields |= dict(zip(convolutions, quoted, strict=True))
    for name, values in constants.items():
        if field := fields.get(name):
            axes = zip(field, values.shape[-2:], strict=True)
            shares = [score_maps.spread(axis, count, size, score_maps.PRIORS[prior]) for axis, count in axes]
            yield name, score_maps.map_scores(values, *shares)
        else:
            whole = values.sum(tuple(range(2, values.ndim)), dtype=np.float64)
            yield name, score_maps.spread_evenly(whole, size, size)


def _most_kept(subject: Subject) -> int:
    """Images whose arrays are held."""
    return min(subject.settings.kept or len(subject.source), len(subject.source))


def _image_bytes(subject: Subject) -> int:
    """Of the arrays that are kept of one image; nothing is computed."""
    module, variables = subject.folded()
    images = jax.ShapeDtypeStruct((1, subject.size, subject.size, 3), jnp.float32)
    parts = jax.eval_shape(
        partial(score_propagation.propagate_scores, module), variables, images, subject.targets
    )
    return 4 * sum(values.size for values in (parts.inputs, parts.inputs, *parts.constants.values()))


def _divide(subject: Subject) -> Features:
    """Parts and maps of all images that can be decoded."""
    settings, source, size = subject.settings, subject.source, subject.size
    module, variables = subject.folded()
    order = score_propagation.layer_names(module, variables, (1, size, size, 3), subject.targets[0].layer)
    skipped: list[Skipped] = []
    maps: list[dict[str, np.ndarray]] = []
    numbers: list[dict[str, np.ndarray]] = []
    room = _most_kept(subject)
    for inputs, valid, indices in subject.batches(source, skipped):
        own = settle_targets(module, variables, inputs, subject.targets)
        parts = score_propagation.propagate_scores(module, variables, inputs, own)
        parts = by_image(parts._replace(gradients=parts.gradients[..., :0]))  # not read here
        parts = jax.tree.map(lambda values, valid=valid: values[valid], parts)
        if not len(parts.scores):
            continue
        sums = score_propagation.sum_of_parts(parts)
        if not np.isfinite(sums).all():
            bad = [source[int(index)].name for index in indices[valid][~np.isfinite(sums).all(1)]]
            raise FloatingPointError(
                f"The parts of the score of {', '.join(bad[:5])} are not finite; check the weights."
            )
        numbers.append(
            {
                "scores": parts.scores,
                "sums": sums,
                "input_sums": parts.inputs.sum((2, 3), dtype=np.float64),
                "link": parts.link,
                "targets": target_names(subject, own, len(valid))[valid],
                "indices": indices[valid],
            }
        )
        if room > 0:
            parts = jax.tree.map(lambda values, room=room: values[:room], parts)
            total = total_maps(parts, subject.network, size, settings.prior).astype(np.float32)
            constants = {layer: parts.constants[layer] for layer in order}  # which the walk follows
            maps.append({**constants, "input": parts.inputs, "total": total})
            room -= len(total)
    if not numbers:
        why = "; ".join(f"{image.name}: {image.detail}" for image in skipped[:5])
        raise ValueError(f"None of the {len(source)} images in {settings.images} can be used ({why}).")
    arrays: dict[str, Any] = {**joined(maps), **joined(numbers)}
    return Features(arrays, arrays.pop("indices"), tuple(skipped))
