"""Pooled features of every wanted layer, in one forward pass."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8
from tqdm.auto import tqdm

from scalecov_jax.atomic import kept_arrays, write_arrays
from scalecov_jax.cache import FeatureStore, image_key, network_key
from scalecov_jax.checkpoints import Network, fingerprints
from scalecov_jax.compilation import jit
from scalecov_jax.feature_files import Features
from scalecov_jax.imaging.batching import batches
from scalecov_jax.imaging.image_set import ImageSet, Skipped, Source
from scalecov_jax.models.folding import fold, folded
from scalecov_jax.models.layers import WHOLE, check_tokens, forward_only, mean_by_rows, mean_patch
from scalecov_jax.models.preprocessing import Preprocessing, preprocess
from scalecov_jax.models.pruning import prune
from scalecov_jax.models.receptive_field import (
    check_size,
    check_variables,
    clean_regions,
    layer_ranks,
    undefined_layers,
)
from scalecov_jax.models.recognition import some

Pooling = str  # a name in POOLINGS
_KIND = "features of a source 1"


class Pool(NamedTuple):
    """How maps or tokens become one number per channel.

    Attributes:
        title: For people, such as "the largest pixel of a map".
        pool: A map in float32 [N, H, W, C] to features [N, D]; None if it is not defined for maps.
        clean: Whether it is given only the rectangle of pixels that no padding reaches (`receptive_field.clean_region`).
        tokens: Tokens in float32 [N, T, D], and how many of them precede the patches, to features; None if it is not defined
            for tokens.
    """

    title: str
    pool: Callable[[Float[Array, "N H W C"]], Float[Array, "N D"]] | None
    clean: bool = False
    tokens: Callable[[Float[Array, "N T D"], int], Float[Array, "N D"]] | None = None


POOLINGS = {
    "gap": Pool("the mean over all pixels of a map, or all patches", mean_by_rows, tokens=mean_patch),
    "max": Pool("the largest pixel or patch", lambda x: x.max((1, 2)), tokens=lambda x, n: x[:, n:].max(1)),
    "corrected_gap": Pool("the mean over the pixels that no padding reaches", mean_by_rows, clean=True),
    "cls": Pool("the class token", None, tokens=lambda x, _: x[:, 0]),
    "mean_patch": Pool("the mean over all patches", None, tokens=mean_patch),
    "cls_mean": Pool(
        "the class token and, behind it, the mean over all patches",
        None,
        tokens=lambda x, n: jnp.concatenate([x[:, 0], mean_patch(x, n)], 1),
    ),
}
"""Poolings by name; vectors pass unchanged. An entry is known to every script, as `--config.pooling`."""


class Estimate(NamedTuple):
    """What a forward pass over a source will take, measured on one batch of noise."""

    feature_bytes: int  # of all pooled features
    batch_bytes: int  # of one batch at its largest, weights included, as the compiler plans it
    seconds: float  # for all images, compilation left out
    images_per_second: float  # of the trial


def pooled_features(
    module: nn.Module,
    variables: Any,
    images: UInt8[Array, "N H W 3"],
    layers: tuple[str, ...],
    preprocessing: Preprocessing,
    dtype: Any = jnp.float32,
    pooling: Pooling | Pool = "gap",
) -> dict[str, Float[Array, "N D"]]:
    """Pooled maps or tokens of layers; vectors as they are.

    gap: the mean over all pixels of the map, or all patches. max: the largest. corrected_gap: the mean over the rectangle of
    pixels that no padding reaches, for which vectors and tokens have no equivalent. cls, mean_patch, cls_mean: of tokens alone.

    Pure; meant to be jitted, when the compiler drops whatever comes after the last wanted layer.

    Args:
        module: The network.
        variables: Its variables.
        images: RGB in 0-255.
        layers: Names of modules at any depth, such as mixed8 or conv2d_20.
        preprocessing: What the variables expect.
        dtype: Of the forward pass (float32 or bfloat16); pooling is in float32.
        pooling: A name in `POOLINGS`; or what stands there, which is then known to be defined for these layers.

    Raises:
        KeyError: A layer that the network has not.
        ValueError: See `check_pooling`.

    Source: Graziani et al. 2021, sections 3.4 (global average pooling of the layer's activations) and 4.2 (its correction).
    """
    height, width = images.shape[1:3]
    if isinstance(pooling, str):
        check_pooling(module, (height, width), layers, pooling)
        pooling = POOLINGS[pooling]
    with forward_only():
        applied: Any = module.apply(
            jax.tree.map(lambda leaf: leaf.astype(dtype), variables),
            preprocess(images, preprocessing).astype(dtype),
            capture_intermediates=lambda captured, _: captured.name in layers,
            mutable=["intermediates"],
        )
    intermediates: dict[Any, Any] = flatten_dict(applied[1].get("intermediates", {}))
    captured = {path[-2]: values[0] for path, values in intermediates.items()}
    if missing := [layer for layer in layers if layer not in captured]:
        raise KeyError(f"In this network no module is called {' or '.join(missing)}.")
    return _pooled({layer: captured[layer] for layer in layers}, module, (height, width), pooling)


def pooled_output(
    module: nn.Module,
    variables: Any,
    images: UInt8[Array, "N H W 3"],
    preprocessing: Preprocessing,
    layer: str,
    pooling: Pooling = "gap",
) -> Float[Array, "N D"]:
    """What a network that ends at `layer` returns, pooled; see `pooled_features` for the arguments."""
    return _pooled_output(module, variables, images, preprocessing, layer, POOLINGS[pooling])


@partial(jit, static_argnames=("module", "preprocessing", "layer", "how"))
def _pooled_output(
    module: nn.Module, variables: Any, images: Array, preprocessing: Preprocessing, layer: str, how: Pool
) -> Array:
    output = module.apply(variables, preprocess(images, preprocessing))
    return _pooled({layer: output}, module, (images.shape[1], images.shape[2]), how)[layer]


def _pooled(
    maps: Mapping[str, Any], module: nn.Module, size: tuple[int, int], how: Pool
) -> dict[str, Float[Array, "N D"]]:
    maps = {layer: one.astype(jnp.float32) for layer, one in maps.items()}
    _check_ranks({layer: one.ndim for layer, one in maps.items()}, module, how)
    if how.clean:
        for layer, region in clean_regions(module, *size, tuple(maps)).items():
            if region is not None:  # none is: they are checked before
                (top, bottom), (left, right) = region
                maps[layer] = maps[layer][:, top : bottom + 1, left : right + 1]
    pools = {3: lambda x: how.tokens(x, check_tokens(module)), 4: how.pool}  # pyright: ignore[reportOptionalCall]
    return {layer: pools.get(one.ndim, lambda x: x)(one) for layer, one in maps.items()}


def _check_ranks(ranks: Mapping[str, int], module: nn.Module, how: Pool) -> None:
    """Refuse layers for which a pooling is not defined, by the axes of their outputs."""
    for rank, kind, defined in ((4, "maps", how.pool), (3, "tokens", how.tokens)):
        layers = [layer for layer, one in ranks.items() if one == rank]
        if layers and defined is None:
            known = ", ".join(name for name, one in POOLINGS.items() if (one.pool, one.tokens)[4 - rank])
            where = f"{some(layers)} of {type(module).__name__}"
            raise ValueError(f"{where} give {kind}, for which {how.title} is not defined; choose {known}.")
        if layers and rank == 3:
            check_tokens(module)
    if other := [layer for layer, rank in ranks.items() if rank not in (2, 3, 4)]:
        raise ValueError(
            f"Expected maps [H, W, C], tokens [T, D] or vectors [D]; {some(other)} give something else."
        )


def _identity(pooling: Pooling) -> str:
    """A pooling, with the code of one from elsewhere, so that features of what was changed since are not used again."""
    identity = pooling
    for pool in (POOLINGS[pooling].pool, POOLINGS[pooling].tokens):
        if pool and not pool.__module__.startswith("scalecov_jax."):  # the store's keys hold our own code
            code: Any = pool.__code__  # pyright: ignore[reportFunctionMemberAccess]
            constants = [constant for constant in code.co_consts if not hasattr(constant, "co_code")]
            identity += f" {code.co_code.hex()} {code.co_names} {constants}"
    return identity


def check_pooling(
    module: nn.Module, size: int | tuple[int, int], layers: Sequence[str], pooling: Pooling
) -> None:
    """Make sure that a pooling is defined for layers, on images of `size` pixels (height and width if not square).

    Raises:
        ValueError: There is no such pooling, or layers have no pixel that padding does not reach; names each with the smallest
            size of the image at which it has one.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"There is no pooling {pooling!r}; expected one of {', '.join(POOLINGS)}.")
    if POOLINGS[pooling].clean and (undefined := undefined_layers(module, size, layers)):
        shown = " x ".join(map(str, size)) if isinstance(size, tuple) else f"{size} x {size}"
        where = ", ".join(
            f"{layer} ({f'defined from {least} pixels' if least else 'sees the whole image'})"
            for layer, least in undefined.items()
        )
        raise ValueError(
            f"{pooling} is undefined on images of {shown} pixels at {where}. Leave these layers out, take larger images, or "
            "choose gap or max."
        )


