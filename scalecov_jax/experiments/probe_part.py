"""What the tables of the main experiment say of one network, concept and class of images: findings, figures and tables."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image as Picture

from scalecov_jax.concepts.measure import get_measure
from scalecov_jax.experiments.probe_settings import Settings
from scalecov_jax.experiments.probe_tables import ALL, scopes
from scalecov_jax.extraction import POOLINGS
from scalecov_jax.report import plots
from scalecov_jax.report.findings import Finding
from scalecov_jax.report.numbers import number, signed, span
from scalecov_jax.report.page import Image, Section, Table, render_text
from scalecov_jax.selection import interpolates, select_layers
from scalecov_jax.tables import rows_of

CONTROLS = {
    "random_weights": "random weights",
    "pixels": "the pixels alone",
    "nuisances": "the nuisance measures alone",
    "shuffled_measure": "the shuffled measure",
}
SHORT = {"random_weights": "random weights", "shuffled_measure": "shuffled measure"}
REACH = "95 % interval"
FEW_IMAGES = 50
FEW_GROUPS = 20  # below, intervals by the jackknife are too narrow
UNSHOWN = "The interval is not above 0: no more than the control is shown to be read."


def peak_note(others: Sequence[str], layers: int) -> str:
    """Which others of some layers may be the best too; that none stands out where these are most of them."""
    if len(others) > (layers - 1) / 2:
        return f"No layer stands out: {len(others)} of the other {layers - 1} may be as good."
    return f"Layers that may be as good: {', '.join(others)}." if others else ""


def concept_title(name: str) -> str:
    """A concept measure's name for people; the name itself if no measure has it."""
    try:
        return get_measure(name).title or name
    except ValueError:
        return name


