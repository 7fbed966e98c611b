"""The report of the transfer: whether cutting helped, with what certainty, where to cut, and errors in detail."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scalecov_jax.experiments.transfer import Settings
from scalecov_jax.imaging.patches import open_patches
from scalecov_jax.report import plots
from scalecov_jax.report.findings import Finding
from scalecov_jax.report.numbers import number, signed, span
from scalecov_jax.report.page import Image, Page, Section, Table, render_text
from scalecov_jax.tables import network_names, rows_of
from scalecov_jax.transfer import metrics

MODELS = {"whole": "whole", "pruned": "pruned", "scratch": "from scratch"}
TRAINED = {"all": "fine-tuned", "ridge": "ridge on frozen features", "head": "head by gradient descent"}
METRICS = {"mae": "MAE, px", "macro_mae": "macro MAE, px", "kappa": "κ", "kappa_quadratic": "quadratic κ"}
HEADS = {
    ("trained", "ridge"): "ridge",
    ("trained", "head"): "head",
    ("random_weights", "ridge"): "ridge, random weights",
}
HEADS |= {("random_weights", "head"): "head, random weights"}
SIZES = {"parameters": "parameters", "flops": "operations"}
LEVEL = 0.05
FEW_IMAGES = 20  # below, the bootstrap over source images is too narrow, see `statistics.clustered_bootstrap`
SHEET = 6  # patches of each magnification that are shown

# Graziani et al. 2021, Table 2: last layer; MAE in pixels and kappa, mean and sd over ten repetitions (kappa from its workshop
# version). Section 4.4: per cent of the parameters that the cut removes.
PUBLISHED: dict[str, dict[str, tuple[str, dict[str, tuple[float, float]]]]] = {
    "inception_v3": {
        "whole": ("mixed10", {"mae": (81.85, 11.08), "kappa": (0.435, 0.02)}),
        "pruned": ("mixed8", {"mae": (54.93, 4.32), "kappa": (0.571, 0.05)}),
        "scratch": ("mixed10", {"mae": (82.30, 17.92)}),
    },
    "resnet50": {
        "whole": ("add_16", {"mae": (70.08, 12.49), "kappa": (0.610, 0.03)}),
        "pruned": ("add_15", {"mae": (54.76, 3.10), "kappa": (0.623, 0.04)}),
        "scratch": ("add_16", {"mae": (95.66, 21.39)}),
    },
}
REMOVED = {"inception_v3": 51.0, "resnet50": 19.0}
SOURCE = "Table 2, all weights fine-tuned, Janowczyk set"
VERDICTS = {-1: "Cutting made it better.", 1: "Cutting made it worse.", 0: "No difference was shown."}
NO_TEST = "No test: there is a single seed, or all seeds say the same."
UNCUT = "The layer to cut after is the last, so that there was nothing to cut and both networks are the same."


_Tables = Mapping[str, pd.DataFrame]


class _Network:
    """The tables of a network.

    Attributes:
        name: For people; tells weights of the same architecture apart.
        each: Errors by magnification, a row per model, way of training and seed.
        totals: Errors over all held-out patches.
        trained: The ways of training, the main way first.
        cuts: In how many seeds the network was cut after each layer, most frequent first.
        whole: Layer with which the whole network ends.
        published: Its rows of Table 2.
    """

    def __init__(self, settings: Settings, models: pd.DataFrame, scores: pd.DataFrame, tables: _Tables):
        self.settings, self.models = settings, models.set_index("model")
        self.architecture, self.weights = models[["architecture", "weights"]].iloc[0]
        self.name = network_names(tables["models"])[self.weights]
        scores = rows_of(scores, weights=self.weights)
        each = scores[scores["magnification"] != "all"]
        self.each = each.assign(magnification=each["magnification"] + "X")
        named = (name for name in ("predictions", "comparisons", "sweep", "learning") if name in tables)
        self.tables = {name: rows_of(tables[name], weights=self.weights) for name in named}
        self.totals = metrics.totals(scores)
        self.trained = [way for way in TRAINED if way in {*self.totals["trainable"]}]
        pruned = rows_of(self.totals, model="pruned", trainable=self.trained[0])
        self.cuts, self.seeds = dict(Counter(pruned["layer"].tolist()).most_common()), len(pruned)
        self.usual, self.whole = (str(self.models.loc[model, "layer"]) for model in ("pruned", "whole"))
        self.published = PUBLISHED.get(self.architecture, {})

    @property
    def cut(self) -> str:
        if len(self.cuts) == 1:
            return f"{self.name} cut after {self.usual}"
        return f"{self.name} cut after {', '.join(f'{layer} ({n})' for layer, n in self.cuts.items())} of {self.seeds} seeds"

    def of(self, model: str, trainable: str, metric: str) -> pd.Series:
        """An error by seed."""
        return rows_of(self.totals, model=model, trainable=trainable).set_index("seed")[metric]

    def findings(self) -> Iterator[Finding]:
        """What cutting did to the error, the errors of the three models, the best layer in hindsight, and what was cut off."""
        for trainable in self.trained:
            yield self.difference(trainable)
        for trainable, model, metric in itertools.product(self.trained, MODELS, ("mae", "kappa")):
            values = self.of(model, trainable, metric)
            if values.notna().all():
                quantity = f"{METRICS[metric].removesuffix(', px')}, {MODELS[model]}, {TRAINED[trainable]}"
                known = self.known(model, metric)
                yield _mean_and_sd(quantity, self.name, values, "px" if metric == "mae" else "", **known)
        errors, layer = self.errors("trained", "ridge"), self.published.get("pruned", ("",))[0]
        if layer in errors:
            quantity = "MAE, cut at the published layer, ridge on frozen features"
            known, at = self.known("pruned", "mae"), f"{self.name} {layer}"
            yield _mean_and_sd(quantity, at, errors[layer], "px", **known)
        if len(errors):
            best = errors.mean().idxmin()
            quantity = "least MAE of any layer, ridge, chosen on the held-out patches"
            yield _mean_and_sd(quantity, f"{self.name} {best}", errors[best], "px")
        sizes: Any = self.models[["parameters", "flops"]]
        whole, pruned = sizes.loc["whole"], sizes.loc["pruned"]
        note = (
            f"{whole['parameters']:,.0f} and {pruned['parameters']:,.0f} parameters without head; "
            f"{whole['flops'] / 1e9:.3g} and {pruned['flops'] / 1e9:.3g} GFLOPs per patch."
        )
        published = (REMOVED.get(self.architecture), f"section 4.4, cut after {layer}" if layer else "")
        for name, known in (("parameters", published), ("flops", (None, ""))):
            removed, quantity = 100 * (1 - pruned[name] / whole[name]), f"{SIZES[name]} removed by the cut"
            at, (printed, source) = f"{self.name} cut after {self.usual}", known
            yield Finding(quantity, at, removed, unit="%", published=printed, source=source, note=note)

    def known(self, model: str, metric: str) -> dict[str, Any]:
        """What a finding says of the published value; nothing where none was printed."""
        layer, printed = self.published.get(model, ("", {}))
        mean, sd = printed.get(metric, (None, 0.0))
        return {} if mean is None else {"published": mean, "source": f"{SOURCE}, up to {layer}, ± {sd:g}"}

    def difference(self, trainable: str) -> Finding:
        """MAE of the pruned minus the whole network, its interval and test."""
        more: dict[str, Any] = {"unit": "px", "level": "headline"}
        if self.published:
            pruned, whole = (self.published[model][1]["mae"][0] for model in ("pruned", "whole"))
            more |= {"published": pruned - whole, "source": SOURCE}
        quantity = f"MAE, pruned − whole, {TRAINED[trainable]}"
        tested = rows_of(self.tables["comparisons"], trainable=trainable, base="whole", metric="mae")
        if tested.empty or {*self.cuts} == {self.whole}:
            value = (self.of("pruned", trainable, "mae") - self.of("whole", trainable, "mae")).mean()
            note = UNCUT if {*self.cuts} == {self.whole} else NO_TEST
            return Finding(quantity, self.cut, value, note=note, **more)
        row = tested.iloc[0]
        note = (
            f"{VERDICTS[verdict(row)]} Better in {row['wins']} of {row['seeds']} seeds, exact Wilcoxon p = {_p(row['p'])}, "
            f"Holm p = {_p(row['p_holm'])}."
        )
        if pd.notna(row["low"]):
            more |= {"low": row["low"], "high": row["high"], "interval": "95 % interval over source images"}
        return Finding(quantity, self.cut, row["difference"], note=note, **more)

    def errors(self, condition: str, head: str) -> pd.DataFrame:
        """MAE of a head by seed (rows) and layer (columns); empty after fine-tuning."""
        if "sweep" not in self.tables:
            return pd.DataFrame()
        rows = rows_of(self.tables["sweep"], condition=condition, head=head)
        return rows.pivot(index="seed", columns="layer", values="mae")[rows["layer"].unique()]

    def section(self) -> Section:
        values = {"architecture": self.architecture, "published": bool(self.published)}
        values |= {"settings": self.settings, "heads": "sweep" in self.tables}
        text = render_text("transfer.html", "description", **values)
        tables = [self.models_table(), self.tests_table()]
        tables += [self.layers_table()] if "sweep" in self.tables else []
        return Section(f"{self.name}: whole, pruned and from scratch", "", [*self.figures()], tables, text)

    def models_table(self) -> Table:
        """Errors of the three models over all patches and by magnification."""
        keys = ["trainable", "model"]
        overall = self.totals.groupby(keys, sort=False)[[*METRICS]].agg(_spread).rename(columns=METRICS)
        each = self.each.groupby([*keys, "magnification"], sort=False)["mae"].agg(_spread).unstack()
        each = each[self.each["magnification"].unique()]
        frame = overall.join(each).loc[[*itertools.product(self.trained, MODELS)]].reset_index()
        ends = frame["model"].map(dict.fromkeys(MODELS, self.whole) | {"pruned": " or ".join(self.cuts)})
        frame.insert(2, "ends at", ends)
        frame = frame.replace({"trainable": TRAINED, "model": MODELS})
        least = self.totals.groupby(keys)["mae"].mean().groupby("trainable").idxmin()
        strong = [at for at, key in enumerate(itertools.product(self.trained, MODELS)) if key in {*least}]
        caption = f"{self.name}: errors, mean ± sd over {self.seeds} seeds; by magnification the MAE in px. Marked: least MAE."
        return Table.of(caption, frame, strong)

    def tests_table(self) -> Table:
        """Pruned against the others, paired by seed."""
        compared = self.tables["comparisons"]
        ends = compared[["low", "high"]].to_numpy(float).tolist()
        frame = {
            "trained": compared["trainable"].map(TRAINED),
            "metric": compared["metric"].map(METRICS),
            "against": compared["base"].map(MODELS),
            "difference": compared["difference"].map(signed),
            "95 % interval": [span(*of) for of in ends],
            "better in": compared["wins"].astype(str) + f" of {self.seeds} seeds",
            "p": compared["p"].map(_p),
            "Holm p": compared["p_holm"].map(_p),
            "least p possible": compared["smallest_p"].map(_p),
        }
        caption = (
            f"{self.name}: pruned minus the other network; less is better for MAE, more for κ. Marked: shown."
        )
        strong = [at for at, (_, row) in enumerate(compared.iterrows()) if verdict(row)]
        return Table.of(caption, pd.DataFrame(frame), strong)

    def layers_table(self) -> Table:
        """Errors of heads on every layer, and the difference to the whole network."""
        errors = {label: self.errors(*key) for key, label in HEADS.items()}
        frame = pd.DataFrame({label: values.apply(_spread) for label, values in errors.items()})
        for head in ("ridge", "head"):
            gaps = errors[head].sub(errors[head][self.whole], axis=0).apply(_spread, plus=True)
            frame[f"{head} − whole"] = gaps.where(gaps.index != self.whole, "–")
        best = errors["ridge"].mean().idxmin()
        notes = {layer: f"cut here in {n}" for layer, n in self.cuts.items()}
        frame["notes"] = [notes.get(layer, "") + " least error" * (layer == best) for layer in frame.index]
        caption = f"{self.name}: held-out MAE in px by a head on each layer, mean ± sd over seeds, and minus the whole network's."
        strong = [at for at, layer in enumerate(frame.index) if layer in self.cuts]
        return Table.of(caption, frame.reset_index(names="layer"), strong)

    def figures(self) -> Iterator[Image]:
        """Error by layer or by epoch, error by magnification, predictions and the magnifications they tell."""
        mean = f"{self.name}. Mean ± 1 sd over seeds"
        if "sweep" in self.tables:
            sweep, layers = self.tables["sweep"], self.tables["sweep"]["layer"].unique().tolist()
            series = [HEADS[key] for key in zip(sweep["condition"], sweep["head"], strict=True)]
            places = {
                f"cut after {layer} in {n} of {self.seeds}": layers.index(layer)
                for layer, n in self.cuts.items()
            }
            yield plots.curves(
                **_bands(sweep.assign(series=series, x=sweep["layer"])),
                x="layer, from input to output",
                y="held-out MAE, px",
                order=layers,
                shaded={label: (at - 0.5, at + 0.5) for label, at in places.items()},
                name=f"{self.weights}-sweep",
                caption=f"{mean}. The last layer is the whole network.",
            )
        if "learning" in self.tables:
            curves = self.tables["learning"]
            panels = {"training RMSE": np.sqrt(curves["mse"]), "held-out MAE": curves["mae"]}
            frames = [curves.assign(panel=panel, mae=values) for panel, values in panels.items()]
            frame = pd.concat(frames, ignore_index=True).assign(series=lambda rows: rows["model"].map(MODELS))
            yield plots.curves(
                **_bands(frame.assign(x=frame["epoch"])),
                x="epoch",
                y="px",
                name=f"{self.weights}-learning",
                caption=f"{mean}. Held-out patches chose nothing: the last epoch is reported.",
            )
        each = pd.concat([rows_of(self.each, trainable=way) for way in self.trained])
        columns = {"panel": each["trainable"].map(TRAINED), "series": each["model"].map(MODELS)}
        yield plots.curves(
            **_bands(each.assign(x=each["magnification"], **columns)),
            x="magnification",
            y="MAE, px",
            order=[*each["magnification"].unique()],
            name=f"{self.weights}-magnification",
            caption=f"{mean}.",
        )
        main = rows_of(self.tables["predictions"], trainable=self.trained[0])
        first = rows_of(main, seed=main["seed"].iloc[0])
        yield plots.predicted_against_true(
            first.rename(columns={"model": "panel", "seed": "split", "area": "true"}),
            {model: model for model in MODELS},
            unit="area (px)",
            name=f"{self.weights}-predicted",
            caption=f"{self.name}, {TRAINED[self.trained[0]]}, held-out patches of the first seed.",
            log=True,
        )
        counts = main.groupby(["model", "magnification", "nearest"]).size().unstack(fill_value=0)
        counts = counts.reindex(columns=np.unique(main["magnification"]), fill_value=0)
        shares: Any = 100 * counts.div(counts.sum(axis=1), axis=0)
        shares = shares.rename(columns="{:g}X".format).rename("{:g}X".format, level="magnification")
        yield plots.matrix(
            {title: shares.xs(model) for model, title in MODELS.items()},
            rows="true magnification",
            columns="magnification of the nearest mean area",
            name=f"{self.weights}-confusion",
            caption=f"{self.name}, {TRAINED[self.trained[0]]}: per cent of the patches of a row, all seeds together.",
            limits=(0.0, 100.0),
            digits=0,
        )


def report(settings: Settings, tables: Mapping[str, pd.DataFrame], folder: Path | None = None) -> Page:
    """Findings, cautions, the networks, and the patches, which are shown if `folder` holds them."""
    predictions = tables["predictions"]
    scores = metrics.scores(predictions, np.unique(predictions["magnification"]))
    by_weights = tables["models"].groupby("weights", sort=False)
    networks = [_Network(settings, models, scores, tables) for _, models in by_weights]
    findings = [finding for network in networks for finding in network.findings()]
    findings += _cautions(settings, networks, tables)
    sections = [*(network.section() for network in networks), _patches(settings, tables, folder)]
    return Page(settings.title, findings, sections, render_text("transfer.html", "reading", level=LEVEL))


def verdict(compared: pd.Series) -> int:
    """Sign of a difference that was shown: Holm's p is below 0.05 and the interval, if any, leaves out 0; else 0."""
    around = pd.notna(compared["low"]) and compared["low"] <= 0 <= compared["high"]
    return int(np.sign(compared["difference"])) if compared["p_holm"] < LEVEL and not around else 0


