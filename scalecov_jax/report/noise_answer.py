"""The noise experiment in numbers and sentences, from the files of a finished run."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scalecov_jax.models.architecture import plain_name
from scalecov_jax.paper.compared import Compared
from scalecov_jax.paper.noise import POOLED, Clean, Pooled
from scalecov_jax.paper.noise_probes import (
    SETTINGS,
    TARGETS,
    Condition,
    NoiseEffect,
    NoiseScore,
    Readout,
    Setting,
    Target,
)
from scalecov_jax.report import page
from scalecov_jax.scores import ESTIMATORS, Estimator
from scalecov_jax.tables import read_table

# Graziani et al. 2021, section 4.2 and Figure 7: 5 training and 20 test images; the widths are not stated.
PUBLISHED_ARCHITECTURE, PUBLISHED_LAYER = "inception_v3", "mixed0"
READABLE = 0.3  # R2 above which corrected GAP counts as telling the width


class Layers(NamedTuple):
    """The layers of one network.

    Attributes:
        architecture: Name of the family.
        weights: Name of the weights.
        needed: Width in pixels from which on corrected GAP is defined, by layer, from input to output; None where it is at
            none, since every position sees the whole image.
        starts: The smallest width of the run from which on it was probed; layers at which it was not are absent.
        reference: The deepest layer probed with corrected GAP over the most widths; None if there is none.
        last: The last layer.
    """

    architecture: str
    weights: str
    needed: dict[str, int | None]
    starts: dict[str, int]
    reference: str | None
    last: str

    @property
    def name(self) -> str:
        """For people."""
        return plain_name(self.architecture)


class Finished(NamedTuple):
    """A finished run.

    Attributes:
        networks: Its networks by the name of their weights.
        sizes: Widths in pixels, ascending.
        settings: As in configs/noise.py.
        r2: Of every split, by what was probed; see `Finished.of`.
        effects: Rows of effects.csv.
        alphas: Penalties that ridge chose in the published setting, GAP and the width itself.
    """

    networks: dict[str, Layers]
    sizes: tuple[int, ...]
    settings: Mapping[str, Any]
    r2: dict[tuple[Any, ...], list[float]]
    effects: list[NoiseEffect]
    alphas: list[float]

    def of(
        self,
        weights: str,
        layer: str,
        pooling: Readout,
        setting: Setting,
        estimator: Estimator,
        target: Target = "width",
        *,
        limits: tuple[int, int] | None = None,
        condition: Condition = "trained",
    ) -> list[float]:
        """R2 of every split; empty if that was not measured. `limits` are the widths used, all of them when absent."""
        limits = limits or (self.sizes[0], self.sizes[-1])
        return self.r2.get((weights, condition, setting, pooling, layer, *limits, target, estimator), [])


def layers_of(architecture: str, weights: str, clean: Mapping[str, Clean]) -> Layers:
    """What a run says of the layers of one network."""
    starts = {layer: min(one.positions) for layer, one in clean.items() if one.defined}
    earliest = min(starts.values(), default=0)
    reference = [layer for layer, start in starts.items() if start == earliest]
    needed = {layer: one.needed for layer, one in clean.items()}
    return Layers(architecture, weights, needed, starts, reference[-1] if reference else None, [*clean][-1])


def shown_layers(clean: Mapping[str, Clean]) -> tuple[str, ...]:
    """The layers whose predictions are kept: the deepest with corrected GAP, and the last."""
    one = layers_of("", "", clean)
    return tuple(dict.fromkeys(layer for layer in (one.reference, one.last) if layer))


def gather(
    networks: Mapping[str, Layers],
    settings: Mapping[str, Any],
    sizes: Sequence[int],
    scores: Iterable[NoiseScore],
    effects: Iterable[NoiseEffect],
) -> Finished:
    """Index the scores of a run."""
    r2: dict[tuple[Any, ...], list[float]] = {}
    alphas: list[float] = []
    for s in scores:
        where = (s.weights, s.condition, s.setting, s.pooling, s.layer, s.smallest, s.largest)
        r2.setdefault((*where, s.target, s.estimator), []).append(s.r2)
        few = (s.condition, s.setting, s.pooling, s.target) == ("trained", "published", "gap", "width")
        if few and s.alpha is not None:
            alphas.append(s.alpha)
    return Finished(dict(networks), tuple(sizes), settings, r2, list(effects), alphas)


def read_run(folder: Path) -> Finished:
    """Read the files of a finished run.

    Raises:
        ValueError: A file is damaged.
        OSError: A file is missing.
    """
    summary = json.loads((folder / "summary.json").read_text())
    networks = {name: Layers(**one) for name, one in summary["layers"].items()}
    scores = read_table(folder / "noise.csv", NoiseScore)
    effects = read_table(folder / "effects.csv", NoiseEffect)
    return gather(networks, summary["settings"], summary["sizes"], scores, effects)


def undefined_of(one: Layers) -> dict[str, int | None]:
    """Layers at which corrected GAP was not probed, with the width in pixels from which on it is defined, if it is at any."""
    return {layer: needed for layer, needed in one.needed.items() if layer not in one.starts}


def below(needed: int | None, unit: str = " px") -> str:
    """Where corrected GAP is not defined, in words."""
    return "at every width" if needed is None else f"below {needed}{unit}"


def middle(values: Sequence[float]) -> str:
    """Median and quartiles in words; a dash for nothing."""
    if not values:
        return "–"
    low, median, high = (page.number(one) for one in np.quantile(values, (0.25, 0.5, 0.75)))
    return f"{median} ({low} to {high})"


def median(values: Sequence[float]) -> str:
    """The median in words; a dash for nothing."""
    return page.number(float(np.median(values))) if values else "–"


def limits_of(run: Finished, one: Layers, layer: str) -> tuple[int, int]:
    """The widths at which both poolings of a layer were probed; all widths where corrected GAP was not."""
    return one.starts.get(layer, run.sizes[0]), run.sizes[-1]


def answer(run: Finished) -> str:
    """The result, a sentence a network."""
    sentences = []
    for weights, one in run.networks.items():
        where, parts = f"{run.sizes[0]} to {run.sizes[-1]} px", []
        if one.reference:
            limits = limits_of(run, one, one.reference)
            where = f"{limits[0]} to {limits[1]} px"
            gap, corrected = (
                median(run.of(weights, one.reference, pooling, "larger", "ridge", limits=limits))
                for pooling in POOLED
            )
            parts.append(f"from {one.reference} with R² {gap} under GAP and {corrected} under corrected GAP")
        if one.last != one.reference:
            parts.append(
                f"from {one.last} with {median(run.of(weights, one.last, 'gap', 'larger', 'ridge'))} under GAP"
            )
        sentences.append(f"{one.name}: the width of white noise ({where}) is read {' and '.join(parts)}.")
    splits, per = run.settings["splits"], len(run.sizes) * run.settings["per_size"]
    return " ".join(sentences) + f" Ridge, median over {splits} random splits of {per} images."


def warnings(run: Finished) -> list[str]:
    """What a reader must know: where corrected GAP tells the width after all, and which probes failed."""
    messages = []
    for weights, one in run.networks.items():
        readable = []
        for layer, (setting, target, estimator) in product(
            one.starts, product(SETTINGS, TARGETS, ESTIMATORS)
        ):
            limits = limits_of(run, one, layer)
            found = run.of(weights, layer, "corrected_gap", setting, estimator, target, limits=limits)
            if found and np.median(found) > READABLE:
                effect = effect_of(run, weights, layer, "corrected_gap")
                share = page.number(effect.between_widths if effect else None)
                readable.append(
                    f"{layer} ({setting}, {estimator}, {target}: {median(found)}; share of the variance between widths {share})"
                )
        if readable:
            messages.append(
                f"{one.name}: corrected GAP tells the width at {', '.join(readable)}. Where that share is near 0 it is chance "
                "or variance, where it is not, the mean depends on the width although no padding is touched."
            )
        failed = {
            layer: [value for value in found if value < -1]
            for layer in one.needed
            if (found := run.of(weights, layer, "gap", "larger", "ridge"))
        }
        if failed := {layer: values for layer, values in failed.items() if values}:
            listed = ", ".join(
                f"{layer} ({len(values)} of {run.settings['splits']} splits, down to {page.number(min(values))})"
                for layer, values in failed.items()
            )
            messages.append(
                f"{one.name}: ridge on GAP fails (R² below −1) in some splits at {listed}: a channel that is almost silent in "
                "the training part takes a value far outside its range in the held-out part. Read the median."
            )
    if run.alphas:
        ends = (min(run.alphas), max(run.alphas))
        share = 100 * float(np.mean([alpha in ends for alpha in run.alphas]))
        if share > 25 and ends[0] < ends[1]:
            messages.append(
                f"With {run.settings['train']} training images ridge cannot choose its penalty well: in {share:.0f} % of the "
                f"draws it took the smallest or the largest that any draw took ({ends[0]:.3g}, {ends[1]:.3g})."
            )
    return messages


def effect_of(run: Finished, weights: str, layer: str, pooling: Pooled) -> NoiseEffect | None:
    """The effect of the width on a layer of the trained network, over the widths at which both poolings were probed."""
    start, end = limits_of(run, run.networks[weights], layer)
    wanted = (weights, "trained", pooling, layer, start, end)
    for e in run.effects:
        if (e.weights, e.condition, e.pooling, e.layer, e.smallest, e.largest) == wanted:
            return e
    return None


def compare_run(run: Finished) -> list[Compared]:
    """The published figures of section 4.2 beside ours."""
    rows = []
    for weights, one in run.networks.items():
        if one.reference:
            rows += _few_images(run, weights, one, one.reference)
        if one.last in one.starts:
            limits = limits_of(run, one, one.last)
            corrected = run.of(weights, one.last, "corrected_gap", "larger", "ridge", limits=limits)
            remark = f"corrected GAP over {limits[0]} to {limits[1]} px: {median(corrected)}"
        else:
            remark = f"corrected GAP is not defined there {below(one.needed[one.last])}"
        images = len(run.sizes) * run.settings["per_size"]
        rows.append(
            Compared(
                "4.2",
                f"{one.name} {one.last}: R² of the width of noise, GAP, 70 % of {images} images to train, ridge",
                "–",
                middle(run.of(weights, one.last, "gap", "larger", "ridge")),
                "–",
                remark,
            )
        )
    return rows


def _few_images(run: Finished, weights: str, one: Layers, layer: str) -> list[Compared]:
    """The published setting at the layer with corrected GAP, over all widths and over the further ranges."""
    was_published = (one.architecture, layer) == (PUBLISHED_ARCHITECTURE, PUBLISHED_LAYER)
    quantity = f"{one.name} {layer}: R² of the width of noise, {run.settings['train']} training images"
    rows = []
    first = limits_of(run, one, layer)
    whole = median(run.of(weights, layer, "gap", "published", "ols", limits=first))
    spans = list(
        dict.fromkeys(
            [
                first,
                *(key[5:7] for key in run.r2 if key[:5] == (weights, "trained", "published", "gap", layer)),
            ]
        )
    )
    for limits in spans:
        found = {
            pooling: run.of(weights, layer, pooling, "published", "ols", limits=limits) for pooling in POOLED
        }
        if not (found["gap"] and found["corrected_gap"]):
            continue
        inverse = run.of(weights, layer, "gap", "published", "ols", "inverse_width", limits=limits)
        span = f"{limits[0]} to {limits[1]} px"
        gap, corrected = (float(np.median(found[pooling])) for pooling in POOLED)
        rows.append(
            Compared(
                "4.2",
                f"{quantity}, GAP, {span}",
                "about 1" if was_published else "–",
                middle(found["gap"]),
                f"about {page.number(gap - 1)}" if was_published else "–",
                f"the paper names no widths; 1 / width, to which the border's share is proportional, gets {median(inverse)}"
                if limits == first
                else f"1 / width gets {median(inverse)}; over {first[0]} to {first[1]} px the width got {whole}",
            )
        )
        below = sum(value < 0 for value in found["corrected_gap"])
        rows.append(
            Compared(
                "4.2",
                f"{quantity}, corrected GAP, {span}",
                "below 0" if was_published else "–",
                middle(found["corrected_gap"]),
                ("agrees" if corrected < 0 else "above 0") if was_published else "–",
                f"below 0 in {below} of {len(found['corrected_gap'])} draws; " + _cause(run, weights, layer),
            )
        )
    return rows


def _cause(run: Finished, weights: str, layer: str) -> str:
    """Why corrected GAP hides the width from a linear probe, with the figures that say so."""
    one = run.networks[weights]
    gap, corrected = (effect_of(run, weights, layer, pooling) for pooling in POOLED)
    if gap is None or corrected is None:
        return "without GAP's dependence of the mean on the width"
    limits = limits_of(run, one, layer)
    distance = run.of(weights, layer, "corrected_gap_distance", "larger", "ols", "log_width", limits=limits)
    shares = [f"{page.number(100 * effect.between_widths, 0)} %" for effect in (corrected, gap)]
    return (
        f"{shares[0]} of its variance lies between widths (GAP: {shares[1]}), but its distance from the mean tells log "
        f"width with R² {median(distance)}"
    )
