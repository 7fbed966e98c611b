"""Explanations from names to files: weights and images in; maps, sensitivities or optimised images and a report out."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scalecov_jax import checkpoints
from scalecov_jax.checkpoints import Network, load_networks
from scalecov_jax.concepts.measure import get_measures
from scalecov_jax.explain import feature_visualization, grad_cam
from scalecov_jax.explain.capture import capture
from scalecov_jax.explain.feature_visualization import RECIPES, Objective
from scalecov_jax.explain.gradients import layer_gradients
from scalecov_jax.explain.score_maps import PRIORS
from scalecov_jax.explain.target import (
    LOGITS,
    Target,
    class_logit,
    class_probability,
    group_logit,
    predicted_logit,
    severity,
)
from scalecov_jax.images import fundus
from scalecov_jax.images.example import Skipped, Source
from scalecov_jax.images.folder import Prepared, evenly, read_folder
from scalecov_jax.images.sources import RETINA, SCENES, open_source
from scalecov_jax.models.architecture import available_layers, check_layer
from scalecov_jax.pipelines.explained_images import map_images, weigh_concepts
from scalecov_jax.pipelines.localised import localise, masked
from scalecov_jax.pipelines.propagation import (
    check_propagation,
    class_targets,
    divide_scores,
    needed_memory,
)
from scalecov_jax.pipelines.randomised_maps import randomise_maps
from scalecov_jax.pipelines.read_rcvs import chosen_rcvs, needs_rcvs, rcv_strips, rcv_targets
from scalecov_jax.pipelines.settings import names
from scalecov_jax.pipelines.visualised_channels import picture_size, visualise
from scalecov_jax.rcv import VECTORS
from scalecov_jax.report import explain as report
from scalecov_jax.report.explain_randomised import Forgotten, add_randomisation
from scalecov_jax.report.localisation import Localised, add_localisation
from scalecov_jax.report.propagation import blink, divided
from scalecov_jax.report.provenance import provenance
from scalecov_jax.tables import write_table
from scalecov_jax.workdir import open_workdir

METHODS = (*grad_cam.METHODS, "sensitivity", "feature_visualization", "score_propagation")
_OBJECTIVES = ("channel", "neuron", "layer", "rcv")


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
    skipped: list[Skipped] = []
    labels = [(settings["objective"], part) for part in names(settings["channels"]) or ("0",)]
    readable = ""
    if method == "feature_visualization":
        objectives = {name: _objectives(network, settings) for name, network in networks.items()}
        if settings["objective"] == "rcv":
            objectives, labels, readable = rcv_strips(networks, settings)
    else:
        if settings["target"].startswith("rcv:"):
            _check_rcv_target(networks, settings)
            targets, readable = rcv_targets(networks, settings)
        targets = {name: _target(network, settings, targets.get(name)) for name, network in networks.items()}
        source, skipped = _open(settings, networks)
    rcvs = {}
    if method == "sensitivity":
        rcvs = chosen_rcvs(networks, settings["layer"], names(settings["concepts"]), settings)
    lesioned: Source = ()
    if method == "score_propagation":
        check_propagation(networks, targets, source, settings)
        lesioned = masked(source, settings["images"]) if settings["localisation"] else ()
    if dry_run:
        what = (
            f"{settings['channels']} of {settings['layer']}" if not len(source) else f"{len(source)} images"
        )
        told = f"Would compute {method} of {what} for {', '.join(networks)}. Nothing was computed."
        if method == "score_propagation":
            told += f"\n{needed_memory(networks, targets, source, settings)}"
        if len(lesioned):
            told += f"\n{len(lesioned)} of them have something in their mask."
        return told
    folder = open_workdir(workdir, settings, resume=resume, overwrite=overwrite)
    if method == "feature_visualization":
        rows, pictures = visualise(folder, networks, objectives, labels, settings)
        result = report.visualisation(rows, pictures, settings)
    elif method == "score_propagation":
        rows, drawn, undecoded = divide_scores(folder, networks, targets, source, settings)
        deviations = settings["deviations"]
        result, skipped = divided(rows, drawn, settings["prior"], deviations), [*skipped, *undecoded]
        (folder / "blink").mkdir(exist_ok=True)
        for one in drawn:
            name = f"{one.row.weights}_{one.number:03}_{one.column:02}.gif"
            (folder / "blink" / name).write_bytes(blink(one, deviations))
        if len(lesioned):
            located = localise(folder, networks, targets, lesioned, settings)
            write_table(folder / "localisation.csv", Localised, located)
            result = add_localisation(result, located, len(source), settings["seed"])
    elif method == "sensitivity":
        rows, undecoded = weigh_concepts(folder, networks, targets, source, rcvs, settings)
        result, skipped = report.sensitivity(rows, settings), [*skipped, *undecoded]
    else:
        found = map_images(folder, networks, targets, source, settings)
        result, skipped = report.maps(*found[:-1], settings), [*skipped, *found.undecoded]
    if settings["randomisation"] and method in (*grad_cam.METHODS, "score_propagation"):
        forgotten = randomise_maps(folder, networks, targets, source, settings)
        write_table(folder / "randomised.csv", Forgotten, forgotten)
        result = add_randomisation(result, forgotten)
    if readable:
        result = result._replace(answer=f"{result.answer} {readable}", text=f"{result.text}\n{readable}")
    facts = provenance(command, settings, networks, started)
    table = report.write(folder, settings["title"], result, tuple(dict.fromkeys(skipped)), facts)
    return f"{table}\n\nReport: {folder / 'report.html'}"


def _check_values(settings: Mapping[str, Any]) -> None:
    problems = []
    for name, known in (
        ("method", METHODS),
        ("objective", _OBJECTIVES),
        ("recipe", tuple(RECIPES)),
        ("prior", tuple(PRIORS)),
        ("vector", VECTORS),
    ):
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
        "tolerance": 0,
        "kept": 0,
        "deviations": 0,
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
    kind, colon, given = settings["target"].partition(":")
    concept, at, layer = given.rpartition("@")
    if (kind, bool(colon)) not in {
        ("predicted", False),
        ("severity", False),
        ("logit", True),
        ("probability", True),
        ("rcv", bool(concept and at and layer)),
    }:
        problems.append(
            f"config.target is {settings['target']!r}; expected predicted, severity, logit:CLASS, logit:CLASS,CLASS, "
            "probability:CLASS or rcv:CONCEPT@LAYER"
        )
    sds = names(settings["smoothing"])
    if not sds or not all(one.replace(".", "", 1).isdecimal() for one in sds):
        problems.append(
            f"config.smoothing is {settings['smoothing']!r}; expected pixels such as 0 or 0,4, separated by commas"
        )
    if needs_rcvs(settings) and not settings["rcvs"]:
        problems.append(
            "config.rcvs is empty; expected rcvs.npz of a scripts/probe.py run with these weights, as in "
            "--config.rcvs=runs/NAME/rcvs.npz"
        )
    if problems:
        raise ValueError(f"{'; '.join(problems)}.")


def _networks(settings: Mapping[str, Any]) -> dict[str, Network]:
    networks = load_networks(names(settings["weights"]), settings["architecture"])
    # A probe run writes RCVs of the trained weights alone.
    if settings["random_weights"] and not needs_rcvs(settings):
        networks |= {
            f"{name}-random": checkpoints.random_network(network, settings["seed"])
            for name, network in networks.items()
        }
    return networks


def _check_rcv_target(networks: Mapping[str, Network], settings: Mapping[str, Any]) -> None:
    concept, _, layer = settings["target"].removeprefix("rcv:").rpartition("@")
    get_measures([concept])
    for network in networks.values():
        last: str = network.module.last  # pyright: ignore[reportAttributeAccessIssue]
        check_layer(network.architecture, layer, last)


def _target(network: Network, settings: Mapping[str, Any], projection: Target | None) -> Target:
    """The target of a network; traces the gradient once, so that layers are refused before anything is computed."""
    kind, _, given = settings["target"].partition(":")
    if kind != "rcv" and LOGITS not in available_layers(network.architecture, network.module):
        last: str = network.module.last  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(
            f"config.target is {settings['target']}, but this {network.architecture.name} has no classes: it stops at {last}, "
            f"before its head. Take config.target=rcv:CONCEPT@LAYER, such as rcv:scale@{last}, or weights with the head."
        )
    size = settings["size"] or network.card.input_size
    inputs = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    target = (
        projection
        or {
            "predicted": lambda: predicted_logit(network),
            "severity": lambda: severity(network),
            "logit": lambda: (
                group_logit(network, names(given))
                if "," in given and given not in network.card.class_names
                else class_logit(network, given)
            ),
            "probability": lambda: class_probability(network, given),
        }[kind]()
    )
    if settings["method"] == "score_propagation":
        own = class_targets(network, target, settings)  # their parts are of every layer before it
        if settings["localisation"]:
            for layer in names(settings["layer"]):
                _check_layer(network, layer, own[0], inputs, maps=True)
        return target
    _check_layer(network, settings["layer"], target, inputs, maps=settings["method"] in grad_cam.METHODS)
    return target


def _check_layer(network: Network, layer: str, target: Target, inputs: Any, *, maps: bool) -> None:
    """Refuse a layer that the target does not read through, or that has no maps where they are wanted."""
    traced = jax.eval_shape(
        lambda variables, inputs: layer_gradients(network.module, variables, inputs, layer, target),
        jax.tree.map(np.asarray, network.variables),
        inputs,
    )
    if maps and len(traced.activations.shape) != 4:
        raise ValueError(
            f"{layer} has no maps ({list(traced.activations.shape)}); a map can be drawn of layers before the pooling, such as "
            f"{network.architecture.trunk}."
        )


def _width(network: Network, layer: str, inputs: Any) -> int:
    traced = jax.eval_shape(
        lambda variables, inputs: capture(network.module, variables, inputs, (layer,)),
        network.variables,
        inputs,
    )
    return traced[layer].shape[-1]


def _objectives(network: Network, settings: Mapping[str, Any]) -> list[Objective]:
    layer, objective = settings["layer"], settings["objective"]
    channels = [int(one) for one in names(settings["channels"])]
    if objective == "layer":
        return [feature_visualization.whole_layer(layer, max(1, len(channels)))]
    size = picture_size(settings)
    width = _width(network, layer, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    if objective == "rcv":
        return []  # from the file of RCVs
    make = {"channel": feature_visualization.channel, "neuron": feature_visualization.neuron}[objective]
    return [make(layer, channels, width)]


def _size(settings: Mapping[str, Any], networks: Mapping[str, Network]) -> int:
    return settings["size"] or max(network.card.input_size for network in networks.values())


def _open(settings: Mapping[str, Any], networks: Mapping[str, Network]) -> tuple[Source, list[Skipped]]:
    images = settings["images"]
    if (
        images in (SCENES, RETINA)
        or images.startswith(("tfds:", "annotated:"))
        or (Path(images) / "Annotations").is_dir()
    ):
        size = 128
        if images == RETINA:  # small lesions are lost in a small picture
            size = _size(settings, networks)
        source, skipped = open_source(
            images, settings["image_class"], count=settings["scenes"], seed=settings["seed"], size=size
        )
    else:
        source, skipped = read_folder(images), ()
        if settings["trim"]:
            source = Prepared(source, partial(fundus.trim_example, size=_size(settings, networks)))
    return evenly(source, settings["limit"]), [*skipped]
