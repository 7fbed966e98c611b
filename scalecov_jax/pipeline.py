"""The whole main job from names to files: images and weights in, scores, pruned networks and a report out."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from scalecov_jax import checkpoints, experiment, pretraining
from scalecov_jax.features import dry_run
from scalecov_jax.images import scenes
from scalecov_jax.images.example import Skipped, Source, count_reasons, encode_jpeg
from scalecov_jax.images.sources import SCENES, open_source
from scalecov_jax.models.architecture import available_layers, check_layer, get_architecture
from scalecov_jax.models.pruning import Pruning, count_parameters
from scalecov_jax.report import page, scale
from scalecov_jax.report.model_card import write_model_card
from scalecov_jax.report.provenance import provenance
from scalecov_jax.scores import Estimator
from scalecov_jax.workdir import open_workdir

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def run(
    settings: Mapping[str, Any],
    workdir: str,
    *,
    command: Sequence[str],
    resume: bool = False,
    overwrite: bool = False,
    estimate_only: bool = False,
) -> str:
    """Probe networks, select layers, prune and report.

    Args:
        settings: See configs/boxes.py; `weights` may name several networks, separated by commas.
        workdir: Folder of the run.
        command: As typed, for the provenance.
        resume: Go on in an existing folder; features that lie there are not computed again.
        overwrite: Delete an existing folder first.
        estimate_only: Only measure one batch and tell what the run would take.

    Returns:
        A table for people.

    Raises:
        ValueError: Settings, weights or images that cannot be used; says what was given and what to do.
    """
    started = time.monotonic()
    networks = _load(settings)
    sources: dict[str, Source] = {}
    skipped: list[Skipped] = []
    for image_class in names(settings["image_class"]):
        sources[image_class], left_out = open_source(
            settings["images"],
            image_class,
            count=settings["scenes"],
            seed=settings["seed"],
            size=settings["input_size"],
        )
        skipped += left_out
    for reason, count in count_reasons(skipped).items():
        logging.info("Left out: %d x %s.", count, reason)
    if estimate_only:
        return _estimate(networks, sources, settings)

    folder = open_workdir(workdir, settings, resume=resume, overwrite=overwrite)
    results: dict[str, tuple[checkpoints.Network, experiment.ProbeResult, Pruning]] = {}
    for name, network in networks.items():
        result = experiment.probe(
            network,
            name,
            sources,
            layers=names(settings["layers"]),
            splits=settings["splits"],
            seed=settings["seed"],
            alphas=np.geomspace(settings["alpha_min"], settings["alpha_max"], settings["alphas"]),
            size=settings["input_size"],
            batch_size=settings["batch_size"],
            dtype=DTYPES[settings["dtype"]],
            cache=folder / "features",
            progress=True,
        )
        layer = next(one.layer for one in result.selected if one.estimator == "ridge")
        first = next(iter(sources.values()))
        pruned = experiment.pruned_network(network, layer)
        pruning = experiment.check_pruning(network, pruned, first, settings["input_size"])
        checkpoints.save(folder / "pruned" / name, pruned, overwrite=True)
        results[name] = (network, result, pruning)
    facts = provenance(command, settings, networks, started)
    scale.write_results(folder, settings["title"], results, skipped, facts, _scene_section(settings))
    return _table(results) + f"\n\nReport: {folder / 'report.html'}"


def prune_checkpoint(
    weights: str, output: str, layer: str | None, scores: str | None, estimator: Estimator = "ridge"
) -> str:
    """Cut a checkpoint after `layer`, or after the layer selected in the summary.json of an earlier run.

    Returns:
        What was kept, for people.

    Raises:
        ValueError: No such layer, a summary of another network or without a selection, or an existing output.
    """
    network = checkpoints.load(Path(weights))
    if layer is None:
        layer = selected_layer(
            Path(str(scores)) / "summary.json", network.architecture.name, Path(weights).name, estimator
        )
    pruned = experiment.pruned_network(network, layer)
    checkpoints.save(Path(output), pruned)
    before = experiment.parameters_to_cut(network, layer)
    after = count_parameters(pruned.variables)
    return (
        f"{network.architecture.name} cut after {layer}: {before:,} -> {after:,} parameters "
        f"({100 * (1 - after / before):.2f} % less than without its head), saved in {output}"
    )


def pretrain(
    settings: Mapping[str, Any],
    workdir: str,
    *,
    command: Sequence[str],
    resume: bool = False,
    overwrite: bool = False,
) -> str:
    """Train a network on scenes, test it on held-out ones and write its checkpoint and card.

    Args:
        settings: See configs/pretrain.py.
        workdir: Folder of the training.
        command: As typed, for the model card.
        resume: Go on from the last checkpoint there.
        overwrite: Delete the folder first.

    Returns:
        The held-out accuracy, for people.

    Raises:
        ValueError: An unknown architecture, or a folder that cannot be used.
    """
    started = time.monotonic()
    architecture = get_architecture(settings["architecture"])
    folder = open_workdir(workdir, settings, resume=resume, overwrite=overwrite)
    options = {"width": settings["width"], "classes": len(scenes.CLASSES)}
    module = architecture.module(**options, last="pre_softmax")
    steps = settings["steps"]
    optimizer = pretraining.make_optimizer(
        settings["learning_rate"], steps, settings["warmup"], settings["weight_decay"]
    )
    same = {name: settings[name] for name in ("seed", "batch_size", "size", "log_every", "save_every")}
    state = pretraining.train(module, optimizer, folder, steps=steps, **same)
    variables = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    accuracy = pretraining.held_out_accuracy(
        module, variables, seed=settings["seed"], count=settings["held_out"], size=settings["size"]
    )
    card = checkpoints.Card(
        architecture.name,
        options,
        pretraining.PREPROCESSING,
        settings["size"],
        "trained on scenes by scripts/pretrain.py",
        class_names=scenes.CLASSES,
        notes={"held_out_top1": accuracy["all"][0], "images_seen": steps * settings["batch_size"]},
    )
    network = checkpoints.network(variables, card)
    checkpoints.save(folder / "network", network, overwrite=True)
    # How many sittings it took changes no bit of the result.
    typed = [part for part in command if part.lstrip("-") not in ("resume", "overwrite")]
    facts = provenance(typed, settings, {architecture.name: network}, started)
    write_model_card(folder / architecture.name, network, accuracy, folder / "curve.csv", facts, settings)
    lines = [f"{'box ratio':<14}{'top-1':>8}{'scenes':>8}"]
    lines += [f"{name:<14}{100 * top1:>6.1f} %{count:>8}" for name, (top1, count) in accuracy.items()]
    return "\n".join(lines) + f"\n\nNetwork: {folder / 'network'}"


def selected_layer(path: Path, architecture: str, weights: str, estimator: Estimator) -> str:
    """The layer that an earlier run selected for these weights, from its summary.json.

    Raises:
        ValueError: There is none, or the summary is about another architecture.
    """
    try:
        summary = json.loads(path.read_text())
        summary = summary.get("networks", {weights: summary})[weights]
        layer = summary["selected"][estimator]["layer"]
        probed = summary["architecture"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} holds no layer selected by {estimator} for {weights}; pass the --workdir of probe.py."
        ) from error
    if probed != architecture:
        raise ValueError(f"{path} is about {probed}, but the weights are {architecture}.")
    return layer


def _load(settings: Mapping[str, Any]) -> dict[str, checkpoints.Network]:
    expected = settings.get("architecture", "")
    if expected:
        get_architecture(expected)
    for name, missing in (
        ("weights", "a checkpoint folder"),
        ("images", "a folder, tfds:<folder> or scenes"),
        ("image_class", "names such as car, separated by commas"),
    ):
        if not names(settings[name]):
            raise ValueError(f"config.{name} is empty; expected {missing}, as in --config.{name}=...")
    for name in ("scenes", "input_size", "splits", "alphas", "batch_size"):
        if settings[name] < 1:
            raise ValueError(f"config.{name} is {settings[name]}; expected at least 1.")
    if settings["seed"] < 0:
        raise ValueError(f"config.seed is {settings['seed']}; expected at least 0.")
    if not 0 < settings["alpha_min"] <= settings["alpha_max"] < np.inf:
        raise ValueError(
            f"config.alpha_min is {settings['alpha_min']} and config.alpha_max {settings['alpha_max']}; expected "
            "0 < alpha_min <= alpha_max."
        )
    if settings["dtype"] not in DTYPES:
        raise ValueError(f"config.dtype is {settings['dtype']!r}; expected one of {', '.join(DTYPES)}.")
    networks = load_networks(settings["weights"], expected)
    for network in networks.values():
        known = available_layers(network.architecture, network.module)
        for layer in names(settings["layers"]):
            check_layer(network.architecture, layer, known[-1])
    return networks


def load_networks(weights: str, architecture: str) -> dict[str, checkpoints.Network]:
    """The networks of checkpoint folders separated by commas, by the names of the folders.

    Args:
        weights: The folders.
        architecture: What all of them must hold; anything when empty.

    Raises:
        ValueError: No checkpoint, one of another architecture, or two folders of one name.
    """
    networks = {}
    for path in map(Path, names(weights)):
        network = checkpoints.load(path)
        if architecture and network.architecture.name != architecture:
            raise ValueError(
                f"{path} holds {network.architecture.name}, but config.architecture is {architecture}."
            )
        if path.name in networks:
            raise ValueError(f"Two weights are called {path.name}; rename one folder.")
        networks[path.name] = network
    return networks


def names(text: str) -> tuple[str, ...]:
    """The names in a list separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _estimate(
    networks: Mapping[str, checkpoints.Network], sources: Mapping[str, Source], settings: Mapping[str, Any]
) -> str:
    count = sum(map(len, sources.values()))
    lines = [f"{count} images of {', '.join(sources)}; trained and random weights are one pass each."]
    for name, network in networks.items():
        layers = names(settings["layers"]) or available_layers(network.architecture, network.module)
        size, batch = settings["input_size"], settings["batch_size"]
        dtype = DTYPES[settings["dtype"]]
        one = dry_run(network, count, layers, size=size, batch_size=batch, dtype=dtype)
        lines.append(
            f"{name}: about {2 * one.seconds:.0f} s at {one.images_per_second:.0f} images/s; features "
            f"{2 * one.feature_bytes / 1e6:.1f} MB; one batch takes {one.batch_bytes / 1e6:.0f} MB."
        )
    return "\n".join(lines)


