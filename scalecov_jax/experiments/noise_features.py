"""Features of white noise of many widths, with both poolings; which layers have positions that no padding reaches."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

from scalecov_jax.checkpoints import Network
from scalecov_jax.compilation import jit
from scalecov_jax.extraction import Features, cached_features, pooled_features, shortened
from scalecov_jax.imaging import noise
from scalecov_jax.imaging.batching import batches
from scalecov_jax.imaging.image_set import Skipped
from scalecov_jax.models.architecture import available_layers, check_layer
from scalecov_jax.models.folding import fold
from scalecov_jax.models.preprocessing import Preprocessing
from scalecov_jax.models.receptive_field import check_size, clean_regions, smallest_clean_size

Pooled = Literal["gap", "corrected_gap"]
POOLED: tuple[Pooled, ...] = ("gap", "corrected_gap")
MIN_SIZES = 3  # widths to probe a layer on


class Clean(NamedTuple):
    """Where a layer has positions that no padding reaches."""

    # width of the smallest image with such a position, in pixels; None where every position sees the whole image
    needed: int | None
    # how many there are, by the width of the image, for each of the widths from `needed` on
    positions: dict[int, int]

    @property
    def start(self) -> int | None:
        """Width from which on corrected GAP is probed; None where it is defined at too few widths."""
        return min(self.positions) if len(self.positions) >= MIN_SIZES else None


class NoiseFeatures(NamedTuple):
    """Pooled features of noise images, ordered by width."""

    widths: Int[np.ndarray, " N"]  # of each image, in pixels
    gap: dict[str, Float[np.ndarray, "N _"]]  # mean over all positions, by layer
    # mean over the positions that no padding reaches; only layers and only rows at which there is one
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
    """Which layers have positions free of padding, from which width (ascending, in pixels) on, and how many.

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
        clean[layer] = Clean(needed, positions)
    return clean


def layer_table(clean: Mapping[str, Clean]) -> pd.DataFrame:
    """Columns layer, needed and start (see `Clean`); empty where there is no such width."""
    rows = [(layer, place.needed, place.start) for layer, place in clean.items()]
    frame = pd.DataFrame(rows, columns=["layer", "needed", "start"])
    return frame.astype({"needed": "Int64", "start": "Int64"})


def reference_layer(starts: Mapping[str, int | None]) -> str | None:
    """The deepest layer probed with corrected GAP over the most widths (`Clean.start` by layer); None if there is none."""
    probed = {layer: start for layer, start in starts.items() if start is not None}
    # max takes the first of equals.
    return max(reversed(probed), key=lambda layer: -probed[layer], default=None)


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
) -> NoiseFeatures:
    """Both poolings of noise images of every width, in one forward pass per image and one compilation per width.

    The network is cut after the last of the layers, and its batch normalisation folded, first. Images are made at each width,
    never resized. `cache` keeps the features of each width in files called `name`.

    Source: Graziani et al. 2021, section 4.2.
    """
    layers = tuple(clean)
    network = shortened(network, layers)
    module, variables = fold(network.module, network.variables, network.architecture.epsilon)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    # An argument of the compiled function, so that trained and random weights share a compilation.
    variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    rows = -(-min(batch_size, per_size) // jax.device_count()) * jax.device_count()

    def of_size(size: int) -> Features:
        """By pooling-layer."""
        corrected = tuple(layer for layer in layers if size in clean[layer].positions)
        skipped: list[Skipped] = []
        computed = []
        for batch in batches(noise.examples(per_size, size, seed), size, rows, skipped):
            images = jax.device_put(batch.images, NamedSharding(mesh, PartitionSpec("data")))
            options = layers, corrected, network.card.preprocessing, dtype
            pooled = _both_poolings(module, variables, images, *options)
            computed.append({key: np.asarray(values)[batch.valid] for key, values in pooled.items()})
        values = {key: np.concatenate([part[key] for part in computed]) for key in computed[0]}
        return Features(values, np.arange(per_size), tuple(skipped))

    parts: list[dict[str, np.ndarray]] = []
    with tqdm(total=len(sizes) * per_size, desc=name, unit="img") as bar:
        for size in sizes:
            path = cache and cache / f"{name}-{size}.npz"
            parts.append(cached_features(path, partial(of_size, size)).values)
            bar.update(per_size)

    def joined(pooling: Pooled, layer: str) -> np.ndarray:
        return np.concatenate([part[key] for part in parts if (key := f"{pooling}-{layer}") in part])

    return NoiseFeatures(
        np.repeat(np.asarray(sizes), per_size),
        {layer: joined("gap", layer) for layer in layers},
        {layer: joined("corrected_gap", layer) for layer in layers if {*sizes} & {*clean[layer].positions}},
    )


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
            pooled |= {f"{pooling}-{layer}": rows for layer, rows in values.items()}
    return pooled
