"""The whole paper on one page: every published figure beside ours, then the evidence section by section."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scalecov_jax.paper.compared import Compared
from scalecov_jax.report import covariance, noise, page, published_transfer, quantification, resizing
from scalecov_jax.tables import write_table


class Stage(NamedTuple):
    """One experiment in the paper's report.

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
    "noise": Stage("4.2 Noise inputs", noise.compare, noise.compare, noise.sections),
    "probe": Stage(
        "4.3 Layer-wise quantification",
        quantification.compare,
        quantification.headlines,
        quantification.sections,
    ),
    "covariance": Stage(
        "3.4 Covariance as an operation", covariance.compare, covariance.compare, covariance.sections
    ),
    "transfer": Stage(
        "4.4 Transfer to histopathology",
        published_transfer.compare,
        published_transfer.compare,
        published_transfer.sections,
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


def write_results(
    folder: Path, title: str, stages: Sequence[str], provenance: Mapping[str, str]
) -> list[Compared]:
    """Write compared.csv, report.html and summary.json from the folders of finished stages.

    Args:
        folder: Of the whole run; each stage lies in the folder of its name.
        title: Of the page.
        stages: Names in `STAGES`.
        provenance: From `provenance.provenance`.

    Returns:
        The rows of the overview.
    """
    rows, headlines, tables, parts, answers, warnings = [], [], [], [], [], []
    for name in stages:
        stage = STAGES[name]
        rows += stage.compare(folder / name)
        shown = stage.headlines(folder / name)
        headlines += shown
        tables.append(page.Table(stage.heading, _COLUMNS, [row[1:] for row in shown]))
        number = stage.heading.split()[0]
        parts += [
            one if one.heading.startswith(number) else one._replace(heading=f"{number} {one.heading}")
            for one in stage.sections(folder / name)
        ]
        summary = json.loads((folder / name / "summary.json").read_text())
        if answer := summary.get("answer"):
            answers.append(f"{stage.heading}. {answer}")
        warnings += [f"{stage.heading}: {warning}" for warning in summary.get("warnings", ())]
    write_table(folder / "compared.csv", Compared, rows)
    overview = page.Section(
        "Published and ours",
        f"{len(rows)} published figures stand beside ours in compared.csv; the chief ones stand here, those of single layers "
        "further down.",
        tables=tables,
    )
    report = page.Report(
        title,
        "\n\n".join(answers),
        results=(),
        warnings=warnings,
        sections=[overview, *parts],
        provenance=provenance,
        reading=_READING,
    )
    page.write_report(folder / "report.html", report)
    summary = {
        "stages": list(stages),
        "compared": [row._asdict() for row in headlines],
        "warnings": warnings,
        "provenance": dict(provenance),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return headlines