def _table(results: Mapping[str, tuple[checkpoints.Network, experiment.ProbeResult, Pruning]]) -> str:
    lines = [f"{'weights':<16}{'estimator':<11}{'layer':<14}{'R2 mean':>8}{'R2 sd':>8}"]
    for name, (_, result, pruning) in results.items():
        for one in result.selected:
            lines.append(f"{name:<16}{one.estimator:<11}{one.layer:<14}{one.r2_mean:>8.3f}{one.r2_sd:>8.3f}")
        removed = 100 * (1 - pruning.parameters_after / pruning.parameters_before)
        lines.append(
            f"{name:<16}cut after {pruning.layer}: {pruning.parameters_before:,} -> {pruning.parameters_after:,} parameters "
            f"({removed:.2f} % less); features differ by at most {pruning.max_difference:.1e}"
        )
    return "\n".join(lines)


def _scene_section(settings: Mapping[str, Any]) -> list[page.Section]:
    if settings["images"] != SCENES:
        return []
    sheet = page.Image(
        encode_jpeg(scenes.contact_sheet(settings["seed"])),
        "A grid of rendered scenes: one row a class, the object growing from left to right.",
        f"Rows: {', '.join(scenes.CLASSES)}.",
        wide=True,
    )
    text = (
        "The images are rendered: one textured object on a cluttered background, its box covering 2 to 90 % of the image. "
        "Class, position, rotation, aspect, colours, light and background are drawn independently of the size. The networks "
        "were trained to name the class whatever the size; the scenes probed here were never seen in training."
    )
    return [page.Section("The scenes", text, [sheet])]
