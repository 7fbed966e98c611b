"""Explanations from names to files: weights and images in; maps, sensitivities or optimised images and a report out."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from scalecov_jax import checkpoints
from scalecov_jax.checkpoints import Network
from scalecov_jax.concepts.compute import check_measures, measure_all
from scalecov_jax.concepts.measure import get_measures
from scalecov_jax.explain import faithfulness, feature_visualization, grad_cam, sensitivity
from scalecov_jax.explain.capture import capture
from scalecov_jax.explain.feature_visualization import RECIPES, Objective, Stage
from scalecov_jax.explain.gradients import LayerGradients, check_gradients, layer_gradients
from scalecov_jax.explain.rcv import fit_rcvs
from scalecov_jax.explain.target import Target, class_logit, class_probability, predicted_logit
from scalecov_jax.explain.visualization_state import load_state, save_state
from scalecov_jax.images.batching import batches
from scalecov_jax.images.example import Box, Skipped, Source, resize_image
from scalecov_jax.images.folder import evenly, read_folder
from scalecov_jax.images.sources import SCENES, open_source
from scalecov_jax.models.folding import fold
from scalecov_jax.models.preprocessing import preprocess
from scalecov_jax.pipelines.settings import load_networks, names
from scalecov_jax.probes.splits import grouped_splits, random_splits
from scalecov_jax.report import explain as report
from scalecov_jax.report.explain import Concept, Mapped, Optimised
from scalecov_jax.report.provenance import provenance
from scalecov_jax.workdir import open_workdir

METHODS = (*grad_cam.METHODS, "sensitivity", "feature_visualization")
_OBJECTIVES = ("channel", "neuron", "layer")
_CHUNK = 32


class _Computed(NamedTuple):
    """Of one network on all images that could be decoded."""

    arrays: dict[str, np.ndarray]
    names: tuple[str, ...]


def run(
    settings: Mapping[str, Any],
    workdir: str,
    *,
    command: Sequence[str],
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> str:
    """Explain networks by one method and report.

    Args:
        settings: See configs/explain.py; and `method`, one of `METHODS`.
        workdir: Folder of the run.
        command: As typed, for the provenance.
        resume: Go on in an existing folder; networks that are done there are not computed again.
        overwrite: Delete an existing folder first.
        dry_run: Check everything and say what would be computed.

    Returns:
        A table for people.

    Raises:
        ValueError: Settings, weights or images that cannot be used; says what was given and what to do.
        FloatingPointError: Gradients that are not finite, a dead channel.
    """
    started = time.monotonic()
    _check_values(settings)
    networks = _networks(settings)
    method = settings["method"]
    objectives: dict[str, list[Objective]] = {}
    targets: dict[str, Target] = {}
    source: Source = ()
    if method == "feature_visualization":
        objectives = {name: _objectives(network, settings) for name, network in networks.items()}
    else:
        targets = {name: _target(network, settings) for name, network in networks.items()}
        source = _open(settings)
    if dry_run:
        what = (
            f"{settings['channels']} of {settings['layer']}" if not len(source) else f"{len(source)} images"
        )
        return f"Would compute {method} of {what} for {', '.join(networks)}. Nothing was computed."
    folder = open_workdir(workdir, settings, resume=resume, overwrite=overwrite)
    skipped: list[Skipped] = []
    if method == "feature_visualization":
        rows, pictures = _visualise(folder, networks, objectives, settings)
        result = report.visualisation(rows, pictures, settings)
    elif method == "sensitivity":
        result = report.sensitivity(
            _sensitivity(folder, networks, targets, source, skipped, settings), settings
        )
    else:
        rows, maps, images = _maps(folder, networks, targets, source, skipped, settings)
        result = report.maps(rows, maps, images, settings)
    facts = provenance(command, settings, networks, started)
    table = report.write(folder, settings["title"], result, tuple(dict.fromkeys(skipped)), facts)
    return f"{table}\n\nReport: {folder / 'report.html'}"


def _check_values(settings: Mapping[str, Any]) -> None:
    problems = []
    for name, known in (("method", METHODS), ("objective", _OBJECTIVES), ("recipe", tuple(RECIPES))):
        if settings[name] not in known:
            problems.append(f"config.{name} is {settings[name]!r}; expected one of {', '.join(known)}")
    least = {
        "limit": 0,
        "seed": 0,
        "batch_size": 1,
        "scenes": 1,
        "shown": 1,
        "steps": 0,
        "size": 0,
        "splits": 1,
    }
    problems += [
        f"config.{name} is {settings[name]}; expected at least {low}"
        for name, low in least.items()
        if settings[name] < low
    ]
    for name, missing in (
        ("weights", "a checkpoint folder"),
        ("layer", "a layer"),
        ("images", "a folder or scenes"),
    ):
        if not names(settings[name]):
            problems.append(f"config.{name} is empty; expected {missing}")
    channels = names(settings["channels"])
    if bad := [one for one in channels if not (one.isascii() and one.isdigit())]:
        problems.append(f"config.channels has {', '.join(bad)}; expected numbers separated by commas")
    kind, colon, _ = settings["target"].partition(":")
    if (kind, bool(colon)) not in {("predicted", False), ("logit", True), ("probability", True)}:
        problems.append(
            f"config.target is {settings['target']!r}; expected predicted, logit:CLASS or probability:CLASS"
        )
    if problems:
        raise ValueError(f"{'; '.join(problems)}.")


def _networks(settings: Mapping[str, Any]) -> dict[str, Network]:
    networks = load_networks(settings["weights"], settings["architecture"])
    if settings["random_weights"]:
        networks |= {
            f"{name}-random": checkpoints.random_network(network, settings["seed"])
            for name, network in networks.items()
        }
    return networks


def _target(network: Network, settings: Mapping[str, Any]) -> Target:
    """The target of a network; traces the gradient once, so that layers are refused before anything is computed."""
    kind, _, given = settings["target"].partition(":")
    target = {
        "predicted": lambda: predicted_logit(network),
        "logit": lambda: class_logit(network, given),
        "probability": lambda: class_probability(network, given),
    }[kind]()
    size = settings["size"] or network.card.input_size
    inputs = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    layer = settings["layer"]
    traced = jax.eval_shape(
        lambda variables, inputs: layer_gradients(network.module, variables, inputs, layer, target),
        jax.tree.map(np.asarray, network.variables),
        inputs,
    )
    if settings["method"] in grad_cam.METHODS and len(traced.activations.shape) != 4:
        raise ValueError(
            f"{layer} has no maps ({list(traced.activations.shape)}); a map can be drawn of layers before the pooling, such as "
            f"{network.architecture.trunk}."
        )
    return target


def _objectives(network: Network, settings: Mapping[str, Any]) -> list[Objective]:
    layer, objective = settings["layer"], settings["objective"]
    channels = [int(one) for one in names(settings["channels"])]
    if objective == "layer":
        return [feature_visualization.whole_layer(layer, max(1, len(channels)))]
    size = _picture_size(settings)
    traced = jax.eval_shape(
        lambda variables, inputs: capture(network.module, variables, inputs, (layer,)),
        network.variables,
        jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
    )
    make = {"channel": feature_visualization.channel, "neuron": feature_visualization.neuron}[objective]
    return [make(layer, channels, traced[layer].shape[-1])]


def _picture_size(settings: Mapping[str, Any]) -> int:
    return settings["size"] or 128


def _open(settings: Mapping[str, Any]) -> Source:
    images = settings["images"]
    if (
        images == SCENES
        or images.startswith(("tfds:", "annotated:"))
        or (Path(images) / "Annotations").is_dir()
    ):
        source, _ = open_source(
            images, settings["image_class"], count=settings["scenes"], seed=settings["seed"], size=128
        )
    else:
        source = read_folder(images)
    return evenly(source, settings["limit"])


def _each_batch(
    network: Network, source: Source, skipped: list[Skipped], settings: Mapping[str, Any], label: str
) -> Any:
    """Preprocessed images of one shape, which of them count, and their places in the source."""
    size = settings["size"] or network.card.input_size
    with tqdm(total=len(source), desc=label, unit="img") as bar:
        for batch in batches(source, size, min(settings["batch_size"], len(source)), skipped):
            inputs = preprocess(jnp.asarray(batch.images), network.card.preprocessing)
            yield inputs, batch.valid, batch.indices
            bar.update(int((batch.indices >= 0).sum()))


def _cached(path: Path, compute: Any) -> dict[str, np.ndarray]:
    """Arrays of one network, read where an earlier run left them."""
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    arrays = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_suffix(".partial.npz")
    np.savez(partial_path, **arrays)
    partial_path.replace(path)
    return arrays


def _gradients(
    network: Network,
    source: Source,
    target: Target,
    skipped: list[Skipped],
    settings: Mapping[str, Any],
    label: str,
    use: Any,
) -> dict[str, np.ndarray]:
    """What `use` makes of the gradients of each batch, for all images that can be decoded."""
    module, variables = fold(network.module, network.variables, network.architecture.epsilon)
    variables = jax.device_put(variables)
    parts: list[dict[str, np.ndarray]] = []
    for inputs, valid, indices in _each_batch(network, source, skipped, settings, label):
        computed = layer_gradients(module, variables, inputs, settings["layer"], target)
        kept = LayerGradients(*(one[np.flatnonzero(valid)] for one in computed))
        check_gradients(kept, settings["layer"], [source[int(one)].name for one in indices[valid]])
        found = {**use(module, variables, inputs, computed), "scores": computed.scores}
        parts.append(
            {name: np.asarray(one)[valid] for name, one in found.items()} | {"indices": indices[valid]}
        )
    if not sum(len(one["indices"]) for one in parts):
        raise ValueError(f"None of the {len(source)} images in {settings['images']} can be decoded.")
    return {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}


def _maps(
    folder: Path,
    networks: Mapping[str, Network],
    targets: Mapping[str, Target],
    source: Source,
    skipped: list[Skipped],
    settings: Mapping[str, Any],
) -> tuple[list[Mapped], dict[str, np.ndarray], list[tuple[str, np.ndarray]]]:
    method, signed = settings["method"], settings["signed"]
    rows: list[Mapped] = []
    shown: dict[str, np.ndarray] = {}
    pictures: list[tuple[str, np.ndarray]] = []
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

        arrays = _cached(
            folder / "maps" / f"{name}.npz",
            partial(_gradients, network, source, targets[name], skipped, settings, name, use),
        )
        large = np.asarray(grad_cam.upsample(grad_cam.scale_maps(jnp.asarray(arrays["maps"])), size, size))
        examples = [source[int(index)] for index in arrays["indices"]]
        boxes = [_scaled(one.box, one.image.shape[:2], size) for one in examples]
        for row, (example, box) in enumerate(zip(examples, boxes, strict=True)):
            one = slice(row, row + 1)
            rows.append(
                Mapped(
                    name,
                    example.name,
                    float(arrays["scores"][row]),
                    float(np.abs(arrays["maps"][row]).max()),
                    None if box is None else bool(faithfulness.hits(large[one], [box])[0]),
                    None if box is None else bool(faithfulness.centre_hits(size, size, [box])[0]),
                    float(arrays["insertion"][row]) if "insertion" in arrays else None,
                    float(arrays["deletion"][row]) if "deletion" in arrays else None,
                )
            )
        most = settings["shown"]
        shown[name] = np.stack(
            [np.asarray(jax.image.resize(one, (224, 224), "linear")) for one in large[:most]]
        )
        pictures = [(one.name, resize_image(one.image, 224)) for one in examples[:most]]
    return rows, shown, pictures


def _scaled(box: Box | None, shape: tuple[int, ...], size: int) -> Box | None:
    """A box in pixels of the image resized to a square."""
    if box is None:
        return None
    down, across = size / shape[0], size / shape[1]
    return Box((box.x_min - 1) * across + 1, (box.y_min - 1) * down + 1, box.x_max * across, box.y_max * down)


def _sensitivity(
    folder: Path,
    networks: Mapping[str, Network],
    targets: Mapping[str, Target],
    source: Source,
    skipped: list[Skipped],
    settings: Mapping[str, Any],
) -> list[Concept]:
    concepts = names(settings["concepts"])
    measured = measure_all(get_measures(concepts), source, cache=folder / "measures.csv", progress="measures")
    for column in range(len(concepts)):
        check_measures(measured.values[:, column], measured.names)
    rows: list[Concept] = []
    for name, network in networks.items():

        def use(module: Any, variables: Any, inputs: Any, computed: LayerGradients) -> dict[str, Any]:
            a = computed.activations
            return {
                "features": a.mean((1, 2)) if a.ndim == 4 else a,
                "gradients": sensitivity.pooled_gradients(computed.gradients),
            }

        arrays = _cached(
            folder / "gradients" / f"{name}.npz",
            partial(_gradients, network, source, targets[name], skipped, settings, name, use),
        )
        both, here, there = np.intersect1d(arrays["indices"], measured.indices, return_indices=True)
        values, groups = measured.values[there], [measured.groups[one] for one in there]
        splits = (
            random_splits(len(both), settings["splits"], settings["seed"])
            if len({*groups}) == len(groups)
            else grouped_splits(groups, settings["splits"], settings["seed"])
        )
        rcvs = fit_rcvs(
            network,
            settings["layer"],
            arrays["features"][here],
            dict(zip(concepts, values.T, strict=True)),
            splits,
        )
        rows += _concept_rows(name, rcvs, arrays["gradients"][here], groups, settings["seed"])
    return rows


def _concept_rows(
    weights: str, rcvs: Sequence[Any], gradients: np.ndarray, groups: Sequence[str], seed: int
) -> list[Concept]:
    g, v = jnp.asarray(gradients), jnp.asarray(sensitivity.directions(rcvs))
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


def _visualise(
    folder: Path,
    networks: Mapping[str, Network],
    work: Mapping[str, list[Objective]],
    settings: Mapping[str, Any],
) -> tuple[list[Optimised], dict[str, np.ndarray]]:
    recipe = RECIPES[settings["recipe"]]
    if settings["steps"] and settings["recipe"] == "lucid":
        recipe = (Stage(settings["steps"]),)
    total, size = sum(stage.steps for stage in recipe), _picture_size(settings)
    rows: list[Optimised] = []
    pictures: dict[str, np.ndarray] = {}
    for name, network in networks.items():
        path = folder / "states" / f"{name}.npz"
        objectives = work[name]
        module, variables = fold(network.module, network.variables, network.architecture.epsilon)
        state = load_state(path, objectives, size=size)
        with tqdm(total=total, initial=state.step if state else 0, desc=name, unit="step") as bar:

            def keep(state: Any, path: Path = path, bar: Any = bar) -> None:
                save_state(path, state)
                bar.update(state.step - bar.n)

            state = feature_visualization.visualise(
                module,
                jax.device_put(variables),
                network.card.preprocessing,
                objectives,
                recipe=recipe,
                size=size,
                seed=settings["seed"],
                state=state,
                chunk=_CHUNK,
                each_chunk=keep,
            )
        pictures[name] = feature_visualization.pictures(state)[:, 0]
        given = names(settings["channels"])
        labels = given if settings["objective"] != "layer" else [str(i) for i in range(len(pictures[name]))]
        rows += [
            Optimised(name, settings["layer"], settings["objective"], int(label), state.step, float(value))
            for label, value in zip(labels, np.asarray(state.values), strict=True)
        ]
    return rows, pictures
