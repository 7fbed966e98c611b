"""Where in a network is a concept such as object scale readable? The main experiment, section 4.3 of the scale paper.

Every layer is probed under three conditions, with intervals, permutation tests and controls; the network is cut at the layer
where the first concept is read best. Features stay in memory (`probe_memory`), or many images are streamed (`probe_streamed`);
both give the same tables (`probe_tables`).
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from absl import logging
from PIL import Image

from scalecov_jax import checkpoints, cutting
from scalecov_jax.atomic import file_name, replacing
from scalecov_jax.checkpoints import Network, load_networks
from scalecov_jax.experiments import probe_features, probe_memory, probe_published, probe_streamed
from scalecov_jax.experiments.probe_report import report
from scalecov_jax.experiments.probe_settings import (
    Settings,
    count_images,
    layers_to_probe,
    open_images,
)
from scalecov_jax.experiments.probe_tables import ClassResult, case_table, class_tables, network_table
from scalecov_jax.extraction import dry_run
from scalecov_jax.hosts import is_first
from scalecov_jax.imaging import scenes
from scalecov_jax.imaging.decoding import encode_jpeg
from scalecov_jax.imaging.image_set import Skipped, Source
from scalecov_jax.imaging.sources import SCENES
from scalecov_jax.models.pruning import cumulative_parameters
from scalecov_jax.probes.route import Route, choose_route, describe
from scalecov_jax.selection import select_layer
from scalecov_jax.settings import together
from scalecov_jax.tables import labelled, rows_of, stacked
from scalecov_jax.vectors import rcv_table, save_rcvs

__all__ = ["Settings", "check", "estimate", "report", "run"]
THUMBNAIL = 240  # pixels, of images that the report shows


def check(settings: Settings) -> dict[str, Network]:
    """The networks by the names of their folders.

    Raises:
        ValueError: Folders that hold no network, layers and poolings that a network has not, images that cannot be read, and ways
            of probing that cannot be gone; all at once. Of features see `probe_features.open_features`.
    """
    if settings.features:
        probe_features.open_features(settings)
        return {}

    def fits(name: str, network: Network) -> None:
        layers_to_probe(network, settings)

    networks, counts = together(
        lambda: load_networks(settings.weights, settings.architecture, check=fits),
        lambda: count_images(settings),
    )
    plan(networks, counts, settings)
    return networks


def plan(networks: Mapping[str, Network], counts: Mapping[str, int], settings: Settings) -> Route:
    """Memory or streamed, for the largest class and network.

    Raises:
        ValueError: See `route.choose_route`; several hosts and no way to stream.
    """
    asked, several = settings.route, jax.process_count() > 1
    if asked == "memory" and several:
        raise ValueError(
            "config.route is 'memory', but several hosts can only stream; pass --config.route=streamed."
        )
    widths = [
        list(
            probe_streamed.layer_widths(
                network, layers_to_probe(network, settings)[0], settings.input_size
            ).values()
        )
        for network in networks.values()
    ]
    return choose_route(
        "streamed" if several else asked,
        images=max(counts.values()),
        widths=max(widths, key=sum),
        splitting=settings.splitting,
        splits=settings.splits,
        measures=len(settings.concept),
        permutations=settings.permutations,
        needs_features=[*settings.probes, *(["config.n_train"] if settings.n_train else [])],
    )


def plan_text(route: Route, folds: int) -> str:
    """The plan in one line."""
    return (
        f"Route {route.name}: {route.reason}. Memory planned, the network aside: {describe(route.memory_bytes)} with all "
        f"features in memory, {describe(route.streamed_bytes)} streamed in {folds} folds."
    )


def estimate(settings: Settings) -> str:
    """What the run would take in time and memory, from one batch; nothing is written.

    Raises:
        ValueError: See `check`.
    """
    networks = check(settings)
    if settings.features:
        return "There are features already: no forward pass."
    counts = count_images(settings)
    count = sum(counts.values())
    lines = [f"{count} images of {', '.join(counts)}; trained and random weights are one pass each."]
    for name, network in networks.items():
        once = dry_run(network, count, layers_to_probe(network, settings)[0], **settings.forward)
        lines.append(
            f"{name}: about {2 * once.seconds:.0f} s at {once.images_per_second:.0f} images/s; features "
            f"{2 * once.feature_bytes / 1e6:.1f} MB; one batch takes {once.batch_bytes / 1e6:.0f} MB."
        )
    return "\n".join([*lines, plan_text(plan(networks, counts, settings), settings.splits)])


def run(settings: Settings, folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """Probe networks, choose layers, cut.

    In the folder, features/ or streamed/ keep what is slow; pruned/ the cut networks; rcvs.npz the concept vectors; cases/ and
    scenes.jpg pictures for the report.

    Returns:
        scores, layers, contrasts, choices, networks, images and cases (see `probe_tables`; of streamed images scores and layers),
        sample_size (`probes.sample_size`) and rcvs (`vectors.rcv_table`). And what they are of: classes (images and groups of
        each class), widths (features of each layer, how many are independent, parameters up to it; layers left out), cuts
        (`pruning.Pruning`), skipped (images left out). published has the figures of the paper where it has the network.
        Of features that are there already see `probe_features.run`.
    """
    if settings.features:
        return probe_features.run(settings, folder)
    networks = check(settings)
    sources, skipped = open_images(settings)
    route = plan(networks, {name: len(source) for name, source in sources.items()}, settings)
    logging.info("%s", plan_text(route, settings.splits))
    tables, rcvs, results = [("skipped", _skipped("", skipped))], [], {}
    with ExitStack() as stack:
        kept = folder
        if route.name == "streamed" and kept is None:
            kept = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, network in networks.items():
            way = probe_streamed.probe if route.name == "streamed" else probe_memory.probe
            classes = way(network, name, sources, settings, kept)  # pyright: ignore[reportArgumentType]
            results[name] = {
                image_class: (one.names, one.evidence.concepts, one.evidence.nested)
                for image_class, one in classes.items()
                if one.evidence is not None
            }
            found = class_tables(name, classes)
            vectors = {name: one.rcvs for name, one in classes.items()}
            found["rcvs"] = rcv_table(vectors, {name: one.split_rcvs for name, one in classes.items()})
            found["widths"] = _width_table(name, network, classes, settings)
            found["cuts"] = _cut(name, network, found["scores"], sources, settings, folder)
            found["skipped"] = _skipped(name, [image for one in classes.values() for image in one.skipped])
            found["published"] = probe_published.compare(found["scores"], found["widths"], found["classes"])
            if len(classes) == 1 or found["classes"]["n_train"].nunique() > 1:
                found["cases"] = _cases(name, classes, found, sources, folder)
            tables += [(table, frame) for table, frame in found.items() if len(frame)]
            rcvs += [rcv for of_class in vectors.values() for rcv in of_class]
        if len(differences := network_table(results)):
            tables.append(("networks", differences))
    if folder and is_first():
        save_rcvs(folder / "rcvs.npz", rcvs)
        if settings.images == SCENES and not (folder / "scenes.jpg").exists():
            with replacing(folder / "scenes.jpg") as partial:
                partial.write_bytes(encode_jpeg(scenes.contact_sheet(settings.seed)))
    return stacked(tables)


def _skipped(weights: str, images: Sequence[Skipped]) -> pd.DataFrame:
    """Images left out before any network saw them (no weights), or because they could not be decoded."""
    rows = [(weights, image.name, image.reason) for image in images]
    return pd.DataFrame(rows, columns=["weights", "image", "reason"], dtype="str")


def _width_table(
    weights: str, network: Network, classes: Mapping[str, ClassResult], settings: Settings
) -> pd.DataFrame:
    """Features of each layer, the independent ones, parameters up to it; and the layers at which the pooling is undefined."""
    parameters = cumulative_parameters(network.module, network.architecture)
    layers, undefined = layers_to_probe(network, settings)
    columns = {
        "width": next(iter(classes.values())).widths,
        "rank": {layer: max(one.ranks[layer] for one in classes.values()) for layer in layers},
        "parameters": parameters,
        "defined_from": undefined,
    }
    order = [*layers, *undefined]
    table = pd.DataFrame({name: pd.Series(values, order, float) for name, values in columns.items()})
    table = table.rename_axis("layer").reset_index()
    return labelled(table, architecture=network.architecture.name, weights=weights)


def _cut(
    weights: str,
    network: Network,
    scores: pd.DataFrame,
    sources: Mapping[str, Source],
    settings: Settings,
    folder: Path | None,
) -> pd.DataFrame:
    """Cut at the layer of the first concept, check, and save."""
    own = scores[scores["concept"] == settings.concept[0]]
    layer = select_layer(own, layers_to_probe(network, settings)[0], "ridge").layer
    pruned = cutting.pruned_network(network, layer)
    first = next(iter(sources.values()))
    pruning = cutting.check_pruning(network, pruned, first, settings.input_size, settings.pooling)
    if folder:
        checkpoints.save(folder / "pruned" / weights, pruned, overwrite=True)
    return pd.DataFrame([{"weights": weights, **pruning._asdict()}])


def _cases(
    weights: str,
    classes: Mapping[str, ClassResult],
    tables: Mapping[str, pd.DataFrame],
    sources: Mapping[str, Source],
    folder: Path | None,
) -> pd.DataFrame:
    """The images that move the lead of the best layer, with small copies in cases/."""
    found = [pd.DataFrame()]
    for image_class, one in classes.items():
        if one.evidence is None or len(one.evidence.layers) < 2:
            continue
        table = case_table(*(rows_of(tables[name], image_class=image_class) for name in ("images", "layers")))
        table["file"] = [f"cases/{file_name(f'{weights}-{image_class}-{at}')}.jpg" for at in table["at"]]
        found.append(table)
        for file, at in zip(table["file"], table["at"], strict=True) if folder and is_first() else ():
            path = Path(folder or "", file)
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                small = Image.fromarray(sources[image_class][int(one.indices[at])].image)
                small.thumbnail((THUMBNAIL, THUMBNAIL))
                with replacing(path) as partial:
                    partial.write_bytes(encode_jpeg(np.asarray(small)))
    return pd.concat(found, ignore_index=True)
