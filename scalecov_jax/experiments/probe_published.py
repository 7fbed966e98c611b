"""Section 4.3 of the scale paper and its appendix: the published R2 of every layer beside ours."""

from collections.abc import Iterator, Mapping
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from scalecov_jax.experiments import published
from scalecov_jax.extraction import pooled_features
from scalecov_jax.models.architecture import get_architecture
from scalecov_jax.models.pruning import abstract_variables
from scalecov_jax.report import plots
from scalecov_jax.report.findings import Finding
from scalecov_jax.report.numbers import number
from scalecov_jax.report.page import Image, Section, Table, render_text
from scalecov_jax.scores import CONDITIONS
from scalecov_jax.selection import interpolates

CONCEPT = "scale"
CURVE, RUNS = "Figure A2", "Table A1"
_COLUMNS = (
    *("weights", "source", "condition", "layer", "published", "published_sd", "ours", "ours_sd", "ridge"),
    *("interpolates", "explanation"),
)
_CONDITIONS = {
    "trained": "trained",
    "random_weights": "random weights",
    "shuffled_measure": "shuffled measure",
}


@lru_cache(maxsize=2)
def published_widths(architecture: str) -> dict[str, int]:
    """Features D of each layer of the published inception_v3 or resnet50, from the shapes of its module."""
    family = get_architecture(architecture)
    module = family.module()
    images = jax.ShapeDtypeStruct((1, family.input_size, family.input_size, 3), jnp.uint8)
    layers = tuple(published.CURVES[architecture])
    pooled = partial(pooled_features, module, layers=layers, preprocessing="raw")
    shapes = jax.eval_shape(
        lambda variables, x: pooled(variables, x), abstract_variables(module, family), images
    )
    return {layer: shapes[layer].shape[-1] for layer in layers}


