"""What a reader needs to repeat a run."""

import json
import os
import platform
import shlex
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import jax

from scalecov_jax.checkpoints import Network
from scalecov_jax.compilation import compiler_options, xla_flags

_PACKAGES = (
    "scalecov-jax",
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "pandas",
    "scipy",
    "scikit-learn",
    "orbax-checkpoint",
)


def provenance(
    command: Sequence[str],
    settings: Mapping[str, Any],
    networks: Mapping[str, Network],
    started: float | None,
) -> dict[str, str]:
    """Command, seed, versions, device, compiler, weights, settings, date and wall time since `time.monotonic()` at `started`."""
    device = jax.devices()[0]
    machine = f"{platform.machine()}, {os.cpu_count()} processors, {platform.system()}"
    weights = (
        f"{name}: {n.card.origin}" + f", sha256 {n.card.sha256}" * bool(n.card.sha256)
        for name, n in networks.items()
    )
    return {
        "command": shlex.join(command),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **({} if started is None else {"wall time": f"{time.monotonic() - started:.0f} s"}),
        "seed": str(settings.get("seed", "")),
        "device": f"{jax.device_count()} x {device.device_kind} ({machine})",
        "compiler": "\n".join(
            [
                f"XLA_FLAGS={xla_flags()}",
                *(f"{name}={value}" for name, value in compiler_options().items()),
            ]
        ),
        "versions": f"Python {platform.python_version()}\n"
        + "\n".join(f"{name} {version(name)}" for name in _PACKAGES),
        "weights": "\n".join(weights),
        "config": json.dumps(dict(settings), indent=2, default=str),
    }
