"""The parts of the report on covariance as an operation: sentences, figures and tables of each network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scalecov_jax.models.architecture import plain_name
from scalecov_jax.paper.covariance_rows import Tables, select
from scalecov_jax.report import covariance_figures as figures
from scalecov_jax.report import page
from scalecov_jax.selection import interpolates

ESTIMATOR_NAMES = {"ridge": "ridge", "ols": "least squares"}


class NetworkTables(NamedTuple):
    """What the report says of one network, with the rows of one estimator."""

    name: str
    weights: str
    estimator: str
    layers: Sequence[str]
    peak: str
    widths: Mapping[str, int]
    size: int
    tables: Tables

    def mean(self, rows: str, field: str, layer: str, **wanted: str) -> float:
        """Mean over classes at one layer, of the trained network unless wanted otherwise."""
        wanted = {"condition": "trained", "layer": layer, **wanted}
        values = [
            getattr(row, field)
            for row in getattr(self.tables, rows)
            if all(getattr(row, name) == value for name, value in wanted.items())
        ]
        return float(np.mean(np.asarray(values, float)))

    def transferred(self, layer: str, field: str, *, own: bool) -> float:
        """Mean over pairs of classes (over classes with themselves if own)."""
        values = [
            getattr(row, field)
            for row in self.tables.transfer
            if (row.condition, row.layer) == ("trained", layer) and (row.image_class == row.test_class) == own
        ]
        return float(np.mean(values))


def by_network(facts: Mapping[str, Any], tables: Tables) -> list[NetworkTables]:
    """The rows of each network and estimator, in the order of summary.json."""
    families = [network["architecture"] for network in facts["networks"].values()]
    found = []
    for weights, network in facts["networks"].items():
        family = str(network["architecture"])
        name = plain_name(family) + (f" ({weights})" if families.count(family) > 1 else "")
        for estimator, one in network["peak"].items():
            rows = select(tables, weights, estimator)
            widths = network["widths"]
            found.append(
                NetworkTables(
                    name, weights, estimator, [*widths], one["layer"], widths, network["size"], rows
                )
            )
    return found


def answer(one: NetworkTables) -> str:
    """What was found on one network, in one sentence."""
    at, shares = one.peak, {"measure": "r", "metric": "standardised"}
    return (
        f"{one.name}: when an object grows, the {ESTIMATOR_NAMES[one.estimator]} probe of {at} reads "
        f"{page.number(one.mean('linearity', 'slope', at, measure='r'))} of the true change (R² "
        f"{page.number(one.mean('linearity', 'r2_within', at, measure='r'))} within objects), but "
        f"{percent(one.mean('change', 'rcv', at, **shares))} of the change of its features lies along the regression concept "
        f"vector (chance {percent(1 / one.widths[at])}, best direction {percent(one.mean('change', 'best', at, **shares))}, "
        f"the probe's pattern {percent(one.mean('change', 'pattern', at, **shares))}); the published step φ + σ v changes the "
        f"reading by {significant(one.mean('linearity', 'factor', at, measure='r'))} σ instead of σ."
    )


def warnings(networks: Sequence[NetworkTables], facts: Mapping[str, Any]) -> list[str]:
    """Where probes read nothing, and where least squares interpolates."""
    messages = []
    for one in networks:
        estimator = ESTIMATOR_NAMES[one.estimator]
        worst = {
            field: {
                layer: min(values)
                for layer, values in figures.by_layer(
                    one.tables.linearity, field, condition="trained", measure="r"
                ).items()
            }
            for field in ("r2", "r2_median")
        }
        failed = [layer for layer in one.layers if worst["r2_median"][layer] < 0]
        if failed:
            messages.append(
                f"{one.name}, {estimator}: in some class the held-out R² is below 0 at {', '.join(failed)} (median over splits); "
                "the RCVs there read no scale, and their shares and angles say nothing about it."
            )
        shaky = [layer for layer in one.layers if worst["r2"][layer] < 0 <= worst["r2_median"][layer]]
        if shaky:
            messages.append(
                f"{one.name}, {estimator}: at {', '.join(shaky)} a few splits fail, so that the mean R² of some class is under "
                "0, as where a feature almost silent in one half speaks up in the other; the tables give medians."
            )
        near = [layer for layer in one.layers if interpolates(one.widths[layer] / (facts["scenes"] // 2))]
        if one.estimator == "ols" and near:
            messages.append(
                f"{one.name}: at {', '.join(near)} the number of features D is near the {facts['scenes'] // 2} scenes of a half; "
                "least squares there tells of the sample size. Read ridge."
            )
    return messages


def draw(one: NetworkTables, facts: Mapping[str, Any]) -> dict[str, tuple[Any, str, str]]:
    """Figure, alt text and caption of each."""
    tables, trained = one.tables, [row for row in one.tables.transfer if row.condition == "trained"]
    trunk = [layer for layer in one.layers if "softmax" not in layer] or one.layers
    shown = list(dict.fromkeys((trunk[0], one.peak, trunk[-1])))
    shares = {"measure": "r", "metric": "standardised"}
    return {
        "shares": (
            figures.shares(tables.change, one.layers),
            f"Share of the change of features along the RCV, its pattern and the best direction by layer of {one.name}.",
            f"How much of what growth does to the features lies along one direction. At {one.peak}: RCV "
            f"{percent(one.mean('change', 'rcv', one.peak, **shares))}, pattern "
            f"{percent(one.mean('change', 'pattern', one.peak, **shares))}, best "
            f"{percent(one.mean('change', 'best', one.peak, **shares))} (standardised). "
            "What is below 0.02 % is drawn at the lower edge.",
        ),
        "responses": (
            figures.responses(tables.readings, one.peak),
            f"What the probes of {one.peak} read from growing objects against their true size.",
            f"Thin lines are objects, bold ones means of their class; probes of r (above) and log r (below) at {one.peak}.",
        ),
        "steps": (
            figures.steps(tables.change, one.layers),
            f"Share of the change of features that each step foretells by layer of {one.name}.",
            "1 would be covariance as an operation; 0 is predicting no change. Standardised features; what is below −0.5 is "
            f"drawn there. At {one.peak}, for r: best for all "
            f"{page.number(one.mean('change', 'best_step', one.peak, **shares))}, along the pattern "
            f"{page.number(one.mean('change', 'pattern_step', one.peak, **shares))}, σ v / |v|² "
            f"{page.number(one.mean('change', 'smallest_step', one.peak, **shares))}, published "
            f"{page.number(one.mean('change', 'published_step', one.peak, **shares), 3)}.",
        ),
        "linearity": (
            figures.linearity(tables.linearity, one.layers),
            f"1 − R² of r, its root and its logarithm by layer of {one.name}.",
            f"What probes of each measure leave unexplained (less is better). {_best_measure(one)}",
        ),
        "angles": (
            figures.angles(tables.angles, one.layers),
            f"Cosines between RCVs of halves of a class and of two classes by layer of {one.name}.",
            f"At {one.peak}: halves "
            f"{page.number(one.mean('angles', 'value', one.peak, kind='splits', metric='standardised'))}, classes "
            f"{page.number(one.mean('angles', 'value', one.peak, kind='classes', metric='standardised'))}; of the patterns "
            f"{page.number(one.mean('angles', 'value', one.peak, kind='splits', metric='pattern'))} and "
            f"{page.number(one.mean('angles', 'value', one.peak, kind='classes', metric='pattern'))}.",
        ),
        "transfer": (
            figures.transfer(trained, shown, facts["classes"]),
            f"R² of the probe of each class in scenes of the others at {', '.join(shown)}.",
            f"Row: the class fitted; column: the class read (the diagonal on held-out scenes). Median over "
            f"{facts['splits']} splits.",
        ),
    }


def _best_measure(one: NetworkTables) -> str:
    """Which measure is most linear at how many layers, in words."""
    wins = dict.fromkeys(figures.MEASURE_NAMES, 0)
    for layer in one.layers:
        scores = {m: one.mean("linearity", "r2_within", layer, measure=m) for m in wins}
        wins[max(scores, key=lambda m: scores[m])] += 1
    at = {m: page.number(one.mean("linearity", "r2_within", one.peak, measure=m), 3) for m in wins}
    return (
        "Within objects the best measure is "
        + ", ".join(f"{figures.MEASURE_NAMES[m]} at {count}" for m, count in wins.items())
        + f" of {len(one.layers)} layers; at {one.peak} R² is "
        + ", ".join(f"{value} for {figures.MEASURE_NAMES[m]}" for m, value in at.items())
        + "."
    )


def network_sections(
    folder: Path, facts: Mapping[str, Any], networks: Sequence[NetworkTables]
) -> list[page.Section]:
    """One part a network and estimator, and one on the objects."""
    parts = []
    for one in networks:
        main = one.estimator == facts["estimators"][0]
        images = (
            [page.embed(figure, alt, caption) for figure, alt, caption in draw(one, facts).values()]
            if main
            else []
        )
        parts.append(
            page.Section(
                f"{one.name}, {ESTIMATOR_NAMES[one.estimator]}",
                (f"{answer(one)}\n\n{_class_sentence(one)}" if main else _class_sentence(one)),
                images,
                [_layer_table(one), *([_neighbour_table(one)] if main else [])],
            )
        )
    pictures = folder / "figures" / "growing.jpg"
    parts.append(
        page.Section(
            "The objects",
            f"{facts['objects']} rendered objects of each of {', '.join(facts['classes'])}, each seen at {len(facts['ratios'])} "
            f"sizes from {facts['ratios'][0]:g} to {facts['ratios'][-1]:g} of the image and centred in it; nothing else changes. "
            f"Probes were fitted to {facts['scenes']} other scenes of each class, in which everything is random; "
            f"halves of them, {facts['splits']} times, give held-out R², angles and transfer. Images of "
            + ", ".join(f"{size} px" for size in sorted({one.size for one in networks}))
            + ".",
            [
                page.Image(
                    pictures.read_bytes(),
                    "Rendered objects, one a class, growing from left to right.",
                    wide=True,
                )
            ]
            if pictures.is_file()
            else [],
        )
    )
    return parts


def _class_sentence(one: NetworkTables) -> str:
    at = one.peak
    halves, classes = (
        one.mean("angles", "value", at, kind=kind, metric="standardised") for kind in ("splits", "classes")
    )
    return (
        f"At {at} RCVs of two classes have a cosine of {page.number(classes)}, those of two halves of one class "
        f"{page.number(halves)} (random directions ±{page.number(one.widths[at] ** -0.5)}). A probe reads its own class with R² "
        f"{_r2(one.transferred(at, 'r2', own=True))}, another class with {_r2(one.transferred(at, 'r2', own=False))}, and "
        f"{_r2(one.transferred(at, 'r2_own_intercept', own=False))} after its intercept was fitted anew."
    )


def _layer_table(one: NetworkTables) -> page.Table:
    columns = (
        "layer", "D", "R² held out", "R² within", "slope", "|v|²", "RCV, raw", "RCV, std.", "pattern", "best", "chance",
        "cos halves", "cos classes", "R² other class", "own intercept",
    )  # fmt: skip
    rows = []
    for at in one.layers:
        read = {
            field: one.mean("linearity", field, at, measure="r")
            for field in ("r2_median", "r2_within", "slope", "factor")
        }
        share = {
            (field, metric): percent(one.mean("change", field, at, measure="r", metric=metric))
            for field in ("rcv", "pattern", "best")
            for metric in ("raw", "standardised")
        }
        rows.append(
            [
                at,
                f"{one.widths[at]:,}",
                _r2(read["r2_median"]),
                _r2(read["r2_within"]),
                _r2(read["slope"]),
                significant(read["factor"]),
                share["rcv", "raw"],
                share["rcv", "standardised"],
                share["pattern", "standardised"],
                share["best", "standardised"],
                percent(1 / one.widths[at]),
                *(
                    page.number(one.mean("angles", "value", at, kind=kind, metric="standardised"))
                    for kind in ("splits", "classes")
                ),
                _r2(one.transferred(at, "r2", own=False)),
                _r2(one.transferred(at, "r2_own_intercept", own=False)),
            ]
        )
    return page.Table(
        "Object scale r, means over classes. Pattern, best and cosines in standardised features; R² medians over splits.",
        columns,
        rows,
        strong={[*one.layers].index(one.peak)},
    )


def _neighbour_table(one: NetworkTables) -> page.Table:
    """How alike the probes of neighbouring layers are."""
    rows = []
    for first, second in zip(one.layers, one.layers[1:], strict=False):
        wanted = {"kind": "layers", "other": second}
        equal = one.widths[first] == one.widths[second]
        rows.append(
            [
                f"{first}, {second}",
                *(
                    page.number(one.mean("angles", "value", first, metric=metric, **wanted)) if equal else "–"
                    for metric in ("raw", "standardised")
                ),
                *(
                    page.number(one.mean("angles", "value", first, metric=metric, **wanted))
                    for metric in ("readings", "errors")
                ),
            ]
        )
    return page.Table(
        "Neighbouring layers: cosines of their RCVs (equal widths only), correlations of what they read from the same held-out "
        "scenes and of their errors.",
        ("layers", "cos, raw", "cos, std.", "readings", "errors"),
        rows,
    )


def percent(share: float) -> str:
    """A share as text; small ones with more digits."""
    return f"{page.number(100 * share, 2 if share < 0.01 else 1)} %"


def significant(value: float) -> str:
    """A number of any magnitude as text, with two digits."""
    rounded = float(f"{value:.2g}")
    text = f"{rounded:,.10g}" if not rounded or 1e-3 <= abs(rounded) < 1e5 else f"{value:.1e}"
    return text.replace("-", "−")


def _r2(value: float) -> str:
    return "< −100" if value < -100 else page.number(value)