def check_request(network: Network, layers: Sequence[str], size: int | None, pooling: Pooling) -> int:
    """The size of the images in pixels, after making sure that `layers` can be pooled on them; nothing is computed.

    Raises:
        ValueError: A layer that the network has not, images so small that a map has no pixel (says which size has), a pooling
            that is not defined for their maps or tokens or there (see `check_pooling`), or weights for images of another size.
    """
    size = size or network.card.input_size
    name = network.architecture.name
    module = folded(network.module)  # as the forward pass has it
    check_size(module, size, layers, name)
    check_pooling(module, size, layers, pooling)
    _check_ranks(layer_ranks(module, size, size, layers), module, POOLINGS[pooling])
    check_variables(folded(_shortest(network, layers)), network.variables["params"], size, name)
    return size


def shortened(network: Network, layers: Sequence[str]) -> Network:
    """The network stopped after the last of `layers`; as it is, if one of them lies inside another layer."""
    module = _shortest(network, layers)
    if module is network.module:
        return network
    last: str = module.last  # pyright: ignore[reportAttributeAccessIssue]
    module, variables = prune(network.module, network.variables, network.architecture, last)
    return network._replace(module=module, variables=variables)


def _shortest(network: Network, layers: Sequence[str]) -> nn.Module:
    module: Any = network.module
    head = network.architecture.head
    known = [*(layer for layer in network.architecture.every_layer if layer not in head), WHOLE, *head]
    known = known[: known.index(module.last) + 1]
    last = max(layers, key=known.index) if {*layers} <= {*known} else module.last
    return module if last == module.last else module.clone(last=last)


