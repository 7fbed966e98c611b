"""Training a network on scenes, from settings to a checkpoint with its card."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from scalecov_jax import checkpoints, pretraining
from scalecov_jax.images import scenes
from scalecov_jax.models.architecture import get_architecture
from scalecov_jax.pipelines.settings import training_problems
from scalecov_jax.report.model_card import write_model_card
from scalecov_jax.report.provenance import provenance
from scalecov_jax.training import make_optimizer
from scalecov_jax.workdir import open_workdir


def run(
    settings: Mapping[str, Any],
    workdir: str,
    *,
    command: Sequence[str],
    resume: bool = False,
    overwrite: bool = False,
) -> str:
    """Train a network on scenes, test it on held-out ones and write its checkpoint and card.

    Args:
        settings: See configs/pretrain.py.
        workdir: Folder of the training.
        command: As typed, for the model card.
        resume: Go on from the last checkpoint there.
        overwrite: Delete the folder first.

    Returns:
        The held-out accuracy, for people.

    Raises:
        ValueError: Settings out of range, all at once; an unknown architecture or one without the fields that are set; a folder
            that cannot be used.
    """
    started = time.monotonic()
    architecture = get_architecture(settings["architecture"])
    fields = architecture.module.__dataclass_fields__
    problems = training_problems(settings)
    if settings["held_out"] < 1:
        problems.append(f"config.held_out is {settings['held_out']}; expected at least 1")
    if missing := [field for field in ("width", "classes") if field not in fields]:
        problems.append(
            f"{architecture.name} cannot be pretrained: its module has no field {' and '.join(missing)}"
        )
    if problems:
        raise ValueError(f"{'; '.join(problems)}.")
    folder = open_workdir(workdir, settings, resume=resume, overwrite=overwrite)
    options = {"width": settings["width"], "classes": len(scenes.CLASSES)}
    module = architecture.module(**options, last="pre_softmax")
    steps = settings["steps"]
    optimizer = make_optimizer(settings["learning_rate"], steps, settings["warmup"], settings["weight_decay"])
    same = {name: settings[name] for name in ("seed", "batch_size", "size", "log_every", "save_every")}
    state = pretraining.train(module, optimizer, folder, steps=steps, **same)
    variables = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    accuracy = pretraining.held_out_accuracy(
        module, variables, seed=settings["seed"], count=settings["held_out"], size=settings["size"]
    )
    card = checkpoints.Card(
        architecture.name,
        options,
        pretraining.PREPROCESSING,
        settings["size"],
        "trained on scenes by scripts/pretrain.py",
        class_names=scenes.CLASSES,
        notes={"held_out_top1": accuracy["all"][0], "images_seen": steps * settings["batch_size"]},
    )
    network = checkpoints.network(variables, card)
    checkpoints.save(folder / "network", network, overwrite=True)
    # How many sittings it took changes no bit of the result.
    typed = [part for part in command if part.lstrip("-") not in ("resume", "overwrite")]
    facts = provenance(typed, settings, {architecture.name: network}, started)
    write_model_card(folder / architecture.name, network, accuracy, folder / "curve.csv", facts, settings)
    lines = [f"{'box ratio':<14}{'top-1':>8}{'scenes':>8}"]
    lines += [f"{name:<14}{100 * top1:>6.1f} %{count:>8}" for name, (top1, count) in accuracy.items()]
    return "\n".join(lines) + f"\n\nNetwork: {folder / 'network'}"
