"""What a network looks at, which concepts push it, and what its parts respond to: tables and report of every method.

`explain_inputs.py` has the settings and opens what they name; `explain_maps.py`, `explain_scores.py` and `explain_checks.py`
compute.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from scalecov_jax.checkpoints import Network
from scalecov_jax.experiments import explain_checks, explain_maps, explain_scores
from scalecov_jax.experiments.explain_checks import REFERENCE
from scalecov_jax.experiments.explain_inputs import METHODS, Settings, Subject, open_inputs
from scalecov_jax.explanation import grad_cam
from scalecov_jax.explanation.sensitivity import SAME
from scalecov_jax.imaging.image_set import Skipped
from scalecov_jax.report import page, pictures, plots
from scalecov_jax.report.findings import Finding
from scalecov_jax.report.numbers import number
from scalecov_jax.report.page import Image, Page, Section, Table, render_text
from scalecov_jax.report.pictures import POSITIVE, SIGNED, Album
from scalecov_jax.tables import stacked

__all__ = ["METHODS", "Settings", "check", "plan", "report", "run"]

LARGEST_ERROR = 1e-4  # relative, of parts that should add up to a score
MEASURES = {
    "hit": "share of maps whose highest pixel hits a lesion",
    "recall": "share of lesions marked",
    "precision": "area under precision-recall",
}


def check(settings: Settings) -> dict[str, Network]:
    """The networks by name, those with random weights among them.

    Raises:
        ValueError: Weights, targets, layers, RCVs, images or memory that cannot be used.
    """
    return {subject.name: subject.network for subject in _open(settings)[0]}


def plan(settings: Settings) -> str:
    """What `run` would compute, in words; nothing is computed. Raises as `check` does."""
    subjects, _ = _open(settings)
    first, what = subjects[0], f"{','.join(map(str, settings.channels))} of {settings.layer[0]}"
    if settings.method != "feature_visualization":
        what = f"{len(first.source)} images"
    names = ", ".join(subject.name for subject in subjects)
    lines = [f"Would compute {settings.method} of {what} for {names}. Nothing was computed."]
    if settings.method == "score_propagation":
        lines += map(explain_scores.needed_memory, subjects)
    if settings.locates:
        lines.append(f"{len(first.masked)} of them have something in their mask.")
    return "\n".join(lines)


def run(settings: Settings, folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """Explain all networks by a method.

    maps/, gradients/, states/, scores.npz (scores_NAME.npz of further networks), localised/ and randomised/ in the folder keep
    what is slow; pictures/ and blink/ are written.

    Returns:
        maps and pointing, sensitivity, visualisations, or scores and totals, by the method; localisation and methods, randomised
        if asked for; see the functions of `explain_maps`, `explain_scores` and `explain_checks`. And pictures (see `Album`), rcvs
        (held-out R2 of the RCVs in use) and skipped (images left out, reason and detail).
    """
    subjects, left_out = _open(settings)
    album, tables = Album(folder), [("skipped", _skipped(left_out))]
    for subject in subjects:
        tables += _explain(subject, subject is subjects[0], album, folder).items()
    joined = stacked(tables)
    joined["skipped"] = joined["skipped"].drop_duplicates()
    if settings.locates:
        joined["methods"] = explain_checks.compare_maps(joined["localisation"], settings.seed)
    return {**joined, "pictures": album.table()}


def _open(settings: Settings) -> tuple[list[Subject], tuple[Skipped, ...]]:
    subjects, skipped = open_inputs(settings)
    if settings.method == "score_propagation":
        for subject in subjects:
            explain_scores.check_scores(subject)
    return subjects, skipped


def _explain(subject: Subject, first: bool, album: Album, folder: Path | None) -> dict[str, pd.DataFrame]:
    """The tables of a network; what is drawn goes into the album."""
    settings, name = subject.settings, subject.name
    aims = [subject.aim] if subject.aim else []
    rcvs = [(name, rcv.layer, rcv.measure, rcv.r2) for rcv in (*aims, *subject.rcvs)]
    columns = ["weights", "layer", "concept", "r2"]
    tables = {"rcvs": pd.DataFrame(rcvs, columns=columns).astype({"r2": float}).drop_duplicates()}
    skipped: Sequence[Skipped] = ()
    if settings.method == "feature_visualization":
        tables["visualisations"], images = explain_maps.visualise(subject, folder)
        for row, pixels in zip(_rows(tables["visualisations"]), images, strict=True):
            concept = row.objective.removeprefix("rcv:") if settings.objective == "rcv" else ""
            album.add("sheet", f"{name}\n{concept}".strip(), f"{row.part}: {row.value:.3g}", pixels)
    elif settings.method == "sensitivity":
        tables["sensitivity"], skipped = explain_maps.weigh_concepts(subject, folder)
    elif settings.method == "score_propagation":
        path = folder and folder / ("scores.npz" if first else f"scores_{name}.npz")
        tables["scores"], found = explain_scores.divide_scores(subject, path)
        tables["totals"] = explain_scores.kept_shares(tables["scores"], found)
        skipped = found.skipped
        if folder:
            explain_scores.draw_scores(subject, found, album, folder)
        if settings.locates:
            tables["localisation"] = explain_checks.localise(subject, folder)
    else:
        tables["maps"], tables["pointing"], shown, skipped = explain_maps.map_images(subject, folder)
        for image, pixels, map in shown:
            if first:
                album.add("overlays", image, "", pixels)
            album.add("overlays", image, name, pictures.overlay(pixels, map, _scale(settings)))
    mapped = settings.method in (*grad_cam.METHODS, "score_propagation")
    if settings.randomisation and mapped and not subject.random:
        tables["randomised"] = explain_checks.randomise(subject, folder)
    return {**tables, "skipped": _skipped(skipped)}


def _skipped(images: Sequence[Skipped]) -> pd.DataFrame:
    return pd.DataFrame(images, columns=["image", "reason", "detail"]).astype("str")


def _scale(settings: Settings) -> tuple[float, float, str]:
    return SIGNED if settings.signed else POSITIVE


# Report


class _Part:
    """What a table adds to the page: findings, figures and tables."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.images: list[Image] = []
        self.tables: list[Table] = []

    def add(self, quantity: str, at: Any, value: Any, low: Any = None, high: Any = None, **more: Any) -> None:
        """A finding; a missing value is left out, and missing ends of an interval."""
        if pd.notna(value):
            ends = (None, None) if pd.isna(low) else (float(low), float(high))
            self.findings.append(Finding(quantity, str(at), float(value), *ends, **more))

    def caution(self, rows: pd.DataFrame, column: str, quantity: str, note: str, **more: Any) -> None:
        """The first of the rows that a reader should know of; nothing where there are none."""
        if len(rows):
            worst = rows.iloc[0]
            names = [str(worst[name]) for name in ("weights", "layer", "image", "concept") if name in rows]
            self.add(quantity, " ".join(names), worst[column], note=note, level="caution", **more)