def _cautions(settings: Settings, networks: list[_Network], tables: _Tables) -> Iterator[Finding]:
    """What a reader must know before trusting the numbers, a finding per kind."""

    def caution(quantity: str, value: int | float, note: str, at: str = "all networks") -> Finding:
        return Finding(quantity, at, float(value), note=note, level="caution")

    groups = {seed: {*rows} for seed, rows in tables["predictions"].groupby("seed")["group"]}
    compared = tables["comparisons"][tables["comparisons"]["metric"].isin(("mae", "kappa"))]
    tests = compared.groupby(["trainable", "base"]).size().max() if len(compared) else 1
    least = 2.0 ** (1 - len(groups))
    if len(groups) == 1:
        yield caution("number of seeds", 1, "There is neither a spread over seeds nor a test.")
    elif tests * least >= LEVEL:
        note = (
            f"So few seeds can show no difference at {LEVEL}, whatever the data, unless Holm's tests differ."
        )
        quantity = f"smallest Holm p that {len(groups)} seeds and {tests} tests can reach"
        yield caution(quantity, min(1.0, tests * least), note)
    if (images := len(set().union(*groups.values()))) < FEW_IMAGES:
        note = f"With fewer than {FEW_IMAGES} the bootstrap interval is too narrow."
        yield caution("source images ever held out", images, note)
    if several := [network for network in networks if len(network.cuts) > 1]:
        note = "The numbers of the pruned network average over these layers."
        most, at = max(len(network.cuts) for network in several), "; ".join(each.cut for each in several)
        yield caution("most layers at which a network was cut", most, note, at)
    same = [
        f"{network.name}, {TRAINED[trainable]}"
        for network in networks
        for trainable in network.trained
        if len(groups) > 1 and rows_of(network.tables["comparisons"], trainable=trainable, base="whole").empty
    ]
    if same:
        note = "That is a single result, which is neither a spread nor a test."
        quantity = "seeds with the same predictions for the same patches"
        yield caution(quantity, len(groups), note, "; ".join(same))
    pairs = [len(a & b) / min(len(a), len(b)) for a, b in itertools.combinations(groups.values(), 2)]
    if settings.fixed_split or (pairs and len({frozenset(names) for names in groups.values()}) == 1):
        note = "The spread over seeds and p speak of this split only, not of other source images. The interval does."
        yield caution("splits that the seeds share", 1, note)
    elif any(pairs):
        note = (
            "The training parts overlap too: the seeds are not independent, and Wilcoxon's p is optimistic."
        )
        quantity, share = "overlap of held-out images of two seeds", 100 * float(np.mean(pairs))
        yield Finding(quantity, "mean of pairs", share, unit="%", note=note, level="caution")


