"""Every experiment of the scale paper, one after the other, and one report of them all."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import logging

from scalecov_jax import run as runner
from scalecov_jax.checkpoints import load_networks
from scalecov_jax.paper.compared import Compared
from scalecov_jax.pipelines import covariance, probe, resize
from scalecov_jax.pipelines.settings import names
from scalecov_jax.report import paper as report
from scalecov_jax.report.provenance import provenance
from scalecov_jax.workdir import open_workdir

_PIPELINES: dict[str, ModuleType] = {
    "resize": resize,
    "probe": probe,
    "covariance": covariance,
}
_MOVED = {  # to scalecov_jax.experiments; their headings in the report
    "noise": "4.2 Noise inputs",
    "transfer": "4.4 Transfer to histopathology",
}
_SECTIONS = ("resize", "noise", "probe", "covariance", "transfer")


def run(
    settings: Mapping[str, Any],
    workdir: str,
    *,
    command: Sequence[str],
    resume: bool = False,
    overwrite: bool = False,
) -> str:
    """Run the chosen sections of the paper and write compared.csv, summary.json and report.html.

    Each section has a folder of its own in `workdir`, as if its script had been called there. A section that is finished (its
    summary.json is there) is not run again on `resume`; one that was interrupted goes on.

    Args:
        settings: See configs/paper.py.
        workdir: Folder of the run.
        command: As typed, for the provenance.
        resume: Go on in an existing folder.
        overwrite: Delete an existing folder first.

    Returns:
        The chief figures, published and ours, for people.

    Raises:
        ValueError: Settings of any section that cannot be used, before anything is computed.
    """
    started = time.monotonic()
    stages = _stages(settings)
    each = {name: stage_settings(settings, name, Path(workdir)) for name in stages}
    problems = []
    for name in stages:
        try:
            if name in _MOVED:
                runner.check(name, _before_probing(each[name], stages))
            else:
                _PIPELINES[name].check(each[name])
        except ValueError as error:
            problems.append(f"In config.{name}: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    folder = open_workdir(workdir, settings, resume=resume, overwrite=overwrite)
    for number, name in enumerate(stages, start=1):
        stage = folder / name
        if (stage / "summary.json").exists():
            logging.info("%d of %d: %s is finished.", number, len(stages), name)
            continue
        logging.info("%d of %d: %s.", number, len(stages), name)
        if name in _MOVED:
            runner.run(name, each[name], stage, command=command, resume=stage.exists())
        else:
            _PIPELINES[name].run(each[name], str(stage), command=command, resume=stage.exists())
    parts = {
        name: report.part_of_page(_MOVED[name], runner.page(folder / name))
        if name in _MOVED
        else report.part_of_folder(name, folder / name)
        for name in stages
    }
    facts = provenance(command, settings, load_networks(names(settings["weights"])), started)
    rows = report.write_results(folder, settings["title"], parts, facts)
    return f"{_table(rows)}\n\nReport: {folder / 'report.html'}"


def stage_settings(settings: Mapping[str, Any], name: str, workdir: Path) -> dict[str, Any]:
    """The settings of one section: its own, with the weights and the seed of the whole where it names none."""
    own = dict(settings[name])
    own["weights"] = own.get("weights") or settings["weights"]
    own["seed"] = settings["seed"]
    if name == "transfer" and own["auto"] == "scale" and not own["scores"]:
        own["scores"] = str(workdir / "probe")
    return own


def _before_probing(own: Mapping[str, Any], stages: Sequence[str]) -> dict[str, Any]:
    """Settings to check before anything is computed: where probing comes first, the layer that it will select is not known."""
    return {**own, "auto": "target"} if own.get("auto") == "scale" and "probe" in stages else {**own}


def _stages(settings: Mapping[str, Any]) -> tuple[str, ...]:
    stages = names(settings["sections"])
    unknown = [name for name in stages if name not in _SECTIONS]
    if unknown or not stages:
        raise ValueError(
            f"config.sections is {settings['sections']!r}; expected one or several of {', '.join(_SECTIONS)}."
        )
    return tuple(name for name in _SECTIONS if name in stages)


def _table(rows: Sequence[Compared]) -> str:
    cells = [
        ("section", "quantity", "published", "ours", "difference"),
        *((row.section, row.quantity, row.published, row.ours, row.difference) for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )
