"""The model card of a network that this project trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from scalecov_jax.checkpoints import Network
from scalecov_jax.models.pruning import count_parameters
from scalecov_jax.report import sketches, style


def read_curve(path: Path) -> dict[str, np.ndarray]:
    """Columns of a curve.csv; where a killed training was resumed, the steps that it repeated count once."""
    table = pd.read_csv(path, dtype=float).drop_duplicates("step", keep="last").sort_values("step")
    return {str(name): column.to_numpy() for name, column in table.items()}


def write_model_card(
    stem: Path,
    network: Network,
    accuracy: Mapping[str, tuple[float, int]],
    curve: Path,
    facts: Mapping[str, str],
    settings: Mapping[str, Any],
) -> None:
    """Write the card of a network trained on scenes: `<stem>.md` and the curve `<stem>-curve.png`/`.svg`.

    Args:
        stem: Path without ending.
        network: What was trained.
        accuracy: Held-out top-1 and number of scenes, of all and by object size.
        curve: The training's curve.csv.
        facts: From `provenance.provenance`.
        settings: The training's configuration.
    """
    columns = read_curve(curve)
    figure = sketches.training_curve(
        columns["images"].tolist(),
        columns["loss"].tolist(),
        columns["top1"].tolist(),
        held_out_images_seen=[float(columns["images"][-1])],
        held_out_score=[accuracy["all"][0]],
    )
    top1, count = accuracy["all"]
    rows = "\n".join(f"| {name} | {100 * value:.1f} % | {n} |" for name, (value, n) in accuracy.items())
    write_card(
        stem,
        network,
        figure,
        columns,
        facts,
        settings,
        f"""# {network.architecture.name}, width {settings["width"]}, trained on scenes

Classifies {len(network.card.class_names)} classes of rendered scenes ({settings["size"]} px) whatever the size of the object
(box ratio 0.02-0.9, log-uniform). {count_parameters(network.variables):,} parameters. For demonstrations and tests of
scalecov_jax; it knows nothing of photographs.

**Held-out top-1: {100 * top1:.1f} %** on {count} scenes never trained on.

| box ratio | top-1 | scenes |
|---|---|---|
{rows}

![Loss and accuracy against images seen]({stem.name}-curve.png)
""",
        {
            "optimiser": f"AdamW, weight decay {settings['weight_decay']}",
            "learning rate": f"to {settings['learning_rate']} in {settings['warmup']} steps, then cosine decay to 0",
            "curriculum": "smallest ratio from 0.3 to 0.02 in the first quarter",
        },
        ", both networks training side by side on the machine",
    )


def write_card(
    stem: Path,
    network: Network,
    figure: Figure,
    columns: Mapping[str, np.ndarray],
    facts: Mapping[str, str],
    settings: Mapping[str, Any],
    head: str,
    training: Mapping[str, str],
    side_by_side: str = "",
) -> None:
    """Write `<stem>.md`, a head and then how the network was trained, and `<stem>-curve.png`/`.svg`.

    Args:
        stem: Path without ending.
        network: What was trained.
        figure: The curve; the head shows it.
        columns: Of curve.csv.
        facts: From `provenance.provenance`.
        settings: The training's configuration: seed, batch_size.
        head: What the network is and how it scores.
        training: More rows, such as the optimiser.
        side_by_side: What else the machine did in the wall time.
    """
    style.save(figure, Path(f"{stem}-curve"))
    own = "".join(f"| {name} | {value} |\n" for name, value in training.items())
    Path(f"{stem}.md").write_text(
        f"""{head}
| | |
|---|---|
| command | `{facts["command"]}` |
| seed | {settings["seed"]} |
| images seen | {int(columns["images"][-1]):,} in {int(columns["step"][-1]):,} steps of {settings["batch_size"]} |
{own}| wall time | {columns["seconds"][-1] / 60:.0f} min{side_by_side} |
| hardware | {facts["device"]} |
| versions | {facts["versions"].replace(chr(10), ", ")} |
| preprocessing | `{network.card.preprocessing}` |
| classes | {", ".join(network.card.class_names)} |
"""
    )