def report(settings: Settings, tables: Mapping[str, pd.DataFrame], folder: Path | None = None) -> Page:
    """Findings, cautions, figures and tables of whatever was computed."""
    parts = {
        "rcvs": _rcvs,
        "methods": _methods,
        "maps": _maps,
        "sensitivity": _sensitivity,
        "visualisations": _visualisations,
        "scores": _scores,
        "randomised": _randomised,
    }
    part = _Part()
    for name, describe in parts.items():
        if name in tables:
            describe(part, settings, tables)
    used = max((tables[name]["image"].nunique() for name in ("maps", "scores") if name in tables), default=0)
    for reason, rows in tables["skipped"].groupby("reason", sort=False):
        note, share = f"{len(rows)} images; skipped.csv names them.", 100 * len(rows) / (len(rows) + used)
        part.add(f"images left out ({reason})", settings.images, share, unit="%", note=note, level="caution")
    if folder:
        captions = {
            "overlays": f"Images and maps by {settings.method} at {settings.layer[0]}, in shares of each map's largest value.",
            "sheet": f"Images optimised for {settings.objective} at {settings.layer[0]}, with the activation at the last step.",
            "maps": "Image, total map with the score and the sum of its parts, pixels that stand out, and these over the image.",
            "walk": "From the last layer to the input, each map on a scale of its own, with what the layer adds to the score.",
        }
        scale = {"scale": _scale(settings), "label": "share of the largest value"} if "maps" in tables else {}
        part.images += pictures.picture_figures(tables["pictures"], folder, captions, **scale)
    values = {"method": settings.method, "settings": settings, "tables": [*tables]}
    section = Section("Result", "", part.images, part.tables, render_text("explain.html", "text", **values))
    method = page.DE_LA_TORRE if "scores" in tables else page.GRAZIANI
    reading = render_text("explain.html", "reading", **values)
    return Page(settings.title, part.findings, [section], reading, method=method)


