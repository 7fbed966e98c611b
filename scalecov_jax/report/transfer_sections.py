"""The sections of the page after Table 2, with their figures and tables: where to cut, errors in detail, learning, patches."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from scalecov_jax.concepts.nuclei import class_means, nearest_class
from scalecov_jax.images.example import Skipped
from scalecov_jax.images.patches import Patches
from scalecov_jax.report import page, style, transfer_figures
from scalecov_jax.report.transfer_figures import MODEL_NAMES
from scalecov_jax.report.transfer_result import (
    NetworkResult,
    by_magnification,
    by_model,
    cuts,
    mean_and_sd,
    trainables,
)
from scalecov_jax.transfer.results import Evaluated

_CHOSEN_BY = {
    "given": "The layer to cut after was given.",
    "target": "The layer to cut after was chosen for each seed inside its training part, by how well ridge reads nucleus "
    "area there; the held-out errors below had no say.",
    "scale": "The layer to cut after is the one at which an earlier run reads object scale best from photographs; nuclei "
    "had no say.",
}


def cut_section(networks: Mapping[str, NetworkResult], folder: Path) -> page.Section | None:
    """Error of heads on every layer; None without a sweep. Figures are written to `folder`."""
    swept = {name: one for name, one in networks.items() if one.sweep}
    if not swept:
        return None
    images, tables = [], []
    for name, one in swept.items():
        errors = _sweep_errors(one)
        layers = list(dict.fromkeys(score.layer for score in one.sweep))
        means = errors["trained", "ridge"].mean(axis=1)
        best, chosen = layers[int(means.argmin())], Counter(one.layers.values())
        images.append(
            _picture(
                transfer_figures.cut_curves(layers, errors, chosen, best),
                folder / f"{one.weights}-sweep",
                f"Held-out error of heads on each layer of {name}: least at {best} ({page.number(means.min(), 1)} px), "
                f"{page.number(means[-1], 1)} px at the whole network; cut after {cuts(one)}.",
                f"{name}. Mean ± 1 sd over seeds. Shaded: where the pruned network was cut, with the number of seeds. Circle: "
                "least error.",
            )
        )
        shown = [
            errors[key] for key in (("trained", "ridge"), ("trained", "head"), ("random_weights", "ridge"))
        ]
        rows = []
        for at, layer in enumerate(layers):
            gaps = [mean_and_sd(maes[at] - maes[-1], 1, signed=True) for maes in shown[:2]]
            notes = [f"cut in {chosen[layer]}"] * (layer in chosen)
            notes += ["least error"] * (layer == best)
            rows.append(
                (
                    *(layer, *(mean_and_sd(maes[at], 1) for maes in shown)),
                    *(gaps if layer != layers[-1] else ["–"] * len(gaps)),
                    "; ".join(notes),
                )
            )
        tables.append(
            page.Table(
                f"{name}: held-out MAE in px by a head on each layer, and the difference to the whole network paired by seed; "
                f"mean ± sd. Random: random weights. Marked: cut there in so many of {len(one.layers)} seeds.",
                (
                    *("layer", "ridge", "head", "ridge, random"),
                    *("ridge − whole", "head − whole", "notes"),
                ),
                rows,
                [at for at, layer in enumerate(layers) if layer in chosen],
            )
        )
    text = (
        f"{' '.join(dict.fromkeys(_CHOSEN_BY[one.chosen_by] for one in swept.values()))} The layer of least error is found "
        "on the held-out patches themselves: it tells what the best possible choice would have given, and is not a result to "
        "expect on new images."
    )
    return page.Section("Where to cut", text, images, tables)


def magnification_section(
    networks: Mapping[str, NetworkResult], patches: Patches, folder: Path
) -> page.Section:
    """Errors by magnification for each network and way of training. Figures are written to `folder`."""
    classes = [float(m) for m in np.unique(patches.magnification)]
    areas = {m: float(patches.area[patches.magnification == m].mean()) for m in classes}
    images, tables = [], []
    for name, one in networks.items():
        for trainable in trainables(one):
            what = f"{name}, {trainable}"
            errors = {model: by_magnification(seeds) for model, seeds in by_model(one, trainable).items()}
            rows = [
                (
                    *(f"{m:g}X", page.number(areas[m], 1)),
                    *(mean_and_sd(values.get(m, ()), 1) for values in errors.values()),
                )
                for m in classes
            ]
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
                images.append(
                    _picture(
                        transfer_figures.magnification_curves(full, curves),
                        folder / f"{one.weights}-{trainable}-magnification",
                        f"Error of the three models of {what} by magnification. Least error of {len(full)} magnifications: "
                        f"{_least(curves)}.",
                        f"{what}. Mean ± 1 sd over seeds.",
                    )
                )
    text = (
        "Nuclei cover more pixels at high magnification, so errors in pixels grow with it. Read the columns against the mean "
        "area."
    )
    return page.Section("By magnification", text, images, tables)


def prediction_section(networks: Mapping[str, NetworkResult], patches: Patches, folder: Path) -> page.Section:
    """Predicted against true areas and magnifications of the main way of training. Figures are written to `folder`."""
    images = []
    for name, one in networks.items():
        trainable = trainables(one)[0]
        for model, seeds in by_model(one, trainable).items():
            what, stem = f"{name}, {MODEL_NAMES[model]}", f"{one.weights}-{trainable}-{model}"
            images += [
                _areas(seeds[0], patches, folder / f"{stem}-predicted", what),
                _confusion(seeds, patches, folder / f"{stem}-confusion", what),
            ]
    text = (
        "Points: one a held-out patch of the first seed; the line is a perfect prediction. Squares: the magnification whose "
        "mean area in the training part is nearest to the prediction, against the true one."
    )
    if any(len(trainables(one)) > 1 for one in networks.values()):
        text += " Predictions by gradient descent; ridge is in the tables above."
    return page.Section("Predicted against true", text, images)


def learning_section(
    networks: Mapping[str, NetworkResult], folder: Path, *, recomputed: bool
) -> page.Section | None:
    """Errors after each epoch of fine-tuning; None without. Figures are written to `folder`.

    Args:
        networks: By name.
        folder: Of the figures.
        recomputed: Whether the statistics of the batch normalisation were recomputed after training.
    """
    images = []
    for name, one in networks.items():
        if "all" not in trainables(one):
            continue
        curves = {
            model: np.stack([np.array(seed.prediction.curve, float) for seed in seeds], axis=1)
            for model, seeds in by_model(one, "all").items()
        }
        epochs = next(iter(curves.values()))[:, 0, 0].astype(int)
        training = {model: np.sqrt(values[:, :, 1]) for model, values in curves.items()}
        held_out = {model: values[:, :, 2] for model, values in curves.items()}
        ends = "; ".join(
            f"{MODEL_NAMES[model]} {mean_and_sd(training[model][-1], 1)} px and {mean_and_sd(held_out[model][-1], 1)} px"
            for model in curves
        )
        images.append(
            _picture(
                transfer_figures.learning_curves(epochs, training, held_out),
                folder / f"{one.weights}-all-learning",
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
    if recomputed:
        text += (
            "\n\nThe held-out error after each epoch was measured with the running statistics of the batch normalisation; "
            "the tables and the other figures use statistics recomputed after the last epoch, so their MAE may be lower than "
            "the end of the curve."
        )
    return page.Section("Learning curves", text, images)


def patch_section(patches: Patches, skipped: Sequence[Skipped]) -> page.Section:
    """How many patches there are, and what was left out."""
    parts = {"all": np.ones(len(patches), bool)}
    parts |= {f"{m:g}X": patches.magnification == m for m in np.unique(patches.magnification)}
    tables = [
        page.Table(
            "Patches, the source images or patients that they come from, and their mean nucleus area (mean ± sd over patches).",
            ("magnification", "patches", "source images", "mean area, px"),
            [
                (
                    *(name, f"{int(part.sum()):,}", f"{len(np.unique(patches.group[part])):,}"),
                    mean_and_sd(patches.area[part], 1),
                )
                for name, part in parts.items()
            ],
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
    return page.Section("Patches by magnification", "" if skipped else "Nothing was left out.", (), tables)


def confusion_counts(
    seeds: Iterable[Evaluated], patches: Patches
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


def _sweep_errors(result: NetworkResult) -> dict[tuple[str, str], Float[np.ndarray, "L S"]]:
    """MAE of every layer and seed by condition and head, both in the order of the scores."""
    grouped: dict[tuple[str, str], dict[str, list[float]]] = {}
    for score in result.sweep:
        grouped.setdefault((score.condition, score.head), {}).setdefault(score.layer, []).append(score.mae)
    return {key: np.array([*by_layer.values()]) for key, by_layer in grouped.items()}


def _least(errors: Mapping[str, Float[np.ndarray, "M S"]]) -> str:
    """How often each model has the least mean error."""
    least = Counter(np.argmin([values.mean(axis=1) for values in errors.values()], axis=0).tolist())
    return ", ".join(f"{MODEL_NAMES[model]} at {least[at]}" for at, model in enumerate(errors) if least[at])


def _areas(one: Evaluated, patches: Patches, stem: Path, what: str) -> page.Image:
    true, predicted = patches.area[one.prediction.test], one.prediction.area.astype(float)
    limits = transfer_figures.area_limits(patches.area)
    outside = int(((predicted < limits[0]) | (predicted > limits[1])).sum())
    caption = f"{what}, seed {one.prediction.seed}."
    if outside == 1:
        caption += " One prediction outside the axes lies on their border."
    elif outside:
        caption += f" {outside} predictions outside the axes lie on their border."
    return _picture(
        transfer_figures.predicted_against_true(
            true, predicted, patches.magnification[one.prediction.test], limits
        ),
        stem,
        f"Predicted against true areas by {what}, seed {one.prediction.seed}: they differ by "
        f"{page.number(float(np.abs(predicted - true).mean()), 1)} px on average over {len(true):,} patches.",
        caption,
    )


def _confusion(seeds: Sequence[Evaluated], patches: Patches, stem: Path, what: str) -> page.Image:
    counts, classes = confusion_counts(seeds, patches)
    totals = counts.sum(axis=1, keepdims=True)
    shares = 100 * np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    right = page.number(100 * float(np.trace(counts) / counts.sum()), 0)
    return _picture(
        transfer_figures.confusion(shares, classes),
        stem,
        f"Magnifications told from the areas that {what}, predicts: {right} % are right.",
        f"{what}: per cent of the patches of a row, all seeds together; {right} % are right.",
    )


def _picture(figure: Figure, stem: Path, alt: str, caption: str) -> page.Image:
    _, svg = style.save(figure, stem)
    return page.Image(svg.read_bytes(), alt, caption)


def _brief(name: str, longest: int = 60) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
