"""Section 4.2 of the scale paper from names to files: white noise of many widths, and probes that read the width."""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

from scalecov_jax.checkpoints import Network, random_network
from scalecov_jax.models.receptive_field import check_size
from scalecov_jax.paper.noise import MIN_SIZES, clean_layers, map_layers, noise_features
from scalecov_jax.paper.noise_probes import (
    Condition,
    Design,
    main_window,
    measure_effects,
    predict_noise,
    score_noise,
    windows,
)
from scalecov_jax.pipelines.settings import DTYPES, load_networks, names
from scalecov_jax.probes.ridge import Scaling
from scalecov_jax.report import noise as report
from scalecov_jax.report.noise_answer import shown_layers
from scalecov_jax.report.provenance import provenance
from scalecov_jax.workdir import open_workdir


class Plan(NamedTuple):
    """Checked settings."""

    networks: dict[str, Network]
    layers: dict[str, tuple[str, ...]]
    sizes: tuple[int, ...]
    design: Design


def run(
    settings: Mapping[str, Any],
    workdir: str,
    *,
    command: Sequence[str],
    resume: bool = False,
    overwrite: bool = False,
) -> str:
    """Compute features of noise with both poolings, probe its width and report.

    Args:
        settings: See configs/noise.py; `weights` may name several networks, separated by commas.
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
    networks, layers, sizes, design = check(settings)
    folder = open_workdir(workdir, settings, resume=resume, overwrite=overwrite)
    results: dict[str, report.NoiseResult] = {}
    for name, network in networks.items():
        clean = clean_layers(network, layers[name], sizes)
        found = windows(clean, sizes, design, settings["per_size"])
        family = network.architecture.name
        conditions: dict[Condition, Network] = {"trained": network}
        if settings["random_weights"]:
            conditions["random_weights"] = random_network(network, settings["seed"])
        result = report.NoiseResult(family, clean, [], [], [])
        for condition, one in conditions.items():
            features = noise_features(
                one,
                clean,
                sizes,
                settings["per_size"],
                settings["seed"],
                batch_size=settings["batch_size"],
                dtype=DTYPES[settings["dtype"]],
                cache=folder / "features",
                name=f"{name}-{condition}",
                progress=True,
            )
            named: dict[str, Any] = {"architecture": family, "weights": name}
            some = found if condition == "trained" else found[:1]
            result.scores.extend(score_noise(features, some, design, **named, condition=condition))
            result.effects.extend(measure_effects(features, clean, some, **named, condition=condition))
            if condition == "trained":
                for layer in shown_layers(clean):
                    window = main_window(found, layer)
                    result.predictions.extend(predict_noise(features, window, design, layer, **named))
        results[name] = result
    facts = provenance(command, settings, networks, started)
    table = report.write_results(folder, settings, sizes, results, facts)
    return f"{table}\n\nReport: {folder / 'report.html'}"


def check(settings: Mapping[str, Any]) -> Plan:
    """Check all settings before anything is computed.

    Raises:
        ValueError: See `run`.
    """
    problems = []
    if not names(settings["weights"]):
        problems.append("config.weights is empty; expected a checkpoint folder")
    least = {"per_size": 2, "train": 2, "test": 2, "splits": 1, "batch_size": 1, "seed": 0}
    problems += [
        f"config.{name} is {settings[name]}; expected at least {low}"
        for name, low in least.items()
        if settings[name] < low
    ]
    for name, known in (("dtype", tuple(DTYPES)), ("scaling", get_args(Scaling))):
        if settings[name] not in known:
            problems.append(f"config.{name} is {settings[name]!r}; expected one of {', '.join(known)}")
    given = names(settings["sizes"])
    bad = [text for text in given if not re.fullmatch(r"[1-9][0-9]{0,4}", text)]
    if bad or len({*given}) < max(MIN_SIZES, len(given)):
        what = f"{', '.join(bad)} in it" if bad else repr(settings["sizes"])
        problems.append(f"config.sizes has {what}; expected at least {MIN_SIZES} different widths in pixels")
    sizes: tuple[int, ...] = () if bad else tuple(sorted(map(int, given)))
    ranges = []
    for text in names(settings["ranges"]):
        match = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", text)
        smallest, largest = map(int, match.groups()) if match else (0, 0)
        inside = [size for size in sizes if smallest <= size <= largest]
        if len(inside) < MIN_SIZES:
            problems.append(
                f"config.ranges has {text!r}, which holds {len(inside)} of config.sizes; expected ranges such as 150-300 with at "
                f"least {MIN_SIZES} of them"
            )
        else:
            ranges.append((inside[0], inside[-1]))
            problems += _too_few(f"the range {text}", len(inside), settings)
    problems += _too_few("config.sizes", len(sizes), settings)
    if problems:
        raise ValueError(f"{'; '.join(problems)}.")
    networks = load_networks(settings["weights"], "")
    layers = {}
    for name, network in networks.items():
        layers[name] = map_layers(network, names(settings["layers"]))
        check_size(network.module, min(sizes), layers[name], name)
    design = Design(
        settings["train"],
        settings["test"],
        settings["splits"],
        settings["seed"],
        tuple(dict.fromkeys(ranges)),
        settings["scaling"],
    )
    return Plan(networks, layers, sizes, design)


def _too_few(what: str, sizes: int, settings: Mapping[str, Any]) -> list[str]:
    images, needed = sizes * settings["per_size"], settings["train"] + settings["test"]
    if not sizes or images >= needed:
        return []
    return [
        f"{what} gives {images} images, but config.train and config.test need {needed}; raise config.per_size"
    ]