def _rcvs(part: _Part, settings: Settings, tables: Mapping[str, pd.DataFrame]) -> None:
    rcvs = tables["rcvs"]
    for row in _rows(rcvs):
        if settings.method != "sensitivity" or (row.concept, row.layer) == settings.rcv_target:
            quantity = f"held-out R² of the RCV ({settings.vector}) of {row.concept}"
            part.add(quantity, f"{row.weights} {row.layer}", row.r2, level="headline")
    unread = rcvs[rcvs["r2"] <= 0].sort_values("r2")
    note = f"Directions of what cannot be read mean nothing: {', '.join(unread['concept'].unique())}."
    part.caution(unread, "r2", "smallest held-out R² of an RCV", note)


def _maps(part: _Part, settings: Settings, tables: Mapping[str, pd.DataFrame]) -> None:
    pointing, (layer, *_) = tables["pointing"], settings.layer
    boxes = {"all": "images with a box", "small": "images with a small box"}
    for weights, own in tables["maps"].groupby("weights", sort=False):
        games = pointing[pointing["weights"] == weights]
        for game in _rows(games):
            at, share = f"{weights} {layer}, {game.images} {boxes[game.stratum]}", 100 / game.images
            level = "headline" if game.stratum == "all" else "result"
            note = f"Exact p of the difference to the centre {game.p:.2g}."
            hits = f"boxes that the largest value of a map of {settings.target} hits"
            part.add(hits, at, share * game.hits, unit="%", note=note, level=level)
            quantity, value = "boxes that the centre of the image hits", share * game.centre_hits
            part.add(quantity, at, value, unit="%", level=level)
            quantity, value = "boxes that maps of other images hit", share * game.other_maps
            part.add(quantity, at, value, unit="%", note=f"Permutation p {game.p_other:.2g}.", level=level)
        at = f"{weights} {layer}, {len(own)} images"
        level = "result" if len(games) else "headline"
        for column in ("insertion", "deletion"):
            part.add(f"mean area under {column} of {settings.target}", at, own[column].mean(), level=level)
        part.add(f"mean of {settings.target}", at, own["score"].mean(), level=level)
    empty = 100 * (tables["maps"].set_index("weights")["largest"] == 0).groupby("weights", sort=False).mean()
    note = "Nothing speaks for the target there."
    empty = empty[empty > 0].sort_values(ascending=False).reset_index()
    part.caution(empty, "largest", "maps that are empty", note, unit="%")
    if len(pointing):
        caption = (
            f"Pointing game, within {settings.tolerance} pixels. Small: boxes under a quarter of the image."
        )
        part.tables.append(_table(caption, pointing))


