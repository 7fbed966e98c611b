"""What a classifier makes of the same images at many sizes: probability and rank of the true class."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from scalecov_jax.checkpoints import Network
from scalecov_jax.concepts.scale import scale_ratio
from scalecov_jax.features import Features, cached_features, compute_features
from scalecov_jax.images.example import Example, Filter, Skipped, resize_image
from scalecov_jax.images.labelled import Label, LabelledImages
from scalecov_jax.models.folding import fold
from scalecov_jax.models.pruning import abstract_variables
from scalecov_jax.models.receptive_field import check_size, check_variables

OUTPUT = "softmax"
FILLED = "filled"


class Classified(NamedTuple):
    """One image at one size (a row of resize.csv).

    Attributes:
        weights: Name of the weights.
        image: Name of the image.
        group: By the size of its object or its own, see `group_images`.
        object_ratio: Area of the object's box / area of the image after squaring; None where no box is known.
        filter: Of resizing.
        size: Height and width in pixels.
        probability: Softmax output of the true class.
        rank: Of the true class, 1 at the top, see `true_class`.
    """

    weights: str
    image: str
    group: str
    object_ratio: float | None
    filter: Filter
    size: int
    probability: float
    rank: int


def true_class(
    outputs: Float[np.ndarray, "N C"], class_indices: Int[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Probability and rank of the true class t.

    rank = 1 + number of classes c != t with p_c >= p_t: ties count against the network, so that equal outputs are no success.

    Raises:
        FloatingPointError: An output is not finite.
    """
    if not np.isfinite(outputs).all():
        raise FloatingPointError(
            f"{(~np.isfinite(outputs)).any(axis=1).sum()} of {len(outputs)} images have outputs that are not finite."
        )
    probability = outputs[np.arange(len(outputs)), class_indices]
    return probability, (outputs >= probability[:, None]).sum(axis=1)


def classes_of(network: Network) -> int:
    """Number of outputs of a network that goes on to its softmax.

    Raises:
        ValueError: The network stops before.
    """
    if network.module.last != OUTPUT:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(
            f"This {network.architecture.name} stops at {network.module.last}, before {OUTPUT}, "  # pyright: ignore[reportAttributeAccessIssue]
            "so it names no class; give the weights of the whole network."
        )
    size = network.card.input_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = abstract_variables(network.module, network.architecture, size)
    return jax.eval_shape(network.module.apply, variables, images).shape[-1]  # pyright: ignore[reportAttributeAccessIssue]


def group_images(labels: Sequence[Label], filled: float) -> tuple[str, ...]:
    """The group of each image, named with its bounds.

    Where boxes are known: `filled` where the box covers at least that part of the image, and thirds of the object's size among
    the rest. Without boxes: halves by the shorter side of the image. Equal values never part, so groups may be uneven or fewer.

    Args:
        labels: Of images after squaring.
        filled: r = box area / image area from which an image counts as filled.

    Source: Graziani et al. 2021, section 4.1 (69 filled images of 500 x 500 pixels and 69 smaller ones).
    """
    ratios = [one.box and scale_ratio(one.box, one.height, one.width) for one in labels]
    if not all(ratios):
        sides = np.array([min(one.width, one.height) for one in labels], float)
        parts = _parts(sides, 2)
        names = ("smaller images", "larger images") if parts.max(initial=0) else ("images",)
        bounds = _bounds(sides, parts, "shorter side {:.0f} to {:.0f} px")
        return tuple(f"{names[part]} ({bounds[part]})" for part in parts)
    values = np.array(ratios, float)
    rest = values < filled
    parts = _parts(values[rest], 3)
    names = ("small objects", "medium objects", "large objects")
    bounds = _bounds(100 * values[rest], parts, "{:.1f} to {:.1f} % of the image")
    thirds = iter(f"{names[part]} ({bounds[part]})" for part in parts)
    full = f"{FILLED} (at least {100 * filled:g} % of the image)"
    return tuple(next(thirds) if one else full for one in rest)


