"""The front door: `import scalecov_jax as sc`, then these names. Each is a few lines over the modules that do the work."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from absl import logging
from flax import linen as nn
from jaxtyping import Bool, Float

from scalecov_jax import checkpoints, cutting
from scalecov_jax.checkpoints import Card, Network, random_network
from scalecov_jax.compilation import jit
from scalecov_jax.concepts.compute import check_measures, measure_all
from scalecov_jax.concepts.measure import MEASURES, ConceptMeasure, get_measure
from scalecov_jax.evidence import weigh
from scalecov_jax.explanation import grad_cam
from scalecov_jax.explanation.capture import capture
from scalecov_jax.explanation.gradients import layer_gradients
from scalecov_jax.explanation.target import class_logit, predicted_logit, rcv_projection
from scalecov_jax.extraction import POOLINGS, compute_features
from scalecov_jax.feature_files import Features, check_features, check_order, read_features
from scalecov_jax.imaging import sources
from scalecov_jax.imaging.batching import batches
from scalecov_jax.imaging.copies import with_copies_together
from scalecov_jax.imaging.decoding import array_of
from scalecov_jax.imaging.image_set import Example, ImageSet, image_set
from scalecov_jax.imaging.slides import write_geojson as write_geojson
from scalecov_jax.models.adopted import Adopted, adopt
from scalecov_jax.models.architecture import ARCHITECTURES, available_layers, check_layer
from scalecov_jax.models.export import export as export
from scalecov_jax.models.port import port
from scalecov_jax.models.preprocessing import Preprocessing, preprocess
from scalecov_jax.probed import Probed
from scalecov_jax.probes.splits import make_splits
from scalecov_jax.vectors import Rcv, load_rcv

# From uint8 images [N, H, W, 3] to features [N, D] or maps [N, H, W, C] by layer.
Maps = Callable[[Any], Mapping[str, Any]]
WEIGHTS = (".h5", ".keras", ".pth", ".pt", ".bin", ".ckpt", ".safetensors")


def load(
    source: Any,
    architecture: str = "",
    *,
    preprocessing: Preprocessing | None = None,
    input_size: int = 224,
    layers: Sequence[str] = (),
    **options: Any,
) -> Network:
    """A network.

    Args:
        source: A checkpoint of this package (folder); a weight file of Keras, torchvision or timm, or its state dict, with its
            `architecture`; or a Flax module and its variables.
        architecture: Of a weight file, such as resnet50. Of a module a name for tables; its class by default.
        preprocessing: What the weights expect, such as torch or tf, see `port.port`.
        input_size: Of a module: height and width of its images in pixels.
        layers: Of a module: names of the modules to probe; by default all that it calls itself.
        options: Of a weight file: see `port.port`, such as `last`.

    Raises:
        ValueError: See `checkpoints.load`, `port.port` and `adopted.adopt`; a module called as an architecture of this package.
    """
    if isinstance(source, Network):
        return source
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], nn.Module):
        module, variables = source
        name = architecture or type(module).__name__
        given = preprocessing or "torch"
        if name in ARCHITECTURES and not issubclass(ARCHITECTURES[name].module, Adopted):
            raise ValueError(
                f"{name} is an architecture of this package; give the module another name by `architecture`."
            )
        ARCHITECTURES[name] = adopt(name, module, layers=layers, input_size=input_size, preprocessing=given)
        card = Card(name, {}, given, input_size, f"the Flax module {type(module).__name__}")
        return checkpoints.network(jax.device_get(variables), card)
    if isinstance(source, Mapping):
        return port(source, architecture, preprocessing, **options)
    path = Path(str(source)).expanduser()
    if architecture and path.suffix in WEIGHTS:
        return port(path, architecture, preprocessing, **options)
    return checkpoints.load(path)


def save(network: Network, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write a network to a folder that `load` reads.

    Raises:
        ValueError: See `checkpoints.save`.
    """
    checkpoints.save(Path(folder), network, overwrite=overwrite)