def _sensitivity(part: _Part, settings: Settings, tables: Mapping[str, pd.DataFrame]) -> None:
    rows = tables["sensitivity"]
    first = rows[rows["weights"] == rows["weights"].iloc[0]]
    strongest = first["br"].abs().fillna(0.0).where(first["r2"] > 0, 0.0).idxmax()
    for row in _rows(rows):
        at, level = f"{row.weights} {row.layer}", "headline" if row.Index == strongest else "result"
        smooth = f"{number(row.smooth)} ({number(row.smooth_low)} to {number(row.smooth_high)})"
        note = (
            f"Held-out R² {number(row.r2)}, TCAV {number(row.tcav)}, p = {row.p:.2g}, smooth {smooth}, "
            f"p = {row.smooth_p:.2g}."
        )
        quantity = f"bidirectional relevance Br of {row.concept} for {settings.target}"
        ends = {"interval": "95 % over images", "note": note, "level": level}
        part.add(quantity, at, row.br, row.br_low, row.br_high, **ends)
        if pd.isna(row.br):
            quantity = f"mean z of {row.concept} for {settings.target}, whose S is the same for all images"
            part.add(quantity, at, row.dimension_free, note=note, level=level)
    bars = rows.rename(
        columns={"concept": "label", "weights": "series", "br": "value", "br_low": "low", "br_high": "high"}
    )
    if rows["br"].notna().any():
        caption = "95 % intervals over images; nothing where S is the same for all images."
        relevance = plots.bars(bars, x="bidirectional relevance Br", name="relevance", caption=caption)
        part.images.append(relevance)
    row, counts, drawn = first.loc[strongest], (10, 20, 50, 100, 200, 500, 1000), []
    for name, score in {"TCAV": "tcav", "smooth": "smooth"}.items():
        images, directions = np.square(row[[f"{score}_images", f"{score}_directions"]].to_numpy(float))
        if images > SAME**2:
            note = "With more its 95 % interval beside them narrows by 5 % at most."
            needed = np.ceil(directions / images / (1.05**2 - 1))
            part.add(
                f"random directions that {name} of {row['concept']} needs", row["layer"], needed, note=note
            )
        widths = [2 * norm.ppf(0.975) * np.sqrt(images + directions / count) for count in counts]
        drawn.append(pd.DataFrame({"series": name, "x": counts, "value": widths}))
    if pd.concat(drawn)["value"].notna().any():
        caption = (
            f"Of score - mean of random directions, for {row['concept']}; the rest is the choice of images."
        )
        axes = {"x": "random directions", "y": "width of the 95 % interval", "log": "x"}
        part.images.append(plots.curves(pd.concat(drawn), **axes, name="directions", caption=caption))
    part.tables.append(_table("Random: 95 % of the TCAV scores of random directions.", rows))


def _visualisations(part: _Part, settings: Settings, tables: Mapping[str, pd.DataFrame]) -> None:
    groups = tables["visualisations"].groupby(["weights", "layer", "objective", "steps"], sort=False)
    for (weights, layer, objective, steps), own in groups:
        quantity = f"mean activation of {len(own)} images after {steps} steps, {objective}"
        part.add(quantity, f"{weights} {layer}", own["value"].mean(), level="headline")


def _scores(part: _Part, settings: Settings, tables: Mapping[str, pd.DataFrame]) -> None:
    scores, totals = tables["scores"], tables["totals"]
    for weights, own in scores.groupby("weights", sort=False):
        at = f"{weights}, {len(own)} scores of {own['image'].nunique()} images"
        worst = 1e6 * own["relative_error"].max()
        part.add("largest relative error of the sum of parts", at, worst, unit="millionths", level="headline")
        share = (own["input"] / own["logit"].replace(0.0, 1.0)).median()
        part.add("share of the score that the input has (median)", at, share, level="headline")
        if settings.prior != "true":
            held = totals.loc[totals["weights"] == weights, "held"].median()
            note = f"The {settings.prior} prior loses what lies outside the image."
            quantity = "share of the score that the total maps hold (median)"
            part.add(quantity, weights, held, note=note, level="caution")
    note = "The parts do not add up to the score: do not read the maps."
    millionths = scores.assign(error=1e6 * scores["relative_error"])
    wrong = millionths[scores["relative_error"] > LARGEST_ERROR].sort_values("error", ascending=False)
    part.caution(wrong, "error", "largest relative error of the sum of parts", note, unit="millionths")


