"""The streamed way of the main job: whether to take it, what it takes, and its passes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from scalecov_jax import checkpoints
from scalecov_jax.design import Design
from scalecov_jax.experiment import ProbeResult, layers_to_probe
from scalecov_jax.hosts import on_first
from scalecov_jax.images.example import Source
from scalecov_jax.pipelines.settings import DTYPES, names
from scalecov_jax.probes.route import Route, choose_route, describe
from scalecov_jax.streaming.experiment import probe_streamed
from scalecov_jax.streaming.scores import FoldRow, layer_widths
from scalecov_jax.streaming.stream_sums import FLUSH
from scalecov_jax.tables import write_table


def plan(
    networks: Mapping[str, checkpoints.Network],
    sources: Mapping[str, Source],
    settings: Mapping[str, Any],
    design: Design,
) -> Route:
    """Memory or streamed, for the largest class and network.

    Raises:
        ValueError: See `route.choose_route`; several hosts and no way to stream.
    """
    size, pooling = settings["input_size"], settings.get("pooling", "gap")
    widths = [
        list(
            layer_widths(
                one, layers_to_probe(one, names(settings["layers"]), size, pooling)[0], size
            ).values()
        )
        for one in networks.values()
    ]
    asked = settings.get("route", "auto")
    if asked == "auto" and jax.process_count() > 1:
        asked = "streamed"
    if asked == "memory" and jax.process_count() > 1:
        raise ValueError(
            "config.route is 'memory', but several hosts can only stream; pass --config.route=streamed."
        )
    needed = [*design.probes, *(["config.n_train"] if design.sizes else [])]
    return choose_route(
        asked,
        images=max(map(len, sources.values())),
        widths=max(widths, key=sum),
        splitting=design.splitting,
        splits=design.splits,
        measures=len(design.concepts),
        permutations=design.permutations,
        needs_features=needed,
    )


def plan_text(route: Route, folds: int) -> str:
    """The plan in one line."""
    return (
        f"Route {route.name}: {route.reason}. Memory planned, the network aside: {describe(route.memory_bytes)} with all "
        f"features in memory, {describe(route.streamed_bytes)} streamed in {folds} folds."
    )


def probe(
    networks: Mapping[str, checkpoints.Network],
    sources: Mapping[str, Source],
    settings: Mapping[str, Any],
    design: Design,
    folder: Path,
) -> dict[str, ProbeResult]:
    """Results by name of the weights, and layers.csv in `folder`."""
    results: dict[str, ProbeResult] = {}
    rows: list[FoldRow] = []
    for name, network in networks.items():
        found = probe_streamed(
            network,
            name,
            sources,
            design,
            folder / "streamed",
            layers=names(settings["layers"]),
            size=settings["input_size"],
            batch_size=settings["batch_size"],
            dtype=DTYPES[settings["dtype"]],
            pooling=settings.get("pooling", "gap"),
            flush=settings.get("flush", FLUSH),
            workers=settings.get("workers", 0),
            progress=True,
        )
        results[name] = found[0]
        rows += found[1]
    on_first(lambda: write_table(folder / "layers.csv", FoldRow, rows))
    return results