def _patches(settings: Settings, tables: _Tables, folder: Path | None) -> Section:
    """How many patches there are, what was left out, and some of them."""
    counts, left_out = tables["magnifications"], tables["left_out"]
    frame = {
        "magnification": counts["magnification"],
        "patches": counts["patches"].map("{:,}".format),
        "source images or patients": counts["sources"].map("{:,}".format),
        "mean area, px": counts["area"].map(number) + " ± " + counts["sd"].map(number),
    }
    shown = [Table.of("Patches and their mean nucleus area, mean ± sd over patches.", pd.DataFrame(frame))]
    if len(left_out):
        brief = left_out.astype(str).assign(example=left_out["example"].str[:60])
        shown.append(Table.of("What was left out, by reason.", brief))
    images = [_sheet(folder / "patches")] if folder else []
    return Section("Patches", f"Patches of {settings.size} x {settings.size} pixels.", images, shown)


def _sheet(folder: Path) -> Image:
    """Some patches of each magnification, spread evenly over all."""
    patches, rows = open_patches(folder), {}
    for magnification in np.unique(patches.column("magnification")):
        members = np.flatnonzero(patches.column("magnification") == magnification)
        picked = np.unique(np.linspace(0, len(members) - 1, SHEET).round().astype(int))
        rows[f"{magnification:g}X"] = [("", patches[int(members[at])].image) for at in picked]
    alt = f"Patches in rows of a magnification each: {', '.join(rows)}."
    return plots.image_grid(rows, alt=alt, name="patches", caption="As the networks see them.", width=0.8)