def over_runs(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and sd (ddof 1) of R2 over all runs, by condition, estimator and layer, as in Table A1 (one class)."""
    r2 = scores.groupby(["condition", "estimator", "layer"], sort=False)["r2"]
    return pd.DataFrame({"r2": r2.mean(), "sd": r2.std().fillna(0.0)})


def over_classes(scores: pd.DataFrame, repetitions: int = published.REPETITIONS) -> pd.DataFrame:
    """ln(mean of exp(R2 - 1)) + 1 over classes and the first `repetitions` splits, and the sd of exp(R2 - 1): Figure A2.

    This is not the mean R2: it lies above it, the more the further single runs fall below zero (the published figures say R2).

    Of one network; `repetitions` splits of each class count. Columns r2 and sd, by condition, estimator and layer.

    Source: the authors' notebook Averaging_results (medgift/scale_covariant_pruning).
    """
    some = scores[scores["split"] < repetitions]
    groups = some.assign(r2=np.exp(some["r2"] - 1)).groupby(["condition", "estimator", "layer"], sort=False)
    runs = groups["r2"].agg(["mean", "std"])
    # Far negative R2 underflow to exp = 0: the smallest double keeps the logarithm finite.
    mean = runs["mean"].clip(lower=np.finfo(float).tiny)
    return pd.DataFrame({"r2": np.log(mean) + 1, "sd": runs["std"].fillna(0.0)})


def compare(scores: pd.DataFrame, widths: pd.DataFrame, classes: pd.DataFrame) -> pd.DataFrame:
    """Figure A2 and, of InceptionV3, Table A1 beside ours, a row for each layer and condition (published.csv).

    `published` is missing where the curve cannot be told from exp(R2 - 1) = 0, `published_sd` where it is not printed, `ours`
    (least squares) and `ridge` where the network has not the layer; all are averaged as published. `interpolates` says that D is
    near n_train, in the published run or in ours: least squares tells nothing of the layer there.

    Of one network; no rows for networks or concepts that the paper has not.
    """
    architecture, weights = widths[["architecture", "weights"]].iloc[0]
    scores = scores[scores["concept"] == CONCEPT]
    if architecture not in published.PEAK or scores.empty:
        return pd.DataFrame(columns=[*_COLUMNS])
    n_train = classes.set_index("image_class")["n_train"]
    read = published.CURVES[architecture]
    curve = {
        condition: {
            layer: (np.log(values[condition]) + 1 if values[condition] else np.nan, np.nan)
            for layer, values in read.items()
        }
        for condition in CONDITIONS
    }
    ours = round(float(n_train.mean())), round(float(np.mean([*published.N_TRAIN.values()])))
    rows = [*_rows(CURVE, curve, over_classes(scores), architecture, widths, ours)]
    if architecture == "inception_v3":
        reference = reference_class(classes)
        printed = {
            condition: {layer: row[condition] for layer, row in published.TABLE_A1.items()}
            for condition in CONDITIONS
        }
        runs = over_runs(scores[scores["image_class"] == reference])
        both = int(n_train[reference]), published.N_TRAIN["albatross"]
        rows += _rows(RUNS, printed, runs, architecture, widths, both)
    return pd.DataFrame(rows).assign(weights=weights)[[*_COLUMNS]]


def reference_class(classes: pd.DataFrame) -> str:
    """The class that stands for the published albatross: itself where it was probed, else the largest class."""
    names = classes.sort_values("images", ascending=False, kind="stable")["image_class"].tolist()
    return "n02058221" if "n02058221" in names else names[0]


def _rows(
    source: str,
    printed: Mapping[str, Mapping[str, tuple[float, float]]],
    ours: pd.DataFrame,
    architecture: str,
    widths: pd.DataFrame,
    n_train: tuple[int, int],
) -> Iterator[dict[str, object]]:
    """Rows of `compare`; `n_train` is ours and the published one."""
    own, there = widths.set_index("layer")["width"].dropna(), published_widths(architecture)
    found = dict(zip(ours.index, ours.to_numpy().tolist(), strict=True))
    for condition, by_layer in printed.items():
        for layer, (value, sd) in by_layer.items():
            row = {"source": source, "condition": condition, "layer": layer}
            row |= {"published": value, "published_sd": sd}
            if layer not in own:
                why = f"not measured here: the last layer probed is {own.index[-1]}"
                missing = dict.fromkeys(("ours", "ours_sd", "ridge"), np.nan)
                yield {**row, **missing, "interpolates": False, "explanation": why}
                continue
            (r2, spread), (ridge, _) = found[condition, "ols", layer], found[condition, "ridge", layer]
            ratios = {"published": (there[layer], n_train[1]), "here": (int(own[layer]), n_train[0])}
            near = {where: ratio for where, ratio in ratios.items() if interpolates(ratio[0] / ratio[1])}
            yield {
                **row,
                "ours": r2,
                "ours_sd": np.nan if np.isnan(sd) else spread,
                "ridge": ridge,
                "interpolates": bool(near),
                "explanation": _explain(layer, condition, (value, sd), (r2, spread), ratios, near),
            }


def _explain(
    layer: str,
    condition: str,
    printed: tuple[float, float],
    ours: tuple[float, float],
    ratios: Mapping[str, tuple[int, int]],
    near: Mapping[str, tuple[int, int]],
) -> str:
    """Why ours and the published value differ or agree; `ratios` are D and n_train, `near` those that lie near each other."""
    (value, sd), (r2, spread) = printed, ours
    if np.isnan(value):
        agrees = "below what the figure can show" if r2 < -3 else "above what was published"
    else:
        # Figure A2 averages exp(R2 - 1), so that its spread is on that scale.
        apart = float(np.exp(r2 - 1) - np.exp(value - 1)) if np.isnan(sd) else r2 - value
        close = abs(apart) <= max(2 * float(np.hypot(0.0 if np.isnan(sd) else sd, spread)), 0.02)
        agrees = "within the spread of the runs" if close else "higher" if apart > 0 else "lower"
    (there, published_n), (width, n_train) = ratios["published"], ratios["here"]
    why = ""
    if near:
        where = ", ".join(f"{name} D / n_train = {d} / {n}" for name, (d, n) in near.items())
        why = f"least squares near D = n_train ({where}): sample size, not layer; read ridge"
    elif layer == "softmax" and condition != "random_weights":
        why = "probabilities near 0 with few large ones: least squares extrapolates; read ridge"
    elif agrees in ("higher", "lower") and width != there:
        why = f"another width (D = {width}, published {there}), other weights and images"
    elif agrees in ("higher", "lower", "above what was published"):
        why = f"other images and n_train ({n_train}, published {published_n})"
    return f"{agrees}; {why}" if why else agrees


def findings(name: str, architecture: str, rows: pd.DataFrame) -> Iterator[Finding]:
    """Whether R2 by least squares peaks where the paper says, and follows its curve, from the rows of published.csv."""
    curve = rows[(rows["source"] == CURVE) & (rows["condition"] == "trained")].set_index("layer")
    layer, r2 = published.PEAK[architecture]
    measured = curve.dropna(subset=["ours"])
    if layer in measured.index:
        peak, ridge = measured["ours"].idxmax(), measured["ridge"].idxmax()
        yield Finding(
            "R² by least squares at the published peak, averaged as published",
            f"{name} {layer}",
            float(measured["ours"][layer]),
            published=r2,
            source=CURVE,
            note=f"Of the published layers ours is largest at {peak}, by ridge at {ridge}.",
        )
    away = measured[~measured["interpolates"]].dropna(subset=["published"])
    if len(away) > 2:
        at = f"{name}, {len(away)} layers away from D = n_train"
        alike = float(away["ours"].corr(away["published"]))
        apart = float((away["ours"] - away["published"]).abs().median())
        yield Finding("correlation of R² by least squares with the published curve", at, alike, source=CURVE)
        yield Finding(
            "median distance of R² by least squares from the published curve", at, apart, source=CURVE
        )


def section(
    name: str, weights: str, rows: pd.DataFrame, scores: pd.DataFrame, classes: pd.DataFrame
) -> Section:
    """Published and ours at every layer, from the rows of the network in published.csv, scores.csv and classes.csv."""
    tables = []
    for source, some in rows.groupby("source", sort=False):
        columns: dict[str, pd.Series] = {}
        for condition, label in _CONDITIONS.items():
            own = some[some["condition"] == condition].set_index("layer")
            for column in ("published", "ours", "ridge"):
                columns[f"{label}: {column}"] = own[column].map(number)
        trained = some[some["condition"] == "trained"].set_index("layer")
        columns["explanation (trained)"] = trained["explanation"]
        caption = f"{name}, {source}. Ours: least squares, averaged as published. A dash: not probed, or below what it can show."
        tables.append(Table.by_layer(caption, columns, trained.index.tolist()))
    values = {"classes": classes.to_dict("records"), "reference": reference_class(classes)}
    values |= {"runs": scores["split"].nunique(), "table": RUNS in rows["source"].tolist()}
    text, curve = render_text("probe.html", "published", **values), rows[rows["source"] == CURVE]
    return Section(f"Published and ours: {name}", "", [_curves(weights, curve)], tables, text)


def _curves(weights: str, curve: pd.DataFrame) -> Image:
    series = {"published": "published", "ours": "ours, least squares", "ridge": "ours, ridge"}
    long = curve.melt(["condition", "layer"], [*series], "series", "value")
    frame = pd.DataFrame(
        {
            "panel": long["condition"].map(_CONDITIONS),
            "series": long["series"].map(series),
            "x": long["layer"],
            "value": np.exp(long["value"] - 1),
        }
    )
    return plots.curves(
        frame,
        x="layer, from input to output",
        y="exp(R² − 1)",
        name=f"{weights}-published",
        caption="Mean over classes and ten repetitions, as in Figure A2.",
        order=[*curve["layer"].unique()],
        limits=(0.0, 1.0),
        lines={"R² = 0": float(np.exp(-1))},
    )
