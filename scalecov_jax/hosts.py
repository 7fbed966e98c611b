"""Several processes, each with devices of its own, working on one run."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def gather_text(text: str) -> list[str]:
    """The texts of all processes, in their order; every process gets all of them."""
    if jax.process_count() == 1:
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(content)))).reshape(-1)
    padded = np.zeros(max(1, lengths.max()), np.uint8)
    padded[: len(content)] = content
    every = np.asarray(multihost_utils.process_allgather(padded))
    return [bytes(row[:length]).decode() for row, length in zip(every, lengths, strict=True)]


def on_first(action: Callable[[], T]) -> T | None:
    """Run `action` on the first process alone; where it refuses, all processes stop with its message.

    Raises:
        ValueError: What `action` raised.
    """
    result, problem = None, ""
    if is_first():
        try:
            result = action()
        except (ValueError, OSError) as error:
            if jax.process_count() == 1:
                raise
            problem = str(error) or type(error).__name__
    if problem := gather_text(problem)[0]:
        raise ValueError(problem)
    return result


def check_agreement(facts: Mapping[str, str]) -> None:
    """Make sure that all processes work on the same thing.

    Args:
        facts: What determines the results, by name.

    Raises:
        ValueError: Processes differ; names each fact and its values.
    """
    own = "\n".join(f"{name}\t{' '.join(value.split())}" for name, value in sorted(facts.items()))
    every = [dict(line.split("\t", 1) for line in text.split("\n")) for text in gather_text(own)]
    problems = [
        f"{name}: "
        + ", ".join(f"{one.get(name, 'nothing')} on host {host}" for host, one in enumerate(every))
        for name in dict.fromkeys(name for one in every for name in one)
        if len({one.get(name) for one in every}) > 1
    ]
    if problems:
        raise ValueError(
            f"The hosts disagree, so that their sums cannot be added ({'; '.join(problems)}). Give all of them the same images, "
            "weights, settings and versions."
        )
