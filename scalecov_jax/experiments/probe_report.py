"""The report of the main experiment, from its tables: where a concept is readable, whether it is, beyond what, and the cut."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scalecov_jax.experiments import probe_published
from scalecov_jax.experiments.probe_part import (
    CONTROLS,
    FEW_GROUPS,
    FEW_IMAGES,
    REACH,
    UNSHOWN,
    Part,
    concept_title,
)
from scalecov_jax.experiments.probe_settings import Settings
from scalecov_jax.experiments.probe_tables import scopes
from scalecov_jax.imaging.voc import OTHER_CLASS
from scalecov_jax.probes.sample_size import dips
from scalecov_jax.probes.splits import UNGROUPED
from scalecov_jax.report import plots
from scalecov_jax.report.findings import Finding
from scalecov_jax.report.numbers import number
from scalecov_jax.report.page import Image, Page, Section, Table, render_text
from scalecov_jax.tables import network_names, rows_of

OPTIMISM = 0.02  # of R2, worth a caution
SAME = 1e-3  # of the largest feature: a pruned network differs by rounding alone
DRAWN = 5  # layers in the figure of training sizes


def report(settings: Settings, tables: Mapping[str, pd.DataFrame], folder: Path | None = None) -> Page:
    """Findings, cautions (a line for each kind), and for each network and concept figures and tables; pictures with a folder."""
    widths, named = tables["widths"], network_names(tables["widths"])
    parts = [
        Part(settings, tables, name, weights, concept, scope)
        for weights, name in named.items()
        for concept in settings.concept
        for scope in scopes(rows_of(tables["classes"], weights=weights))
    ]
    findings = [finding for part in parts for finding in part.findings()]
    sections = [part.section(folder) for part in parts]
    lead, *others = sections[0].images
    sections[0] = sections[0]._replace(images=others)
    cuts = tables["cuts"].to_dict("records") if "cuts" in tables else []
    for cut in cuts:
        kept = 100 * cut["parameters_after"] / cut["parameters_before"]
        at = f"{named[cut['weights']]} {cut['layer']}"
        counted = (
            f"{cut['parameters_before']:,} → {cut['parameters_after']:,}, without the head; the cut network, whose output "
            f"differs from the layer by at most {cut['max_difference']:.1g}, is in pruned/."
        )
        quantity = "share of the parameters that a cut there keeps"
        findings.append(Finding(quantity, at, kept, unit="%", note=counted))
    for row in tables["networks"].to_dict("records") if "networks" in tables else ():
        at = f"{named[row['weights']]} less {named[row['against']]}, {row['image_class']}, {row['concept']}"
        ends = row["difference"], row["low"], row["high"], REACH
        note = f"{row['r2']:.2f} and {row['r2_against']:.2f}; interval over images or groups."
        findings.append(Finding("difference of nested R² between two networks", at, *ends, note=note))
    if "published" in tables:
        for weights in map(str, tables["published"]["weights"].unique()):
            rows = rows_of(tables["published"], weights=weights)
            architecture = rows_of(widths, weights=weights)["architecture"].iloc[0]
            findings += probe_published.findings(named[weights], architecture, rows)
            own = (rows_of(tables[name], weights=weights) for name in ("scores", "classes"))
            sections.append(probe_published.section(named[weights], weights, rows, *own))
    if "sample_size" in tables:
        found, section = _training_sizes(tables["sample_size"], named)
        findings += found
        sections += section
    findings += _cautions(settings, tables, cuts, parts, named)
    if folder and (folder / "scenes.jpg").exists():
        alt = "A grid of rendered scenes: one row a class, the object growing from left to right."
        sheet = Image((folder / "scenes.jpg").read_bytes(), alt, wide=True)
        sections.append(Section("The scenes", "", [sheet], html=render_text("probe.html", "scenes")))
    skipped = tables["skipped"].drop_duplicates(["image", "reason"])
    skipped = skipped[skipped["reason"] != OTHER_CLASS]
    left_out = {str(reason): sorted(rows["image"]) for reason, rows in skipped.groupby("reason")}
    facts = _facts(tables, [part for part in parts if part.main], settings)
    reading = render_text("probe.html", "reading")
    title = settings.title or f"Where is {concept_title(settings.concept[0])} read?"
    return Page(title, findings, sections, reading, skipped=left_out, lead=lead, facts=facts)


def _cautions(
    settings: Settings,
    tables: Mapping[str, pd.DataFrame],
    cuts: Sequence[Mapping[Any, Any]],
    parts: Sequence[Part],
    named: Mapping[str, str],
) -> Iterator[Finding]:
    """One line for each kind: the worst value, and where else."""
    main = [part for part in parts if part.main]
    changed = {
        f"{named[cut['weights']]} {cut['layer']}": float(cut["max_difference"] / (cut["largest"] or 1.0))
        for cut in cuts
    }
    yield from _caution(
        "difference between the output of the cut network and the layer it was cut after, of the largest feature",
        {at: value for at, value in changed.items() if value > SAME},
        "Something follows the layer before the cut, such as an activation; put it inside the layer.",
    )
    undefined = tables["widths"][tables["widths"]["width"].isna()]
    places = {
        named[str(weights)]: ", ".join(
            f"{layer} (sees the whole image)"
            if np.isnan(size)
            else f"{layer} (defined from {size:.0f} pixels)"
            for layer, size in zip(rows["layer"], rows["defined_from"], strict=True)
        )
        for weights, rows in undefined.groupby("weights", sort=False)
    }
    yield from _caution(
        f"number of layers left out, at which {settings.pooling} is undefined",
        {
            name: float(len(rows_of(undefined, weights=weights)))
            for weights, name in named.items()
            if name in places
        },
        f"The best layer is the best of the others. Undefined at {'; '.join(dict.fromkeys(places.values()))}.",
    )
    if settings.splitting in UNGROUPED:
        classes = tables["classes"].drop_duplicates("image_class").set_index("image_class")
        shared = (classes["images"] - classes["groups"]).astype(float)
        yield from _caution(
            "number of images of a group (patient, slide or source) that has others",
            {str(name): value for name, value in shared.items() if value},
            f"Splits of kind {settings.splitting} put them into both the training and the held-out part, so that R² is too high "
            f"for new groups. Take config.splitting={UNGROUPED[settings.splitting]}.",
        )
    first = [part for part in parts if part.concept == settings.concept[0]]
    near = {part.at: part.flagged for part in first if part.flagged}
    listed = "; ".join(f"{name}: {', '.join(layers)}" for name, layers in near.items())
    yield from _caution(
        "number of layers with about as many independent features as training images",
        {name: float(len(layers)) for name, layers in near.items()},
        f"R² of least squares there tells of the sample size, not of the layer; read ridge. {listed}.",
    )
    ridge = rows_of(tables["scores"], condition="trained", estimator="ridge")
    lowest = ridge.groupby(["weights", "layer"], sort=False)["r2"].min().reset_index().to_numpy().tolist()
    yield from _caution(
        "smallest R² by ridge of any split",
        {f"{named[weights]} {layer}": r2 for weights, layer, r2 in lowest if r2 < -1},
        "A feature that is almost constant in the training part takes a value far outside its range in the held-out part. "
        "Read the median there, not the mean.",
        worst=min,
    )
    if "contrasts" not in tables:
        images = float(tables["classes"].groupby("weights")["images"].sum().max())
        yield from _caution(
            "number of images that were streamed",
            {"all networks": images},
            "There is what the sums of folds give, R² with its spread over folds and the permutation test, and no evidence that "
            "needs all features at once: intervals from leaving out images or groups, single images, nuisances, pixels.",
        )
        return
    images = {part.at: float(part.best["images"]) for part in parts if part.best["images"] < FEW_IMAGES}
    yield from _caution(
        "number of images",
        images,
        f"With fewer than about {FEW_IMAGES}, intervals are wide, and layers cannot be told apart.",
        worst=min,
    )
    groups = {part.at: float(part.best["groups"]) for part in parts if part.best["groups"] < FEW_GROUPS}
    yield from _caution(
        "number of independent images or groups of images",
        groups,
        f"With fewer than {FEW_GROUPS}, 95 % intervals are too narrow.",
        worst=min,
    )
    optimism = {
        f"{part.at} {part.peak}, {part.title}": float(part.choice["best_r2"] - part.choice["r2"])
        for part in main
    }
    yield from _caution(
        "R² of the best layer less that of layers chosen inside the training parts",
        {at: value for at, value in optimism.items() if value > OPTIMISM},
        "The images that R² of the best layer is measured on chose it, which makes it too high.",
    )
    above = {
        f"{part.at} {part.peak}, {part.title}, against {CONTROLS[control]}": value
        for part in main
        for control, (value, low, _) in part.differences(part.peak).items()
        if control in CONTROLS and not low > 0
    }
    yield from _caution(
        "R² of the best layer less that of a control",
        above,
        f"{UNSHOWN} Where the difference is below 0, the control reads more.",
        worst=min,
    )
    p = {f"{part.at} {part.peak}, {part.title}": float(part.best["p_family"]) for part in main}
    yield from _caution(
        "family-wise p at the best layer",
        {at: value for at, value in p.items() if value > 0.05},
        "Nothing is shown to be read.",
    )
    low = {
        f"{part.at} {part.peak}, {part.title}": float(part.best["low"])
        for part in main
        if part.best["high"] >= 0
    }
    yield from _caution(
        "lower end of the 95 % interval of R² at the best layer",
        {at: value for at, value in low.items() if value <= 0},
        "R² may be 0.",
        worst=min,
    )


def _caution(quantity: str, places: Mapping[str, float], note: str, worst: Any = max) -> Iterator[Finding]:
    """The worst of several places; none where there are none."""
    if places:
        at = worst(places, key=lambda place: places[place])
        others = [place for place in places if place != at]
        also = f" Also at {', '.join(others)}." if others else ""
        digits = 0 if float(places[at]).is_integer() else 3
        yield Finding(quantity, at, places[at], note=note + also, level="caution", digits=digits)


def _training_sizes(scores: pd.DataFrame, named: Mapping[str, str]) -> tuple[list[Finding], list[Section]]:
    """The dip of least squares against the number of training images."""
    findings, images, tables = [], [], []
    for keys, some in scores.groupby(["weights", "image_class"], sort=False):
        (weights, image_class), found = map(str, keys), dips(some)
        if found.empty:
            continue
        at, ratios = f"{named[weights]}, {image_class}", found["n_train"] / found["rank"]
        quantity = "training images at the dip of least squares / independent features"
        ends = (ratios.median(), ratios.min(), ratios.max(), f"extremes of {len(found)} layers")
        findings.append(Finding(quantity, at, *ends))
        first = found.drop_duplicates("rank").head(DRAWN)
        labels = {layer: f"{layer} (rank {rank})" for layer, rank in first[["layer", "rank"]].to_numpy()}
        drawn = some[some["layer"].isin([*labels])]
        medians = drawn.groupby(["estimator", "layer", "n_train"], sort=False)["r2"].median().reset_index()
        frame = pd.DataFrame(
            {
                "panel": medians["estimator"].map({"ols": "least squares", "ridge": "ridge"}),
                "series": medians["layer"].map(labels),
                "x": medians["n_train"],
                "value": np.exp(medians["r2"] - 1),
            }
        )
        images.append(
            plots.curves(
                frame,
                x="training images",
                y="exp(R² − 1)",
                name=f"{weights}-{image_class}-sample_size",
                caption=f"{at}: medians over splits, the first layer of each rank.",
                limits=(0.0, 1.0),
                lines={"R² = 0": float(np.exp(-1))},
            )
        )
        columns = {
            "layer": found["layer"],
            "D": found["width"].map("{:,}".format),
            "rank": found["rank"].map("{:,}".format),
            "n_train at the dip": found["n_train"].astype(str),
            "n_train / rank": ratios.map(number),
            "least squares there": found["ols"].map(number),
            "ridge there": found["ridge"].map(number),
        }
        caption = f"{at}: the training size at which least squares is worst."
        tables.append(Table.of(caption, pd.DataFrame(columns)))
    heading = "The dip of least squares against the number of training images"
    text = render_text("probe.html", "sizes")
    return findings, [Section(heading, "", images, tables, text)] if images else []


def _facts(tables: Mapping[str, pd.DataFrame], parts: Sequence[Part], settings: Settings) -> dict[str, Any]:
    """What other programs read from summary.json: by network, or of the only network, selected layers and what was left out."""
    networks = {}
    for part in parts:
        selected = {
            name: {"layer": one.layer, "r2_mean": one.r2_mean, "r2_sd": one.r2_sd}
            for name, one in part.selected.items()
        }
        if part.concept == settings.concept[0]:
            cut = rows_of(tables["cuts"], weights=part.weights) if "cuts" in tables else pd.DataFrame()
            skipped = tables["skipped"][tables["skipped"]["weights"].isin(["", part.weights])]
            classes = part.classes.set_index("image_class")
            networks[part.weights] = {
                "architecture": part.widths["architecture"].iloc[0],
                "weights": part.weights,
                "selected": selected,
                "concepts": {},
                "images": classes["images"].to_dict(),
                "n_train": classes["n_train"].to_dict(),
                "pruning": next(iter(cut.to_dict("records")), None),
                "skipped": skipped["reason"].value_counts().to_dict(),
            }
        networks[part.weights]["concepts"][part.concept] = {"selected": selected}
    return next(iter(networks.values())) if len(networks) == 1 else {"networks": networks}
