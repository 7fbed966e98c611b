"""From the classified images to the files of section 4.1: tables, summary.json, figures and report.html."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from scalecov_jax.checkpoints import Network
from scalecov_jax.images.example import Skipped, count_reasons
from scalecov_jax.images.labelled import LabelledImages, Square
from scalecov_jax.paper import resizing_curves as curves
from scalecov_jax.paper.compared import Compared
from scalecov_jax.paper.resizing import Classified
from scalecov_jax.paper.resizing_curves import ALL, REFERENCE, Difference, GridLoss, Plateau, Point
from scalecov_jax.report import page, resizing_answer, style
from scalecov_jax.report.numbers import interval
from scalecov_jax.report.resizing_answer import FLAT, INPUTS, Evidence
from scalecov_jax.report.resizing_figures import size_curves
from scalecov_jax.tables import read_table, write_table

_READING = {
    "Mean probability": "is the softmax output of the true class, averaged over images. The paper calls it top-1 accuracy; top-1 "
    "here is the share of images whose true class comes first. A class that ties with the true one counts as before it.",
    "Intervals": "cover 95 % and speak of other images of the same kind: percentile bootstrap over images for the mean, "
    "Wilson's for shares. They are not for differences between sizes, which the same images make far more certain.",
    "Flat": "is said of the longest run of sizes around the best none of which is shown to be worse: the paired bootstrap "
    "interval of its loss against the best size reaches 0. Fewer images make it longer. Where three sizes or more lie on the "
    "training's grid, only these count.",
    "Filters": "are Pillow's. Where an image shrinks, all but nearest average over every pixel; nearest picks single ones.",
}


def write_results(
    folder: Path,
    title: str,
    rows: Sequence[Classified],
    networks: Mapping[str, Network],
    images: LabelledImages,
    skipped: Sequence[Skipped],
    provenance: Mapping[str, str],
    *,
    square: Square = "crop",
    seed: int = 0,
) -> str:
    """Write all files of a run, summary.json last.

    Args:
        folder: Where to.
        title: Of the page.
        rows: From `resizing.classify`, of all networks.
        networks: By the name of the weights.
        images: What was classified.
        skipped: Images that were left out.
        provenance: From `provenance.provenance`.
        square: How images were made square.
        seed: Of the bootstrap.

    Returns:
        A table for people.
    """
    trained_at = {name: network.card.input_size for name, network in networks.items()}
    evidence = Evidence(
        curves.points(rows, seed),
        curves.plateaus(rows, trained_at, seed),
        curves.filter_differences(rows, seed),
        curves.grid_losses(rows, trained_at, seed),
        {name: (network.architecture.name, network.card.input_size) for name, network in networks.items()},
    )
    write_table(folder / "resize.csv", Classified, rows)
    write_table(folder / "curves.csv", Point, evidence.points)
    write_table(folder / "plateaus.csv", Plateau, evidence.plateaus)
    write_table(folder / "filters.csv", Difference, evidence.differences)
    write_table(folder / "grid.csv", GridLoss, evidence.grid)
    (folder / "figures").mkdir(exist_ok=True)
    for name in networks:
        for kind, (figure, _) in _figures(evidence, name).items():
            style.save(figure, folder / "figures" / f"{name}-{kind}")
    sides = [min(one.width, one.height) for one in images.labels]
    compared = resizing_answer.compare(evidence)
    summary = {
        "answer": resizing_answer.answer(evidence),
        "images": len({row.image for row in rows}),
        "square": square,
        "shorter_side": [min(sides), max(sides)],
        "networks": {
            name: {"architecture": architecture, "input_size": size}
            for name, (architecture, size) in evidence.networks.items()
        },
        "compared": [row._asdict() for row in compared],
        "warnings": resizing_answer.warnings(evidence, sides, square),
        "skipped": count_reasons(skipped),
        "provenance": dict(provenance),
    }
    named: dict[str, list[str]] = {}
    for skip in skipped:
        named.setdefault(skip.reason, []).append(skip.name)
    report = page.Report(
        title,
        summary["answer"],
        (),
        summary["warnings"],
        {reason: sorted(names) for reason, names in sorted(named.items())},
        [_comparison(compared), *_sections(evidence)],
        provenance,
        _READING,
    )
    page.write_report(folder / "report.html", report)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return _text(evidence)


def compare(folder: Path) -> list[Compared]:
    """The published claims beside those of the run in `folder`."""
    return resizing_answer.compare(_read(folder))


def sections(folder: Path) -> list[page.Section]:
    """One part of a page for each network of the run in `folder`."""
    return _sections(_read(folder))


def _read(folder: Path) -> Evidence:
    networks = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["networks"]
    return Evidence(
        read_table(folder / "curves.csv", Point),
        read_table(folder / "plateaus.csv", Plateau),
        read_table(folder / "filters.csv", Difference),
        read_table(folder / "grid.csv", GridLoss),
        {name: (one["architecture"], one["input_size"]) for name, one in networks.items()},
    )


def _figures(evidence: Evidence, weights: str) -> dict[str, tuple[style.Figure, str]]:
    """Figures of a network and what they compare: its filters, and its groups of images."""
    size = evidence.networks[weights][1]
    published = FLAT if size in INPUTS else None
    names = dict.fromkeys(point.filter for point in evidence.points)
    filters = {name: evidence.curve(weights, name=name) for name in names}
    groups = {group: evidence.curve(weights, group) for group in evidence.groups(weights)}
    compared = {"filters": (filters, "with each filter, all images")}
    if len(groups) > 1:
        compared["groups"] = (groups, f"of each group of images, {evidence.filter}")
    return {kind: (size_curves(shown, size, published), what) for kind, (shown, what) in compared.items()}


def _sections(evidence: Evidence) -> list[page.Section]:
    found = []
    for weights in evidence.networks:
        title = evidence.title(weights)
        flat = evidence.plateau(weights, ALL, "probability")
        images = [
            page.embed(
                figure,
                f"Mean probability of the true class and top-5 share of {title} against the size of the images, {what}. "
                f"With {evidence.filter} the best size is {flat.best} px, mean probability {page.number(flat.value)}.",
                f"Against the size, {what}. Bands: 95 % intervals over images.",
            )
            for figure, what in _figures(evidence, weights).values()
        ]
        points = evidence.curve(weights)
        table = page.Table(
            f"All {points[0].images} images, {evidence.filter}; 95 % intervals in brackets. Emphasised: where the mean "
            "probability is flat.",
            ("size, px", "mean probability", "top-1, %", "top-5, %"),
            [
                (
                    str(point.size),
                    interval(point.probability, point.probability_low, point.probability_high, 3),
                    interval(100 * point.top1, 100 * point.top1_low, 100 * point.top1_high, 1),
                    interval(100 * point.top5, 100 * point.top5_low, 100 * point.top5_high, 1),
                )
                for point in points
            ],
            [
                index
                for index, point in enumerate(points)
                if flat.first <= point.size <= flat.last and point in evidence.counted(points)
            ],
        )
        tables = [table, *_filter_table(evidence, weights)]
        text = "\n\n".join(resizing_answer.remarks(evidence, weights))
        found.append(page.Section(f"Resizing: {title}", text, images, tables))
    return found


def _filter_table(evidence: Evidence, weights: str) -> list[page.Table]:
    differences = [one for one in evidence.differences if one.weights == weights]
    names = list(dict.fromkeys(one.filter for one in differences))
    rows = [
        (
            str(size),
            *(interval(one.difference, one.low, one.high, 3) for one in differences if one.size == size),
        )
        for size in dict.fromkeys(one.size for one in differences)
    ]
    caption = f"Mean probability with each filter minus that with {REFERENCE}, same images; paired 95 % intervals in brackets."
    return [page.Table(caption, ("size, px", *names), rows)] if rows else []


def _comparison(rows: Sequence[Compared]) -> page.Section:
    columns = ("quantity", "published", "ours", "difference", "explanation")
    return page.Section(
        "Published and ours",
        "Claims of section 4.1 and Figure 6 of the paper, for Lanczos where it was used.",
        tables=[page.Table("Sizes in pixels.", columns, [row[1:] for row in rows])],
    )


def _text(evidence: Evidence) -> str:
    lines = [f"{'weights':<16}{'size':>5}{'images':>8}{'mean p':>8}{'95 %':>16}{'top-1 %':>9}{'top-5 %':>9}"]
    for weights in evidence.networks:
        lines += [
            f"{weights:<16}{point.size:>5}{point.images:>8}{point.probability:>8.3f}"
            f"{f'{point.probability_low:.3f}-{point.probability_high:.3f}':>16}{100 * point.top1:>9.1f}{100 * point.top5:>9.1f}"
            for point in evidence.curve(weights)
        ]
    return "\n".join([*lines, "", resizing_answer.answer(evidence)])