def _parts(values: Float[np.ndarray, " N"], count: int) -> Int[np.ndarray, " N"]:
    """Number of the part of each value, cut between different values as near to equal parts as can be."""
    ordered = np.sort(values)
    steps = np.flatnonzero(np.diff(ordered)) + 1
    wanted = [len(values) * part / count for part in range(1, count)]
    cuts = {int(steps[np.abs(steps - place).argmin()]) for place in wanted} if len(steps) else set()
    return np.searchsorted(ordered[sorted(cuts)], values, side="right")


def _bounds(values: Float[np.ndarray, " N"], parts: Int[np.ndarray, " N"], text: str) -> dict[int, str]:
    return {
        int(part): text.format(values[parts == part].min(), values[parts == part].max())
        for part in np.unique(parts)
    }


class _Resized:
    """A source whose images are resized when read, in the threads that decode them."""

    def __init__(self, source: LabelledImages, size: int, resize_filter: Filter):
        self.source, self.size = source, size
        self.filter: Filter = resize_filter

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> Example:
        example = self.source[index]
        return example._replace(image=resize_image(example.image, self.size, self.filter), box=None)


def classify(
    network: Network,
    weights: str,
    images: LabelledImages,
    class_indices: Int[np.ndarray, " N"],
    groups: Sequence[str],
    *,
    sizes: Sequence[int],
    filters: Sequence[Filter],
    batch_size: int = 16,
    dtype: Any = jnp.float32,
    cache: Path | None = None,
    progress: bool = False,
) -> tuple[list[Classified], tuple[Skipped, ...]]:
    """Probability and rank of the true class of every image at every size with every filter.

    Sizes are gone through one by one, with one compilation each that all filters share, so that memory is that of one size.

    Args:
        network: Goes on to its softmax; its batch normalisation is folded first.
        weights: Its name in the table.
        images: Square, see `labelled.squared`, or distorted by resizing.
        class_indices: The true class of each image.
        groups: See `group_images`.
        sizes: Heights and widths in pixels.
        filters: Of resizing.
        batch_size: Images a forward pass.
        dtype: Of the forward pass; in bfloat16 outputs tie more often.
        cache: Folder for two numbers an image, size and filter; what lies there already is not computed again.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The rows, and the images that could not be decoded.

    Raises:
        FloatingPointError: The network's outputs are not finite.

    Source: Graziani et al. 2021, section 4.1.
    """
    module, variables = fold(network.module, network.variables, network.architecture.epsilon)
    network = network._replace(module=module, variables=variables)

    def compute(size: int, resize_filter: Filter) -> Features:
        computed = compute_features(
            network,
            _Resized(images, size, resize_filter),
            (OUTPUT,),
            size=size,
            batch_size=batch_size,
            dtype=dtype,
        )
        probability, rank = true_class(computed.values[OUTPUT], class_indices[computed.indices])
        two = {"probability": probability[:, None], "rank": rank[:, None].astype(np.float32)}
        return computed._replace(values=two)

    ratios = [one.box and scale_ratio(one.box, one.height, one.width) for one in images.labels]
    rows: list[Classified] = []
    skipped: dict[Skipped, None] = {}
    total = len(images) * len(sizes) * len(filters)
    with tqdm(total=total, desc=weights, unit="img", disable=not progress) as bar:
        for size in sizes:
            for one in filters:
                path = cache and cache / f"{weights}-{size}-{one}.npz"
                found = cached_features(path, functools.partial(compute, size, one))
                skipped |= dict.fromkeys(found.skipped)
                both = (found.values[name][:, 0].tolist() for name in ("probability", "rank"))
                for at, probability, rank in zip(found.indices.tolist(), *both, strict=True):
                    known = (weights, images.labels[at].name, str(groups[at]), ratios[at])
                    rows.append(Classified(*known, one, size, probability, int(rank)))
                bar.update(len(images))
    return rows, tuple(skipped)


def check_sizes(networks: Mapping[str, Network], sizes: Sequence[int]) -> None:
    """Refuse sizes that a network cannot take.

    Raises:
        ValueError: Names every such network and the smallest size that it takes, or what in it takes one size alone.
    """
    problems = []
    for name, network in networks.items():
        try:
            check_size(network.module, min(sizes), [OUTPUT], name)
        except ValueError as error:
            problems.append(f"{error} Leave out the sizes below.")
            continue
        try:
            for size in (min(sizes), max(sizes)):
                check_variables(network.module, network.variables["params"], size, name)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(" ".join(problems))
