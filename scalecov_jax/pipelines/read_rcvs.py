"""RCVs that a probe run wrote, as targets, directions and strips of explanations; nothing is fitted here."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scalecov_jax.checkpoints import Network, fingerprints
from scalecov_jax.explain.feature_visualization import Objective, direction
from scalecov_jax.explain.target import Target, rcv_projection
from scalecov_jax.pipelines.settings import names
from scalecov_jax.rcv import STRIP, Rcv, load_rcvs, strip


def needs_rcvs(settings: Mapping[str, Any]) -> bool:
    """Whether a method reads RCVs."""
    method, target = settings["method"], settings["target"]
    if method == "feature_visualization":
        return settings["objective"] == "rcv"
    return method == "sensitivity" or target.startswith("rcv:")


def chosen_rcvs(
    networks: Mapping[str, Network], layer: str, concepts: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, list[Rcv]]:
    """By network the RCVs of its layer, one for each concept; of all concepts in the file when none is named.

    Raises:
        ValueError: The file has none that were fitted on a network's layer, several classes and none chosen, or lacks a concept;
            names those that are there.
    """
    path, every = settings["rcvs"], load_rcvs(settings["rcvs"])
    found: dict[str, list[Rcv]] = {}
    for name, network in networks.items():
        here = fingerprints(network, [layer])[layer]
        own = [one for one in every if one.network == here]
        classes = list(dict.fromkeys(one.image_class for one in own))
        wanted = settings["rcv_class"] or settings["image_class"]
        if wanted in classes:
            own = [one for one in own if one.image_class == wanted]
        elif len(classes) > 1 or (classes and settings["rcv_class"]):
            raise ValueError(
                f"{path} has RCVs of the classes {', '.join(classes)}, none of them {wanted!r}; choose one by config.rcv_class."
            )
        by_concept = {one.measure: one for one in own}
        missing = [concept for concept in concepts if concept not in by_concept]
        if missing or not by_concept:
            there = sorted({f"{one.measure} at {one.layer}" for one in own or every})
            raise ValueError(
                f"{path} has no RCV of {', '.join(missing) or 'any concept'} fitted at {layer} of the weights {name}; it has "
                f"{'; '.join(there[:20])}. Run scripts/probe.py with these weights, layers and concepts."
            )
        found[name] = [by_concept[concept] for concept in concepts or by_concept]
    return found


def rcv_targets(
    networks: Mapping[str, Network], settings: Mapping[str, Any]
) -> tuple[dict[str, Target], str]:
    """The projections that config.target asks for, and how well each RCV is readable."""
    concept, _, layer = settings["target"].removeprefix("rcv:").rpartition("@")
    rcvs = chosen_rcvs(networks, layer, [concept], settings)
    targets = {name: rcv_projection(networks[name], one, settings["vector"]) for name, (one,) in rcvs.items()}
    r2 = ", ".join(f"{one.r2:.2f} for {name}" for name, (one,) in rcvs.items())
    return targets, f"The RCV ({settings['vector']}) of {concept} at {layer} has a held-out R2 of {r2}."


def rcv_strips(
    networks: Mapping[str, Network], settings: Mapping[str, Any]
) -> tuple[dict[str, list[Objective]], list[tuple[str, str]], str]:
    """Objectives from -v to +v of the RCV of each concept, their labels, and how well each RCV is readable."""
    layer, vector = settings["layer"], settings["vector"]
    rcvs = chosen_rcvs(networks, layer, names(settings["concepts"]), settings)
    objectives = {
        name: [direction(layer, np.concatenate([strip(one.vector(vector), one.mean) for one in own]))]
        for name, own in rcvs.items()
    }
    labels = [(f"rcv:{one.measure}", part) for one in next(iter(rcvs.values())) for part in STRIP]
    r2 = "; ".join(
        f"{name}: {', '.join(f'{one.measure} {one.r2:.2f}' for one in own)}" for name, own in rcvs.items()
    )
    return objectives, labels, f"Held-out R2 of the RCVs ({vector}) at {layer}: {r2}."
