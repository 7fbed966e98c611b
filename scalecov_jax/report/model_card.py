"""The model card of a network that was trained here, and the curve of its training."""

import shlex
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from scalecov_jax import checkpoints
from scalecov_jax.atomic import write_bytes
from scalecov_jax.models.pruning import count_parameters
from scalecov_jax.report import plots
from scalecov_jax.report.page import Image, Page, render_text
from scalecov_jax.settings import Base
from scalecov_jax.training import TrainingSettings


def curve_image(curve: pd.DataFrame, settings: TrainingSettings, score: str, held_out: float) -> Image:
    """Loss and score of the training batches against the images seen, and the score of held-out images at the end.

    The score is a column of the curve in lower case; `held_out` is NaN where it is undefined.
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


def write_card(kind: str, settings: Base, page: Page, folder: Path, facts: Mapping[str, str]) -> None:
    """Write the card of `folder/network`: ARCHITECTURE.md, and the curve as ARCHITECTURE-curve.png and .svg.

    What was trained is a macro of templates/model_card.md; headlines, the first table and the `curve_image` of the page stand on
    the card.
    """
    assert isinstance(settings, TrainingSettings)
    network = checkpoints.load(folder / "network")
    # How many sittings it took changes no bit of the result.
    typed = [word for word in shlex.split(facts["command"]) if word not in ("--resume", "--overwrite")]
    name = f"{settings.architecture}-curve"
    (image,) = (image for section in page.sections for image in section.images if image.name == name)
    training = {
        "command": f"`{shlex.join(typed)}`",
        "seed": settings.seed,
        "images seen": f"{settings.steps * settings.batch_size:,} in {settings.steps:,} steps of {settings.batch_size}",
        "learning rate": f"to {settings.learning_rate} in {settings.warmup} steps, then cosine decay to 0",
        "weight decay": settings.weight_decay,
        "wall time": f"{pd.read_csv(folder / 'curve.csv')['seconds'].iloc[-1] / 60:.0f} min",
        "hardware": facts["device"],
        "versions": facts["versions"].replace("\n", ", "),
        "preprocessing": f"`{network.card.preprocessing}`",
        "classes": ", ".join(network.card.class_names),
    }
    text = render_text(
        "model_card.md",
        "card",
        about=render_text("model_card.md", kind, settings=settings, classes=len(network.card.class_names)),
        settings=settings,
        parameters=count_parameters(network.variables),
        headlines=page.sentences("headline"),
        scores=page.sections[0].tables[0],
        training=training,
    ).unescape()  # it is no HTML
    write_bytes(folder / f"{settings.architecture}.md", text.encode())
    for ending, content in {"png": image.png, "svg": image.content}.items():
        write_bytes(folder / f"{name}.{ending}", content)