def images(
    source: Any,
    *,
    measures: str | Path | pd.DataFrame | None = None,
    groups: str | Sequence[Any] | None = None,
    image_class: str = "",
    **options: Any,
) -> ImageSet:
    """Images and what is known of them.

    Args:
        source: A folder, files, arrays [H, W, 3] of uint8, or a name of `sources.open_images`, such as scenes.
        measures: A CSV file or a DataFrame with one line per image; columns of numbers become columns of the images. Lines find
            their images by a column of names (`csv_file.finder`); of a DataFrame without one, by its index. Images without a line
            are left out.
        groups: A column of `measures`, or one patient or slide per image: they are kept together in splits and tests.
        image_class: See `sources.open_images`.
        options: `count`, `seed` and `size` of what is rendered; `mpp` and `patch`, see `sources.open_images`.

    Raises:
        ValueError: See `sources.open_images` and `csv_file.join`; arrays that are no images.
    """
    if isinstance(source, ImageSet):
        found = source
    elif isinstance(source, str | Path):
        found = sources.open_images(str(source), image_class, **options)
    elif all(isinstance(one, str | Path) for one in source):
        found = sources.files([Path(one).expanduser() for one in source])
    else:
        names = [f"image_{index}" for index in range(len(source))]
        pixels = (array_of(one) for one in source)
        found = image_set(
            Example(one, None, None, None, name, name) for one, name in zip(pixels, names, strict=True)
        )
    if measures is not None:
        found = sources.with_measures(found, measures, groups if isinstance(groups, str) else "")
    if groups is not None and not (isinstance(groups, str) and measures is not None):
        given = found.column(groups) if isinstance(groups, str) else groups
        if len(given) != len(found):
            raise ValueError(f"{len(given)} groups for {len(found)} images; expected one each.")
        found = found.assign(group=[*map(str, given)])
    return with_copies_together(found)


def _opened(source: Any) -> ImageSet:
    return source if isinstance(source, ImageSet) else images(source)


def features(
    network: Network | Maps,
    images: Any,
    layers: Sequence[str] = (),
    *,
    pooling: str = "gap",
    size: int | None = None,
    batch_size: int = 32,
    progress: str | None = "features",
) -> Features:
    """Pooled features of every layer; `.values` has an array [N, D] of each, `.table()` all as a DataFrame.

    Args:
        network: See `load`; or any function from uint8 images [N, size, size, 3] to features or maps of layers by name, such as a
            torch model with hooks.
        images: See `images`.
        layers: All when empty.
        pooling: A name in `extraction.POOLINGS`.
        size: Height and width to which images are resized, in pixels; the network's own when absent, 224 for a function.
        batch_size: Images per forward pass.
        progress: Label of the progress bar on stderr; none when None.

    Raises:
        ValueError: See `extraction.compute_features`.
    """
    source = _opened(images)
    if isinstance(network, Network):
        layers = [*layers] or [*available_layers(network.architecture, network.module)]
        for layer in layers:
            check_layer(network.architecture, layer)
        options = {"size": size, "batch_size": batch_size, "pooling": pooling, "progress": progress}
        return compute_features(network, source, layers, **options)
    how, found, kept, skipped = POOLINGS.get(pooling), {}, [], []
    if how is None or how.pool is None or how.clean:
        known = ", ".join(name for name, one in POOLINGS.items() if one.pool and not one.clean)
        raise ValueError(f"The pooling is {pooling!r}; of what a function gives expected one of {known}.")
    for batch in batches(source, size or 224, batch_size, skipped):
        kept += batch.indices[batch.valid].tolist()
        for layer, values in network(batch.images).items():
            values = np.asarray(values)[batch.valid]
            if values.ndim not in (2, 4):
                raise ValueError(
                    f"{layer} is {list(values.shape)}; expected features [N, D] or maps [N, H, W, C]."
                )
            pooled = np.asarray(how.pool(jnp.asarray(values))) if values.ndim == 4 else values
            found.setdefault(layer, []).append(pooled)
    if missing := [layer for layer in layers if layer not in found]:
        raise ValueError(f"The function gives no {' or '.join(missing)}; it gives {', '.join(found)}.")
    values = {layer: np.concatenate(found[layer]) for layer in layers or found}
    return Features(
        values, np.array(kept, int), tuple(skipped), {}, pooling, tuple(source.table["name"].iloc[kept])
    )


