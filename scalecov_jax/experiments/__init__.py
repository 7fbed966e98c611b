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
    review,
    texture,
    transfer,
    transfer_report,
)
from scalecov_jax.report.page import Page
from scalecov_jax.settings import Base


class Experiment(NamedTuple):
    """What the runner needs of an experiment."""

    settings: type[Base]  # the dataclass of its settings
    # opens what the settings name, before anything is computed, to the networks by name; ValueError if it cannot
    check: Callable[[Any], Mapping[str, Network]]
    # settings and the folder of the run (None: nothing is kept) for what is slow to compute and what is no table, to tidy
    # tables by name
    run: Callable[[Any, Path | None], Mapping[str, pd.DataFrame]]
    # settings, tables and the folder, for the pictures that tables name, to the page
    report: Callable[[Any, Mapping[str, pd.DataFrame], Path], Page]
    # where a network was trained, its kind in templates/model_card.md, of which the runner makes its card
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
        (review, review.report, ""),
        (texture, texture.report, ""),
        (transfer, transfer_report.report, ""),
    )
}
