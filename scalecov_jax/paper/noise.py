"""Section 4.2 of the scale paper: features of white noise of many widths, with and without what padding touches."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

from scalecov_jax.checkpoints import Network
from scalecov_jax.compilation import jit
from scalecov_jax.feature_cache import cached_features
from scalecov_jax.features import Features, pooled_features, shortened
from scalecov_jax.images import noise
from scalecov_jax.images.batching import batches
from scalecov_jax.images.example import Skipped
from scalecov_jax.models.architecture import available_layers, check_layer
from scalecov_jax.models.folding import fold
from scalecov_jax.models.preprocessing import Preprocessing
from scalecov_jax.models.receptive_field import check_size, clean_regions, smallest_clean_size

Pooled = Literal["gap", "corrected_gap"]
POOLED: tuple[Pooled, ...] = ("gap", "corrected_gap")
MIN_SIZES = 3


class Clean(NamedTuple):
    """Where one layer has positions that no padding reaches.

    Attributes:
        layer: Its name.
        needed: Width of the smallest image with such a position, in pixels; None where every position sees the whole image.
        positions: How many there are, by the width of the image, for each of the widths from `needed` on.
    """

    layer: str
    needed: int | None
    positions: dict[int, int]

    @property
    def defined(self) -> bool:
        """Whether there are enough widths to probe corrected GAP at this layer."""
        return len(self.positions) >= MIN_SIZES


class NoiseFeatures(NamedTuple):
    """Pooled features of noise images, ordered by width.

    Attributes:
        widths: Of each image, in pixels.
        gap: Mean over all positions, by layer.
        corrected_gap: Mean over the positions that no padding reaches; only layers and only rows at which there is one.
    """

    widths: Int[np.ndarray, " N"]
    gap: dict[str, Float[np.ndarray, "N _"]]
    corrected_gap: dict[str, Float[np.ndarray, "_ _"]]

    def rows(self, pooling: Pooled, layer: str, smallest: int, largest: int) -> Float[np.ndarray, "M D"]:
        """Features of the images from `smallest` to `largest` pixels, float64."""
        features = (self.gap if pooling == "gap" else self.corrected_gap)[layer]
        widths = self.widths[len(self.widths) - len(features) :]
        return features[(widths >= smallest) & (widths <= largest)].astype(np.float64)


def map_layers(network: Network, layers: Sequence[str] = ()) -> tuple[str, ...]:
    """The given layers, or all that a network has, in depth order; each must have a map.

    Raises:
        ValueError: A layer that the network has not, or one without a map.
    """
    family = network.architecture
    known = available_layers(family, network.module)
    maps = tuple(layer for layer in known if layer not in family.head)
    for layer in layers:
        check_layer(family, layer, known[-1])
        if layer not in maps:
            raise ValueError(f"{layer} of {family.name} has no map to pool; choose among {', '.join(maps)}.")
    return tuple(layer for layer in maps if layer in layers or not layers)


def clean_layers(network: Network, layers: Sequence[str], sizes: Sequence[int]) -> dict[str, Clean]:
    """Which layers have positions free of padding, from which width on, and how many.

    Args:
        network: Whose layers are meant.
        layers: Names of layers with a map.
        sizes: Widths of the images in pixels, ascending.

    Raises:
        ValueError: A width at which a map would have no pixel.
    """
    for size in sizes:
        check_size(network.module, size, layers, network.architecture.name)
    regions = {size: clean_regions(network.module, size, size, layers) for size in sizes}
    clean = {}
    for layer in layers:
        needed = smallest_clean_size(network.architecture, layer, **network.card.options)
        positions = {}
        for size in sizes:
            if needed is not None and size >= needed and (region := regions[size][layer]):
                (top, bottom), (left, right) = region
                positions[size] = (bottom - top + 1) * (right - left + 1)
        clean[layer] = Clean(layer, needed, positions)
    return clean


def noise_features(
    network: Network,
    clean: Mapping[str, Clean],
    sizes: Sequence[int],
    per_size: int,
    seed: int,
    *,
    batch_size: int = 16,
    dtype: Any = jnp.float32,
    cache: Path | None = None,
    name: str = "noise",
    progress: bool = False,
) -> NoiseFeatures:
    """Both poolings of noise images of every width, in one forward pass an image and one compilation a width.

    Args:
        network: Network; it is cut after the last of the layers, and its batch normalisation folded, first.
        clean: From `clean_layers`; its layers are pooled.
        sizes: Widths in pixels, ascending. Images are made at each width, never resized.
        per_size: Images of each width.
        seed: Of the images.
        batch_size: Images a step at most, rounded up to a multiple of the number of devices.
        dtype: Of the forward pass.
        cache: Folder for the features of each width; what lies there already is not computed again.
        name: Of the files in `cache` and of the progress bar.
        progress: Whether to show a progress bar on stderr.

    Source: Graziani et al. 2021, section 4.2.
    """
    layers = tuple(clean)
    forward = _Forward(shortened(network, layers), dtype)
    rows = -(-min(batch_size, per_size) // jax.device_count()) * jax.device_count()
    found: dict[int, dict[str, np.ndarray]] = {}
    with tqdm(total=len(sizes) * per_size, desc=name, unit="img", disable=not progress) as bar:
        for size in sizes:
            corrected = tuple(layer for layer in layers if size in clean[layer].positions)
            found[size] = cached_features(
                cache and cache / f"{name}-{size}.npz",
                lambda size=size, corrected=corrected: forward.features(
                    size, per_size, seed, layers, corrected, rows
                ),
            ).values
            bar.update(per_size)

    def joined(pooling: Pooled, layer: str) -> np.ndarray:
        return np.concatenate([one[key] for one in found.values() if (key := f"{pooling}-{layer}") in one])

    return NoiseFeatures(
        np.repeat(np.asarray(sizes), per_size),
        {layer: joined("gap", layer) for layer in layers},
        {layer: joined("corrected_gap", layer) for layer in layers if {*sizes} & {*clean[layer].positions}},
    )


class _Forward:
    """A folded network on all devices; the weights are arguments, so that trained and random ones share a compilation."""

    def __init__(self, network: Network, dtype: Any):
        module, variables = fold(network.module, network.variables, network.architecture.epsilon)
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        self.module = module
        self.variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
        self.sharding = NamedSharding(mesh, PartitionSpec("data"))
        self.preprocessing: Preprocessing = network.card.preprocessing
        self.dtype = dtype

    def features(
        self, size: int, count: int, seed: int, layers: tuple[str, ...], corrected: tuple[str, ...], rows: int
    ) -> Features:
        """Features of the noise images of one size, by pooling-layer."""
        parts: list[dict[str, np.ndarray]] = []
        skipped: list[Skipped] = []
        for batch in batches(noise.examples(count, size, seed), size, rows, skipped):
            images = jax.device_put(batch.images, self.sharding)
            pooled = _both_poolings(
                self.module, self.variables, images, layers, corrected, self.preprocessing, self.dtype
            )
            parts.append({key: np.asarray(values)[batch.valid] for key, values in pooled.items()})
        values = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        return Features(values, np.arange(count), tuple(skipped))


@partial(jit, static_argnames=("module", "layers", "corrected", "preprocessing", "dtype"))
def _both_poolings(
    module: nn.Module,
    variables: Any,
    images: UInt8[Array, "N H W 3"],
    layers: tuple[str, ...],
    corrected: tuple[str, ...],
    preprocessing: Preprocessing,
    dtype: Any,
) -> dict[str, Float[Array, "N _"]]:
    """Written as two forward passes; the compiler merges them into one."""
    pooled: dict[str, Float[Array, "N _"]] = {}
    for pooling, wanted in zip(POOLED, (layers, corrected), strict=True):
        if wanted:
            values = pooled_features(module, variables, images, wanted, preprocessing, dtype, pooling)
            pooled |= {f"{pooling}-{layer}": one for layer, one in values.items()}
    return pooled
