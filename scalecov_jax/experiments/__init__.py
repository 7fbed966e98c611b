"""Experiments by name; docs/architecture.md says what they are made of and how to add one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from scalecov_jax.checkpoints import Network
from scalecov_jax.experiments import (
    covariance,
    explain,
    grade,
    noise,
    pretrain,
    probe,
    resize,
    texture,
    transfer,
    transfer_report,
)
from scalecov_jax.report.page import Page
from scalecov_jax.settings import Base


class Experiment(NamedTuple):
    """What the runner needs of an experiment.

    Attributes:
        settings: The dataclass of its settings.
        check: Opens what the settings name, before anything is computed, to the networks by name; ValueError if it cannot.
        run: Settings and the folder of the run (None: nothing is kept) for what is slow to compute and what is no table, to tidy
            tables by name.
        report: Settings, tables and the folder, for the pictures that tables name, to the page.
        card: Where a network was trained, its kind in templates/model_card.md, of which the runner makes its card.
    """

    settings: type[Base]
    check: Callable[[Any], Mapping[str, Network]]
    run: Callable[[Any, Path | None], Mapping[str, pd.DataFrame]]
    report: Callable[[Any, Mapping[str, pd.DataFrame], Path], Page]
    card: str = ""


EXPERIMENTS: dict[str, Experiment] = {
    module.__name__.rpartition(".")[2]: Experiment(module.Settings, module.check, module.run, report, card)
    for module, report, card in (
        (covariance, covariance.report, ""),
        (explain, explain.report, ""),
        (grade, grade.report, "grade"),
        (noise, noise.report, ""),
        (pretrain, pretrain.report, "pretrain"),
        (probe, probe.report, ""),
        (resize, resize.report, ""),
        (texture, texture.report, ""),
        (transfer, transfer_report.report, ""),
    )
}
