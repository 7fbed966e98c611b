"""Covariance as an operation from names to files: scenes that grow, features, tables and a report."""

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from scalecov_jax import checkpoints
from scalecov_jax.checkpoints import load_networks
from scalecov_jax.concepts.compute import measure_all
from scalecov_jax.concepts.measure import get_measures
from scalecov_jax.features import cached_features, compute_features
from scalecov_jax.images import scenes
from scalecov_jax.images.example import MIN_IMAGES, Example, encode_jpeg, resize_image
from scalecov_jax.models import receptive_field
from scalecov_jax.models.architecture import available_layers, check_layer
from scalecov_jax.paper.covariance import MEASURES
from scalecov_jax.paper.covariance_probes import halves
from scalecov_jax.paper.covariance_rows import Tables, join
from scalecov_jax.paper.covariance_tables import Seen, measure
from scalecov_jax.pipelines.settings import DTYPES, names
from scalecov_jax.probes.evaluate import ALPHAS
from scalecov_jax.report import covariance as report
from scalecov_jax.report.provenance import provenance
from scalecov_jax.scores import ESTIMATORS, Condition, Estimator
from scalecov_jax.workdir import open_workdir


def run(
    settings: Mapping[str, Any],
    workdir: str,
    *,
    command: Sequence[str],
    resume: bool = False,
    overwrite: bool = False,
) -> str:
    """Fit probes of size to scenes, read them on growing objects, and report.

    Args:
        settings: See configs/covariance.py; `weights` may name several networks, separated by commas.
        workdir: Folder of the run.
        command: As typed, for the provenance.
        resume: Go on in an existing folder; features that lie there are not computed again.
        overwrite: Delete an existing folder first.

    Returns:
        A table for people.

    Raises:
        ValueError: Settings or weights that cannot be used; says what was given and what to do.
    """
    started = time.monotonic()
    networks = _load(settings)
    folder = open_workdir(workdir, settings, resume=resume, overwrite=overwrite)
    classes = names(settings["classes"])
    estimators = _estimators(settings)
    # The same scenes for every network of one input size.
    render = lru_cache(maxsize=1)(lambda size: _render(settings, size))
    parts = halves(settings["scenes"], settings["splits"], settings["seed"])
    tables: list[Tables] = []
    networks_facts: dict[str, Any] = {}
    source: list[Example] = []
    for name, network in networks.items():
        layers = _layers(network, settings)
        size = _size(network, settings)
        source = render(size)
        targets, ratios = _measures(source, settings)
        shuffled = _shuffled(targets, settings["seed"])
        widths: dict[str, int] = {}
        runs: tuple[tuple[checkpoints.Network, dict[Condition, np.ndarray]], ...] = (
            (network, {"trained": targets, "shuffled_measure": shuffled}),
            (checkpoints.random_network(network, settings["seed"]), {"random_weights": targets}),
        )
        for one, measures in runs:
            seen = _seen(one, name, next(iter(measures)), layers, source, folder, settings)
            widths = {layer: values.scenes.shape[-1] for layer, values in seen.items()}
            tables.append(
                measure(
                    seen,
                    classes,
                    measures,
                    ratios,
                    architecture=network.architecture.name,
                    weights=name,
                    estimators=estimators,
                    parts=parts,
                    alphas=ALPHAS,
                    seed=settings["seed"],
                    progress=True,
                )
            )
        networks_facts[name] = {
            "architecture": network.architecture.name,
            "size": size,
            "widths": widths,
            "peak": {
                estimator: report.peak(tables[-2].linearity, name, estimator) for estimator in estimators
            },
        }
    facts = {
        "title": settings["title"],
        "networks": networks_facts,
        "classes": list(classes),
        "estimators": list(estimators),
        "scenes": settings["scenes"],
        "objects": settings["objects"],
        "ratios": [round(float(ratio), 6) for ratio in _ratios(settings)],
        "splits": settings["splits"],
        "provenance": provenance(command, settings, networks, started),
    }
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "figures" / "growing.jpg").write_bytes(encode_jpeg(_sheet(source, settings)))
    report.write_results(folder, join(tables), facts)
    return report.text(folder) + f"\n\nReport: {folder / 'report.html'}"


def _estimators(settings: Mapping[str, Any]) -> list[Estimator]:
    return [one for name in names(settings["estimators"]) for one in ESTIMATORS if one == name]


def check(settings: Mapping[str, Any]) -> None:
    """Refuse what `run` would refuse before it computes anything, the folder of the run aside.

    Raises:
        ValueError: See `run`.
    """
    _load(settings)


def _ratios(settings: Mapping[str, Any]) -> Float[np.ndarray, " R"]:
    return np.geomspace(settings["smallest"], settings["largest"], settings["ratios"])


def _render(settings: Mapping[str, Any], size: int) -> list[Example]:
    """Of each class the independent scenes, then the growing objects."""
    source: list[Example] = []
    for image_class in names(settings["classes"]):
        source += scenes.examples(image_class, settings["scenes"], settings["seed"], size)
        source += scenes.growing(image_class, settings["objects"], _ratios(settings), settings["seed"], size)
    return source


