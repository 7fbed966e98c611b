"""Every experiment of the scale paper, one after the other, and one page with what was published beside what was found.

Source: Graziani et al. 2021.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from absl import logging

from scalecov_jax import run as runner
from scalecov_jax.atomic import if_whole, replacing, write_json
from scalecov_jax.checkpoints import load_networks
from scalecov_jax.report import page
from scalecov_jax.report.findings import aligned
from scalecov_jax.report.provenance import provenance
from scalecov_jax.settings import Base, parse, setting
from scalecov_jax.workdir import open_workdir

Name = Literal["resize", "noise", "probe", "covariance", "transfer"]
SECTIONS: dict[Name, str] = {
    "resize": "4.1 Resizing",
    "noise": "4.2 Noise inputs",
    "probe": "4.3 Layer-wise quantification",
    "covariance": "3.4 Covariance as an operation",
    "transfer": "4.4 Transfer to histopathology",
}


@dataclass(frozen=True)
class Settings(Base):
    """What all sections share; each has the settings of its experiment beside these, under its name."""

    title: str = setting(
        "On the scale invariance of CNNs trained on ImageNet: published and ours", help="Of the report."
    )
    sections: tuple[Name, ...] = setting(
        tuple(SECTIONS), least=1, distinct=True, help="Which experiments to run, in the order of the paper."
    )
    weights: tuple[str, ...] = setting(
        ("runs/weights/inception_v3", "runs/weights/resnet50"),
        least=1,
        help="Folders of checkpoints, for the sections that name none.",
    )
    seed: int = setting(0, low=0, help="Of every section.")


def run(
    given: Mapping[str, Any],
    workdir: str | Path,
    *,
    command: Sequence[str],
    resume: bool = False,
    overwrite: bool = False,
) -> str:
    """Run the chosen sections of the paper and write compared.csv, summary.json and report.html.

    Each section has a folder of its own in `workdir`, as if its script had been called there. A section that is finished (its
    summary.json is there) is not run again on `resume`; one that was interrupted goes on.

    See `run.run` for the arguments and what is returned; the values of each section stand under its name.

    Raises:
        ValueError: Settings of any section that cannot be used, before anything is computed.
    """
    started = time.monotonic()
    shared = {name: value for name, value in given.items() if name not in SECTIONS}
    settings = parse(Settings, shared, "config.")
    sections: list[Name] = [name for name in SECTIONS if name in settings.sections]
    each = {name: section_settings(given, settings, name, Path(workdir)) for name in sections}
    problems = []
    for name in sections:
        # The layer that probing will select is not known yet.
        later = {"auto": "target"} if each[name].get("auto") == "scale" and "probe" in sections else {}
        try:
            runner.check(name, {**each[name], **later})
        except ValueError as error:
            problems.append(f"In config.{name}: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    values = json.loads(json.dumps({**asdict(settings), **each}))
    folder = open_workdir(workdir, values, resume=resume, overwrite=overwrite)
    for number, name in enumerate(sections, start=1):
        done = if_whole(folder / name, runner.read) is not None
        logging.info("%d of %d: %s%s.", number, len(sections), name, " is finished" if done else "")
        if not done:
            runner.run(name, each[name], folder / name, command=command, resume=(folder / name).exists())
    facts = provenance(command, values, load_networks(settings.weights), started)
    pages: dict[Name, page.Page] = {name: runner.page(folder / name) for name in sections}
    rows = pd.concat([_compared(name, of) for name, of in pages.items()], ignore_index=True)
    with replacing(folder / "compared.csv") as partial:
        rows.drop(columns="chief").to_csv(partial, index=False, lineterminator="\n")
    chief = rows[rows["chief"]].drop(columns="chief")
    page.write_report(folder / "report.html", _report(settings.title, pages, len(rows), chief, facts))
    summary = {
        "sections": sections,
        "compared": chief.to_dict("records"),
        "warnings": _warnings(pages),
        "provenance": facts,
    }
    write_json(folder / "summary.json", summary)
    shown = chief.drop(columns="explanation")
    table = aligned([[*map(str, shown)], *shown.to_numpy(str).tolist()])
    return f"{table}\n\nReport: {folder / 'report.html'}"


def section_settings(
    given: Mapping[str, Any], settings: Settings, name: str, workdir: Path
) -> dict[str, Any]:
    """The settings of one section: its own, with the weights and the seed of the whole where it names none."""
    own = dict(given.get(name, {}))
    own["weights"] = own.get("weights") or settings.weights
    own["seed"] = settings.seed
    if name == "transfer" and own.get("auto") == "scale" and not own.get("scores"):
        own["scores"] = str(workdir / "probe")
    return own


def _compared(name: Name, of: page.Page) -> pd.DataFrame:
    """A row for each finding, as texts; `chief` are those that were published, and the headlines."""
    rows = [
        {
            "section": SECTIONS[name].split()[0],
            "quantity": f"{finding.at}: {finding.quantity}",
            "published": finding.reported,
            "ours": finding.shown,
            "difference": finding.difference,
            "explanation": finding.note or finding.interval or "–",
            "chief": finding.published is not None or finding.level == "headline",
        }
        for finding in of.findings
        if finding.level != "caution"
    ]
    return pd.DataFrame(rows)


def _warnings(pages: Mapping[Name, page.Page]) -> list[str]:
    return [f"{SECTIONS[name]}: {text}" for name, of in pages.items() for text in of.sentences("caution")]


def _report(
    title: str,
    pages: Mapping[Name, page.Page],
    count: int,
    chief: pd.DataFrame,
    provenance: Mapping[str, str],
) -> page.Report:
    """The overview, then the sections of every page under the number of the paper's section."""
    tables = [
        page.Table(
            SECTIONS[name],
            ("quantity", "published", "ours", "difference", "explanation"),
            [*rows.drop(columns="section").itertuples(index=False, name=None)],
        )
        for name in pages
        if len(rows := chief[chief["section"] == SECTIONS[name].split()[0]])
    ]
    text = (
        f"compared.csv has all {count} figures; those that were published and the chief results stand here."
    )
    sections = [
        section._replace(heading=f"{SECTIONS[name].split()[0]} {section.heading}")
        for name, of in pages.items()
        for section in of.sections
    ]
    answers = (f"{SECTIONS[name]}. {' '.join(of.sentences('headline'))}" for name, of in pages.items())
    return page.Report(
        title,
        "\n\n".join(answers),
        warnings=_warnings(pages),
        sections=[page.Section("Published and ours", text, tables=tables), *sections],
        provenance=provenance,
        reading=page.render_text("paper.html", "reading"),
    )