def compute_features(
    network: Network,
    source: Source,
    layers: Sequence[str],
    *,
    size: int | None = None,
    batch_size: int = 32,
    dtype: Any = jnp.float32,
    pooling: Pooling = "gap",
    store: FeatureStore | None = None,
    progress: str | None = None,
) -> Features:
    """Pooled features of a whole source, data-parallel over all devices of this host.

    Args:
        network: Network; it is cut after the last of `layers`, and its batch normalisation folded, first.
        source: Examples; those that cannot be decoded are left out and named.
        layers: See `pooled_features`.
        size: Height and width to which images are resized, in pixels; the network's own when absent.
        batch_size: Images a step, rounded up to a multiple of the number of devices.
        dtype: See `pooled_features`.
        pooling: See `pooled_features`.
        store: Where features of single images are kept and looked for; what lies there is not computed again.
        progress: Label of a progress bar on stderr; none when absent.

    Raises:
        ValueError: See `check_request`.
    """
    size = check_request(network, layers, size, pooling)
    forward, batch_size = sharded_forward(network, tuple(layers), batch_size, dtype, pooling)
    skipped: list[Skipped] = []
    found: dict[int, dict[str, np.ndarray]] = {}
    missing: list[tuple[int, str, np.ndarray]] = []
    network_is = "" if store is None else network_key(network, dtype, _identity(pooling))

    def run() -> None:
        nonlocal store
        images = np.zeros((batch_size, size, size, 3), np.uint8)
        images[: len(missing)] = [image for _, _, image in missing]
        pooled = jax.device_get(forward(images))
        for row, (index, key, _) in enumerate(missing):
            found[index] = {layer: values[row] for layer, values in pooled.items()}
            try:
                if store is not None:
                    store.write(key, found[index])
            except OSError as error:
                logging.warning(
                    "Features are not kept any more, since %s cannot be written: %s", store, error
                )
                store = None
        bar.update(len(missing))
        missing.clear()

    with tqdm(total=len(source), desc=progress, unit="img", disable=progress is None) as bar:
        for batch in batches(source, size, batch_size, skipped):
            for index, image in zip(batch.indices[batch.valid], batch.images[batch.valid], strict=True):
                key = "" if store is None else image_key(network_is, image)
                known = None if store is None else store.read(key, layers)
                if known is None:
                    missing.append((index, key, image))
                else:
                    found[index] = known
                    bar.update()
                if len(missing) == batch_size:
                    run()
            bar.update(int((~batch.valid & (batch.indices >= 0)).sum()))
        if missing:
            run()
    if store is not None:
        store.trim()
    indices = np.array(sorted(found), dtype=int)
    values = {layer: np.array([found[index][layer] for index in indices]) for layer in layers}
    names = tuple(source.table["name"].iloc[indices]) if isinstance(source, ImageSet) else ()
    return Features(values, indices, tuple(skipped), fingerprints(network, layers), pooling, names)


