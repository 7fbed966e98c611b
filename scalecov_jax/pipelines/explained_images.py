"""Maps and concept sensitivities of images, network by network; what an earlier run left in the folder is read."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float
from tqdm import tqdm

from scalecov_jax.checkpoints import Network
from scalecov_jax.explain import faithfulness, grad_cam, sensitivity
from scalecov_jax.explain.faithfulness import Exchanged
from scalecov_jax.explain.gradients import LayerGradients, check_gradients, layer_gradients
from scalecov_jax.explain.target import Target
from scalecov_jax.features import Features, cached_features
from scalecov_jax.images.batching import batches
from scalecov_jax.images.example import Box, Skipped, Source, resize_image
from scalecov_jax.models.folding import fold
from scalecov_jax.models.preprocessing import preprocess
from scalecov_jax.rcv import Rcv
from scalecov_jax.report.explain import Concept, Mapped


class Maps(NamedTuple):
    """What was mapped.

    Attributes:
        rows: Of maps.csv.
        maps: Of the images that are shown, by network.
        images: Name and pixels of the images that are shown.
        exchanged: By network, where at least two boxes are known; see `faithfulness.exchange_test`.
        undecoded: Images that could not be decoded.
    """

    rows: list[Mapped]
    maps: dict[str, np.ndarray]
    images: list[tuple[str, np.ndarray]]
    exchanged: dict[str, Exchanged]
    undecoded: list[Skipped]


def map_images(
    folder: Path,
    networks: Mapping[str, Network],
    targets: Mapping[str, Target],
    source: Source,
    settings: Mapping[str, Any],
) -> Maps:
    """Maps of all images by all networks, and their tests.

    Raises:
        ValueError: No image can be decoded.
        FloatingPointError: See `gradients.check_gradients`.
    """
    method, signed = settings["method"], settings["signed"]
    rows: list[Mapped] = []
    shown: dict[str, np.ndarray] = {}
    pictures: list[tuple[str, np.ndarray]] = []
    exchanged: dict[str, Exchanged] = {}
    undecoded: list[Skipped] = []
    for name, network in networks.items():
        size = settings["size"] or network.card.input_size

        def use(
            module: Any,
            variables: Any,
            inputs: Any,
            computed: LayerGradients,
            target: Target = targets[name],
            size: int = size,
        ) -> dict[str, Any]:
            maps = grad_cam.cam(method, computed.activations, computed.gradients, signed=signed)
            found: dict[str, Any] = {"maps": maps}
            if settings["faithfulness"]:
                large = grad_cam.upsample(maps, size, size)
                curves = faithfulness.insertion_deletion(
                    module, variables, inputs, large, faithfulness.blurred(inputs), target
                )
                found |= {
                    kind: faithfulness.area_under(values)
                    for kind, values in zip(("insertion", "deletion"), curves, strict=True)
                }
            return found

        mapped = cached_features(
            folder / "maps" / f"{name}.npz",
            partial(_gradients, network, source, targets[name], settings, name, use),
        )
        arrays, indices = mapped.values, mapped.indices
        undecoded += mapped.skipped
        large = np.asarray(grad_cam.upsample(grad_cam.scale_maps(jnp.asarray(arrays["maps"])), size, size))
        examples = [source[int(index)] for index in indices]
        boxes = [_scaled(one.box, one.image.shape[:2], size, settings["tolerance"]) for one in examples]
        for row, (example, box) in enumerate(zip(examples, boxes, strict=True)):
            one = slice(row, row + 1)
            rows.append(
                Mapped(
                    name,
                    example.name,
                    float(arrays["scores"][row]),
                    float(np.abs(arrays["maps"][row]).max()),
                    None if example.box is None else _share(example.box, example.image.shape[:2]),
                    None if box is None else bool(faithfulness.hits(large[one], [box])[0]),
                    None if box is None else bool(faithfulness.centre_hits(size, size, [box])[0]),
                    float(arrays["insertion"][row]) if "insertion" in arrays else None,
                    float(arrays["deletion"][row]) if "deletion" in arrays else None,
                )
            )
        known = [row for row, box in enumerate(boxes) if box is not None]
        if len(known) > 1:
            exchanged[name] = faithfulness.exchange_test(
                large[known], [box for box in boxes if box is not None], seed=settings["seed"]
            )
        most = settings["shown"]
        shown[name] = np.stack(
            [np.asarray(jax.image.resize(one, (224, 224), "linear")) for one in large[:most]]
        )
        pictures = [(one.name, resize_image(one.image, 224)) for one in examples[:most]]
    return Maps(rows, shown, pictures, exchanged, undecoded)


def weigh_concepts(
    folder: Path,
    networks: Mapping[str, Network],
    targets: Mapping[str, Target],
    source: Source,
    rcvs: Mapping[str, Sequence[Rcv]],
    settings: Mapping[str, Any],
) -> tuple[list[Concept], list[Skipped]]:
    """The rows of sensitivity.csv, and images that could not be decoded.

    Raises:
        ValueError: No image can be decoded.
        FloatingPointError: See `gradients.check_gradients`.
    """
    rows: list[Concept] = []
    undecoded: list[Skipped] = []
    for name, network in networks.items():

        def use(module: Any, variables: Any, inputs: Any, computed: LayerGradients) -> dict[str, Any]:
            return {"gradients": sensitivity.pooled_gradients(computed.gradients)}

        found = cached_features(
            folder / "gradients" / f"{name}.npz",
            partial(_gradients, network, source, targets[name], settings, name, use),
        )
        arrays, indices = found.values, found.indices
        undecoded += found.skipped
        groups = [source[int(index)].group for index in indices]
        rows += _concept_rows(name, rcvs[name], arrays["gradients"], groups, settings)
    return rows, undecoded


def _concept_rows(
    weights: str,
    rcvs: Sequence[Rcv],
    gradients: np.ndarray,
    groups: Sequence[str],
    settings: Mapping[str, Any],
) -> list[Concept]:
    seed = settings["seed"]
    g, v = jnp.asarray(gradients), jnp.asarray(sensitivity.directions(rcvs, settings["vector"]))
    s, z = np.asarray(sensitivity.sensitivities(g, v)), np.asarray(sensitivity.dimension_free(g, v))
    test = sensitivity.tcav_test(g, v, seed=seed)
    rows = []
    for column, rcv in enumerate(rcvs):
        one, r2 = s[:, [column]].astype(np.float64), np.array([rcv.r2])
        br = low = high = None
        if not sensitivity.constant(one)[0]:
            br = float(sensitivity.bidirectional_relevance(one, r2)[0])
            low, high = map(float, sensitivity.relevance_intervals(one, r2, seed=seed, groups=groups)[:, 0])
        rows.append(
            Concept(
                weights, rcv.layer, rcv.measure, rcv.r2, float(one.mean()), float(one.std()), float(z[:, column].mean()),
                float(test.score[column]), test.low, test.high, float(test.p[column]), br, low, high,
            )
        )  # fmt: skip
    return rows


def _scaled(box: Box | None, shape: tuple[int, ...], size: int, tolerance: int = 0) -> Box | None:
    """A box, wider by `tolerance` pixels of its image on every side, in pixels of the image resized to a square."""
    if box is None:
        return None
    x_min, y_min = box.x_min - tolerance, box.y_min - tolerance
    x_max, y_max = box.x_max + tolerance, box.y_max + tolerance
    down, across = size / shape[0], size / shape[1]
    return Box((x_min - 1) * across + 1, (y_min - 1) * down + 1, x_max * across, y_max * down)


def _share(box: Box, shape: tuple[int, ...]) -> float:
    """Area of a box as a share of its image."""
    return (box.x_max - box.x_min + 1) * (box.y_max - box.y_min + 1) / (shape[0] * shape[1])


def _gradients(
    network: Network,
    source: Source,
    target: Target,
    settings: Mapping[str, Any],
    label: str,
    use: Callable[[nn.Module, Any, Float[Array, "N H W 3"], LayerGradients], dict[str, Array]],
) -> Features:
    """What `use` makes of the gradients of each batch, for all images that can be decoded."""
    skipped: list[Skipped] = []
    module, variables = fold(network.module, network.variables, network.architecture.epsilon)
    variables = jax.device_put(variables)
    parts: list[dict[str, np.ndarray]] = []
    for inputs, valid, indices in each_batch(network, source, skipped, settings, label):
        computed = layer_gradients(module, variables, inputs, settings["layer"], target)
        kept = LayerGradients(*(one[np.flatnonzero(valid)] for one in computed))
        check_gradients(kept, settings["layer"], [source[int(one)].name for one in indices[valid]])
        found = {**use(module, variables, inputs, computed), "scores": computed.scores}
        parts.append(
            {name: np.asarray(one)[valid] for name, one in found.items()} | {"indices": indices[valid]}
        )
    if not sum(len(one["indices"]) for one in parts):
        raise ValueError(f"None of the {len(source)} images in {settings['images']} can be decoded.")
    found = {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}
    return Features(found, found.pop("indices"), tuple(skipped))


def each_batch(
    network: Network, source: Source, skipped: list[Skipped], settings: Mapping[str, Any], label: str
) -> Any:
    """Preprocessed images of one shape, which of them count, and their places in the source."""
    size = settings["size"] or network.card.input_size
    with tqdm(total=len(source), desc=label, unit="img") as bar:
        for batch in batches(source, size, min(settings["batch_size"], len(source)), skipped):
            inputs = preprocess(jnp.asarray(batch.images), network.card.preprocessing)
            yield inputs, batch.valid, batch.indices
            bar.update(int((batch.indices >= 0).sum()))