def maps(
    network: Network,
    images: Any,
    layers: str | Sequence[str],
    *,
    size: int | None = None,
    batch_size: int = 16,
) -> dict[str, Float[np.ndarray, "N H W C"]]:
    """The maps of layers as they are, not pooled.

    Arguments as for `features`.

    Raises:
        ValueError: Layers that the network has not, or an image that cannot be decoded.
    """
    layers = (layers,) if isinstance(layers, str) else tuple(layers)

    @jit
    def forward(variables: Any, pixels: Any) -> dict[str, Any]:
        return capture(network.module, variables, preprocess(pixels, network.card.preprocessing), layers)

    return _each_batch(network, images, forward, size, batch_size)


def _each_batch(
    network: Network, images: Any, forward: Callable[[Any, Any], Any], size: int | None, batch_size: int
) -> Any:
    """What a function of the variables and of uint8 images [B, size, size, 3] gives of all images, which must be readable."""
    source, parts, skipped = _opened(images), [], []
    for batch in batches(source, size or network.card.input_size, min(batch_size, len(source)), skipped):
        if skipped:
            raise ValueError(f"{skipped[0].name} cannot be decoded: {skipped[0].detail}")
        given = forward(network.variables, batch.images)
        parts.append(jax.tree.map(lambda values, valid=batch.valid: np.asarray(values)[valid], given))
    return jax.tree.map(lambda *values: np.concatenate(values), *parts)


def probe(
    network: Network | Maps | Features | Mapping[str, Any] | str | Path,
    images: Any,
    concept: str | Sequence[str] = "",
    *,
    groups: str | Sequence[Any] | np.ndarray | None = None,
    layers: Sequence[str] = (),
    splits: int = 25,
    permutations: int = 1000,
    random_control: bool = True,
    pooling: str = "gap",
    size: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    name: str = "",
) -> Probed:
    """Read concepts from every layer by ridge on random splits, with intervals and permutation tests.

    Args:
        network: A network, see `load`, or a function, see `features`. Or features that are there already: {layer: array [N, D]},
            or a file of them, see `feature_files.read_features`; then no network is needed.
        images: Of a network: see `images`. Of features: the measures, an array [N] or [N, M], a Series or a DataFrame, in the
            order of the rows; or, of a file of features with names, a CSV file whose lines find the rows by name.
        concept: Names of columns of the images (`images(..., measures=...)`) or of measures such as scale; of features names for
            the measures.
        groups: Patient or slide of each image, kept together; those of the images when absent. A column of the CSV file.
        layers: All when empty.
        splits: Random splits, 70 % for training.
        permutations: Of the measures, for p values; 0 for none.
        random_control: Whether to probe the same network with random weights too.
        pooling: See `features`.
        size: See `features`.
        batch_size: See `features`.
        seed: Of splits, permutations and random weights.
        name: Of the network in tables.

    Raises:
        ValueError: Measures that are not finite or constant, fewer than 10 images, features of another number of rows: all at
            once; see also `evidence.weigh`.
    """
    control = None
    if isinstance(network, str | Path):
        network = read_features(network)
    if isinstance(network, Features) and isinstance(images, str | Path):
        rows = sources.rows_of_table(network.names, images, groups if isinstance(groups, str) else "")
        network = network.take(rows.column("row"))
        groups = rows.column("group") if isinstance(groups, str) else groups
        images = pd.DataFrame({one: rows.column(one) for one in np.atleast_1d(concept)}, network.names)
    if isinstance(network, Mapping | Features):
        values = network.values if isinstance(network, Features) else network
        values, measures, concepts = check_features(values, images, concept)
        names = [f"row {index}" for index in range(len(measures))]
        origins = None
        if isinstance(network, Features):
            origins, pooling, names = network.origins, network.pooling or pooling, network.names or names
            check_order(names, images)
    else:
        source = _opened(images)
        groups = source.column(groups) if isinstance(groups, str) else groups
        if groups is not None and len(groups) != len(source):
            raise ValueError(f"{len(groups)} groups for {len(source)} images; expected one each.")
        concepts = [concept] if isinstance(concept, str) else [*concept]
        measured = measure_all([_measure_of(source, one) for one in concepts], source)
        groups = np.asarray(measured.groups if groups is None else np.asarray(groups)[measured.indices])
        _splits(measured.values, measured.names, groups, splits, seed)  # refuses before the forward passes
        computing = {"pooling": pooling, "size": size, "batch_size": batch_size}
        found = features(network, source.take(measured.indices), layers, **computing)
        kept = found.indices
        values, measures, origins = found.values, measured.values[kept], found.origins
        names = [measured.names[index] for index in kept]
        groups = groups[kept]
        if isinstance(network, Network):
            name = name or network.card.architecture
            if random_control:
                drawn, again = random_network(network, seed), source.take(measured.indices[kept])
                control = features(drawn, again, [*values], progress="random weights", **computing).values
        elif random_control:
            logging.info("A function has no random weights to compare with.")
    if missing := [layer for layer in layers if layer not in values]:
        raise ValueError(f"There are no features of {', '.join(missing)}; there are {', '.join(values)}.")
    values = {layer: values[layer] for layer in layers or values}
    grouped, masks = _splits(measures, names, groups, splits, seed)
    evidence = weigh(
        values,
        measures,
        concepts,
        masks,
        groups=grouped,
        random_weights=control,
        permutations=permutations,
        seed=seed,
    )
    return Probed(evidence, values, name, origins, pooling)


