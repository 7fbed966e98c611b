"""The main job on images that are streamed: the same scores as `experiment.probe` with folds as splits, features never kept."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from scalecov_jax.atomic import replacing
from scalecov_jax.checkpoints import Network, fingerprints, random_network
from scalecov_jax.concepts.compute import Measured
from scalecov_jax.design import Design, check_design, measure
from scalecov_jax.experiment import ProbeResult, layers_to_probe
from scalecov_jax.features import Pooling
from scalecov_jax.hosts import check_agreement, gather_text, is_first, on_first
from scalecov_jax.images.example import ImageError, Source
from scalecov_jax.probes.contract import check_problem
from scalecov_jax.probes.permutation import Permuted, shuffled
from scalecov_jax.probes.splits import make_splits
from scalecov_jax.probes.streamed_ridge import FoldRcvs, FoldScores, score_folds
from scalecov_jax.probes.sums import Products, fold_of
from scalecov_jax.scores import Condition
from scalecov_jax.selection import select_layers
from scalecov_jax.streaming.scores import FoldRow, Solved, class_result, fold_rows, layer_widths
from scalecov_jax.streaming.state import differences, digest, keeper, resume
from scalecov_jax.streaming.stream_sums import FLUSH, State, Targets, Unreadable, stream_sums

FORMAT = "3"  # of the sums; raise it when the same images and weights give others


def probe_streamed(
    network: Network,
    weights: str,
    sources: Mapping[str, Source],
    design: Design,
    folder: Path,
    *,
    layers: Sequence[str] = (),
    size: int | None = None,
    batch_size: int = 32,
    dtype: Any = jnp.float32,
    pooling: Pooling = "gap",
    flush: int = FLUSH,
    workers: int = 0,
    progress: bool = False,
) -> tuple[ProbeResult, list[FoldRow]]:
    """Regress concept measures from every layer, in one pass over the images with trained and one with random weights.

    Args:
        network: See `experiment.probe`, as are `weights`, `sources`, `layers` to `pooling` and `progress`.
        weights: Its name.
        sources: Images of each class.
        design: What is regressed; further probes, nuisances, pixels and sizes are not for sums.
        folder: For the states and scores of the passes; what lies there already is not computed again.
        layers: Layers to probe.
        size: In pixels.
        batch_size: Images a step over all hosts.
        dtype: Of the forward pass.
        pooling: One of `features.POOLINGS`.
        flush: See `stream_sums`, as is `workers`.
        workers: Processes that decode.
        progress: Whether to show progress bars on stderr.

    Returns:
        The result, whose classes have no evidence, and the rows of layers.csv; the same on all hosts.

    Raises:
        ValueError: See `experiment.probe`, `stream_sums` and `state.resume`; hosts that disagree.
    """
    layers, undefined = layers_to_probe(network, layers, size, pooling)
    check_design(design)
    design = dataclasses.replace(design, nuisances=())
    cache = folder if is_first() else None
    measured = {name: measure(source, design, cache, progress) for name, source in sources.items()}
    networks: dict[Condition, Network] = {
        "trained": network,
        "random_weights": random_network(network, design.seed),
    }
    products: Products = "float32" if jax.default_backend() == "tpu" else "float64"
    classes, rows = {}, []
    for image_class, source in sources.items():
        of_class = measured[image_class]
        targets, folds = _targets(of_class, design)
        solved: dict[Condition, Solved] = {}
        for condition, one in networks.items():
            kept = targets
            if condition == "random_weights":
                kept = Targets(targets.values[:, : len(design.concepts)])
            facts = _facts(one, source, of_class, folds, kept, layers)
            facts |= {"size": str(size), "batch_size": str(batch_size), "dtype": np.dtype(dtype).name}
            facts |= {"pooling": pooling, "products": products, "flush": str(flush)}
            label = f"{weights} {image_class} {condition}" if progress else None
            stream = partial(
                stream_sums,
                one,
                source,
                of_class.indices,
                folds,
                kept,
                layers,
                size=size,
                batch_size=batch_size,
                dtype=dtype,
                pooling=pooling,
                products=products,
                flush=flush,
                workers=workers,
                progress=label,
            )
            at = folder / f"{weights}-{image_class}-{condition}"
            solved[condition] = _once(at, facts, design, stream, products, label)
        names = (network.architecture.name, weights, image_class)
        classes[image_class] = class_result(
            solved,
            of_class,
            folds,
            layers,
            design,
            names,
            layer_widths(network, layers, size),
            fingerprints(network, layers),
            pooling,
        )
        rows += fold_rows(solved["trained"], classes[image_class], layers, design, names)
    selected = {
        concept: select_layers(
            [s for one in classes.values() for s in one.scores if s.concept == concept], layers
        )
        for concept in design.concepts
    }
    family = network.architecture.name
    return (
        ProbeResult(
            family, weights, design.concepts, classes, selected, pooling, design.splitting, undefined
        ),
        rows,
    )


def _targets(measured: Measured, design: Design) -> tuple[Targets, np.ndarray]:
    """Measures, the same shuffled for each fold, and permuted; the fold of each image."""
    measures, count = measured.values, len(measured.values)
    splits = make_splits(
        design.splitting, count, design.splits, design.seed, groups=measured.groups, values=measures[:, 0]
    )
    folds = fold_of(splits)
    check_problem({"measures": measures}, np.broadcast_to(measures, (len(splits), *measures.shape)), splits)
    control = shuffled(measures, len(splits), design.seed, measured.groups)
    values = np.concatenate([measures, *control], axis=1)
    if not design.permutations:
        return Targets(values), folds
    return Targets(values, Permuted.draw(measures, design.permutations, design.seed, measured.groups)), folds


def _facts(
    network: Network,
    source: Source,
    measured: Measured,
    folds: np.ndarray,
    targets: Targets,
    layers: Sequence[str],
) -> dict[str, str]:
    """What the sums of a pass depend on, the settings aside."""
    names = np.frombuffer("\n".join(measured.names).encode(), np.uint8)
    return {
        "format": FORMAT,
        "version": version("scalecov-jax"),
        "jax": jax.__version__,
        "architecture": f"{network.architecture.name} {sorted(network.card.options.items())}",
        "preprocessing": network.card.preprocessing,
        "weights": digest(*map(np.asarray, jax.tree.leaves(network.variables))),
        "layers": ", ".join(layers),
        "images": f"{len(measured.indices)}, {digest(measured.indices, names)}",
        "pixels of three images": digest(
            *(_pixels(source, int(measured.indices[k])) for k in (0, len(folds) // 2, -1))
        ),
        "folds": digest(folds),
        "targets": digest(targets.values, *(targets.permuted or ())),
    }


def _pixels(source: Source, index: int) -> np.ndarray:
    try:
        return source[index].image
    except ImageError as error:
        return np.frombuffer(error.name.encode(), np.uint8)


def _once(
    folder: Path,
    facts: dict[str, str],
    design: Design,
    stream: Callable[..., State],
    products: Products,
    label: str | None,
) -> Solved:
    """Scores of a pass, from disk if they lie there."""
    check_agreement(facts)
    path = folder.with_suffix(".npz")
    noted = facts | {"alphas": digest(design.alphas)}
    if gather_text("yes" if path.exists() else "no")[0] == "yes":
        return _read(path, noted)
    state = resume(folder / "states", facts)
    state = stream(state=state, keep=keeper(folder / "states", facts))
    solving = f"{label}: solving" if label and is_first() else None
    count = len(design.concepts)
    scores, rcvs = score_folds(state.sums, design.alphas, products=products, rcvs=count, progress=solving)
    solved = Solved(scores, dict(zip(state.sums, rcvs, strict=True)), state.unreadable)

    def write() -> None:
        unreadable = json.dumps(solved.unreadable)
        vectors = {
            f"{name}/{layer}": values
            for layer, one in solved.rcvs.items()
            for name, values in one._asdict().items()
        }
        with replacing(path) as partial:
            np.savez(partial, facts=json.dumps(noted), unreadable=unreadable, **scores._asdict(), **vectors)

    on_first(write)
    return solved


def _read(path: Path, facts: dict[str, str]) -> Solved:
    with np.load(path, allow_pickle=False) as file:
        if changed := differences(json.loads(str(file["facts"])), facts):
            raise ValueError(
                f"{path} was made from something else, so it cannot be resumed ({changed}). Take another --workdir, or "
                "--overwrite."
            )
        logging.info("Taking the scores of %s.", path)
        scores = FoldScores(*(file[name] for name in FoldScores._fields))
        layers = [name.removeprefix("sigma/") for name in file.files if name.startswith("sigma/")]
        rcvs = {layer: FoldRcvs(*(file[f"{name}/{layer}"] for name in FoldRcvs._fields)) for layer in layers}
        return Solved(scores, rcvs, tuple(Unreadable(*one) for one in json.loads(str(file["unreadable"]))))