def _bands(frame: pd.DataFrame) -> dict[str, Any]:
    """What `plots.curves` draws of MAE by seed: mean and sd, logarithmic where the means span more than a factor of 5."""
    keys = [name for name in ("panel", "series", "x") if name in frame]
    groups = frame.groupby(keys, sort=False)["mae"]
    mean, sd = groups.mean(), groups.std().fillna(0)
    drawn = pd.DataFrame({"value": mean, "low": mean - sd, "high": mean + sd}).reset_index()
    low, high = float(mean.min()), float(mean.max())
    if not 0 < 5 * low < high:
        return {"frame": drawn, "limits": (0.0, None)}
    return {"frame": drawn, "log": "y", "limits": (low / 2, high * 2)}


def _mean_and_sd(quantity: str, at: str, values: pd.Series, unit: str, **more: Any) -> Finding:
    mean, sd = values.mean(), values.std()
    if pd.notna(sd):
        more |= {"low": mean - sd, "high": mean + sd, "interval": f"mean ± sd of {len(values)} seeds"}
    return Finding(quantity, at, mean, unit=unit, **more)


def _spread(values: pd.Series, *, plus: bool = False) -> str:
    mean, sd = values.mean(), values.std()
    text = signed(mean) if plus else number(mean)
    return text if pd.isna(sd) else f"{text} ± {number(sd)}"


def _p(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.2g}".replace("-", "−")