def _sheet(
    source: Sequence[Example], settings: Mapping[str, Any], side: int = 128
) -> UInt8[np.ndarray, "H W 3"]:
    """The first object of each class at every size, or at some ten of them."""
    rows = []
    for index in range(len(names(settings["classes"]))):
        first = index * (len(source) // len(names(settings["classes"]))) + settings["scenes"]
        views = source[first : first + settings["ratios"]][:: -(-settings["ratios"] // 10)]
        rows.append(np.hstack([resize_image(view.image, side) for view in views]))
    return np.vstack(rows)


def _by_class(
    values: Float[np.ndarray, "I ..."], settings: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the source as scenes [C N ...] and growing objects [C K R ...]."""
    classes, count = len(names(settings["classes"])), settings["scenes"]
    grouped = values.reshape(classes, -1, *values.shape[1:])
    shape = (classes, settings["objects"], settings["ratios"], *values.shape[1:])
    return grouped[:, :count], grouped[:, count:].reshape(shape)


def _measures(
    source: Sequence[Example], settings: Mapping[str, Any]
) -> tuple[Float[np.ndarray, "C N M"], Float[np.ndarray, "C K R"]]:
    fitted, growing = _by_class(measure_all(get_measures(("scale",)), source).values[:, 0], settings)
    return np.stack([transform(fitted) for transform in MEASURES.values()], axis=-1), growing


def _shuffled(targets: Float[np.ndarray, "C N M"], seed: int) -> Float[np.ndarray, "C N M"]:
    return np.stack(
        [
            np.random.default_rng((seed, index, 2)).permutation(measures)
            for index, measures in enumerate(targets)
        ]
    )


def _seen(
    network: checkpoints.Network,
    name: str,
    condition: Condition,
    layers: Sequence[str],
    source: Sequence[Example],
    folder: Path,
    settings: Mapping[str, Any],
) -> dict[str, Seen]:
    features = cached_features(
        folder / "features" / f"{name}-{condition}.npz",
        lambda: compute_features(
            network,
            source,
            layers,
            size=_size(network, settings),
            batch_size=settings["batch_size"],
            dtype=DTYPES[settings["dtype"]],
            progress=f"{name} {condition}",
        ),
    )
    return {
        layer: Seen(*_by_class(np.asarray(features.values[layer], np.float64), settings)) for layer in layers
    }


def _size(network: checkpoints.Network, settings: Mapping[str, Any]) -> int:
    return settings["size"] or network.card.input_size


def _layers(network: checkpoints.Network, settings: Mapping[str, Any]) -> tuple[str, ...]:
    return names(settings["layers"]) or available_layers(network.architecture, network.module)


_AT_LEAST = {
    "scenes": 2 * MIN_IMAGES,
    "objects": 2,
    "ratios": 2,
    "splits": 1,
    "batch_size": 1,
    "size": 0,
    "seed": 0,
}


def _load(settings: Mapping[str, Any]) -> dict[str, checkpoints.Network]:
    problems = [
        f"config.{name} is {settings[name]}; expected at least {least}."
        for name, least in _AT_LEAST.items()
        if settings[name] < least
    ]
    if not 0 < settings["smallest"] < settings["largest"] <= 1:
        problems.append(
            f"config.smallest is {settings['smallest']} and config.largest {settings['largest']}; expected shares of the image, "
            "0 < smallest < largest <= 1."
        )
    if settings["dtype"] not in DTYPES:
        problems.append(f"config.dtype is {settings['dtype']!r}; expected one of {', '.join(DTYPES)}.")
    estimators = names(settings["estimators"])
    if not estimators or not {*estimators} <= {*ESTIMATORS}:
        problems.append(
            f"config.estimators is {settings['estimators']!r}; expected some of {', '.join(ESTIMATORS)}, separated by commas."
        )
    if not names(settings["weights"]):
        problems.append(
            "config.weights is empty; expected a checkpoint folder, as in --config.weights=checkpoints/resnet50."
        )
    classes = names(settings["classes"])
    for image_class in classes:
        try:
            scenes.check_class(image_class)
        except ValueError as error:
            problems.append(f"config.classes: {error}")
    if len({*classes}) < 2 or len({*classes}) < len(classes):
        problems.append(
            f"config.classes is {settings['classes']!r}; expected at least two different classes, between which an RCV can be "
            "transferred."
        )
    if problems:
        raise ValueError(" ".join(problems))
    networks = load_networks(names(settings["weights"]), settings.get("architecture", ""))
    for name, network in networks.items():
        known = available_layers(network.architecture, network.module)
        for layer in names(settings["layers"]):
            check_layer(network.architecture, layer, known[-1])
        receptive_field.check_size(network.module, _size(network, settings), _layers(network, settings), name)
    return networks
