"""The whole paper on one page: every published figure beside ours, then the evidence section by section."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scalecov_jax.paper.compared import Compared
from scalecov_jax.report import covariance, page, quantification, resizing
from scalecov_jax.tables import write_table


class Part(NamedTuple):
    """What one section of the paper gives to the report of them all.

    Attributes:
        heading: Of its table; begins with its number.
        rows: Published figures beside ours.
        headlines: The rows that stand in the overview.
        sections: Figures and tables.
        answer: Its result in words.
        warnings: What to know before trusting it.
    """

    heading: str
    rows: Sequence[Compared]
    headlines: Sequence[Compared]
    sections: Sequence[page.Section]
    answer: str
    warnings: Sequence[str]


class Stage(NamedTuple):
    """One section whose experiment has not moved to `scalecov_jax.experiments`.

    Attributes:
        heading: Of its table.
        compare: Rows from its folder.
        headlines: The rows that stand in the overview.
        sections: Figures and tables from its folder.
    """

    heading: str
    compare: Callable[[Path], list[Compared]]
    headlines: Callable[[Path], list[Compared]]
    sections: Callable[[Path], list[page.Section]]


STAGES = {
    "resize": Stage("4.1 Resizing", resizing.compare, resizing.compare, resizing.sections),
    "probe": Stage(
        "4.3 Layer-wise quantification",
        quantification.compare,
        quantification.headlines,
        quantification.sections,
    ),
    "covariance": Stage(
        "3.4 Covariance as an operation", covariance.compare, covariance.compare, covariance.sections
    ),
}

_COLUMNS = ("quantity", "published", "ours", "difference", "explanation")
_READING = {
    "Published": "is what Graziani et al. 2021 print, or what can be read off the authors' figures (to 0.005 in exp(R² − 1)).",
    "Difference": "is ours minus published. The images, and for some networks the weights, are not those of the paper: a "
    "difference says that the figure does not carry over, not that it was wrong.",
    "± ": "is one standard deviation over runs (published and ours alike) unless an interval is named; runs share images.",
    "Least squares and ridge.": "The paper fits by least squares. Where a layer has about as many features as there are "
    "training images its R² collapses on any layer; ridge, with its penalty chosen on the training part, does not.",
}


def part_of_folder(name: str, folder: Path) -> Part:
    """The part of a section in `STAGES`, from its folder."""
    stage = STAGES[name]
    summary = json.loads((folder / "summary.json").read_text())
    return Part(
        stage.heading,
        stage.compare(folder),
        stage.headlines(folder),
        stage.sections(folder),
        summary.get("answer", ""),
        summary.get("warnings", ()),
    )


def part_of_page(heading: str, of: page.Page) -> Part:
    """The part of an experiment that has moved: its findings are the rows."""
    number = heading.split()[0]
    rows = [
        Compared(
            number,
            f"{finding.at}: {finding.quantity}",
            finding.reported,
            finding.shown,
            finding.difference,
            finding.note or finding.interval or "–",
        )
        for finding in of.findings
        if finding.level != "caution"
    ]
    answer = " ".join(of.sentences("headline"))
    return Part(heading, rows, rows, of.sections, answer, of.sentences("caution"))


def write_results(
    folder: Path, title: str, parts: Mapping[str, Part], provenance: Mapping[str, str]
) -> list[Compared]:
    """Write compared.csv, report.html and summary.json.

    Args:
        folder: Of the whole run.
        title: Of the page.
        parts: Of the finished sections, by name.
        provenance: From `provenance.provenance`.

    Returns:
        The rows of the overview.
    """
    rows = [row for part in parts.values() for row in part.rows]
    headlines = [row for part in parts.values() for row in part.headlines]
    warnings = [f"{part.heading}: {warning}" for part in parts.values() for warning in part.warnings]
    sections = []
    for part in parts.values():
        number = part.heading.split()[0]
        sections += [
            section
            if section.heading.startswith(number)
            else section._replace(heading=f"{number} {section.heading}")
            for section in part.sections
        ]
    write_table(folder / "compared.csv", Compared, rows)
    overview = page.Section(
        "Published and ours",
        f"{len(rows)} published figures stand beside ours in compared.csv; the chief ones stand here, those of single layers "
        "further down.",
        tables=[
            page.Table(part.heading, _COLUMNS, [row[1:] for row in part.headlines]) for part in parts.values()
        ],
    )
    report = page.Report(
        title,
        "\n\n".join(f"{part.heading}. {part.answer}" for part in parts.values() if part.answer),
        results=(),
        warnings=warnings,
        sections=[overview, *sections],
        provenance=provenance,
        reading=_READING,
    )
    page.write_report(folder / "report.html", report)
    summary = {
        "stages": list(parts),
        "compared": [row._asdict() for row in headlines],
        "warnings": warnings,
        "provenance": dict(provenance),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return headlines