def _splits(
    measures: Float[np.ndarray, "N M"], names: Sequence[str], groups: Any, splits: int, seed: int
) -> tuple[list[str] | None, Bool[np.ndarray, "S N"]]:
    """Groups as text, and the training part of each split, of measures that can be probed."""
    for column in measures.T:
        check_measures(column, names)
    if groups is not None and len(groups) != len(measures):
        raise ValueError(f"{len(groups)} groups for {len(measures)} images; expected one each.")
    grouped = None if groups is None else [*map(str, groups)]
    return grouped, make_splits("auto", len(measures), splits, seed, groups=grouped, values=measures[:, 0])


def cut(network: Network, layer: str) -> Network:
    """The network cut after a layer: everything behind it is gone.

    Raises:
        ValueError: It has no such layer.
    """
    return cutting.pruned_network(network, layer)


def rcv(path: str | Path, measure: str = "", layer: str = "", **more: str) -> Rcv:
    """A regression concept vector from a file, see `vectors.load_rcv`."""
    return load_rcv(path, measure, layer, **more)


def explain(
    network: Network,
    images: Any,
    layer: str,
    *,
    target: str | int | Rcv = "predicted",
    method: grad_cam.Method = "grad_cam",
    size: int | None = None,
    batch_size: int = 16,
) -> Float[np.ndarray, "N size size"]:
    """Where a network looks: a map of each image from 0 to 1, brought to its size.

    Args:
        network: See `load`.
        images: See `images`.
        layer: At which the map is drawn.
        target: predicted, a class (index or name), or an RCV (whose concept is then looked for).
        method: grad_cam, grad_cam_pp or grad_cam_plus.
        size: Height and width in pixels; the network's own when absent.
        batch_size: Images per pass.

    Raises:
        ValueError: A class or layer that the network has not; images that cannot be decoded.
    """
    if isinstance(target, Rcv):
        aim = rcv_projection(network, target, "filter")
    else:
        aim = predicted_logit(network) if target == "predicted" else class_logit(network, str(target))

    @jit
    def forward(variables: Any, pixels: Any) -> Any:
        inputs = preprocess(pixels, network.card.preprocessing)
        found = layer_gradients(network.module, variables, inputs, layer=layer, target=aim)
        drawn = grad_cam.cam(method, found.activations, found.gradients)
        return grad_cam.upsample(grad_cam.scale_maps(drawn), *pixels.shape[1:3])

    return _each_batch(network, images, forward, size, batch_size)


def _measure_of(source: ImageSet, name: str) -> ConceptMeasure:
    """A column of the images, or a measure by its name."""
    if name not in source.table or name in MEASURES:
        try:
            return get_measure(name)
        except ValueError as error:
            raise ValueError(f"{error} Columns of the images: {', '.join(map(str, source.table))}.") from None
    if not pd.api.types.is_numeric_dtype(source.table[name]):
        text = next(one for one in source.table[name] if not sources.is_number(str(one)))
        raise ValueError(f"The column {name} of the images holds {text!r}; expected a number of every image.")
    values = dict(zip(source.table["name"], source.column(name).astype(float), strict=True))
    return ConceptMeasure(name, partial(_value_of, values), title=name, reads_pixels=False)


def _value_of(values: Mapping[str, float], example: Example) -> float:
    return values[example.name]
