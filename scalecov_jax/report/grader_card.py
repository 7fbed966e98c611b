"""The model card of a grader of eyes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from scalecov_jax.checkpoints import Network
from scalecov_jax.models.pruning import count_parameters
from scalecov_jax.probes.statistics import Interval
from scalecov_jax.report import page, sketches
from scalecov_jax.report.model_card import read_curve, write_card
from scalecov_jax.transfer.grades import Evaluation
from scalecov_jax.transfer.two_eyes import TwoEyes

RENDERED = "Trained and tested on rendered retinas: what it scores says nothing about patients."
RESEARCH = "For research; it is no medical device."


def write_grader_card(
    stem: Path,
    network: Network,
    validation: Evaluation,
    test: Evaluation,
    curve: Path,
    facts: Mapping[str, str],
    settings: Mapping[str, Any],
    training: Mapping[str, str],
    both: TwoEyes | None = None,
) -> None:
    """Write the card of a grader of eyes: `<stem>.md` and the curve `<stem>-curve.png`/`.svg`.

    Args:
        stem: Path without ending.
        network: What was trained.
        validation: On the eyes that the training was followed on.
        test: On others.
        curve: The training's curve.csv, with a column qwk.
        facts: From `provenance.provenance`.
        settings: The training's configuration: images, size, seed, batch_size.
        training: More rows of the card, such as optimiser and augmentation.
        both: What the second eye adds.
    """
    columns = read_curve(curve)
    rendered = settings["images"] == "retina"
    kind = "rendered retinas" if rendered else "photographs trimmed to the visible disc"
    width = network.card.options.get("width", 1.0)
    rows = [
        ("QWK", "qwk", validation, test),
        ("accuracy", "accuracy", validation, test),
        ("sensitivity, grades 2 to 4", "sensitivity", validation, test),
        ("specificity, grades 2 to 4", "specificity", validation, test),
        ("AUC, grades 2 to 4", "auc", validation, test),
    ]
    table = [
        f"| {name} | {defined(getattr(first, score))} | {defined(getattr(second, score))} |"
        for name, score, first, second in rows
    ]
    if both is not None:
        table += [
            f"| QWK, linear classifier of one eye | | {defined(both.alone.qwk)} |",
            f"| QWK, linear classifier of both eyes | | {defined(both.both.qwk)} |",
        ]
    body = "\n".join(table)
    interval = f" ({between(test.qwk_interval)})" if test.qwk_interval else ""
    write_card(
        stem,
        network,
        grader_curve(columns, validation.qwk),
        columns,
        facts,
        settings,
        f"""# {network.architecture.name}, width {width}, trained on {kind}

Grades diabetic retinopathy from 0 to 4 ({settings["size"]} px). {count_parameters(network.variables):,} parameters.
{RENDERED if rendered else RESEARCH}

**Held-out QWK: {defined(test.qwk, 3)}**{interval} on {test.eyes} eyes of {test.patients} patients never trained on.

| score | validation, {validation.eyes} eyes | test, {test.eyes} eyes |
|---|---|---|
{body}

![Loss and kappa against images seen]({stem.name}-curve.png)
""",
        training,
    )


def grader_curve(columns: Mapping[str, np.ndarray], held_out: float | None) -> Figure:
    """Loss and kappa of a grader's training batches, and the kappa of held-out eyes at its end."""
    return sketches.training_curve(
        columns["images"].tolist(),
        columns["loss"].tolist(),
        columns["qwk"].tolist(),
        held_out_images_seen=[] if held_out is None else [float(columns["images"][-1])],
        held_out_score=[] if held_out is None else [held_out],
        name="QWK",
    )


def defined(value: float | None, digits: int = 2) -> str:
    """The number, or that there is none."""
    return "undefined" if value is None else page.number(value, digits)


def between(interval: Interval, digits: int = 2) -> str:
    """A 95 % interval in words."""
    return f"95 % interval {page.number(interval.low, digits)} to {page.number(interval.high, digits)}"
