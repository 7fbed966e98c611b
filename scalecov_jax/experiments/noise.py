"""Does padding tell a network how wide a noise image is? Section 4.2 of the scale paper: settings, tables and report.

Images of white noise have no object and no scale; a probe that reads their width from pooled features reads the padding around
the image, or how much is averaged. `noise_features.py` has the
features, `noise_maths.py` what is measured.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import pandas as pd

from scalecov_jax.checkpoints import Network, load_networks, random_network
from scalecov_jax.experiments import noise_maths as maths
from scalecov_jax.experiments.noise_features import (
    MIN_SIZES,
    POOLED,
    clean_layers,
    layer_table,
    map_layers,
    noise_features,
    reference_layer,
)
from scalecov_jax.experiments.noise_maths import Design
from scalecov_jax.models.receptive_field import check_size
from scalecov_jax.probes.ridge import Scaling
from scalecov_jax.report import plots
from scalecov_jax.report.findings import Finding
from scalecov_jax.report.numbers import number, percent
from scalecov_jax.report.page import Image, Page, Section, Table, render_text
from scalecov_jax.settings import Base, setting
from scalecov_jax.tables import labelled, network_names, rows_of, stacked

# Graziani et al. 2021, section 4.2 and Figure 7: 5 training and 20 test images; the widths are not stated.
PUBLISHED_AT = ("inception_v3", "mixed0")
PUBLISHED = {"gap": "about 1", "corrected_gap": "below 0"}
NAMES = {"gap": "GAP", "corrected_gap": "corrected GAP"}
SIZES = tuple(range(75, 501, 25))
READABLE = 0.3  # R2 above which corrected GAP counts as telling the width


@dataclass(frozen=True)
class Settings(Base):
    """What determines the results."""

    title: str = setting("Can the width of white noise be read from a network?", help="Of the report.")
    weights: tuple[str, ...] = setting(("checkpoints/inception_v3",), least=1, help="Folders of checkpoints.")
    layers: tuple[str, ...] = setting((), help="Layers to probe; all that have a map when empty.")
    sizes: tuple[int, ...] = setting(
        SIZES, low=1, high=99_999, least=MIN_SIZES, distinct=True, help="Widths of the images, in pixels."
    )
    per_size: int = setting(9, low=2, help="Images of each width.")
    train: int = setting(5, low=2, help="Training images per draw of the published setting.")
    test: int = setting(20, low=2, help="Held-out images per draw of the published setting.")
    splits: int = setting(25, low=1, help="Draws of the published setting, splits of the others.")
    ranges: tuple[tuple[int, int], ...] = setting(
        ((150, 300),), help="Further ranges of widths for the published setting, in pixels."
    )
    scaling: Scaling = setting(
        "common",
        help="Whether all features are divided by one number, or each by its own sd, which lets those that are silent in the "
        "training part blow up.",
    )
    random_weights: bool = setting(True, help="Whether to probe random weights too, on all widths together.")
    seed: int = setting(0, low=0, help="Of images, draws, splits and random weights.")
    batch_size: int = setting(16, low=1, help="Images per forward pass.")
    dtype: Literal["float32", "bfloat16"] = setting("float32", help="Of the forward pass alone.")

    def problems(self) -> list[str]:
        """Ranges that hold too few widths, and fewer images than the published setting draws."""
        problems, needed = [], self.train + self.test
        counts = {"sizes": len(self.sizes)}
        for smallest, largest in self.ranges:
            what, count = f"ranges has {smallest}-{largest}, which", len(self.inside(smallest, largest))
            if count < MIN_SIZES:
                problems.append(f"{what} holds {count} of the sizes; expected at least {MIN_SIZES}")
            else:
                counts[what] = count
        for what, count in counts.items():
            if (images := count * self.per_size) < needed:
                problems.append(
                    f"{what} gives {images} images, but train and test need {needed}; raise per_size"
                )
        return problems

    def inside(self, smallest: int, largest: int) -> list[int]:
        """The sizes in a range, ascending."""
        return sorted(size for size in self.sizes if smallest <= size <= largest)


def check(settings: Settings) -> dict[str, Network]:
    """The networks by the names of their folders.

    Raises:
        ValueError: Folders that hold no network, two of one name, layers that a network has not, widths below its smallest.
    """

    def fits(name: str, network: Network) -> None:
        check_size(network.module, min(settings.sizes), map_layers(network, settings.layers), name)

    return load_networks(settings.weights, check=fits)


def run(settings: Settings, folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """Features of noise with both poolings, and probes of its width.

    features/ in the folder keeps the features of each network and width.

    Returns:
        noise (R2, a row per probe and split), predictions (held-out images), effects (how features depend on the width): columns
        architecture, weights, condition (trained or random_weights; not in predictions) and those of `noise_maths`. And layers,
        see `noise_features.layer_table`.
    """
    sizes = sorted(settings.sizes)
    inside = [settings.inside(*limits) for limits in settings.ranges]
    ranges = tuple(dict.fromkeys((widths[0], widths[-1]) for widths in inside))
    design = Design(settings.train, settings.test, settings.splits, settings.seed, ranges, settings.scaling)
    tables: list[tuple[str, pd.DataFrame]] = []

    def add(table: str, frame: pd.DataFrame, **columns: str) -> None:
        tables.append((table, labelled(frame, **columns)))

    for name, network in check(settings).items():
        named = {"architecture": network.architecture.name, "weights": name}
        clean = clean_layers(network, map_layers(network, settings.layers), sizes)
        add("layers", layer_table(clean), **named)
        probed = maths.windows(clean, sizes, design, settings.per_size)
        conditions = {"trained": network}
        if settings.random_weights:
            conditions["random_weights"] = random_network(network, settings.seed)
        for condition, variant in conditions.items():
            options: Any = {"batch_size": settings.batch_size, "dtype": getattr(jnp, settings.dtype)}
            options |= {"cache": folder and folder / "features", "name": f"{name}-{condition}"}
            features = noise_features(variant, clean, sizes, settings.per_size, settings.seed, **options)
            some = probed if condition == "trained" else probed[:1]
            add("noise", maths.score_noise(features, some, design), **named, condition=condition)
            add("effects", maths.measure_effects(features, clean, some), **named, condition=condition)
            if condition == "trained":
                reference = reference_layer({layer: place.start for layer, place in clean.items()})
                for layer in dict.fromkeys(layer for layer in (reference, [*clean][-1]) if layer):
                    window = maths.main_window(probed, layer)
                    add("predictions", maths.predict_noise(features, window, design, layer), **named)
    return stacked(tables)


# Report

FEW, LARGER, UNSEEN = ("published", "ols"), ("larger", "ridge"), ("unseen_sizes", "ridge")


class _Report:
    """The tables of one network, what they say of its layers, and what is reported of it.

    Attributes:
        needed: Width from which on corrected GAP is defined, by layer; None where it is at none.
        starts: Width from which on it was probed, by layer; layers at which it was not are absent.
        reference: The deepest layer probed with corrected GAP over the most widths; None if there is none.
        whole: Scores over all widths.
        same: Scores over the widths on which both poolings of a layer were probed.
        effects: Effects over these widths, or all widths where corrected GAP was not probed; of the trained network.
    """

    def __init__(self, settings: Settings, layers: pd.DataFrame, tables: Mapping[str, pd.DataFrame]):
        self.settings, self.weights = settings, layers["weights"].iloc[0]
        self.architecture = layers["architecture"].iloc[0]
        self.name, self.layers = network_names(tables["layers"])[self.weights], layers["layer"].tolist()
        self.first, self.final = min(settings.sizes), max(settings.sizes)
        columns = layers.set_index("layer")[["needed", "start"]]
        self.needed = {
            layer: None if pd.isna(width) else int(width) for layer, width in columns["needed"].items()
        }
        self.starts = {str(layer): int(width) for layer, width in columns["start"].dropna().items()}
        self.reference, self.last = reference_layer(self.starts), self.layers[-1]
        self.scores, effects, self.predictions = (
            rows_of(tables[name], weights=self.weights) for name in ("noise", "effects", "predictions")
        )
        self.whole = rows_of(self.scores, smallest=self.first, largest=self.final)
        self.same = self._from(self.starts, self.scores)
        self.effects = self._from(
            dict.fromkeys(self.layers, self.first) | self.starts, rows_of(effects, condition="trained")
        )

    def _from(self, starts: Mapping[str, int], rows: pd.DataFrame) -> pd.DataFrame:
        """The rows over the widths from that of `starts` on; layers that are not there are left out."""
        return rows[(rows["smallest"] == rows["layer"].map(dict(starts))) & (rows["largest"] == self.final)]

    def at(self, layer: str, smallest: int | None = None, largest: int | None = None) -> str:
        """A layer and a range of widths; by default that over which both poolings were probed."""
        smallest = smallest or self.starts.get(layer, self.first)
        return f"{self.name} {layer}, {smallest} to {largest or self.final} px"

    def below(self, layer: str) -> str:
        """Where corrected GAP is not defined."""
        return f"below {self.needed[layer]} px" if self.needed[layer] else "at every width"

    def distances(self) -> pd.DataFrame:
        """R2 of the logarithm of the width from the distance of corrected features from their mean, as `_r2` gives it."""
        return _r2(self.same, "corrected_gap_distance", ("larger", "ols"), target="log_width")

    def share(self, pooling: str) -> pd.Series:
        """Share of the variance of the features that lies between the means of the widths, by layer."""
        return rows_of(self.effects, pooling=pooling).set_index("layer")["between_widths"]

    def findings(self) -> Iterator[Finding]:
        """The width from many and from few training images, and why corrected GAP hides it."""
        layer, splits = self.reference, f"quartiles of {self.settings.splits} splits"

        def r2(quantity: str, layer: str, at: str, rows: pd.DataFrame, **more: Any) -> Finding:
            value, low, high = rows.loc[[layer]].to_numpy(float)[0].tolist()
            return Finding(quantity, at, value, low, high, splits, **more)

        many = "median R² of width from {} (ridge, 70 % to train)"
        if layer:
            for pooling in POOLED:
                rows = _r2(self.same, pooling, LARGER)
                yield r2(many.format(NAMES[pooling]), layer, self.at(layer), rows, level="headline")
        if self.last != layer:
            rows, at = _r2(self.whole, "gap", LARGER), self.at(self.last, self.first)
            yield r2(many.format("GAP"), self.last, at, rows, level="headline")
        if not layer:
            return
        few = f"median R² of {{}} from {{}} (least squares, {self.settings.train} to train)"
        published = PUBLISHED if (self.architecture, layer) == PUBLISHED_AT else {}
        drawn = rows_of(self.scores, setting="published", layer=layer)
        both = drawn[drawn["pooling"] == "corrected_gap"]
        for smallest, largest in both[["smallest", "largest"]].drop_duplicates().to_numpy().tolist():
            scores, at = rows_of(drawn, smallest=smallest, largest=largest), self.at(layer, smallest, largest)
            for pooling in POOLED:
                known = {"published": published[pooling], "source": "section 4.2"} if published else {}
                yield r2(few.format("width", NAMES[pooling]), layer, at, _r2(scores, pooling, FEW), **known)
            rows = _r2(scores, "gap", FEW, target="inverse_width")
            yield r2(few.format("1 / width", "GAP"), layer, at, rows)
        for pooling in POOLED:
            quantity = f"share of the variance between widths, {NAMES[pooling]}"
            yield Finding(quantity, self.at(layer), 100 * self.share(pooling)[layer], unit="%")
        quantity = "median R² of log width from the distance of corrected features to their mean"
        yield r2(quantity, layer, self.at(layer), self.distances())

    def cautions(self) -> Iterator[Finding]:
        """Where corrected GAP tells the width after all, and where ridge failed."""
        corrected = rows_of(self.same, pooling="corrected_gap", condition="trained")
        groups = corrected.groupby(["layer", "setting", "estimator", "target"], sort=False)
        medians = groups["r2"].median().reset_index()
        readable = medians[medians["r2"] > READABLE]
        if len(readable):
            best = readable.sort_values("r2").iloc[-1]
            note = (
                f"Corrected GAP predicts the width at {', '.join(readable['layer'].unique())}. Where the share of the variance "
                "between widths is near 0, this is chance or variance; elsewhere the mean depends on the width although no "
                "padding is touched."
            )
            quantity = (
                f"largest median R², corrected GAP ({best['setting']}, {best['estimator']}, {best['target']})"
            )
            yield Finding(quantity, self.at(best["layer"]), best["r2"], note=note, level="caution")
        wanted = {"pooling": "gap", "setting": "larger", "estimator": "ridge", "target": "width"}
        ridge = rows_of(self.whole, **wanted, condition="trained")
        failed = ridge[ridge["r2"] < -1]
        if len(failed):
            worst = failed.sort_values("r2").iloc[0]
            note = (
                f"R² is below −1 in some splits at {', '.join(failed['layer'].unique())}: a channel that is almost silent in "
                "the training part takes a value far outside its range in the held-out part. Read the median."
            )
            at = f"{self.name} {worst['layer']}"
            yield Finding("smallest R² of any split, GAP, ridge", at, worst["r2"], note=note, level="caution")

    def section(self) -> Section:
        corrected = rows_of(self.effects, pooling="corrected_gap")
        text = render_text(
            "noise.html",
            "description",
            settings=self.settings,
            sizes=(self.first, self.final),
            later={layer: start for layer, start in self.starts.items() if start > self.first},
            undefined={layer: needed for layer, needed in self.needed.items() if layer not in self.starts},
            shares=corrected["between_widths"].agg(["min", "max"]).tolist(),
            slopes=corrected["slope"].dropna().agg(["min", "max"]).tolist(),
            distances=self.distances()["value"].to_dict(),
        )
        figures, shown = [*self.scatters(), self.curves()], [self.by_layer(), self.by_target()]
        return Section(f"Noise inputs: {self.name} ({self.weights})", "", figures, shown, text)

    def scatters(self) -> Iterator[Image]:
        """Predicted against true widths: as published, with the target that suits GAP, and at the last layer."""
        few = f"{self.settings.train} training images, least squares"
        for layer, where, target, how in (
            (self.reference, "published", "width", few),
            (self.reference, "published", "inverse_width", f"{few}, fitted to 1 / width and inverted"),
            (self.last, "larger", "width", "70 % to train, ridge"),
        ):
            rows = rows_of(self.predictions, layer=layer, setting=where, target=target)
            if layer and len(rows):
                yield plots.predicted_against_true(
                    rows.rename(columns={"pooling": "panel", "width": "true"}),
                    NAMES,
                    unit="width (px)",
                    name=f"noise-{self.weights}-{layer}-{where}-{target}",
                    caption=f"{layer}, {how}. Large marks: the split of median R²; small marks: all splits.",
                    empty=f"undefined\n{self.below(layer)}",
                )

    def curves(self) -> Image:
        """R2 of the width by layer with both poolings."""
        wanted = {"setting": "larger", "estimator": "ridge", "target": "width"}
        whole, same = (rows_of(rows, **wanted, pooling="gap") for rows in (self.whole, self.same))
        series = {
            "GAP": rows_of(whole, condition="trained"),
            "corrected GAP": rows_of(self.same, **wanted, pooling="corrected_gap", condition="trained"),
            "GAP, random weights": rows_of(whole, condition="random_weights"),
            "GAP, widths of corrected": rows_of(same[same["smallest"] > self.first], condition="trained"),
        }
        return plots.r2_by_layer(
            pd.concat([rows.assign(series=label) for label, rows in series.items()]),
            self.layers,
            name=f"noise-{self.weights}-layers",
            caption="Ridge, 70 % of the images to train; medians, bands from the lower to the upper quartile of the splits.",
            blank=[layer for layer in self.layers if layer not in self.starts],
            blank_label="corrected GAP undefined",
        )

    def by_layer(self) -> Table:
        """R2 of the width at every layer with both poolings."""
        few = f"{self.settings.train} images"
        medians = {
            f"GAP, {few}": _r2(self.whole, "gap", FEW),
            "GAP, larger": _r2(self.whole, "gap", LARGER),
            "GAP, unseen widths": _r2(self.whole, "gap", UNSEEN),
            "GAP, random weights": _r2(self.whole, "gap", LARGER, condition="random_weights"),
            "GAP, widths of corrected": _r2(self.same, "gap", LARGER),
            f"corrected, {few}": _r2(self.same, "corrected_gap", FEW),
            "corrected, larger": _r2(self.same, "corrected_gap", LARGER),
            "corrected, unseen widths": _r2(self.same, "corrected_gap", UNSEEN),
            "distance, larger": self.distances(),
        }
        starts = [
            f"from {start} px" if (start := self.starts.get(x)) else f"undefined {self.below(x)}"
            for x in self.layers
        ]
        columns = {name: rows["value"].map(number) for name, rows in medians.items()}
        columns |= {
            f"{NAMES[pooling]}, between widths": self.share(pooling).map(percent) for pooling in POOLED
        }
        return self._table(
            f"median R² of the width. {few}: the published setting, least squares; larger and unseen widths: ridge.",
            {"corrected GAP": pd.Series(starts, self.layers), **columns},
        )

    def by_target(self) -> Table:
        """Which function of the width GAP is most nearly linear in."""
        probes = {f"{self.settings.train} images": FEW, "larger": LARGER, "unseen widths": UNSEEN}
        targets = {"width": "width", "inverse_width": "1 / width", "log_width": "log width"}
        columns = {
            f"{name}: {label}": _r2(self.whole, "gap", probe, target=target)["value"].map(number)
            for name, probe in probes.items()
            for target, label in targets.items()
        }
        return self._table("GAP, median R² of the width, its inverse and its logarithm.", columns)

    def _table(self, caption: str, columns: Mapping[str, pd.Series]) -> Table:
        strong = [layer for layer in (self.reference, self.last) if layer]
        return Table.by_layer(f"{self.name}: {caption}", columns, self.layers, strong)


def report(settings: Settings, tables: Mapping[str, pd.DataFrame], folder: Path | None = None) -> Page:
    """Findings, cautions, and for each network its figures and tables."""
    layers = tables["layers"]
    networks = [_Report(settings, rows, tables) for _, rows in layers.groupby("weights", sort=False)]
    findings = [finding for network in networks for finding in (*network.findings(), *network.cautions())]
    findings += _penalties(tables["noise"])
    reading = render_text("noise.html", "reading")
    return Page(settings.title, findings, [network.section() for network in networks], reading)


def _r2(scores: pd.DataFrame, pooling: str, probe: tuple[str, str], **wanted: Any) -> pd.DataFrame:
    """Median over splits (value) and quartiles (low, high) by layer; of the width and the trained network unless named."""
    setting, estimator = probe
    wanted = {"condition": "trained", "target": "width", "setting": setting, "estimator": estimator, **wanted}
    splits = rows_of(scores, pooling=pooling, **wanted).groupby("layer", sort=False)["r2"]
    return pd.DataFrame(
        {"value": splits.median(), "low": splits.quantile(0.25), "high": splits.quantile(0.75)}
    )


def _penalties(scores: pd.DataFrame) -> Iterator[Finding]:
    """Whether ridge could choose its penalty with the few images of the published setting."""
    few = rows_of(
        scores, condition="trained", setting="published", pooling="gap", target="width", estimator="ridge"
    )
    low, high = few["alpha"].min(), few["alpha"].max()
    share = 100 * few["alpha"].isin([low, high]).mean()
    if low < high and share > 25:
        quantity = (
            "draws of the published setting in which ridge took the smallest or largest penalty of any draw"
        )
        note = (
            f"So few training images do not tell which penalty is best (these are {low:.3g} and {high:.3g})."
        )
        yield Finding(quantity, "all networks", share, unit="%", note=note, level="caution")
