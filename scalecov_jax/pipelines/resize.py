"""Section 4.1 of the scale paper from names to files: labelled images resized to many sizes and classified."""

import time
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from absl import logging

from scalecov_jax.checkpoints import Network, load_networks
from scalecov_jax.images.example import FILTERS, MIN_IMAGES, Filter, count_reasons
from scalecov_jax.images.labelled import (
    SQUARES,
    Label,
    LabelledImages,
    class_indices,
    open_labelled,
    spread,
    squared,
)
from scalecov_jax.images.scenes import CLASSES
from scalecov_jax.images.sources import SCENES
from scalecov_jax.paper.resizing import Classified, check_sizes, classes_of, classify, group_images
from scalecov_jax.pipelines.settings import DTYPES, names
from scalecov_jax.report import resizing
from scalecov_jax.report.provenance import provenance
from scalecov_jax.workdir import open_workdir


def run(
    settings: Mapping[str, Any],
    workdir: str,
    *,
    command: Sequence[str],
    resume: bool = False,
    overwrite: bool = False,
) -> str:
    """Classify the same images at many sizes and report.

    Args:
        settings: See configs/resize.py; `weights` may name several networks, separated by commas.
        workdir: Folder of the run.
        command: As typed, for the provenance.
        resume: Go on in an existing folder; sizes that lie there are not computed again.
        overwrite: Delete an existing folder first.

    Returns:
        A table for people.

    Raises:
        ValueError: Settings, weights or images that cannot be used; says what was given and what to do.
    """
    started = time.monotonic()
    sizes, filters = _check_values(settings)
    networks = _networks(settings, sizes)
    images = _open(settings)
    truth = {name: _truth(name, network, images.labels, settings) for name, network in networks.items()}
    groups = group_images(images.labels, settings["filled"])

    folder = open_workdir(workdir, settings, resume=resume, overwrite=overwrite)
    rows: list[Classified] = []
    skipped = dict.fromkeys(images.skipped)
    for name, network in networks.items():
        found, unread = classify(
            network,
            name,
            images,
            truth[name],
            groups,
            sizes=sizes,
            filters=filters,
            batch_size=settings["batch_size"],
            dtype=DTYPES[settings["dtype"]],
            cache=folder / "classified",
            progress=True,
        )
        rows += found
        skipped |= dict.fromkeys(unread)
    if not rows:
        raise ValueError(f"None of the {len(images)} images in {settings['images']} can be decoded.")
    facts = provenance(command, settings, networks, started)
    table = resizing.write_results(
        folder,
        settings["title"],
        rows,
        networks,
        images,
        tuple(skipped),
        facts,
        square=settings["square"],
        seed=settings["seed"],
    )
    return f"{table}\n\nReport: {folder / 'report.html'}"


def check(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for settings, weights or images that cannot be used, without rendering or computing anything."""
    sizes, _ = _check_values(settings)
    networks = _networks(settings, sizes)
    scenes = settings["images"] == SCENES
    labels = [Label(one, one, None, 1, 1) for one in CLASSES] if scenes else _open(settings).labels
    for name, network in networks.items():
        _truth(name, network, labels, settings)


def _check_values(settings: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[Filter, ...]]:
    """All settings at once; the sizes and filters."""
    problems = []
    for name, missing in (
        ("weights", "a checkpoint folder"),
        ("images", "a folder or scenes"),
        ("sizes", "pixels, separated by commas"),
        ("filters", f"some of {', '.join(FILTERS)}"),
    ):
        if not names(settings[name]):
            problems.append(f"config.{name} is empty; expected {missing}")
    least = {"limit": 0, "seed": 0, "batch_size": 1, "scenes": 1, "scene_size": 8}
    problems += [
        f"config.{name} is {settings[name]}; expected at least {low}"
        for name, low in least.items()
        if settings[name] < low
    ]
    if not 0 < settings["filled"] <= 1:
        problems.append(f"config.filled is {settings['filled']}; expected a part of the image such as 0.8")
    if settings["square"] not in SQUARES:
        problems.append(f"config.square is {settings['square']!r}; expected one of {', '.join(SQUARES)}")
    if settings["dtype"] not in DTYPES:
        problems.append(f"config.dtype is {settings['dtype']!r}; expected one of {', '.join(DTYPES)}")
    given = names(settings["sizes"])
    bad = [text for text in given if not (text.isascii() and text.isdigit() and int(text) > 0)]
    if bad or (given and len({*given}) < max(2, len(given))):
        what = f"{', '.join(bad)} in it" if bad else settings["sizes"]
        problems.append(f"config.sizes has {what}; expected at least two different sizes in pixels")
    for one in names(settings["filters"]):
        if one not in FILTERS:
            near = get_close_matches(one, FILTERS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            problems.append(f"config.filters has {one!r}; {hint}expected one or more of {', '.join(FILTERS)}")
    if problems:
        raise ValueError(f"{'; '.join(problems)}.")
    return tuple(sorted(map(int, given))), tuple(one for one in FILTERS if one in names(settings["filters"]))


def _networks(settings: Mapping[str, Any], sizes: Sequence[int]) -> dict[str, Network]:
    networks = load_networks(names(settings["weights"]))
    problems = []
    for name, network in networks.items():
        try:
            classes_of(network)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise ValueError(" ".join(problems))
    check_sizes(networks, sizes)
    return networks


def _open(settings: Mapping[str, Any]) -> LabelledImages:
    images = open_labelled(
        settings["images"],
        settings["class_indices"],
        count=settings["scenes"],
        seed=settings["seed"],
        size=settings["scene_size"],
    )
    images = spread(squared(images, settings["square"]), settings["limit"])
    reasons = count_reasons(images.skipped)
    for reason, count in reasons.items():
        logging.info("Left out: %d x %s.", count, reason)
    if len(images) < MIN_IMAGES:
        left = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "none"
        raise ValueError(
            f"{settings['images']}: {len(images)} labelled images; at least {MIN_IMAGES} are needed (left out: {left})."
        )
    return images


def _truth(name: str, network: Network, labels: Sequence[Label], settings: Mapping[str, Any]) -> np.ndarray:
    classes, class_names = classes_of(network), network.card.class_names
    if settings["images"] == SCENES and not class_names and classes == len(CLASSES):
        class_names = CLASSES  # trained on scenes without saying so: their order is the only one there is
    return class_indices(labels, classes, class_names, name)
