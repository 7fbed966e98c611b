"""The dip of least squares against the number of training images: a figure, a table and a sentence."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from scalecov_jax.probes.sample_size import Dip, SizeScore, dips, medians
from scalecov_jax.report import page
from scalecov_jax.report.style import BLUE, DARK, GREEN, ORANGE, RED, WIDTH, save, styled
from scalecov_jax.tables import read_table

FILE = "sample_size.csv"
_LOOKS = ((BLUE, "o"), (ORANGE, "s"), (RED, "^"), (GREEN, "D"), (DARK, "v"))


@styled
def size_curves(rows: Sequence[SizeScore], title: str = "") -> Figure:
    """Median of exp(R2 - 1) against n_train: least squares with markers, ridge thin; a dotted line stands at each layer's rank.

    The first layer of each rank is drawn, up to five ranks inside the range of n_train.

    Args:
        rows: Of one class and one set of weights.
        title: Drawn above the axes.
    """
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    axes = figure.subplots()
    for one, (color, marker) in zip(_drawn(rows).values(), _LOOKS, strict=False):
        layer, rank = one.layer, one.rank
        sizes, ols = medians(rows, layer, "ols")
        _, ridge = medians(rows, layer, "ridge")
        label = f"{layer} (D = {one.width}" + (")" if rank == one.width else f", rank {rank})")
        axes.plot(sizes, np.exp(ols - 1), color=color, marker=marker, markersize=5, label=label)
        axes.plot(sizes, np.exp(ridge - 1), color=color, linewidth=1, linestyle="--")
        axes.axvline(rank, color=color, linewidth=1, linestyle=":")
    axes.axhline(np.exp(-1), color="#707070", linewidth=1)
    for style, label in (("-", "least squares"), ("--", "ridge"), (":", "n_train = rank")):
        axes.plot([], [], style, color=DARK, label=label)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("training images (n_train)")
    axes.set_ylabel("exp(R² − 1), median over splits")
    axes.set_title(title)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=9.5)
    return figure


def sections(folder: Path) -> list[page.Section]:
    """The part of a report, from sample_size.csv in the run's folder; none where nothing was swept.

    Draws figures/WEIGHTS-CLASS-sample_size.png and .svg too.
    """
    if not (folder / FILE).exists():
        return []
    rows = read_table(folder / FILE, SizeScore)
    images, tables, sentences = [], [], []
    for weights, image_class in dict.fromkeys((row.weights, row.image_class) for row in rows):
        some = [row for row in rows if (row.weights, row.image_class) == (weights, image_class)]
        found = dips(some)
        if not found:
            continue
        figure = size_curves(some, f"{weights}, {image_class}")
        (folder / "figures").mkdir(exist_ok=True)
        save(figure, folder / "figures" / f"{weights}-{image_class}-sample_size")
        text = "; ".join(
            f"{one.layer} ({one.width} features, rank {one.rank}) is lowest at n_train {one.n_train}"
            for one in found
            if one.layer in _drawn(some)
        )
        images.append(
            page.embed(
                figure,
                f"Least squares against the number of training images, {weights}, {image_class}: {text}.",
                f"{weights}, {image_class}. Solid: least squares. Dashed: ridge. Dotted lines: n_train = rank. Grey: R² = 0.",
            )
        )
        sentences.append(f"{weights}, {image_class}: {text}.")
        tables.append(
            page.Table(
                f"{weights}, {image_class}: the size of the training part at which least squares is worst (median over splits).",
                (
                    "layer",
                    "D",
                    "rank",
                    "n_train at the dip",
                    "n_train / rank",
                    "least squares there",
                    "ridge there",
                ),
                [
                    (
                        one.layer,
                        f"{one.width:,}",
                        f"{one.rank:,}",
                        str(one.n_train),
                        page.number(one.n_train / one.rank),
                        page.number(one.ols),
                        page.number(one.ridge),
                    )
                    for one in found
                ],
            )
        )
    if not images:
        return []
    text = (
        "The same features are probed with more and more training images. If the collapse of the early layers belonged to the "
        "layers, it would stay where it is; it moves with the number of training images and sits where that number meets the "
        "number of linearly independent features.\n\n" + " ".join(sentences)
        if _follows(rows)
        else "The same features are probed with more and more training images. Here the lowest score of least squares does not "
        "follow the number of independent features at every layer: see the table.\n\n" + " ".join(sentences)
    )
    return [
        page.Section("The dip of least squares against the number of training images", text, images, tables)
    ]


def _drawn(rows: Sequence[SizeScore]) -> dict[str, Dip]:
    drawn: dict[int, Dip] = {}
    for one in dips(rows):
        drawn.setdefault(one.rank, one)
    return {one.layer: one for one in [*drawn.values()][: len(_LOOKS)]}


def _follows(rows: Sequence[SizeScore]) -> bool:
    """Whether every dip lies at the size of the training part that is nearest to the rank, or next to it."""
    for weights, image_class in {(row.weights, row.image_class) for row in rows}:
        some = [row for row in rows if (row.weights, row.image_class) == (weights, image_class)]
        sizes = np.unique([row.n_train for row in some])
        for one in dips(some):
            nearest = np.abs(sizes - one.rank).argmin()
            if abs(int(np.searchsorted(sizes, one.n_train)) - int(nearest)) > 1:
                return False
    return True
