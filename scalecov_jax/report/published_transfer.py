"""Section 4.4 of the paper's report: Table 2 beside ours."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scalecov_jax.models.architecture import plain_name
from scalecov_jax.paper import published
from scalecov_jax.paper.compared import Compared
from scalecov_jax.report import page
from scalecov_jax.report.transfer_table import METRIC_NAMES, difference, interval
from scalecov_jax.tables import read_table
from scalecov_jax.transfer.results import Comparison, SweepScore

_MODELS = {"whole": "whole", "pruned": "pruned", "scratch": "from scratch"}
_TRAINED = {
    "all": "all weights fine-tuned",
    "ridge": "ridge on frozen features",
    "head": "a head by gradient descent",
}


def compare(folder: Path) -> list[Compared]:
    """The rows of section 4.4 from a finished run of transfer.py in `folder`."""
    summary = json.loads((folder / "summary.json").read_text())
    comparisons = read_table(folder / "comparisons.csv", Comparison)
    sweep = read_table(folder / "sweep.csv", SweepScore) if (folder / "sweep.csv").exists() else []
    rows: list[Compared] = []
    for weights, network in summary["networks"].items():
        if network["architecture"] in published.TABLE_2:
            rows += _rows(weights, network, comparisons, sweep, _data(summary["patches"]))
    return rows


def sections(folder: Path) -> list[page.Section]:
    """The figures that a finished run of transfer.py drew, and where its own report lies."""
    drawn = {
        path: path.stem.rsplit("-", 1)
        for path in sorted((folder / "figures").glob("*.svg"))
        if path.stem.endswith(("-sweep", "-ridge-magnification", "-all-magnification"))
    }
    captions = {
        "sweep": "MAE by the layer of the cut, random weights beside trained ones.",
        "magnification": "MAE by magnification.",
    }
    images = [
        page.Image(path.read_bytes(), f"{captions[kind]} {name}.", f"{name}: {captions[kind]}")
        for path, (name, kind) in drawn.items()
    ]
    text = "Every table, test and warning of this part stands in transfer/report.html."
    return [page.Section("4.4 Transfer to histopathology", text, images)]


def _rows(
    weights: str,
    network: Mapping[str, Any],
    comparisons: list[Comparison],
    sweep: list[SweepScore],
    data: str,
) -> list[Compared]:
    architecture = network["architecture"]
    plain, table = plain_name(architecture), published.TABLE_2[architecture]
    trainable = next(one for one in _TRAINED if one in network["models"]["whole"])
    how = f"published: all weights fine-tuned, Janowczyk set; here: {_TRAINED[trainable]}, {data}"
    usual = Counter(network["layers"].values()).most_common(1)[0][0]
    rows = []
    for model, cut in table.items():
        if model not in network["models"]:
            continue
        ours = network["models"][model][trainable]
        where = f" (published cut {cut.layer}, here mostly {usual})" if model == "pruned" else ""
        for metric, printed in (("mae", cut.mae), ("kappa", cut.kappa)):
            mean, sd = ours[metric]["mean"], ours[metric]["sd"]
            if mean is None:
                continue
            digits = 2 if metric == "mae" else 3
            rows.append(
                Compared(
                    "4.4", f"{plain}, {_MODELS[model]}{where}: {METRIC_NAMES[metric]}",
                    f"{page.number(printed[0], digits)} ± {page.number(printed[1], digits)}" if printed else "–",
                    f"{page.number(mean, digits)} ± {page.number(sd, digits)}",
                    page.number(mean - printed[0], digits) if printed else "–", how,
                )
            )  # fmt: skip
    gain = table["pruned"].mae[0] - table["whole"].mae[0]
    for one in comparisons:
        if (one.weights, one.trainable, one.metric, one.base) == (weights, trainable, "mae", "whole"):
            shown = one.low is not None and one.high is not None and one.low * one.high > 0
            held = "leaves out 0" if shown else "does not leave out 0"
            rows.append(
                Compared(
                    "4.4", f"{plain}: pruned − whole, MAE (px)", page.number(gain), difference(one.difference, "mae"),
                    page.number(one.difference - gain),
                    f"95 % interval {interval(one)} {held}; exact Wilcoxon p {page.number(one.p, 4)}, Holm "
                    f"{page.number(one.p_holm, 4)}; better in {one.wins} of {one.seeds} seeds"
                    if one.low is not None
                    else f"better in {one.wins} of {one.seeds} seeds",
                )
            )  # fmt: skip
    layer = table["pruned"].layer
    there = [
        s.mae
        for s in sweep
        if (s.weights, s.condition, s.head, s.layer) == (weights, "trained", "ridge", layer)
    ]
    if there:
        mean = sum(there) / len(there)
        rows.append(
            Compared(
                "4.4", f"{plain}, cut at the published layer {layer}: MAE (px)",
                f"{page.number(table['pruned'].mae[0])} ± {page.number(table['pruned'].mae[1])}",
                page.number(mean), page.number(mean - table["pruned"].mae[0]), "ridge on frozen features, same splits",
            )
        )  # fmt: skip
    whole, pruned = (network["costs"][model]["parameters"] for model in ("whole", "pruned"))
    removed = 100 * (1 - pruned / whole)
    rows.append(
        Compared(
            "4.4", f"{plain}: parameters removed by the cut (%)", page.number(published.REMOVED[architecture], 0),
            page.number(removed), page.number(removed - published.REMOVED[architecture]),
            f"published cut {layer}, here {usual}",
        )
    )  # fmt: skip
    return rows


def _data(patches: Mapping[str, Any]) -> str:
    return f"{patches['count']:,} patches of {patches['groups']} source images"
