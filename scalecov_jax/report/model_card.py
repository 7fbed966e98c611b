"""The model card of a network that was trained here, and the curve of its training."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from scalecov_jax import checkpoints
from scalecov_jax.models.pruning import count_parameters
from scalecov_jax.report import plots
from scalecov_jax.report.page import Image, Table, render_text
from scalecov_jax.training import TrainingSettings


def curve_image(curve: pd.DataFrame, settings: TrainingSettings, score: str, held_out: float) -> Image:
    """Loss and score of the training batches against the images seen, and the score of held-out images at the end.

    Args:
        curve: Columns images, loss and, in lower case, the score.
        settings: Of the training.
        score: Its name.
        held_out: NaN if it is undefined.
    """
    series = {"training loss": curve["loss"], score: curve[score.lower().replace("-", "")]}
    batches = [
        pd.DataFrame({"panel": panel, "series": "training batches", "x": curve["images"], "value": values})
        for panel, values in series.items()
    ]
    end = {"panel": score, "series": "held out", "x": curve["images"].iloc[-1:], "value": held_out}
    return plots.curves(
        pd.concat([*batches, pd.DataFrame(end)]),
        x="images seen",
        y="mean of batches",
        name=f"{settings.architecture}-curve",
        caption=f"Means of the batches of {settings.log_every} steps, and {score} of held-out images at the end.",
    )


def write_card(
    kind: str,
    folder: Path,
    settings: TrainingSettings,
    facts: Mapping[str, str],
    curve: pd.DataFrame,
    image: Image,
    scores: Table,
    **values: Any,
) -> None:
    """Write the card of `folder/network`: ARCHITECTURE.md, and the curve as ARCHITECTURE-curve.png and .svg.

    Args:
        kind: Of card, a macro of templates/model_card.md.
        folder: Of the run.
        settings: Of the training.
        facts: From `provenance.provenance`.
        curve: Table of `training.read_curve`.
        image: See `curve_image`.
        scores: How it scores.
        values: What the macro takes besides.
    """
    network = checkpoints.load(folder / "network")
    # How many sittings it took changes no bit of the result.
    typed = [word for word in shlex.split(facts["command"]) if word not in ("--resume", "--overwrite")]
    values |= {
        "settings": settings,
        "card": network.card,
        "parameters": count_parameters(network.variables),
        "command": shlex.join(typed),
        "facts": facts,
        "last": curve.iloc[-1],
        "scores": scores,
    }
    text = render_text("model_card.md", kind, **values).unescape()  # it is no HTML
    (folder / f"{settings.architecture}.md").write_text(f"{text}\n", encoding="utf-8")
    for ending, content in {"png": image.png, "svg": image.content}.items():
        (folder / f"{image.name}.{ending}").write_bytes(content)
