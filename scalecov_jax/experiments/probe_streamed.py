"""The main experiment on images that are streamed: the same scores with folds as splits, and features never kept."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd
from absl import logging

from scalecov_jax.atomic import digest, file_name, kept_arrays, write_arrays
from scalecov_jax.checkpoints import Network, fingerprints, random_network
from scalecov_jax.concepts.compute import Measured
from scalecov_jax.experiments.probe_settings import Settings, layers_to_probe, measure
from scalecov_jax.experiments.probe_tables import ClassResult, both_estimators, fold_table
from scalecov_jax.extraction import pooled_features
from scalecov_jax.hosts import check_agreement, gather_text, is_first, on_first
from scalecov_jax.imaging.image_set import ImageError, Skipped, Source
from scalecov_jax.probes.contract import check_problem
from scalecov_jax.probes.evaluate import ProbeScores
from scalecov_jax.probes.permutation import Permuted, shuffled
from scalecov_jax.probes.streamed_ridge import FoldRcvs, FoldScores, score_folds
from scalecov_jax.probes.sums import Products, fold_of
from scalecov_jax.scores import Condition
from scalecov_jax.streaming.state import differences, keeper, resume
from scalecov_jax.streaming.stream_sums import State, Targets, Unreadable, stream_sums
from scalecov_jax.vectors import layer_rcvs

FORMAT = "4"  # of the sums; raise it when the same images and weights give others
_KIND = "scores of a pass 1"


class Solved(NamedTuple):
    """The scores and vectors of one pass and the images that could not be read."""

    scores: FoldScores
    rcvs: Mapping[str, FoldRcvs]
    unreadable: tuple[Unreadable, ...]


def probe(
    network: Network,
    weights: str,
    sources: Mapping[str, Source],
    settings: Settings,
    folder: Path,
) -> dict[str, ClassResult]:
    """Regress concept measures from every layer, in one pass over the images with trained and one with random weights.

    Further probes, nuisances, pixels and training sizes are not for sums. streamed/ in the folder keeps states and scores of the
    passes, which are not computed again. The results have no evidence, and are the same on all hosts.

    Raises:
        ValueError: See `probe_memory.probe`, `stream_sums` and `state.resume`; hosts that disagree.
    """
    folder, forward = folder / "streamed", settings.forward
    layers, _ = layers_to_probe(network, settings)
    concepts = dataclasses.replace(settings, nuisances=())
    cache = folder if is_first() else None
    measured = {name: measure(source, concepts, cache) for name, source in sources.items()}
    networks: dict[Condition, Network] = {
        "trained": network,
        "random_weights": random_network(network, settings.seed),
    }
    products: Products = "float32" if jax.default_backend() == "tpu" else "float64"
    classes = {}
    for image_class, source in sources.items():
        of_class = measured[image_class]
        targets, folds = _targets(of_class, settings)
        solved: dict[Condition, Solved] = {}
        for condition, variant in networks.items():
            kept = targets
            if condition == "random_weights":
                kept = Targets(targets.values[:, : len(settings.concept)])
            facts = _facts(variant, source, of_class, folds, kept, layers)
            facts |= {name: str(value) for name, value in forward.items() if name != "dtype"}
            facts |= {"dtype": settings.dtype, "products": products, "flush": str(settings.flush)}
            label = f"{weights} {image_class} {condition}"
            options = {**forward, "products": products, "flush": settings.flush}
            options |= {"workers": settings.workers, "progress": label}
            images = variant, source, of_class.indices
            stream = partial(stream_sums, *images, folds, kept, layers, **options)
            at = folder / file_name(f"{weights}-{image_class}-{condition}")
            solved[condition] = _once(at, facts, settings, stream, products, label)
        names = {"architecture": network.architecture.name, "weights": weights, "image_class": image_class}
        classes[image_class] = _class_result(solved, of_class, folds, layers, settings, names, network)
    return classes


def layer_widths(network: Network, layers: Sequence[str], size: int | None) -> dict[str, int]:
    """Features of each layer D; nothing is computed."""
    size = size or network.card.input_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    shapes = jax.eval_shape(
        lambda variables, pixels: pooled_features(
            network.module, variables, pixels, tuple(layers), network.card.preprocessing
        ),
        network.variables,
        images,
    )
    return {layer: shapes[layer].shape[1] for layer in layers}


def _class_result(
    solved: Mapping[Condition, Solved],
    measured: Measured,
    folds: np.ndarray,
    layers: Sequence[str],
    settings: Settings,
    names: Mapping[str, str],
    network: Network,
) -> ClassResult:
    """What was measured on the images of one class.

    Columns of the targets are the measures, those shuffled for each fold, and those in every order.
    """
    trained, vectors, unreadable = solved["trained"]
    concepts, count, splits = settings.concept, len(settings.concept), trained.ridge.shape[1]
    measures = slice(0, count)
    own = ProbeScores(*(values[..., measures] for values in (trained.ols, trained.ridge, trained.alpha)))
    random = solved["random_weights"].scores
    # Every fold has a shuffled measure of its own.
    place = count * (1 + np.arange(splits))[:, None] + np.arange(count)
    place = np.broadcast_to(place, (len(layers), splits, count))
    every = (trained.ols, trained.ridge, trained.alpha)
    conditions: dict[Condition, ProbeScores] = {
        "trained": own,
        "shuffled_measure": ProbeScores(*(np.take_along_axis(values, place, 2) for values in every)),
        "random_weights": ProbeScores(random.ols, random.ridge, random.alpha),
    }
    common = {"layers": layers, "concepts": concepts, **names}
    # Split by split.
    scores = [
        pd.concat(both_estimators(of, condition, **common)).sort_index(kind="stable")
        for condition, of in conditions.items()
    ]
    kept = np.ones(len(folds), bool)
    kept[[image.row for image in unreadable]] = False
    rows = np.flatnonzero(kept)
    n_train = int(kept.sum() - kept[folds == 0].sum())
    widths = layer_widths(network, layers, settings.input_size)
    permuted = None
    if settings.permutations:
        permuted = trained.ridge.mean(1)[:, count * (1 + splits) :].reshape(len(layers), -1, count)
    origins, rcvs = fingerprints(network, layers), []
    named = {
        "image_class": names["image_class"],
        "weights_name": names["weights"],
        "pooling": settings.pooling,
    }
    for row, (layer, fit) in enumerate(vectors.items()):
        of_layer = {"layer": layer, "network": origins[layer], "scale": fit.scale, "mean": fit.mean}
        numbers = {"alpha": fit.alpha, "r2": own.ridge[row].mean(0), "sigma": fit.sigma}
        numbers["intercept"] = fit.intercept[0]
        two = {"weights": fit.weights[0], "pattern": fit.pattern}
        rcvs += layer_rcvs(concepts, numbers, two, **named, **of_layer)
    return ClassResult(
        scores=pd.concat(scores, ignore_index=True),
        indices=measured.indices[rows],
        names=[measured.names[row] for row in rows],
        groups=[measured.groups[row] for row in rows],
        n_train=n_train,
        widths=widths,
        ranks={
            layer: int(rank) if rank < n_train - 1 else widths[layer]
            for layer, rank in zip(layers, trained.rank.max(1), strict=True)
        },
        skipped=[Skipped(image.name, image.reason, image.detail) for image in unreadable],
        rcvs=rcvs,
        split_rcvs={layer: fit.weights[1:] for layer, fit in vectors.items()},
        folds=fold_table(
            own, trained.inner[..., measures], permuted, images=len(rows), layers=layers, concepts=concepts,
            weights=names["weights"], image_class=names["image_class"],
        ),
    )  # fmt: skip


def _targets(measured: Measured, settings: Settings) -> tuple[Targets, np.ndarray]:
    """Measures, the same shuffled for each fold, and permuted; the fold of each image."""
    measures = measured.values
    splits = settings.split(measures[:, 0], measured.groups)
    folds = fold_of(splits)
    check_problem({"measures": measures}, np.broadcast_to(measures, (len(splits), *measures.shape)), splits)
    control = shuffled(measures, len(splits), settings.seed, measured.groups)
    values = np.concatenate([measures, *control], axis=1)
    if not settings.permutations:
        return Targets(values), folds
    drawn = Permuted.draw(measures, settings.permutations, settings.seed, measured.groups)
    return Targets(values, drawn), folds


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
        "preprocessing": str(network.card.preprocessing),
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
    settings: Settings,
    stream: Callable[..., State],
    products: Products,
    label: str,
) -> Solved:
    """Scores of a pass, from disk if they lie there."""
    check_agreement(facts)
    path = folder.with_suffix(".npz")
    noted = facts | {"alphas": digest(settings.penalties)}
    stored = kept_arrays(path, _KIND)
    if all(gather_text("" if stored is None else "whole")) and stored is not None:
        return _read(path, stored, noted)
    state = resume(folder / "states", facts)
    state = stream(state=state, keep=keeper(folder / "states", facts))
    solving = f"{label}: solving" if is_first() else None
    count = len(settings.concept)
    scores, rcvs = score_folds(
        state.sums, settings.penalties, products=products, rcvs=count, progress=solving
    )
    solved = Solved(scores, dict(zip(state.sums, rcvs, strict=True)), state.unreadable)

    def write() -> None:
        vectors = {
            f"{name}/{layer}": values
            for layer, one in solved.rcvs.items()
            for name, values in one._asdict().items()
        }
        texts = {"facts": json.dumps(noted), "unreadable": json.dumps(solved.unreadable)}
        write_arrays(path, {**texts, **scores._asdict(), **vectors}, _KIND)

    on_first(write)
    return solved


def _read(path: Path, stored: Mapping[str, np.ndarray], facts: dict[str, str]) -> Solved:
    if changed := differences(json.loads(str(stored["facts"])), facts):
        raise ValueError(
            f"{path} was made from something else, so it cannot be resumed ({changed}). Take another --workdir, or --overwrite."
        )
    logging.info("Taking the scores of %s.", path)
    scores = FoldScores(*(stored[name] for name in FoldScores._fields))
    layers = [name.removeprefix("sigma/") for name in stored if name.startswith("sigma/")]
    rcvs = {layer: FoldRcvs(*(stored[f"{name}/{layer}"] for name in FoldRcvs._fields)) for layer in layers}
    return Solved(scores, rcvs, tuple(Unreadable(*one) for one in json.loads(str(stored["unreadable"]))))
