"""The whole main job from names to files: images and weights in, scores, pruned networks and a report out."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from absl import logging

from scalecov_jax import checkpoints, cutting, experiment
from scalecov_jax.cache import FeatureStore
from scalecov_jax.checkpoints import load_networks
from scalecov_jax.concepts.csv_column import csv_text
from scalecov_jax.design import Design, check_design
from scalecov_jax.features import POOLINGS, describe_undefined, dry_run
from scalecov_jax.hosts import on_first
from scalecov_jax.images import scenes
from scalecov_jax.images.example import Skipped, Source, count_reasons, encode_jpeg
from scalecov_jax.images.sources import SCENES, open_source, regroup
from scalecov_jax.models.architecture import get_architecture
from scalecov_jax.models.pruning import Pruning
from scalecov_jax.pipelines import streamed
from scalecov_jax.pipelines.settings import DTYPES, names
from scalecov_jax.probes.splits import Kind
from scalecov_jax.report import page, probing
from scalecov_jax.report.provenance import provenance
from scalecov_jax.workdir import open_workdir


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
    sources, skipped = _open(settings)
    for reason, count in count_reasons(skipped).items():
        logging.info("Left out: %d x %s.", count, reason)
    design = _design(settings)
    route = streamed.plan(networks, sources, settings, design)
    if estimate_only:
        plan = streamed.plan_text(route, design.splits)
        return f"{_estimate(networks, sources, settings)}\n{plan}"
    logging.info("%s", streamed.plan_text(route, design.splits))

    folder = on_first(lambda: open_workdir(workdir, settings, resume=resume, overwrite=overwrite))
    folder = folder or Path(workdir).absolute()
    if route.name == "streamed":
        probed = streamed.probe(networks, sources, settings, design, folder)
    else:
        probed = {
            name: experiment.probe(
                network,
                name,
                sources,
                design,
                layers=names(settings["layers"]),
                size=settings["input_size"],
                batch_size=settings["batch_size"],
                dtype=DTYPES[settings["dtype"]],
                pooling=_pooling(settings),
                cache=folder / "features",
                store=_store(settings),
                progress=True,
            )
            for name, network in networks.items()
        }

    results = {
        name: (networks[name], result, _cut(networks[name], name, result, sources, settings, folder))
        for name, result in probed.items()
    }

    def write() -> None:
        facts = provenance(command, settings, networks, started)
        probing.write_results(
            folder, settings["title"], results, sources, skipped, facts, _scene_section(settings)
        )

    on_first(write)
    return _table(results) + f"\n\nReport: {folder / 'report.html'}"


def _cut(
    network: checkpoints.Network,
    name: str,
    result: experiment.ProbeResult,
    sources: Mapping[str, Source],
    settings: Mapping[str, Any],
    folder: Path,
) -> Pruning:
    """Cut at the layer of the first concept, check, and save."""
    layer = next(one.layer for one in result.selected[result.concepts[0]] if one.estimator == "ridge")
    pruned = cutting.pruned_network(network, layer)
    first = next(iter(sources.values()))
    pruning = cutting.check_pruning(network, pruned, first, settings["input_size"], _pooling(settings))
    checkpoints.save(folder / "pruned" / name, pruned, overwrite=True)
    return pruning


def check(settings: Mapping[str, Any]) -> None:
    """Refuse what `run` would refuse before it computes anything, the folder of the run aside.

    Raises:
        ValueError: See `run`.
    """
    _load(settings)
    if settings["images"] != SCENES:
        _open(settings)


def _open(settings: Mapping[str, Any]) -> tuple[dict[str, Source], list[Skipped]]:
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
    if column := settings.get("groups", ""):
        read = csv_text(*_csv(column))
        sources = {name: regroup(source, lambda image: read(image)[0]) for name, source in sources.items()}
    return sources, skipped


def _csv(text: str) -> tuple[str, str]:
    path, _, column = text.removeprefix("csv:").rpartition(":")
    if not (text.startswith("csv:") and path and column):
        raise ValueError(
            f"config.groups is {text!r}; expected csv:PATH:COLUMN, as in csv:patients.csv:patient."
        )
    return path, column


def _design(settings: Mapping[str, Any]) -> Design:
    """Settings that earlier versions did not have count as not asked for."""
    return Design(
        concepts=names(settings.get("concept", "scale")),
        splitting=settings.get("splitting", "random"),
        splits=settings["splits"],
        seed=settings["seed"],
        alphas=np.geomspace(settings["alpha_min"], settings["alpha_max"], settings["alphas"]),
        probes=names(settings.get("probes", "")),
        permutations=settings.get("permutations", 0),
        nuisances=names(settings.get("nuisances", "")),
        pixels=settings.get("pixels", False),
        sizes=_sizes(settings),
    )


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
    if _pooling(settings) not in POOLINGS:
        raise ValueError(f"config.pooling is {_pooling(settings)!r}; expected one of {', '.join(POOLINGS)}.")
    if settings.get("cache", "") and settings["cache_gb"] <= 0:
        raise ValueError(f"config.cache_gb is {settings['cache_gb']}; expected more than 0.")
    design = _design(settings)
    check_design(design)
    if not design.concepts:
        raise ValueError("config.concept is empty; expected names such as scale, separated by commas.")
    if design.splitting not in get_args(Kind):
        raise ValueError(
            f"config.splitting is {design.splitting!r}; expected one of {', '.join(get_args(Kind))}."
        )
    if 0 < design.permutations < 19 or design.permutations < 0:
        raise ValueError(
            f"config.permutations is {design.permutations}; expected 0 for none, or at least 19, such as 1000."
        )
    networks = load_networks(names(settings["weights"]), expected)
    for network in networks.values():
        _layers(network, settings)
    return networks


def _pooling(settings: Mapping[str, Any]) -> Any:
    return settings.get("pooling", "gap")  # which settings of earlier versions have not


def _store(settings: Mapping[str, Any]) -> FeatureStore | None:
    folder = settings.get("cache", "")
    return FeatureStore(Path(folder).expanduser(), int(settings["cache_gb"] * 1e9)) if folder else None


def _sizes(settings: Mapping[str, Any]) -> tuple[int, ...]:
    text = settings.get("n_train", "")
    try:
        return tuple(map(int, names(text)))
    except ValueError:
        raise ValueError(f"config.n_train is {text!r}; expected whole numbers separated by commas.") from None


def _layers(network: checkpoints.Network, settings: Mapping[str, Any]) -> tuple[str, ...]:
    size, pooling = settings["input_size"], _pooling(settings)
    return experiment.layers_to_probe(network, names(settings["layers"]), size, pooling)[0]


def _estimate(
    networks: Mapping[str, checkpoints.Network], sources: Mapping[str, Source], settings: Mapping[str, Any]
) -> str:
    count = sum(map(len, sources.values()))
    lines = [f"{count} images of {', '.join(sources)}; trained and random weights are one pass each."]
    for name, network in networks.items():
        one = dry_run(
            network,
            count,
            _layers(network, settings),
            size=settings["input_size"],
            batch_size=settings["batch_size"],
            dtype=DTYPES[settings["dtype"]],
            pooling=_pooling(settings),
        )
        lines.append(
            f"{name}: about {2 * one.seconds:.0f} s at {one.images_per_second:.0f} images/s; features "
            f"{2 * one.feature_bytes / 1e6:.1f} MB; one batch takes {one.batch_bytes / 1e6:.0f} MB."
        )
    return "\n".join(lines)


def _table(results: Mapping[str, tuple[checkpoints.Network, experiment.ProbeResult, Pruning]]) -> str:
    first = max(16, *(len(name) + 2 for name in results))
    second = max(
        14,
        *(
            len(one.layer) + 2
            for _, result, _ in results.values()
            for one in result.selected[result.concepts[0]]
        ),
    )
    lines = [f"{'weights':<{first}}{'estimator':<11}{'layer':<{second}}{'R2 mean':>8}{'R2 sd':>8}"]
    for name, (_, result, pruning) in results.items():
        for one in result.selected[result.concepts[0]]:
            values = f"{one.r2_mean:>8.3f}{one.r2_sd:>8.3f}"
            lines.append(f"{name:<{first}}{one.estimator:<11}{one.layer:<{second}}{values}")
        removed = 100 * (1 - pruning.parameters_after / pruning.parameters_before)
        lines.append(
            f"{name:<{first}}cut after {pruning.layer}: {pruning.parameters_before:,} -> {pruning.parameters_after:,} parameters "
            f"({removed:.2f} % less); features differ by at most {pruning.max_difference:.1e}"
        )
        if result.undefined:
            lines.append(
                f"{name:<{first}}{result.pooling} is undefined at {describe_undefined(result.undefined)}"
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
