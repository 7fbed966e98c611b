"""What every pipeline reads from its settings in the same way."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def names(text: str) -> tuple[str, ...]:
    """The names in a list separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def training_problems(settings: Mapping[str, Any]) -> list[str]:
    """What is out of range in the settings of a training, each in words; none if all is well.

    Args:
        settings: size, width, batch_size, steps, learning_rate, warmup, weight_decay, log_every and save_every are read.
    """
    least = {
        "size": 1,
        "batch_size": 1,
        "steps": 1,
        "warmup": 0,
        "log_every": 1,
        "save_every": 1,
        "weight_decay": 0,
    }
    problems = [
        f"config.{name} is {settings[name]}; expected at least {low}"
        for name, low in least.items()
        if not settings[name] >= low
    ]
    problems += [
        f"config.{name} is {settings[name]}; expected more than 0"
        for name in ("width", "learning_rate")
        if not settings[name] > 0
    ]
    if settings["warmup"] >= max(settings["steps"], 1):
        problems.append(
            f"config.warmup is {settings['warmup']}, but config.steps {settings['steps']}; expected fewer steps of warm-up"
        )
    return problems