def cached_features(path: Path | None, compute: Callable[[], Any]) -> Features:
    """Read features from `path`, or compute and write them, so that an interrupted run computes nothing twice."""
    if path is not None and (stored := kept_arrays(path, _KIND)) is not None:
        skipped = tuple(Skipped(*map(str, row)) for row in stored["skipped"])
        origins = dict(zip(map(str, stored["layers"]), map(str, stored["origins"]), strict=True))
        values = {name: stored[f"layer_{name}"] for name in origins}
        return Features(values, stored["indices"], skipped, origins, str(stored["pooling"]))
    features = compute()
    if path is not None:
        facts = {"layers": [*features.values], "indices": features.indices, "pooling": features.pooling}
        facts["skipped"] = np.array(features.skipped, dtype=str).reshape(-1, 3)
        facts["origins"] = [features.origins.get(name, "") for name in features.values]
        facts |= {f"layer_{name}": values for name, values in features.values.items()}
        write_arrays(path, facts, _KIND)
    return features


def dry_run(
    network: Network,
    count: int,
    layers: Sequence[str],
    *,
    size: int | None = None,
    batch_size: int = 32,
    dtype: Any = jnp.float32,
    pooling: Pooling = "gap",
) -> Estimate:
    """Measure one batch of noise and extrapolate to `count` images (forward pass only, compilation left out).

    Raises:
        ValueError: See `check_request`.
    """
    size = check_request(network, layers, size, pooling)
    network = shortened(network, layers)
    forward, batch_size = sharded_forward(network, tuple(layers), batch_size, dtype, pooling)
    images = np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3)).astype(np.uint8)
    pooled = jax.block_until_ready(forward(images))
    start = time.perf_counter()
    jax.block_until_ready(forward(images))
    rate = batch_size / (time.perf_counter() - start)
    module, variables = network.module, network.variables
    memory: Any = (
        _compiled.program()
        .lower(module, variables, images, tuple(layers), network.card.preprocessing, dtype, POOLINGS[pooling])
        .compile()
        .memory_analysis()
    )
    batch_bytes = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    width = sum(values.shape[1] for values in pooled.values())
    return Estimate(4 * count * width, batch_bytes, count / rate, rate)


# Compiled by what a pooling does, not by its name, so that an entry that is replaced is not passed over.
_compiled = jit(pooled_features, static_argnames=("module", "layers", "preprocessing", "dtype", "pooling"))


def local_to_global(mesh: Mesh, rows: np.ndarray) -> Array:
    """The rows of this host, with those of the others, as one array split over all devices."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("data")), rows)


def sharded_forward(
    network: Network,
    layers: tuple[str, ...],
    batch_size: int,
    dtype: Any,
    pooling: Pooling = "gap",
    devices: Sequence[Any] | None = None,
) -> tuple[Callable[[np.ndarray], dict[str, Array]], int]:
    """The forward pass with images split over devices (those of this host when absent), and the batch size that fits them.

    The weights are an argument of the compiled function, so that random and trained ones share one compilation. On several hosts
    each passes its own images, its share of the batch.
    """
    network = shortened(network, layers)
    module, variables = fold(network.module, network.variables, network.architecture.epsilon)
    devices = devices or jax.local_devices()
    mesh = jax.make_mesh(
        (len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices
    )
    variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))

    def forward(images: np.ndarray) -> dict[str, Array]:
        sharded = local_to_global(mesh, images)
        return _compiled(
            module, variables, sharded, layers, network.card.preprocessing, dtype, POOLINGS[pooling]
        )

    return forward, -(-batch_size // len(devices)) * len(devices)
