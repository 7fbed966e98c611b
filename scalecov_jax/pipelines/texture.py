"""Reuse of texture from settings to files: a detector is fine-tuned, and concepts are read from all layers of three networks."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scalecov_jax import checkpoints
from scalecov_jax.checkpoints import Network, load_networks
from scalecov_jax.concepts.compute import check_measures, measure_all
from scalecov_jax.concepts.measure import get_measures
from scalecov_jax.explain.target import Target, class_logit, head_unit
from scalecov_jax.features import Features, cached_features, check_request, compute_features
from scalecov_jax.images.classes import ClassImages, open_classes
from scalecov_jax.images.folder import Subset
from scalecov_jax.models.architecture import available_layers, check_layer
from scalecov_jax.paper.texture import LAYERS, TextureScore, score_texture
from scalecov_jax.pipelines.explained_images import map_images, weigh_concepts
from scalecov_jax.pipelines.settings import names
from scalecov_jax.probes import evaluate
from scalecov_jax.probes.splits import grouped_splits
from scalecov_jax.rcv import Rcv, fit_rcvs
from scalecov_jax.report import texture as report
from scalecov_jax.report.provenance import provenance
from scalecov_jax.tables import read_table, write_table
from scalecov_jax.transfer.classification import detected, fine_tune_detector, with_one_output
from scalecov_jax.transfer.fine_tuning import Recipe
from scalecov_jax.workdir import open_workdir


class _Plan(NamedTuple):
    """What the settings ask for, checked."""

    network: Network
    source: ClassImages
    train: np.ndarray
    test: np.ndarray
    layers: tuple[str, ...]
    missing: tuple[str, ...]
    sizes: tuple[int, ...]


def run(
    settings: Mapping[str, Any],
    workdir: str,
    *,
    command: Sequence[str],
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> str:
    """Fine-tune a detector, read texture from random, pretrained and fine-tuned layers, and report.

    Args:
        settings: See configs/texture.py.
        workdir: Folder of the run.
        command: As typed, for the provenance.
        resume: Go on in an existing folder: fine-tuning from its last epoch; networks whose probes are done are not probed again.
        overwrite: Delete an existing folder first.
        dry_run: Check everything and say what would be computed.

    Returns:
        A table for people.

    Raises:
        ValueError: Settings, weights or images that cannot be used; says what was given and what to do.
        FloatingPointError: A loss or gradients that are not finite.
    """
    started = time.monotonic()
    plan = _plan(settings)
    left_out = f"; the weights have no {', '.join(plan.missing)}" * bool(plan.missing)
    if dry_run:
        return (
            f"Would fine-tune on {len(plan.train)} patches, test on {len(plan.test)} of other patients, and read "
            f"{len(names(settings['concepts']))} concepts from {', '.join(plan.layers)}{left_out}. Nothing was computed."
        )
    folder = open_workdir(workdir, settings, resume=resume, overwrite=overwrite)
    return _run(plan, folder, settings, command, started)


def _run(
    plan: _Plan, folder: Path, settings: Mapping[str, Any], command: Sequence[str], started: float
) -> str:
    size, seed = settings["size"], settings["seed"]
    recipe = Recipe(
        settings["epochs"], settings["batch_size"], settings["learning_rate"], "pixels", "recomputed", "sigmoid_cross_entropy"
    )  # fmt: skip
    tuned, logits = fine_tune_detector(
        plan.network, plan.source, plan.train, plan.test, folder / "tuning", size=size, seed=seed, recipe=recipe,
        progress="fine-tuning",
    )  # fmt: skip
    checkpoints.save(folder / "fine_tuned", tuned, overwrite=True)
    classes = np.array(plan.source.classes)[plan.test]
    groups = tuple(plan.source.groups[index] for index in plan.test)
    accuracy = detected(logits, classes, groups, seed=seed)

    networks = {
        "random": checkpoints.random_network(plan.network, seed),
        "pretrained": plan.network,
        "fine_tuned": tuned,
    }
    held_out = Subset(plan.source, plan.test.tolist())
    concepts = names(settings["concepts"])
    measured = measure_all(
        get_measures(concepts), held_out, cache=folder / "measures.csv", progress="measures"
    )
    for values in measured.values.T:
        check_measures(values, measured.names)
    scores: list[TextureScore] = []
    features: dict[str, Features] = {}
    for name, network in networks.items():
        features[name] = cached_features(
            folder / "features" / f"{name}.npz",
            lambda name=name, network=network: compute_features(
                network, held_out, plan.layers, size=size, batch_size=settings["batch_size"], progress=name
            ),
        )
        kept = folder / "features" / f"{name}_scores.csv"
        if not kept.exists():
            write_table(kept, TextureScore, _scores(name, features[name], measured, plan, settings))
        scores += read_table(kept, TextureScore)

    explained = {**settings, "method": "grad_cam", "signed": False, "faithfulness": False, "tolerance": 0}
    explained["vector"] = "filter"
    rcvs = {"fine_tuned": _rcvs(tuned, features["fine_tuned"], measured, settings)}
    own = {"fine_tuned": class_logit(tuned, 0)}
    rows, undecoded = weigh_concepts(folder, {"fine_tuned": tuned}, own, held_out, rcvs, explained)
    targets = {
        name: class_logit(network, 0)
        if name == "fine_tuned"
        else _linear_head(network, settings["layer"], features[name], classes)
        for name, network in networks.items()
    }
    both = [int(one) for one in np.concatenate([np.flatnonzero(classes == kind) for kind in (1, 0)])]
    shown = settings["shown"]
    few = both[: shown - shown // 2] + both[len(both) - shown // 2 :]
    drawn = map_images(folder, networks, targets, Subset(held_out, few), explained)
    found = report.Found(
        scores, rows, drawn.maps, drawn.images, accuracy, len(plan.train), len(plan.test), len({*groups}), plan.missing,
        plan.network.architecture.name,
    )  # fmt: skip
    facts = provenance(command, settings, networks, started)
    skipped = tuple(dict.fromkeys((*measured.skipped, *undecoded)))
    table = report.write(folder, settings, found, skipped, facts)
    return f"{table}\n\nReport: {folder / 'report.html'}"


def _scores(
    name: str, features: Features, measured: Any, plan: _Plan, settings: Mapping[str, Any]
) -> list[TextureScore]:
    """Of all images, and of the first patients for smaller numbers."""
    both, here, there = np.intersect1d(features.indices, measured.indices, return_indices=True)
    groups = np.array(measured.groups)[there]
    concepts = names(settings["concepts"])
    order = np.argsort(np.unique(groups, return_inverse=True)[1], kind="stable")
    rows = []
    for size in (*(one for one in plan.sizes if one < len(both)), len(both)):
        kept = order[:size]
        rows += score_texture(
            name,
            {layer: values[here][kept] for layer, values in features.values.items()},
            dict(zip(concepts, measured.values[there][kept].T, strict=True)),
            tuple(groups[kept]),
            splits=settings["splits"],
            seed=settings["seed"],
        )
    return rows


def _rcvs(network: Network, features: Features, measured: Any, settings: Mapping[str, Any]) -> list[Rcv]:
    """Of the fine-tuned network, which no probe run knows."""
    _, here, there = np.intersect1d(features.indices, measured.indices, return_indices=True)
    groups = [measured.groups[one] for one in there]
    layer, concepts = settings["layer"], names(settings["concepts"])
    splits = grouped_splits(groups, settings["splits"], settings["seed"])
    measures = dict(zip(concepts, measured.values[there].T, strict=True))
    return fit_rcvs(network, layer, features.values[layer][here], measures, splits)


def _linear_head(network: Network, layer: str, features: Features, classes: np.ndarray) -> Target:
    """What a ridge regression of the class on pooled features looks at, for networks that were not trained on it."""
    labels = classes[features.indices][:, None].astype(np.float64)
    weights = evaluate.fit(features.values[layer], labels).weights[0, :, 0]
    return head_unit(network, layer, weights.astype(np.float32))


def _plan(settings: Mapping[str, Any]) -> _Plan:
    _check_values(settings)
    networks = load_networks(names(settings["weights"]))
    if len(networks) != 1:
        raise ValueError(f"config.weights names {len(networks)} networks; expected one.")
    network = next(iter(networks.values()))
    with_one_output(network, settings["seed"])
    known = available_layers(network.architecture, network.module)
    asked = names(settings["layers"]) or LAYERS.get(network.architecture.name, known)
    for layer in (*asked, settings["layer"]):
        check_layer(network.architecture, layer)
    missing = tuple(layer for layer in asked if layer not in known)
    layers = tuple(layer for layer in asked if layer not in missing)
    check_layer(network.architecture, settings["layer"], network.module.last)  # pyright: ignore[reportAttributeAccessIssue]
    layers = tuple(sorted({*layers, settings["layer"]}, key=known.index))
    check_request(network, layers, settings["size"], "gap")
    get_measures(names(settings["concepts"]))
    source = open_classes(
        settings["images"],
        patients=settings["patients"],
        per_class=settings["per_class"],
        seed=settings["seed"],
        size=settings["size"],
    )
    train = grouped_splits(
        source.groups, 1, settings["seed"], settings["held_out"], classes=np.array(source.classes)
    )[0]
    used = np.arange(len(source))
    if 0 < settings["limit"] < len(source):
        used = np.unique(np.linspace(0, len(source) - 1, settings["limit"]).round().astype(int))
    sizes = tuple(sorted({int(one) for one in names(settings["sizes"])}))
    return _Plan(network, source, used[train[used]], used[~train[used]], layers, missing, sizes)


def _check_values(settings: Mapping[str, Any]) -> None:
    least = {
        "patients": 4,
        "per_class": 1,
        "size": 1,
        "limit": 0,
        "epochs": 1,
        "batch_size": 1,
        "splits": 2,
        "shown": 2,
    }
    least["seed"] = 0
    problems = [
        f"config.{name} is {settings[name]}; expected at least {low}"
        for name, low in least.items()
        if settings[name] < low
    ]
    for name in ("weights", "images", "concepts", "layer"):
        if not names(settings[name]):
            problems.append(f"config.{name} is empty")
    if not 0 < settings["held_out"] < 1:
        problems.append(f"config.held_out is {settings['held_out']}; expected a share between 0 and 1")
    if not settings["learning_rate"] > 0:
        problems.append(f"config.learning_rate is {settings['learning_rate']}; expected more than 0")
    if bad := [one for one in names(settings["sizes"]) if not one.isdecimal() or int(one) < 10]:
        problems.append(
            f"config.sizes has {', '.join(bad)}; expected numbers of images from 10 on, separated by commas"
        )
    if problems:
        raise ValueError(f"{'; '.join(problems)}.")