class Part:
    """What the tables say of one network, concept and scope (a class, or all classes pooled).

    Attributes:
        at: The network and, where the scope is not all there is, the class.
        layers: By layer, in depth order: the evidence, or where images were streamed R2 over folds as r2, low and high.
        evidence: Whether there is any, which streamed images have not.
        scores: Of this concept and scope.
        best: Row of the layer that ridge reads best.
    """

    def __init__(
        self,
        settings: Settings,
        tables: Mapping[str, pd.DataFrame],
        name: str,
        weights: str,
        concept: str,
        scope: str,
    ):
        self.settings, self.weights, self.concept, self.scope = settings, weights, concept, scope
        self.title, own = concept_title(concept), {"weights": weights, "concept": concept}
        classes = rows_of(tables["classes"], weights=weights)
        self.main = scope == scopes(classes)[0]
        self.at = name if self.main else f"{name}, {scope}"
        self.classes = classes if scope == ALL else rows_of(classes, image_class=scope)
        scores = rows_of(tables["scores"], **own)
        self.scores = scores if scope == ALL else rows_of(scores, image_class=scope)
        self.widths = rows_of(tables["widths"], weights=weights).dropna(subset=["width"]).set_index("layer")
        self.order = self.widths.index.tolist()
        self.selected = {one.estimator: one for one in select_layers(self.scores, self.order)}
        self.evidence = "contrasts" in tables
        here = {**own, "image_class": scope}
        if self.evidence:
            self.layers = rows_of(tables["layers"], **here).set_index("layer")
            self.contrasts = rows_of(tables["contrasts"], **here)
            (self.choice,) = rows_of(tables["choices"], **here).to_dict("records")
        else:
            trained = rows_of(self.scores, condition="trained", estimator="ridge")
            r2 = trained.groupby("layer", sort=False)["r2"]
            self.layers = pd.DataFrame({"r2": r2.mean(), "low": r2.min(), "high": r2.max()})
            folds = rows_of(tables["layers"], **own).groupby("layer")[["p", "p_family"]].max()
            self.layers = self.layers.join(folds)
        self.peak = self.selected["ridge"].layer
        self.best: Any = self.layers.loc[self.peak]
        self.cases = rows_of(tables["cases"], **here) if "cases" in tables else pd.DataFrame()

    @property
    def others(self) -> list[str]:
        """Layers that may be the best beside the peak."""
        if not self.evidence:
            return []
        return [layer for layer in self.layers.index[self.layers["may_be_best"]] if layer != self.peak]

    @property
    def ratios(self) -> pd.Series:
        """Independent features / training images of each layer."""
        return self.widths["rank"] / float(self.classes["n_train"].mean())

    @property
    def flagged(self) -> list[str]:
        """Layers with about as many independent features as training images."""
        return [str(layer) for layer, ratio in self.ratios.items() if interpolates(float(ratio))]

    def differences(self, layer: str) -> dict[str, tuple[float, float, float]]:
        """R2 of a layer minus that of each control, with its interval."""
        rows = rows_of(self.contrasts, layer=layer).set_index("against")[["difference", "low", "high"]]
        return {str(name): tuple(row) for name, row in zip(rows.index, rows.to_numpy().tolist(), strict=True)}

    def findings(self) -> Iterator[Finding]:
        """Where the concept is read, whether it is, and beyond what."""
        what, at, best = f"R² of {self.title}", f"{self.at} {self.peak}", self.best
        reach = (best["r2"], best["low"], best["high"]) if self.evidence else self._spread("ridge")
        value, low, high = map(float, reach)
        note = peak_note(self.others, len(self.order))
        quantity = f"held-out {what} by ridge at the best of {len(self.order)} layers"
        ends, level = REACH if self.evidence else "± 1 sd over folds", "headline" if self.main else "result"
        yield Finding(quantity, at, value, low, high, ends, note=note, level=level)
        if not self.main:
            return
        quantity = f"{what} by least squares at the best layer by the published rule"
        published = f"{self.at} {self.selected['ols'].layer}"
        yield Finding(quantity, published, *self._spread("ols"), "± 1 sd over splits")
        (permuted,) = self.classes["permuted"].unique() if self.classes["permuted"].nunique() == 1 else ("",)
        if count := self.settings.permutations:
            of = f" of {permuted}" * bool(permuted)
            note = f"{count:,} permutations{of}; p cannot be below {1 / (count + 1):.2g}."
            p = float(best["p_family"])
            yield Finding(f"family-wise p that {self.title} is read", at, p, note=note, digits=3)
        if not self.evidence:
            return
        if len(self.order) > 1:
            value, low, high = (float(self.choice[name]) for name in ("r2", "low", "high"))
            quantity = f"{what} at the layer chosen inside each training part"
            note = f"Splits of each layer: {self.choice['chosen']}."
            yield Finding(quantity, self.at, value, low, high, REACH, note=note)
        differences = self.differences(self.peak)
        for control, label in CONTROLS.items():
            if control in differences:
                note = UNSHOWN * (not differences[control][1] > 0)
                yield Finding(f"{what} above that of {label}", at, *differences[control], REACH, note=note)
        if "beyond_nuisances" in differences:
            quantity = f"partial R² of {self.title} beyond the nuisance measures"
            yield Finding(quantity, at, *differences["beyond_nuisances"], REACH)

    def _spread(self, estimator: str) -> tuple[float, float, float]:
        one = self.selected[estimator]
        return one.r2_mean, one.r2_mean - one.r2_sd, one.r2_mean + one.r2_sd

    def section(self, folder: Path | None) -> Section:
        """Figures and tables; the first figure is that of the page."""
        text = render_text(
            "probe.html",
            "description",
            settings=self.settings,
            pooling=POOLINGS[self.settings.pooling].title,
            classes=self.classes.to_dict("records"),
            pooled=self.scope == ALL,
            grouped=bool((self.classes["groups"] < self.classes["images"]).any()),
            evidence=self.evidence,
        )
        images, tables = [self._curve(), self._estimators()], [self._layer_table(), self._score_table()]
        if len(self.cases):
            tables.append(self._case_table())
            images += [self._pictures(folder)] if folder and "file" in self.cases else []
        return Section(f"{self.at}: {self.title}", "", images, tables, text)

    def _stem(self, kind: str) -> str:
        scope = "all" if self.main else self.scope
        if self.concept != self.settings.concept[0]:
            scope += "-" + re.sub("[^0-9a-zA-Z_-]", "_", self.concept)
        return f"{self.weights}-{scope}-{kind}"

    def _curve(self) -> Image:
        """R2 by layer with its interval, the layers that may be the best, and the controls."""
        series = {"trained": self.layers[["r2", "low", "high"]].rename(columns={"r2": "value"})}
        if self.evidence:
            for control in CONTROLS:
                rows = rows_of(self.contrasts, against=control).set_index("layer")
                if len(rows):
                    series[control] = pd.DataFrame({"value": self.layers["r2"] - rows["difference"]})
        else:
            for condition in ("random_weights", "shuffled_measure"):
                rows = rows_of(self.scores, condition=condition, estimator="ridge")
                series[condition] = rows.groupby("layer")["r2"].mean().to_frame("value")
        frames = [
            rows.reindex(self.order).reset_index(names="x").assign(series=SHORT.get(name, name))
            for name, rows in series.items()
        ]
        frame = pd.concat(frames, ignore_index=True)
        lowest = np.nanmin(frame[["value", "low"]].to_numpy(float))
        best = [layer for layer in self.order if layer in (self.peak, *self.others)]
        spread = "95 % intervals" if self.evidence else "extremes of the folds"
        return plots.curves(
            frame,
            x="layer, from input to output",
            y="R² on held-out images",
            name=self._stem("ridge"),
            caption=f"Ridge, mean over splits; bands are {spread}. What lies below −1 is drawn there.",
            order=self.order,
            limits=(float(np.clip(np.floor(4 * lowest) / 4, -1, 0)), 1.0),
            lines={"no better than the mean": 0.0},
            places={"may be the best layer": best} if self.evidence else {"best layer": best},
        )

    def _estimators(self) -> Image:
        """Least squares collapses where there are as many independent features as training images, ridge does not."""
        wanted = {
            "least squares": ("trained", "ols"),
            "ridge": ("trained", "ridge"),
            "least squares, shuffled": ("shuffled_measure", "ols"),
            "ridge, random weights": ("random_weights", "ridge"),
        }
        frames = [
            rows_of(self.scores, condition=condition, estimator=estimator).assign(series=label)
            for label, (condition, estimator) in wanted.items()
        ]
        return plots.r2_by_layer(
            pd.concat(frames),
            self.order,
            name=self._stem("ols"),
            caption="Medians and quartiles of the splits. Where a layer has about as many independent features as there are "
            "training images least squares collapses, on a shuffled measure as well: that says nothing about the layer.",
            blank=self.flagged,
            blank_label="D ≈ n_train",
        )

    def _layer_table(self) -> Table:
        """Ridge at every layer, with what the evidence says."""
        frame = self.layers.reindex(self.order)
        columns = {"R²": frame["r2"].map(number)}
        columns[REACH if self.evidence else "folds"] = _intervals(frame, "low", "high")
        if self.evidence:
            columns["resampled t"] = _intervals(frame, "resampled_low", "resampled_high")
            columns["left-out R²"] = frame["r2_left_out"].map(number)
            columns["dof"] = frame["dof"].map("{:.1f}".format)
        columns |= {"p": frame["p"].map(p_value), "family-wise p": frame["p_family"].map(p_value)}
        if self.evidence:
            behind = rows_of(self.contrasts, against="peak").set_index("layer").reindex(self.order)
            ends = " (" + _intervals(behind, "low", "high") + ")"
            columns["minus the peak"] = behind["difference"].map(number) + ends
            columns["may be best"] = frame["may_be_best"].map({True: "yes", False: "no"})
        if self.widths["parameters"].notna().any():
            columns["parameters up to here"] = self.widths["parameters"].map(partial(number, digits=0))
        caption = "Ridge: held-out R²; leave-one-out R² and effective degrees of freedom (dof) of the fit to all images."
        return self._table(caption, columns, self.peak)

    def _score_table(self) -> Table:
        """Mean and sd of every probe and control."""
        names = {"ols": "least squares", "ridge": "ridge"}
        columns = {"D": self.widths["width"].map("{:,.0f}".format), "D / n_train": self.ratios.map(number)}
        for (condition, estimator), rows in self.scores.groupby(["condition", "estimator"], sort=False):
            label = names.get(str(estimator), str(estimator))
            label += f", {SHORT[str(condition)]}" if condition != "trained" else ""
            r2 = rows.groupby("layer")["r2"]
            columns[label] = r2.mean().map(number) + " ± " + r2.std().fillna(0.0).map(number)
        trained = rows_of(self.scores, condition="trained", estimator="ridge")
        columns["α"] = trained.groupby("layer")["alpha"].median().map("{:.3g}".format)
        caption = "Held-out R², mean ± sd over splits. D: features; in D / n_train the independent ones; α: median penalty."
        return self._table(caption, columns, self.selected["ols"].layer, self.peak)

    def _case_table(self) -> Table:
        digits = int(np.clip(2 - np.floor(np.log10(self.cases["measure"].std() or 1.0)), 0, 9))
        (peak, second), read = self.cases[["peak", "second"]].iloc[0], partial(number, digits=digits)
        columns = {
            "image": self.cases["image"],
            self.title: self.cases["measure"].map(read),
            f"read at {peak}": self.cases["read_at_peak"].map(read),
            f"read at {second}": self.cases["read_at_second"].map(read),
            "leverage": self.cases["leverage"].map(number),
            "influence on the lead": self.cases["lead"].map(partial(signed, digits=4)),
        }
        caption = (
            f"{self.at}: images that raise and lower the lead of {peak} over {second} most. Read: by the fit to all other "
            f"images. Leverage: at {peak}."
        )
        return Table.of(caption, pd.DataFrame(columns))

    def _pictures(self, folder: Path) -> Image:
        raising = self.cases["lead"] > 0
        rows = {
            verb: [
                (f"{_short(case['image'])}\n{signed(case['lead'], 4)}", _read(folder / case["file"]))
                for case in some.to_dict("records")
            ]
            for verb, some in (("raise", self.cases[raising]), ("lower", self.cases[~raising]))
            if len(some)
        }
        peak, second = self.cases[["peak", "second"]].iloc[0]
        return plots.image_grid(
            rows,
            alt=f"Images that raise and lower the lead of {peak} over {second}: {', '.join(self.cases['image'])}.",
            name=self._stem("cases"),
            caption=f"The numbers say how much R² of {peak} minus that of {second} changes by an image (or its group).",
            width=1.1,
        )

    def _table(self, caption: str, columns: Mapping[str, pd.Series], *strong: str) -> Table:
        return Table.by_layer(f"{self.at}: {self.title}. {caption}", columns, self.order, strong)


def p_value(value: float) -> str:
    """A p value, with three decimals unless it is very small."""
    return number(value, 3) if not value < 5e-4 else f"{value:.1g}"


def _intervals(frame: pd.DataFrame, low: str, high: str) -> pd.Series:
    return pd.Series([span(*ends) for ends in frame[[low, high]].to_numpy(float).tolist()], frame.index)


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"…{name[-19:]}"


def _read(path: Path) -> np.ndarray:
    with Picture.open(io.BytesIO(path.read_bytes())) as image:
        return np.asarray(image.convert("RGB"))
