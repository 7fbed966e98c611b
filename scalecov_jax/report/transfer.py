"""From the results of the transfer to its files: tables as CSV, summary.json, figures and report.html."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from scalecov_jax.concepts.nuclei import class_means, nearest_class
from scalecov_jax.images.example import Skipped, count_reasons
from scalecov_jax.images.patches import Patches
from scalecov_jax.report import page, style, transfer_figures
from scalecov_jax.report.transfer_figures import MODEL_NAMES
from scalecov_jax.transfer import results as measured
from scalecov_jax.transfer.metrics import write_outcomes

FEW_IMAGES = 20  # below, the bootstrap over source images is too narrow, see significance.clustered_bootstrap
LEVEL = 0.05
_PLAIN = {"inception_v3": "InceptionV3", "resnet50": "ResNet50"}
_TRAINED = {
    "all": "Fine-tuned",
    "head": "With a linear head trained by gradient descent on frozen features",
    "ridge": "With ridge regression on frozen features",
}
_METRICS = {"mae": "MAE, px", "kappa": "κ", "kappa_quadratic": "quadratic κ"}
# Graziani et al. 2021, Table 2, with the kappas of its workshop version: model, cut, MAE in px, kappa.
PUBLISHED: Mapping[str, Sequence[tuple[str, str, str, str]]] = {
    "inception_v3": (
        ("whole", "mixed10", "81.85 ± 11.08", "0.435 ± 0.02"),
        ("pruned", "mixed8", "54.93 ± 4.32", "0.571 ± 0.05"),
        ("scratch", "mixed10", "82.30 ± 17.92", "–"),
    ),
    "resnet50": (
        ("whole", "add_16", "70.08 ± 12.49", "0.610 ± 0.03"),
        ("pruned", "add_15", "54.76 ± 3.10", "0.623 ± 0.04"),
        ("scratch", "add_16", "95.66 ± 21.39", "–"),
    ),
}
_READING = {
    "MAE": "is the mean absolute error of the predicted mean nucleus area over held-out patches, in pixels of the "
    "patch. Large nuclei, that is high magnifications, dominate it; the macro MAE gives every magnification the same weight.",
    "κ": "is Cohen's agreement beyond chance between the magnification of a patch and the one whose mean nucleus "
    "area, in the training part, is nearest to the prediction: 1 is perfect, 0 is chance. The quadratic κ forgives near "
    "misses.",
    "Three models.": "Whole: the pretrained network as it is. Pruned: the same, cut after a layer. From scratch: the "
    "whole network with random weights, which stay as they are where only a head is trained; it shows what pretraining gives.",
    "Three trainings.": "all: every weight is fine-tuned. head: a linear head by gradient descent on frozen features. "
    "ridge: such a head in closed form, with its penalty chosen on the training part.",
    "± is one standard deviation over seeds": "(n − 1), not a confidence interval. A seed draws the split by source "
    "image, the head and the order of the patches; the seeds share source images and are not independent.",
    "The interval": "draws source images anew (10,000 times, all patches of an image together) with the seeds as they "
    "are: it answers whether other images would have told the same.",
    "p": "is that of the exact two-sided Wilcoxon signed-rank test, paired by seed. With n seeds it cannot fall below "
    "2 / 2ⁿ. Holm's adjustment covers all networks and both MAE and κ; the quadratic κ is not tested against a level. A "
    f"difference counts as shown if the interval leaves out 0 and Holm's p is below {LEVEL}.",
}


class NetworkResult(NamedTuple):
    """Everything measured on one network.

    Attributes:
        architecture: Name of the family.
        weights: Name of the pretrained weights.
        evaluated: Of all models, ways of training and seeds.
        comparisons: Pruned against whole and from scratch, after Holm's adjustment.
        sweep: Errors of heads at every layer; empty after fine-tuning.
        layers: Where the pruned network is cut, by seed.
        chosen_by: given, target or scale.
        costs: Parameters and FLOPs of one forward pass of whole, pruned (at its most frequent layer) and scratch.
    """

    architecture: str
    weights: str
    evaluated: Sequence[measured.Evaluated]
    comparisons: Sequence[measured.Comparison]
    sweep: Sequence[measured.SweepScore]
    layers: Mapping[int, str]
    chosen_by: str
    costs: Mapping[str, tuple[int, float]]


def write_results(
    workdir: Path,
    title: str,
    results: Sequence[NetworkResult],
    patches: Patches,
    skipped: Sequence[Skipped],
    provenance: Mapping[str, str],
    settings: Mapping[str, Any],
    sections: Sequence[page.Section] = (),
) -> None:
    """Write all files of a run.

    Args:
        workdir: Where to.
        title: Of the page.
        results: One a network.
        patches: All patches.
        skipped: All images and patches that were left out.
        provenance: From `provenance.provenance`.
        settings: Of the run; fixed_split is looked at.
        sections: Extra parts of the page.
    """
    write_outcomes(workdir / "transfer.csv", measured.outcomes(_everything(results)))
    measured.write_table(workdir / "comparisons.csv", measured.Comparison, [c for one in results for c in one.comparisons])
    if sweep := [score for one in results for score in one.sweep]:
        measured.write_table(workdir / "sweep.csv", measured.SweepScore, sweep)
    noticed = warnings(results, patches, fixed_split=bool(settings.get("fixed_split", False)))
    summary = {
        "networks": {one.weights: summarise(one) for one in results},
        "patches": {
            "count": len(patches),
            "groups": len(np.unique(patches.group)),
            "by_magnification": {
                f"{m:g}": int((patches.magnification == m).sum()) for m in np.unique(patches.magnification)
            },
        },
        "skipped": count_reasons(skipped),
        "warnings": noticed,
        "provenance": dict(provenance),
    }
    (workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    folder = workdir / "figures"
    folder.mkdir(exist_ok=True)
    named = _named(results)
    parts = [
        _table_section(named),
        _cut_section(named, folder),
        _magnification_section(named, patches, folder),
        _prediction_section(named, patches, folder),
        _learning_section(named, folder),
        _patch_section(patches, skipped),
    ]
    answer = "\n\n".join(answer_sentences(one, name) for name, one in named.items())
    report = page.Report(
        title,
        answer,
        (),
        noticed,
        {},
        [*(part for part in parts if part), *sections],
        provenance,
        _READING,
    )
    page.write_report(workdir / "report.html", report)


def summarise(result: NetworkResult) -> dict[str, Any]:
    """What summary.json says of one network; means and sample sds are over seeds, null where they are undefined."""
    models: dict[str, dict[str, Any]] = {}
    for (model, trainable), seeds in _groups(result).items():
        figures = {
            metric: dict(zip(("mean", "sd"), _spread(_values(seeds, metric)), strict=True))
            for metric in ("mae", "macro_mae", "kappa", "kappa_quadratic")
        }
        by_magnification = {
            f"{m:g}": dict(zip(("mean", "sd"), _spread(values), strict=True))
            for m, values in _by_magnification(seeds).items()
        }
        models.setdefault(model, {})[trainable] = {
            "seeds": len(seeds),
            **figures,
            "mae_by_magnification": by_magnification,
        }
    return {
        "architecture": result.architecture,
        "weights": result.weights,
        "models": models,
        "layers": {str(seed): layer for seed, layer in result.layers.items()},
        "chosen_by": result.chosen_by,
        "costs": {
            model: {"parameters": parameters, "flops": flops}
            for model, (parameters, flops) in result.costs.items()
        },
        "comparisons": [one._asdict() for one in result.comparisons],
    }


def table(results: Sequence[NetworkResult]) -> str:
    """Table 2 and the tests of pruned against whole, as plain text."""
    head = ("", "model", "layer", "trained", "MAE px", "macro MAE px", "kappa", "quadratic kappa")
    rows = [head, *(row for name, one in _named(results).items() for row in _rows(one, name))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    for name, one in _named(results).items():
        for c in one.comparisons:
            if c.base == "whole":
                lines.append(
                    f"{name}, {c.trainable}, {_METRICS[c.metric]}: pruned − whole: {_signed(c.difference, c.metric)}"
                    + (f", 95 % interval {_interval(c)}" if c.low is not None else "")
                    + f", better in {c.wins} of {c.seeds} seeds, p {_p(c.p)}, Holm {_p(c.p_holm)}"
                )
    return "\n".join(lines)


def answer_sentences(result: NetworkResult, name: str) -> str:
    """What cutting did to the MAE of one network, in a sentence for each way of training."""
    return " ".join(_answer(result, name, trainable) for trainable in _trainables(result))


def _answer(result: NetworkResult, name: str, trainable: str) -> str:
    groups = _groups(result)
    mae = {model: _values(groups[model, trainable], "mae") for model in ("whole", "pruned")}
    whole, pruned = (_pm(mae[model], 1) for model in ("whole", "pruned"))
    if all(layer == _whole_layer(result) for layer in result.layers.values()):
        return (
            f"{_TRAINED[trainable]}, {name} errs by {whole} px; the layer to cut after is its last one, so there was nothing "
            "to cut and pruned and whole are the same network."
        )
    if trainable == _trainables(result)[0]:
        start = (
            f"{_TRAINED[trainable]}, the pruned {name} (cut after {_cuts(result)}) errs by {pruned} px against {whole} px for "
            "the whole network"
        )
    else:
        start = f"{_TRAINED[trainable]} it errs by {pruned} px against {whole} px"
    compared = _comparison(result, trainable)
    if compared is None:
        return f"{start}; one seed allows no test."
    found = verdict(result, trainable)
    amount = _change(compared.difference)
    better, worse = f"better in {compared.wins}", f"worse in {compared.seeds - compared.wins}"
    tests = f"exact Wilcoxon p = {_p(compared.p)} (Holm {_p(compared.p_holm)})"
    if found is None:
        if _repeats(result, trainable):
            return f"{start}: {amount}, but all seeds say the same, which is no test."
        between = f"from {_change(compared.low)} to {_change(compared.high)}"
        return (
            f"{start}: no difference was shown ({amount}, 95 % interval {between} over source images), {better} of "
            f"{compared.seeds} seeds, {tests}."
        )
    ends = sorted(abs(end) for end in (compared.low, compared.high) if end is not None)
    between = f"{page.number(ends[0], 1)} to {page.number(ends[1], 1)}"
    seeds = better if found == "better" else worse
    return f"{start}: {amount} (95 % interval {between} over source images), {seeds} of {compared.seeds} seeds, {tests}."


def verdict(result: NetworkResult, trainable: str) -> str | None:
    """Whether the pruned network is better or worse than the whole one in MAE; None if no difference was shown.

    Shown: the interval over source images leaves out 0, Holm's p is below 0.05, and the seeds are not repetitions of each other.
    """
    compared = _comparison(result, trainable)
    if compared is None or _repeats(result, trainable) or not _shown(compared):
        return None
    return "better" if compared.difference < 0 else "worse"


def _shown(c: measured.Comparison) -> bool:
    if c.p_holm is None or c.p_holm >= LEVEL:
        return False
    if c.low is None or c.high is None:
        return True
    return c.high < 0 if c.difference < 0 else c.low > 0


def warnings(results: Sequence[NetworkResult], patches: Patches, *, fixed_split: bool) -> list[str]:
    """What a reader must know before trusting the numbers."""
    messages = []
    tests = {one.prediction.seed: one.prediction.test for one in _everything(results)}
    held_out = [set(patches.group[test].tolist()) for test in tests.values()]
    seeds, images = len(tests), len(set().union(*held_out))
    smallest = 2.0 ** (1 - seeds)
    families = [
        (c.trainable, c.base) for one in results for c in one.comparisons if c.metric in ("mae", "kappa")
    ]
    family = max(Counter(families).values(), default=1)
    if seeds == 1:
        messages.append("One seed: there is neither a spread over seeds nor a test.")
    elif smallest >= LEVEL:
        messages.append(
            f"With {seeds} seeds the exact p cannot fall below {_p(smallest)}: no difference can be shown at {LEVEL}, "
            "whatever the data. At least 6 seeds are needed."
        )
    elif family * smallest >= LEVEL:
        messages.append(
            f"With {seeds} seeds and {family} tests Holm's p cannot fall below {_p(min(1.0, family * smallest))} unless the "
            f"tests differ: no difference can be shown at {LEVEL} for all of them."
        )
    if images < FEW_IMAGES:
        messages.append(
            f"Only {images} source {'image was' if images == 1 else 'images were'} ever held out: with fewer than "
            f"{FEW_IMAGES} the bootstrap interval is too narrow."
        )
    for name, one in _named(results).items():
        if len(set(one.layers.values())) > 1:
            messages.append(
                f"{name} was cut at different layers in different seeds: {_cuts(one)}. Its pruned rows average over them."
            )
        same = sum(layer == _whole_layer(one) for layer in one.layers.values())
        if same:
            messages.append(
                f"{name}: in {same} of {len(one.layers)} seeds the layer to cut after is the last one; pruned and whole are "
                "the same network there, and the difference is 0."
            )
        for trainable in _trainables(one):
            if _repeats(one, trainable):
                messages.append(
                    f"{name}, {trainable}: every seed gives the same predictions for the same patches. Its p and wins count "
                    f"one result {seeds} times and say nothing."
                )
    pairs = [len(a & b) / min(len(a), len(b)) for a, b in itertools.combinations(held_out, 2)]
    if fixed_split or (pairs and all(a == held_out[0] for a in held_out)):
        messages.append(
            "All seeds share one split: the spread over seeds and p speak of this one split only, not of other source "
            "images. The interval does."
        )
    elif any(pairs):
        messages.append(
            f"The held-out source images of two seeds overlap (by {100 * float(np.mean(pairs)):.0f} % on average), and so do "
            "the training parts: the seeds are not independent, and Wilcoxon's p is optimistic."
        )
    return messages


# Sections of the page.


def _table_section(named: Mapping[str, NetworkResult]) -> page.Section:
    rows, strong, above = [], [], set()
    shown = [name for name in PUBLISHED if name in {one.architecture for one in named.values()}]
    for name, one in named.items():
        published = PUBLISHED.get(one.architecture, ())
        for model, layer, mae, kappa in published if one.architecture not in above else ():
            network = f"{_PLAIN[one.architecture]}, published"
            rows.append((network, MODEL_NAMES[model], layer, "all", mae, "–", kappa, "–"))
        above.add(one.architecture)
        for trainable in _trainables(one):
            mae = [
                _spread(_values(seeds, "mae"))[0] for (_, t), seeds in _groups(one).items() if t == trainable
            ]
            strong.append(len(rows) + int(np.argmin(np.array(mae, float))))
            rows += _rows(one, f"{name}, ours", trainable)
    seeds = max(len(one.layers) for one in named.values())
    text = (
        "The published table beside ours. The data sets differ, and with them the size of nuclei: the pixels of the "
        "published rows and of ours cannot be compared, the order of the models can."
    )
    if shown:
        which = " and ".join(_PLAIN[architecture] for architecture in shown)
        text += (
            f" Of the published rows those of {which} are shown (Graziani et al. 2021, Table 2; κ from its workshop "
            "version).\n\nWhat to know about the published numbers: p < 0.001, as stated there, cannot come from ten pairs "
            "of seeds, whose exact two-sided test reaches 0.002 at best. The κ of the networks trained from scratch were not "
            "available."
        )
    else:
        text += " The published table has no row of these architectures."
    if "resnet50" in shown:
        text += (
            " The κ of ResNet50 are means over 8 values pasted by hand from two runs (7 distinct ones of the whole network), "
            "which loses the pairing by seed; in the published log one seed of five is better without pruning."
        )
    if any(one.sweep for one in named.values()):
        text += (
            "\n\nHere features are frozen and heads trained on them; the published networks were fine-tuned. From "
            "scratch is one draw of random weights for all seeds, so its ± tells of splits alone."
        )
    tables = [
        page.Table(
            f"Mean ± sd over {seeds} {'seed' if seeds == 1 else 'seeds'} (published: 10). The least MAE of each network is "
            "marked.",
            ("network", "model", "ends at", "trained", "MAE, px", "macro MAE", "κ", "quadratic κ"),
            rows,
            strong,
        )
    ]
    compared = [(name, c) for name, one in named.items() for c in one.comparisons]
    if compared:
        tables.append(
            page.Table(
                "Pruned minus the other network, paired by seed. Less is better for MAE, more for κ. Marked: a difference "
                "was shown.",
                (
                    *("network", "trained", "metric", "against", "difference", "95 % interval"),
                    *("better in", "p", "Holm p", "smallest p"),
                ),
                [
                    (
                        *(name, c.trainable, _METRICS[c.metric], MODEL_NAMES[c.base]),
                        *(_signed(c.difference, c.metric), _interval(c), f"{c.wins} of {c.seeds}"),
                        *(_p(c.p), _p(c.p_holm), _p(c.smallest_p)),
                    )
                    for name, c in compared
                ],
                [
                    i
                    for i, (name, c) in enumerate(compared)
                    if _shown(c) and not _repeats(named[name], c.trainable)
                ],
            )
        )
    tables.append(
        page.Table(
            "Size of the networks: trunk without head, one forward pass of one patch."
            + (
                " Pruned: at the layer chosen most often."
                if any(len(set(one.layers.values())) > 1 for one in named.values())
                else ""
            ),
            ("network", "model", "parameters", "of the whole", "GFLOPs", "of the whole"),
            [
                (
                    *(name, MODEL_NAMES[model], f"{parameters:,}", _share(parameters, one.costs["whole"][0])),
                    *(f"{flops / 1e9:.3g}", _share(flops, one.costs["whole"][1])),
                )
                for name, one in named.items()
                for model, (parameters, flops) in one.costs.items()
            ],
        )
    )
    return page.Section("Table 2", text, (), tables)


def _cut_section(named: Mapping[str, NetworkResult], folder: Path) -> page.Section | None:
    images, tables, how = [], [], {}
    for name, one in named.items():
        if not one.sweep:
            continue
        errors = _sweep_errors(one)
        layers = list(dict.fromkeys(score.layer for score in one.sweep))
        reference = ("trained", "ridge") if ("trained", "ridge") in errors else next(iter(errors))
        means = errors[reference].mean(axis=1)
        best, chosen = layers[int(means.argmin())], Counter(one.layers.values())
        stem = folder / f"{one.weights}-sweep"
        images.append(
            _picture(
                transfer_figures.cut_curves(layers, errors, chosen, best),
                stem,
                f"Held-out error of heads on each layer of {name}: least at {best} ({page.number(means.min(), 1)} px), "
                f"{page.number(means[-1], 1)} px at the whole network; cut after {_cuts(one)}.",
                f"{name}. Mean ± 1 sd over seeds. Shaded: where the pruned network was cut, with the number of seeds. Circle: "
                "least error.",
            )
        )
        rows = []
        for at, layer in enumerate(layers):
            notes = [f"cut in {chosen[layer]} of {len(one.layers)}"] * (layer in chosen)
            notes += ["least error"] * (layer == best)
            trained = [errors.get(("trained", head)) for head in ("ridge", "head")]
            cells = [
                _pm(values[at], 1) if values is not None else "–"
                for values in (*trained, errors.get(("random_weights", "ridge")))
            ]
            gaps = [
                "–"
                if values is None or at == len(layers) - 1
                else _pm(values[at] - values[-1], 1, signed=True)
                for values in trained
            ]
            rows.append((layer, *cells, *gaps, "; ".join(notes)))
        tables.append(
            page.Table(
                f"{name}: held-out MAE in px by a head on each layer, and the difference to the whole network paired by seed; "
                "mean ± sd.",
                (
                    *("layer", "ridge", "head", "ridge, random weights"),
                    *("ridge − whole", "head − whole", "notes"),
                ),
                rows,
                [at for at, layer in enumerate(layers) if layer in chosen],
            )
        )
        how[one.chosen_by] = {
            "given": "The layer to cut after was given.",
            "target": "The layer to cut after was chosen for each seed inside its training part, by how well ridge "
            "reads nucleus area there; the held-out errors below had no say.",
            "scale": "The layer to cut after is the one at which an earlier run reads object scale best from "
            "photographs; nuclei had no say.",
        }.get(one.chosen_by, f"The layer to cut after was chosen by: {one.chosen_by}.")
    if not images:
        return None
    text = (
        f"{' '.join(how.values())} The layer of least error is found on the held-out patches themselves: it tells what the "
        "best possible choice would have given, and is not a result to expect on new images."
    )
    return page.Section("Where to cut", text, images, tables)


def _magnification_section(
    named: Mapping[str, NetworkResult], patches: Patches, folder: Path
) -> page.Section:
    images, tables = [], []
    for name, one in named.items():
        for trainable in _trainables(one):
            errors = {
                model: _by_magnification(seeds)
                for (model, t), seeds in _groups(one).items()
                if t == trainable
            }
            classes = [float(m) for m in np.unique(patches.magnification)]
            rows, least = [], Counter()
            for m in classes:
                area = patches.area[patches.magnification == m]
                means = {model: np.mean(values[m]) for model, values in errors.items() if m in values}
                if means:
                    least[min(means, key=lambda model, means=means: means[model])] += 1
                rows.append(
                    (
                        f"{m:g}X",
                        page.number(float(area.mean()), 1),
                        *(_pm(values.get(m, ()), 1) for values in errors.values()),
                    )
                )
            what = f"{name}, {trainable}"
            tables.append(
                page.Table(
                    f"{what}: MAE in px of the patches of each magnification, mean ± sd over seeds.",
                    ("magnification", "mean area, px", *(MODEL_NAMES[model] for model in errors)),
                    rows,
                )
            )
            # A magnification that some seed did not hold out cannot be averaged over the same seeds.
            seeds = len(one.layers)
            full = [m for m in classes if all(len(values.get(m, ())) == seeds for values in errors.values())]
            if full:
                curves = {
                    model: np.array([values[m] for m in full], float) for model, values in errors.items()
                }
                wins = ", ".join(
                    f"{MODEL_NAMES[model]} at {least[model]}" for model in errors if least[model]
                )
                images.append(
                    _picture(
                        transfer_figures.magnification_curves(full, curves),
                        folder / f"{one.weights}-{trainable}-magnification",
                        f"Error of the three models of {what} by magnification. Least error of {len(classes)} magnifications: "
                        f"{wins}.",
                        f"{what}. Mean ± 1 sd over seeds.",
                    )
                )
    text = (
        "Nuclei cover more pixels at high magnification, so errors in pixels grow with it. Read the columns against the mean "
        "area."
    )
    return page.Section("By magnification", text, images, tables)


def _prediction_section(named: Mapping[str, NetworkResult], patches: Patches, folder: Path) -> page.Section:
    images = []
    limits = transfer_figures.area_limits(patches.area)
    for name, one in named.items():
        trainable = _trainables(one)[0]
        for (model, t), seeds in _groups(one).items():
            if t != trainable:
                continue
            first = seeds[0].prediction
            true, predicted = patches.area[first.test], first.area.astype(float)
            outside = int(((predicted < limits[0]) | (predicted > limits[1])).sum())
            error = float(np.abs(predicted - true).mean())
            images.append(
                _picture(
                    transfer_figures.predicted_against_true(
                        true, predicted, patches.magnification[first.test], limits
                    ),
                    folder / f"{one.weights}-{trainable}-{model}-predicted",
                    f"Predicted against true areas by {name}, {MODEL_NAMES[model]}, seed {first.seed}: they differ by "
                    f"{page.number(error, 1)} px on average over {len(true):,} patches.",
                    f"{name}, {MODEL_NAMES[model]}, seed {first.seed}."
                    + (
                        f" {outside} predictions outside the axes lie on their border."
                        if outside > 1
                        else " One prediction outside the axes lies on their border."
                        if outside
                        else ""
                    ),
                )
            )
            counts, classes = confusion_counts(seeds, patches)
            totals = counts.sum(axis=1, keepdims=True)
            shares = 100 * np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
            right = 100 * float(np.trace(counts) / counts.sum())
            images.append(
                _picture(
                    transfer_figures.confusion(shares, classes),
                    folder / f"{one.weights}-{trainable}-{model}-confusion",
                    f"Magnifications told from the areas that {name}, {MODEL_NAMES[model]}, predicts: {page.number(right, 0)} "
                    "% are right.",
                    f"{name}, {MODEL_NAMES[model]}: per cent of the patches of a row, all seeds together; "
                    f"{page.number(right, 0)} % are right.",
                )
            )
    both = any(len(_trainables(one)) > 1 for one in named.values())
    text = (
        "Points: one a held-out patch of the first seed; the line is a perfect prediction. Squares: the magnification whose "
        "mean area in the training part is nearest to the prediction, against the true one."
        + (" Predictions by gradient descent; ridge is in the tables above." if both else "")
    )
    return page.Section("Predicted against true", text, images)


def _learning_section(named: Mapping[str, NetworkResult], folder: Path) -> page.Section | None:
    images = []
    for name, one in named.items():
        for trainable in _trainables(one):
            curves = {
                model: [np.array(seed.prediction.curve, float) for seed in seeds]
                for (model, t), seeds in _groups(one).items()
                if t == trainable and all(len(seed.prediction.curve) for seed in seeds)
            }
            if not curves:
                continue
            length = min(len(curve) for seeds in curves.values() for curve in seeds)
            stacked = {
                model: np.stack([curve[:length] for curve in seeds], axis=1)
                for model, seeds in curves.items()
            }
            epochs = next(iter(stacked.values()))[:, 0, 0].astype(int)
            training = {model: np.sqrt(values[:, :, 1]) for model, values in stacked.items()}
            held_out = {model: values[:, :, 2] for model, values in stacked.items()}
            ends = "; ".join(
                f"{MODEL_NAMES[model]} {_pm(training[model][-1], 1)} px and {_pm(held_out[model][-1], 1)} px"
                for model in stacked
            )
            images.append(
                _picture(
                    transfer_figures.learning_curves(epochs, training, held_out),
                    folder / f"{one.weights}-{trainable}-learning",
                    f"Training RMSE and held-out MAE of {name} after epoch {epochs[-1]}: {ends}.",
                    f"{name}. Mean ± 1 sd over seeds.",
                )
            )
    if not images:
        return None
    text = (
        "Root of the mean squared error of each epoch's batches, and the mean absolute error on held-out patches after it, "
        "which chose nothing: the last epoch is reported. Where the curves still fall, longer training could change the "
        "order."
    )
    return page.Section("Learning curves", text, images)


def _patch_section(patches: Patches, skipped: Sequence[Skipped]) -> page.Section:
    rows = []
    for m in (None, *np.unique(patches.magnification)):
        part = np.ones(len(patches), bool) if m is None else patches.magnification == m
        rows.append(
            (
                "all" if m is None else f"{m:g}X",
                f"{int(part.sum()):,}",
                f"{len(np.unique(patches.group[part])):,}",
                _pm(patches.area[part], 1),
            )
        )
    tables = [
        page.Table(
            "Patches, the source images or patients that they come from, and their mean nucleus area (mean ± sd over patches).",
            ("magnification", "patches", "source images", "mean area, px"),
            rows,
        )
    ]
    if skipped:
        names: dict[str, list[str]] = {}
        for one in skipped:
            names.setdefault(one.reason, []).append(one.name)
        tables.append(
            page.Table(
                "What was left out, by reason.",
                ("reason", "number", "for example"),
                [(reason, f"{len(those):,}", _brief(those[0])) for reason, those in sorted(names.items())],
            )
        )
    return page.Section(
        "Patches by magnification",
        "" if skipped else "Nothing was left out.",
        (),
        tables,
    )


# Numbers of a result.


def confusion_counts(
    seeds: Iterable[measured.Evaluated], patches: Patches
) -> tuple[Int[np.ndarray, "M M"], list[float]]:
    """Patches by true magnification (row) and by the one nearest to the predicted area (column), summed over seeds.

    Classes are the mean areas of what a seed does not hold out, as for kappa.
    """
    classes = [float(one) for one in np.unique(patches.magnification)]
    counts = np.zeros((len(classes), len(classes)), np.int64)
    for one in seeds:
        part = np.ones(len(patches), bool)
        part[one.prediction.test] = False
        means = class_means(patches.area[part], patches.magnification[part])
        told = nearest_class(one.prediction.area.astype(float), means)
        true = patches.magnification[one.prediction.test]
        np.add.at(counts, (np.searchsorted(classes, true), np.searchsorted(classes, told)), 1)
    return counts, classes


def _everything(results: Iterable[NetworkResult]) -> list[measured.Evaluated]:
    return [one for result in results for one in result.evaluated]


def _named(results: Sequence[NetworkResult]) -> dict[str, NetworkResult]:
    """Results by a name for people, which tells weights of the same architecture apart."""
    count = Counter(one.architecture for one in results)
    return {
        _PLAIN.get(one.architecture, one.architecture)
        + (f" ({one.weights})" if count[one.architecture] > 1 else ""): one
        for one in results
    }


def _trainables(result: NetworkResult) -> list[str]:
    present = {one.prediction.trainable for one in result.evaluated}
    return [one for one in _TRAINED if one in present]


def _groups(result: NetworkResult) -> dict[tuple[str, str], list[measured.Evaluated]]:
    """The seeds in order, by way of training and model."""
    groups = {
        (model, trainable): sorted(
            (
                one
                for one in result.evaluated
                if (one.prediction.model, one.prediction.trainable) == (model, trainable)
            ),
            key=lambda one: one.prediction.seed,
        )
        for trainable in _trainables(result)
        for model in MODEL_NAMES
    }
    return {key: seeds for key, seeds in groups.items() if seeds}


def _values(seeds: Iterable[measured.Evaluated], metric: str) -> list[float | None]:
    if metric == "macro_mae":
        return [measured.macro(one) for one in seeds]
    return [getattr(one.rows[0], metric) for one in seeds]


def _by_magnification(seeds: Iterable[measured.Evaluated]) -> dict[float, list[float]]:
    errors: dict[float, list[float]] = {}
    for one in seeds:
        for row in one.rows[1:]:
            if row.magnification is not None:
                errors.setdefault(row.magnification, []).append(row.mae)
    return dict(sorted(errors.items()))


def _sweep_errors(result: NetworkResult) -> dict[tuple[str, str], Float[np.ndarray, "L S"]]:
    """MAE of every layer and seed by condition and head, both in the order of the scores."""
    grouped: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for score in result.sweep:
        of_layer = grouped.setdefault((score.condition, score.head), {}).setdefault(score.layer, {})
        of_layer[score.seed] = score.mae
    return {
        key: np.array([[by_seed[seed] for seed in sorted(by_seed)] for by_seed in by_layer.values()])
        for key, by_layer in grouped.items()
    }


def _comparison(result: NetworkResult, trainable: str) -> measured.Comparison | None:
    wanted = (trainable, "whole", "mae")
    return next((c for c in result.comparisons if (c.trainable, c.base, c.metric) == wanted), None)


def _repeats(result: NetworkResult, trainable: str) -> bool:
    """Whether all seeds hold out the same patches and predict the same: ridge with one split."""
    groups = _groups(result)
    for model in ("whole", "pruned"):
        first, *others = (one.prediction for one in groups[model, trainable])
        if not others or not all(
            np.array_equal(first.test, one.test) and np.array_equal(first.area, one.area) for one in others
        ):
            return False
    return True


def _whole_layer(result: NetworkResult) -> str:
    return next(one.prediction.layer for one in result.evaluated if one.prediction.model == "whole")


def _cuts(result: NetworkResult) -> str:
    counts = Counter(result.layers.values()).most_common()
    if len(counts) == 1:
        return counts[0][0]
    first, *others = (f"{layer} in {count}" for layer, count in counts)
    return ", ".join([f"{first} of {len(result.layers)} seeds", *others])


# Numbers as text.


def _rows(result: NetworkResult, name: str, only: str | None = None) -> list[tuple[str, ...]]:
    rows = []
    for (model, trainable), seeds in _groups(result).items():
        if only in (None, trainable):
            layers = list(dict.fromkeys(one.prediction.layer for one in seeds))
            layer = " or ".join(layers) if len(layers) < 3 else f"{len(layers)} layers"
            maes = (_pm(_values(seeds, metric), 1) for metric in ("mae", "macro_mae"))
            kappas = (_pm(_values(seeds, metric), 3) for metric in ("kappa", "kappa_quadratic"))
            rows.append((name, MODEL_NAMES[model], layer, trainable, *maes, *kappas))
    return rows


def _spread(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample sd; None where a value is missing, and for the sd of one value."""
    numbers = list(values)
    if not numbers or any(value is None for value in numbers):
        return None, None
    array = np.array(numbers, float)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


def _pm(values: Iterable[float | None], digits: int, *, signed: bool = False) -> str:
    mean, sd = _spread(values)
    text = page.number(mean, digits)
    if signed and mean is not None and mean > 0 and text != page.number(0.0, digits):
        text = f"+{text}"
    return text if sd is None else f"{text} ± {page.number(sd, digits)}"


def _signed(value: float, metric: str) -> str:
    return _pm([value], 1 if metric == "mae" else 3, signed=True)


def _interval(c: measured.Comparison) -> str:
    return (
        "–"
        if c.low is None or c.high is None
        else f"{_signed(c.low, c.metric)} to {_signed(c.high, c.metric)}"
    )


def _change(difference: float | None) -> str:
    if difference is None:
        return "–"
    return f"{page.number(abs(difference), 1)} px {'less' if difference < 0 else 'more'}"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}".replace("-", "−")


def _share(part: int | float, whole: int | float) -> str:
    return f"{100 * part / whole:.0f} %"


def _brief(name: str, longest: int = 60) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _picture(figure: Figure, stem: Path, alt: str, caption: str) -> page.Image:
    _, svg = style.save(figure, stem)
    return page.Image(svg.read_bytes(), alt, caption)
