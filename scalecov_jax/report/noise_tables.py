"""The tables and the text of the noise experiment."""

from typing import Any

from scalecov_jax.paper.noise_probes import TARGETS, Setting, Target
from scalecov_jax.report import page
from scalecov_jax.report.noise_answer import (
    Finished,
    below,
    effect_of,
    limits_of,
    median,
    middle,
    undefined_of,
)
from scalecov_jax.scores import Estimator

TARGET_NAMES: dict[Target, str] = {
    "width": "width",
    "inverse_width": "1 / width",
    "log_width": "log width",
}
PROBES: tuple[tuple[Setting, Estimator], ...] = (
    ("published", "ols"),
    ("larger", "ridge"),
    ("unseen_sizes", "ridge"),
)


def describe(run: Finished, weights: str) -> str:
    """What was done with one network, and why the probes read what they read; blank lines separate paragraphs."""
    one, settings = run.networks[weights], run.settings
    paragraphs = [
        f"{settings['per_size']} images of white noise at each of {len(run.sizes)} widths from {run.sizes[0]} to "
        f"{run.sizes[-1]} px, never resized. Published setting: {settings['train']} images to train and "
        f"{settings['test']} held out, drawn {settings['splits']} times."
    ]
    if later := {layer: start for layer, start in one.starts.items() if start > run.sizes[0]}:
        listed = ", ".join(f"{layer} from {start}" for layer, start in later.items())
        paragraphs.append(
            "Padding reaches every position of some layers on small images. Corrected GAP was probed there on larger "
            f"widths alone, in px: {listed}; GAP on the same widths stands beside it."
        )
    if undefined := undefined_of(one):
        listed = ", ".join(
            f"{layer} {'none is large enough, for each position sees the whole image' if needed is None else needed}"
            for layer, needed in undefined.items()
        )
        paragraphs.append(
            "Undefined on too many of these widths; corrected GAP would need images of at least, in px: "
            f"{listed}."
        )
    if one.reference:
        paragraphs.append(_why(run, weights))
    return "\n\n".join(paragraphs)


def _why(run: Finished, weights: str) -> str:
    one = run.networks[weights]
    effects = {layer: effect_of(run, weights, layer, "corrected_gap") for layer in one.starts}
    shares = [100 * effect.between_widths for effect in effects.values() if effect]
    slopes = [effect.slope for effect in effects.values() if effect and effect.slope is not None]
    read = [
        f"{median(_distance(run, weights, layer))} at {layer}"
        for layer in one.starts
        if _distance(run, weights, layer)
    ]
    slope = (
        f" (slope {page.number(min(slopes))} to {page.number(max(slopes))} in logarithms)" if slopes else ""
    )
    return (
        f"Why. Of the variance of corrected GAP {page.number(min(shares), 0)} to {page.number(max(shares), 0)} % lies between "
        "the means of the widths (unbiased, so that chance gives values around 0). Its variance changes with the number of "
        f"positions averaged{slope}; −1 is expected of independent ones. A linear "
        "probe cannot use that. A single number that measures spread can, the logarithm of the squared distance of the "
        f"features from their mean: it tells log width with R² {', '.join(read)}. Where that is high, corrected GAP takes "
        "the width out of what is linear in the features, not out of the features."
    )


def layer_table(run: Finished, weights: str) -> page.Table:
    """R2 of the width at every layer with both poolings."""
    one, rows = run.networks[weights], []
    for layer in one.needed:
        same = limits_of(run, one, layer) if layer in one.starts else None
        cells = [median(run.of(weights, layer, "gap", *probe)) for probe in PROBES]
        cells.append(median(run.of(weights, layer, "gap", "larger", "ridge", condition="random_weights")))
        if same:
            corrected = [run.of(weights, layer, "corrected_gap", *probe, limits=same) for probe in PROBES]
            cells += [
                f"{same[0]}–{same[1]}",
                median(run.of(weights, layer, "gap", "larger", "ridge", limits=same)),
                *(median(corrected[0]), middle(corrected[1]), median(corrected[2])),
                median(_distance(run, weights, layer)),
            ]
        else:
            cells += [f"undefined {below(one.needed[layer], '')}", *["–"] * 5]
        effects = [effect_of(run, weights, layer, pooling) for pooling in ("gap", "corrected_gap")]
        cells += [f"{page.number(100 * one.between_widths, 0)} %" if one else "–" for one in effects]
        rows.append((layer, *cells))
    few = f"{run.settings['train']} images"
    return page.Table(
        f"{one.name}: median R² of the width. {few}: the published setting, least squares; larger and unseen widths: ridge. "
        "Distance: one number, the distance of corrected features from their mean, fitted to log width. Between widths: "
        "share of the variance of the features that lies between the means of the widths.",
        (
            *("layer", f"GAP, {few}", "GAP, larger", "GAP, unseen widths", "GAP, random weights"),
            *("both poolings, px", "GAP, larger", f"corrected, {few}", "corrected, larger"),
            *(
                "corrected, unseen widths",
                "distance, larger",
                "GAP between widths",
                "corrected between widths",
            ),
        ),
        rows,
        [at for at, layer in enumerate(one.needed) if layer in (one.reference, one.last)],
    )


def target_table(run: Finished, weights: str) -> page.Table:
    """Which function of the width GAP is most nearly linear in."""
    one = run.networks[weights]
    rows = [
        (
            layer,
            *(
                median(run.of(weights, layer, "gap", *probe, target))
                for probe in PROBES
                for target in TARGETS
            ),
        )
        for layer in one.needed
    ]
    names = (f"{run.settings['train']} images", "larger", "unseen widths")
    return page.Table(
        f"{one.name}, GAP: median R² of the width, its inverse and its logarithm. The border that padding reaches takes a share "
        "of the map that is about proportional to 1 / width.",
        ("layer", *(f"{name}: {target}" for name in names for target in TARGET_NAMES.values())),
        rows,
    )


def terminal_table(run: Finished) -> str:
    """R2 of the width at every layer, for the terminal."""
    few = f"{run.settings['train']} images"
    heads: tuple[Any, ...] = (f"GAP, {few}", "GAP, larger", f"corrected, {few}", "corrected, larger")
    first = max(16, *(len(name) + 2 for name in run.networks))
    second = max(11, *(len(layer) + 2 for one in run.networks.values() for layer in one.needed))
    lines = [f"{'weights':<{first}}{'layer':<{second}}" + "".join(f"{head:>21}" for head in heads)]
    for weights, one in run.networks.items():
        for layer in one.needed:
            limits = limits_of(run, one, layer)
            cells = [median(run.of(weights, layer, "gap", *probe)) for probe in PROBES[:2]]
            if layer in one.starts:
                corrected = (
                    run.of(weights, layer, "corrected_gap", *probe, limits=limits) for probe in PROBES[:2]
                )
                cells += [median(values) for values in corrected]
            else:
                cells += ["undefined", below(one.needed[layer])]
            lines.append(f"{weights:<{first}}{layer:<{second}}" + "".join(f"{cell:>21}" for cell in cells))
    return "\n".join(lines)


def _distance(run: Finished, weights: str, layer: str) -> list[float]:
    limits = limits_of(run, run.networks[weights], layer)
    return run.of(weights, layer, "corrected_gap_distance", "larger", "ols", "log_width", limits=limits)