def _methods(part: _Part, settings: Settings, tables: Mapping[str, pd.DataFrame]) -> None:
    methods, located, images = tables["methods"], tables["localisation"], tables["scores"]["image"].nunique()
    used = located["image"].nunique()
    for count, (names, own) in enumerate(methods.groupby(["weights", "target", "smoothing"], sort=False), 1):
        weights, target, sd = names
        here = located[located["weights"] == weights]
        smoothed = f", smoothed by {sd:g} px" if sd else ""
        at = f"{weights}, {target}{smoothed}, {here['image'].nunique()} images of {here['patient'].nunique()} patients"
        precision = own[own["measure"] == "precision"]
        best = own.loc[[precision["mean"].idxmax()]]  # beside the maps of score propagation
        for row in _rows(pd.concat([own[own["method"] == REFERENCE], best]).drop_duplicates()):
            note = f"Chance {number(row.chance, 3)}, maps of other patients {number(row.other, 3)}."
            more = {"interval": "95 % over patients", "note": note, "level": "headline", "digits": 3}
            part.add(f"{MEASURES[row.measure]}, {row.method}", at, row.mean, row.low, row.high, **more)
        shown = precision.rename(columns={"method": "label"})
        baselines = {"chance": "chance", "other": "map of another patient"}
        bars = [shown.rename(columns={"mean": "value"}).assign(series="map")]
        for column, name in baselines.items():
            value = shown[column]
            bars.append(shown[["label"]].assign(series=name, value=value, low=value, high=value))
        caption = f"{at}: {MEASURES['precision']}, 95 % intervals over patients."
        drawn = {"x": MEASURES["precision"], "name": f"localisation_{count:02}", "caption": caption}
        part.images.append(plots.bars(pd.concat(bars), **drawn, digits=3))
        cells = own.drop(columns=["weights", "target", "smoothing"])
        part.tables.append(_table(f"Maps beside masks: {at}.", cells))
    if images > used:
        note = f"{images - used} of {images} images have nothing in their mask, or nothing left of it at this size."
        share = 100 * (images - used) / images
        part.add("images without a lesion", settings.images, share, unit="%", note=note, level="caution")


def _randomised(part: _Part, settings: Settings, tables: Mapping[str, pd.DataFrame]) -> None:
    rows = tables["randomised"]
    for weights, own in rows.groupby("weights", sort=False):
        quantity = "rank correlation with the map of the trained network, random down to {}"
        for row in _rows(own.iloc[[0, -1]]):
            at = f"{weights}, {row.images} images"
            ends = row.correlation - row.sd, row.correlation + row.sd
            part.add(quantity.format(row.layer), at, row.correlation, *ends, interval="sd over images")
    curves = rows.rename(columns={"layer": "x", "correlation": "value", "weights": "series"})
    curves = curves.assign(low=curves["value"] - curves["sd"], high=curves["value"] + curves["sd"])
    part.images.append(
        plots.curves(
            curves,
            x="random from the output down to",
            y="rank correlation",
            name="randomised",
            caption="Rank correlation with the map of the trained network; bands of an sd over images. A map whose correlation "
            "stays near 1 does not show what was learnt.",
            order=list(curves["x"].unique()),
            limits=(-1.0, 1.0),
            lines={"no relation": 0.0},
        )
    )  # fmt: skip
    part.tables.append(_table("Rank correlation, from the output down.", rows))


def _rows(frame: pd.DataFrame) -> Iterator[Any]:
    """Rows with the columns as attributes."""
    return frame.itertuples()


def _table(caption: str, frame: pd.DataFrame) -> Table:
    """All columns, numbers with three digits; columns of text at the left name the rows together."""
    names = [str(column) for column, kind in frame.dtypes.items() if kind == "str"]
    rest = frame.drop(columns=names)
    cells = [
        ["–" if pd.isna(cell) else f"{cell:.3g}".replace("-", "−") for cell in row]
        for row in rest.to_numpy().tolist()
    ]
    labels = frame[names].agg(", ".join, axis=1)
    rows = [(label, *row) for label, row in zip(labels, cells, strict=True)]
    return Table(caption, (", ".join(names), *(str(column).replace("_", " ") for column in rest)), rows)
