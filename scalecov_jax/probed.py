"""What ridge probes read from every layer of a network: the object that `scalecov_jax.probe` returns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from scalecov_jax.evidence import Evidence, Known
from scalecov_jax.experiments.probe_part import CONTROLS, FEW_GROUPS, FEW_IMAGES, REACH, UNSHOWN, peak_note
from scalecov_jax.experiments.probe_tables import contrast_table, layer_table
from scalecov_jax.probes import evaluate
from scalecov_jax.probes.statistics import jackknife
from scalecov_jax.report import plots
from scalecov_jax.report.findings import Finding
from scalecov_jax.report.page import Image, Page, Section, Table, write_report
from scalecov_jax.report.provenance import provenance
from scalecov_jax.vectors import Rcv, make_rcvs


class Comparison(NamedTuple):
    """R2 of one layer minus that of another on the same images, with its 95 % jackknife interval and two-sided p."""

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float

    def _repr_html_(self) -> str:
        return pd.DataFrame([self]).to_html(index=False, float_format="{:.3g}".format)


@dataclass(frozen=True)
class Probed:
    """What ridge probes read from every layer.

    Attributes:
        evidence: Everything inferred; see `evidence.Evidence`.
        features: Of every layer [N, D].
        name: Of the network.
        origins: Fingerprint of each layer; empty for features that came without a network.
        pooling: How maps became features.
    """

    evidence: Evidence
    features: Mapping[str, Float[np.ndarray, "N _"]]
    name: str = ""
    origins: Mapping[str, str] | None = None
    pooling: str = "gap"

    def table(self) -> pd.DataFrame:
        """One row per concept and layer: held-out R2, its 95 % interval, p values, whether it may be the best layer.

        Columns: see `probe_tables.layer_table`.
        """
        return layer_table(self.evidence, self.name, "")

    @property
    def best(self) -> str:
        """The layer of the largest mean held-out R2 of the first concept."""
        return self.evidence.layers[int(self.evidence.r2.value[:, 0].argmax())]

    @property
    def peak_set(self) -> tuple[str, ...]:
        """The layers that may be the best one of the first concept: with 95 % confidence it is among them."""
        table = self.table().query("may_be_best")
        return tuple(table[table["concept"] == self.evidence.concepts[0]]["layer"])

    def compare(
        self, first: str, second: str = "", other: "Probed | None" = None, *, concept: str = ""
    ) -> Comparison:
        """R2 at one layer minus R2 at another, of this or of `other` probed on the same images.

        The interval is that of `statistics.jackknife`, and p is two-sided, 2 P(T > |difference| / error) with T Student's t of
        G - 1 degrees of freedom for G images or groups.

        Args:
            first: Layer of this; chosen is the layer that each training part chose by itself (`Evidence.nested`).
            second: Layer of this or of `other`; the same as `first` when empty.
            other: Another network on the same images, measures and splits.
            concept: The first when empty.

        Raises:
            ValueError: A layer or concept that was not probed; other images, measures or splits (`Known.__sub__`).
        """
        other, second = other or self, second or first
        mine, theirs = (one._at(layer, concept) for one, layer in ((self, first), (other, second)))
        difference = mine - theirs
        found = jackknife(float(difference.value), difference.deviation)
        t = abs(found.value) / found.error if found.error > 0 else np.inf if found.value else 0.0
        p = 2 * float(stats.t.sf(t, len(difference.deviation) - 1))
        return Comparison(first, second, found.value, *found.interval, p)

    def rcv(self, layer: str = "", concept: str = "") -> Rcv:
        """The regression concept vector of a layer, the best when empty: `save`, `predict`, `step`, `direction`.

        Raises:
            ValueError: A layer or concept that was not probed.
        """
        layer = layer or self.best
        at, m = self._index(layer, concept)
        evidence = self.evidence
        assert evidence.dual is not None
        assert evidence.cases is not None
        measures = dict(zip(evidence.concepts, evidence.cases.measure.T, strict=True))
        filters, intercept, scale = evaluate.weights_of(
            self.features[layer], evidence.dual[at], evidence.cases.measure
        )
        return make_rcvs(
            measures,
            {layer: self.features[layer]},
            {layer: (filters[0], intercept[0], scale)},
            evidence.alpha[[at]],
            evidence.r2.value[[at]],
            networks=self.origins,
            weights_name=self.name,
            pooling=self.pooling,
        )[m]

    def plot(self) -> Image:
        """R2 by layer, median and quartiles over splits; a notebook shows it, `content` and `png` hold its bytes."""
        splits = self.evidence.splits
        rows = [
            {"series": concept, "layer": layer, "r2": r2}
            for m, concept in enumerate(self.evidence.concepts)
            for layer, of_splits in zip(self.evidence.layers, splits[..., m], strict=True)
            for r2 in of_splits
        ]
        caption = "Held-out R² of ridge by layer: medians, and the quartiles over splits."
        return plots.r2_by_layer(
            pd.DataFrame(rows), self.evidence.layers, name="r2_by_layer", caption=caption
        )

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML page: the answer, the figure, the table, and what it was made with."""
        table, path = self.table(), Path(path).expanduser()
        best = table[table["layer"] == self.best].iloc[0]
        others = [layer for layer in self.peak_set if layer != self.best]
        ends = best["r2"], best["low"], best["high"], REACH
        note = peak_note(others, len(self.evidence.layers))
        finding = Finding(
            f"Held-out R² of {best['concept']}",
            f"the best layer, {self.best}",
            *ends,
            note=note,
            level="headline",
        )
        shown = table[["concept", "layer", "r2", "low", "high", "p", "may_be_best"]].astype(object)
        shown[["r2", "low", "high", "p"]] = table[["r2", "low", "high", "p"]].map("{:.3g}".format)
        rows = Table.of("Ridge by layer: R², 95 % interval, p of the permutation test.", shown.astype(str))
        title = f"What is read from {self.name or 'the features'}"
        page = Page(
            title, [finding, *self._doubts(table)], [Section("Layers", "", [], [rows])], lead=self.plot()
        )
        facts = {
            "images": self.evidence.images,
            "groups": self.evidence.groups,
            "splits": len(self.evidence.chosen),
        }
        made = provenance(["scalecov_jax.probe"], facts, {}, None)
        write_report(path, page.report({name: text for name, text in made.items() if text}))
        return path

    def _doubts(self, table: pd.DataFrame) -> Iterator[Finding]:
        """What to know before the best layer is trusted, and by how much it beats its controls, of the first concept."""
        best, evidence = table[table["layer"] == self.best].iloc[0], self.evidence
        at = f"{self.best}, {best['concept']}"
        if best["p_family"] > 0.05:
            note = "Nothing is shown to be read."
            yield Finding("family-wise p", at, best["p_family"], note=note, level="caution", digits=3)
        contrasts = contrast_table(evidence, self.name, "")
        own = (contrasts["layer"] == self.best) & (contrasts["concept"] == best["concept"])
        for row in contrasts[own & contrasts["against"].isin(CONTROLS)].to_dict("records"):
            shown, ends = row["low"] > 0, (row["difference"], row["low"], row["high"], REACH)
            quantity, note = f"R² less that of {CONTROLS[row['against']]}", "" if shown else UNSHOWN
            yield Finding(quantity, at, *ends, note=note, level="result" if shown else "caution")
        for what, count, few in (
            ("images", evidence.images, FEW_IMAGES),
            ("groups", evidence.groups, FEW_GROUPS),
        ):
            if count < few:
                note = f"With fewer than {few}, intervals are wide, and of few groups still too narrow."
                yield Finding(
                    f"number of {what}", "the sample", float(count), note=note, level="caution", digits=0
                )

    def _repr_html_(self) -> str:
        shown = self.table()[["concept", "layer", "r2", "low", "high", "p", "may_be_best"]]
        return shown.to_html(index=False, float_format="{:.3f}".format)

    def _index(self, layer: str, concept: str) -> tuple[int, int]:
        concept = concept or self.evidence.concepts[0]
        for kind, one, known in (
            ("layer", layer, self.evidence.layers),
            ("concept", concept, self.evidence.concepts),
        ):
            if one not in known:
                raise ValueError(f"The {kind} {one!r} was not probed; there are {', '.join(known)}.")
        return self.evidence.layers.index(layer), self.evidence.concepts.index(concept)

    def _at(self, layer: str, concept: str) -> Known:
        evidence = self.evidence
        chosen = layer == "chosen"
        at, m = self._index(evidence.layers[0] if chosen else layer, concept)
        r2, at = (evidence.nested, 0) if chosen else (evidence.r2, at)
        return Known(r2.value[at, m], r2.deviation[at, m], r2.sample)
