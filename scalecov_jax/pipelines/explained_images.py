"""Maps and concept sensitivities for the experiment on texture, from mappings; `experiments.explain_maps` computes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scalecov_jax.checkpoints import Network
from scalecov_jax.experiments import explain_maps
from scalecov_jax.experiments.explain_inputs import Settings, Subject
from scalecov_jax.explain.target import Target
from scalecov_jax.images.example import Skipped, Source
from scalecov_jax.rcv import Rcv

_READ = "method images size batch_size seed signed faithfulness tolerance vector shown"  # and layer, of a single layer


class Concept(NamedTuple):
    """A concept at a layer; see `explain.sensitivity` for the columns."""

    weights: str
    layer: str
    concept: str
    r2: float
    mean: float
    sd: float
    dimension_free: float
    tcav: float
    random_low: float
    random_high: float
    p: float
    br: float | None
    br_low: float | None
    br_high: float | None


class Maps(NamedTuple):
    """Maps by network, and name and pixels of their images, of the images that are shown."""

    maps: dict[str, np.ndarray]
    images: list[tuple[str, np.ndarray]]


def map_images(
    folder: Path,
    networks: Mapping[str, Network],
    targets: Mapping[str, Target],
    source: Source,
    settings: Mapping[str, Any],
) -> Maps:
    """Maps of all images by all networks. Raises as `explain_maps.map_images`."""
    shown = {
        name: explain_maps.map_images(_subject(name, network, targets, source, settings), folder).shown
        for name, network in networks.items()
    }
    maps = {name: np.stack([map for _, _, map in pictures]) for name, pictures in shown.items()}
    return Maps(maps, [(image, pixels) for image, pixels, _ in next(iter(shown.values()))])


def weigh_concepts(
    folder: Path,
    networks: Mapping[str, Network],
    targets: Mapping[str, Target],
    source: Source,
    rcvs: Mapping[str, Sequence[Rcv]],
    settings: Mapping[str, Any],
) -> tuple[list[Concept], list[Skipped]]:
    """The sensitivities of all networks, and images that could not be decoded. Raises as `explain_maps.weigh_concepts`."""
    rows: list[Concept] = []
    undecoded: list[Skipped] = []
    for name, network in networks.items():
        subject = _subject(name, network, targets, source, settings, rcvs[name])
        table, skipped = explain_maps.weigh_concepts(subject, folder)
        cells = table.astype(object).where(table.notna(), None)
        rows += [Concept(*row) for row in cells.to_numpy().tolist()]
        undecoded += skipped
    return rows, undecoded


def _subject(
    name: str,
    network: Network,
    targets: Mapping[str, Target],
    source: Source,
    settings: Mapping[str, Any],
    rcvs: Sequence[Rcv] = (),
) -> Subject:
    given: dict[str, Any] = {field: settings[field] for field in _READ.split()} | {
        "layer": (settings["layer"],)
    }
    return Subject(name, network, Settings(**given), [targets[name]], source=source, rcvs=rcvs)
