"""One way to run every experiment: settings, folder, tables, report.

A folder holds one CSV per table, figures/, report.html and summary.json (findings, settings, provenance), which is
written last: a folder with a summary.json is finished. Experiments keep there what is slow, such as features/, which is not
computed again on resume, and what is no table.
"""

import dataclasses
import importlib
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from scalecov_jax.atomic import DamagedError, digest, file_name, read_json, replacing, write_bytes, write_json
from scalecov_jax.checkpoints import Network
from scalecov_jax.experiments import EXPERIMENTS, Experiment
from scalecov_jax.hosts import on_first
from scalecov_jax.report.findings import text_table
from scalecov_jax.report.model_card import write_card
from scalecov_jax.report.page import Page, write_report
from scalecov_jax.report.provenance import provenance
from scalecov_jax.settings import Base, parse
from scalecov_jax.workdir import open_workdir


def import_modules(names: Iterable[str]) -> None:
    """Import a user's modules, from the current folder or the Python path, so that what they register is known by name.

    Measures, probes, architectures and experiments register themselves when their module is imported.

    Raises:
        ValueError: Modules that cannot be imported.
    """
    sys.path.insert(0, str(Path.cwd()))
    problems = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            problems.append(f"{name} cannot be imported ({error})")
    if problems:
        raise ValueError(f"{'; '.join(problems)}. Expected modules in {Path.cwd()} or on the Python path.")


def get_experiment(name: str) -> Experiment:
    """An experiment by name.

    Raises:
        ValueError: There is none of this name.
    """
    if name not in EXPERIMENTS:
        near = get_close_matches(name, EXPERIMENTS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"No experiment is called {name!r}; {hint}There are {', '.join(EXPERIMENTS)}, and those of modules that are imported."
        )
    return EXPERIMENTS[name]


def check(name: str, given: Mapping[str, Any]) -> tuple[Base, Mapping[str, Network]]:
    """The settings of an experiment and the networks they name, once all is known to be usable.

    Values are given by field, as flags give them; fields that are absent keep their defaults.

    Raises:
        ValueError: Settings, weights or data that cannot be used.
    """
    experiment = get_experiment(name)
    settings = parse(experiment.settings, given, "config.")
    return settings, experiment.check(settings)


def run(
    name: str,
    given: Mapping[str, Any],
    workdir: str | Path,
    *,
    command: Sequence[str],
    resume: bool = False,
    overwrite: bool = False,
) -> str:
    """Run an experiment and write its folder; the findings, for the terminal.

    See `workdir.open_workdir` for `resume` and `overwrite`; `command` is as typed, for the provenance.

    Raises:
        ValueError: See `check` and `workdir.open_workdir`; the folder is then left as it was.
    """
    started = time.monotonic()
    settings, networks = check(name, given)
    cards = {name: network._replace(variables=None) for name, network in networks.items()}
    del networks
    values = json.loads(json.dumps(dataclasses.asdict(settings)))
    folder = Path(workdir).expanduser().absolute()

    def enter() -> None:
        open_workdir(folder, values, resume=resume, overwrite=overwrite)
        (folder / "summary.json").unlink(missing_ok=True)  # of a finished run that is resumed

    on_first(enter)
    # On all hosts, which share the work where an experiment can.
    tables = EXPERIMENTS[name].run(settings, folder)
    text = on_first(lambda: _finish(name, settings, values, tables, cards, folder, command, started))
    return f"{text or ''}\n\nReport: {folder / 'report.html'}".lstrip()


def _finish(
    name: str,
    settings: Base,
    values: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    cards: Mapping[str, Network],
    folder: Path,
    command: Sequence[str],
    started: float,
) -> str:
    """Tables, figures, page and summary; returns the findings for the terminal."""
    kinds, digests = {}, {}
    for table, frame in tables.items():
        with replacing(folder / f"{table}.csv") as partial:
            frame.to_csv(partial, index=False, lineterminator="\n")
            digests[table] = digest(partial.read_bytes())
        kinds[table] = {column: str(kind) for column, kind in frame.dtypes.items()}
    # Of what is on disk, as `read` finds it.
    experiment = EXPERIMENTS[name]
    page = experiment.report(settings, _tables(folder, kinds, digests), folder)
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    for image in (image for image in page.images if image.name):
        write_bytes(figures / f"{file_name(image.name)}.svg", image.content)
        write_bytes(figures / f"{file_name(image.name)}.png", image.png)
    facts = provenance(command, values, cards, started)
    write_report(folder / "report.html", page.report(facts))
    if experiment.card:
        write_card(experiment.card, settings, page, folder, facts)
    summary = {
        **page.facts,
        "experiment": name,
        "answer": "\n".join(page.sentences("headline")),
        "warnings": page.sentences("caution"),
        "findings": [finding.to_dict() for finding in page.findings],
        "settings": values,
        "tables": kinds,
        "digests": digests,
        "provenance": facts,
    }
    write_json(folder / "summary.json", summary)
    return text_table(page.findings)


def read(folder: Path) -> tuple[Base, dict[str, pd.DataFrame]]:
    """The settings and the tables of a finished run.

    Raises:
        ValueError: A file is not as the run wrote it.
        OSError: A file is missing, such as summary.json where the run is not finished.
    """
    summary = _summary(folder)
    settings = parse(get_experiment(summary["experiment"]).settings, summary["settings"])
    return settings, _tables(folder, summary["tables"], summary["digests"])


def page(folder: Path) -> Page:
    """The page of a finished run, from its files alone.

    Raises:
        ValueError, OSError: See `read`.
    """
    name = _summary(folder)["experiment"]
    return get_experiment(name).report(*read(folder), folder)


def _summary(folder: Path) -> dict[str, Any]:
    summary = read_json(folder / "summary.json")
    if "experiment" not in summary:
        raise ValueError(
            f"{folder} holds several runs; expected the folder of one of them, such as {folder / 'probe'}."
        )
    return summary


def _tables(
    folder: Path, kinds: Mapping[str, Mapping[str, str]], digests: Mapping[str, str]
) -> dict[str, pd.DataFrame]:
    """Tables from CSV files, equal to those that were written; `kinds` are the dtypes of their columns."""
    tables = {}
    for name, columns in kinds.items():
        path = folder / f"{name}.csv"
        missing = {
            column: [""] for column, kind in columns.items() if kind != "str"
        }  # an empty text is a text
        if digest(path.read_bytes()) != digests[name]:
            raise DamagedError(f"{path} is not as the run wrote it; run it again with --resume.")
        tables[name] = pd.read_csv(path, dtype=dict(columns), keep_default_na=False, na_values=missing)
    return tables
