"""What a sample of images says of every layer, with the uncertainty that comes from its being a sample."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int

from scalecov_jax.probes import evaluate, statistics
from scalecov_jax.probes.evaluate import ALPHAS, ProbeScores
from scalecov_jax.probes.permutation import Permutation, compare_orders, permutation_test


class Known(NamedTuple):
    """A mean over splits for every layer and measure."""

    value: Float[np.ndarray, "L M"]  # the mean
    deviation: Float[np.ndarray, "L M G"]  # its deviations (`statistics.deviations`) over the groups
    sample: str  # digest of the measures, groups and splits that it was computed from

    def __sub__(self, other: "Known") -> "Known":
        """The difference, over the same groups.

        Raises:
            ValueError: The other was computed from other images, measures, groups or splits, so that the deviations of the two
                have nothing to do with each other.
        """
        if self.sample != other.sample:
            raise ValueError(
                f"R2 of the sample {self.sample} and of the sample {other.sample} cannot be compared image by image: images, "
                "measures, groups or splits differ. Compute both on the same images and splits."
            )
        return Known(self.value - other.value, self.deviation - other.deviation, self.sample)


class Evidence(NamedTuple):
    """Everything inferred from the images of one class (or of several, see `pool`), by ridge.

    L layers, S splits, N images, G groups, M concept measures.
    """

    layers: tuple[str, ...]  # from input to output
    concepts: tuple[str, ...]  # names of the measures
    images: int  # N
    groups: int  # G, the patients, slides or images that another sample would draw afresh
    n_train: float  # images in one training part, the mean where parts differ
    n_test: float  # images in one held-out part
    r2: Known  # held-out R2
    splits: Float[np.ndarray, "L S M"]  # of each split
    nested: Known  # R2 of the layer that leave-one-out inside each training part chose
    chosen: Int[np.ndarray, "S M"]  # that layer's index for each split and measure
    # R2 of what the layers are compared with, by name: random_weights, pixels, nuisances
    controls: Mapping[str, Known]
    # of every split by condition (trained, random_weights, shuffled_measure); empty for pooled classes
    by_split: Mapping[str, ProbeScores]
    partial: Known | None  # R2 beyond the nuisance measures; None without any
    permutation: Permutation | None  # tests against permuted measures; None if not asked for
    r2_left_out: Float[np.ndarray, "L M"]  # leave-one-out R2 of all images
    dof: Float[np.ndarray, "L M"]  # effective degrees of freedom of the fit to all images
    alpha: Float[np.ndarray, "L M"]  # its penalty
    # dual coefficients (`ridge`) of the fit to all images, then of those to each training part; None for pooled classes
    dual: Float[np.ndarray, "L S1 N M"] | None
    cases: "Cases | None"  # of each image; None for pooled classes


class Cases(NamedTuple):
    """What single images do."""

    measure: Float[np.ndarray, "N M"]  # the concept measure
    prediction: Float[np.ndarray, "L N M"]  # by the fit to all other images
    leverage: Float[np.ndarray, "L N M"]  # in the fit to all images
    # how much higher the mean held-out R2 is with the image's group than without it
    influence: Float[np.ndarray, "L N M"]


def weigh(
    features: Mapping[str, Float[np.ndarray, "N _"]],
    measures: Float[np.ndarray, "N M"],
    concepts: Sequence[str],
    splits: Bool[np.ndarray, "S N"],
    *,
    shuffled: Float[np.ndarray, "S N M"] | None = None,
    groups: Sequence[str] | np.ndarray | None = None,
    random_weights: Mapping[str, Float[np.ndarray, "N _"]] | None = None,
    pixels: Float[np.ndarray, "N _"] | None = None,
    nuisances: Float[np.ndarray, "N K"] | None = None,
    permutations: int = 0,
    alphas: Float[np.ndarray, " A"] = ALPHAS,
    seed: int = 0,
    progress: str | None = None,
) -> Evidence:
    """Infer everything about the images of one class.

    Args:
        features: Pooled features of each layer.
        measures: One column a concept.
        concepts: Their names.
        splits: True marks the training part.
        shuffled: For each split the measures in another order, as a control of the scores; least squares is scored only with it.
        groups: See `evaluate.infer`; permutations keep to them too (`permutation`).
        random_weights: Features of the same layers with random weights, as a control.
        pixels: Features made of the pixels alone, as a control (`probe_memory.pixel_features`).
        nuisances: Measures that should not matter: a control by themselves (least squares), and what `partial` is beyond.
        permutations: For the tests; none if 0.
        alphas: Penalties of ridge to choose from.
        seed: Of the permutations.
        progress: Label of progress bars.

    Raises:
        ValueError: See `evaluate.infer` and `permutation.permutation_test`.
    """
    layers, count = tuple(features), len(measures)
    if silent := [layer for layer, values in features.items() if not np.ptp(values, axis=0).any()]:
        logging.warning(
            "All images have the same features at %s: nothing can be read there.", ", ".join(silent)
        )
    sample = _sample(measures, splits, groups)
    compared = {"trained": features, "random_weights": random_weights or {}}
    compared |= {} if pixels is None else {"pixels": {"all": pixels}}
    kinds = [kind for kind, some in compared.items() for _ in some]
    every = {f"{kind} {layer}": values for kind, some in compared.items() for layer, values in some.items()}
    found = evaluate.infer(
        every, measures, splits, groups, shuffled=shuffled, alphas=alphas, progress=progress
    )
    kinds_of = np.array(kinds)
    by_split = {} if shuffled is None else _by_split(found, kinds_of, measures.shape[1])
    found = found._replace(
        **{name: getattr(found, name)[..., : measures.shape[1]] for name in ("r2", "alpha", "inner")}
    )
    everything = _known(found.r2, found.without, found.defined, sample)
    controls = {}
    for name in dict.fromkeys(kind for kind in kinds if kind != "trained"):
        rows = [index for index, kind in enumerate(kinds) if kind == name]
        controls[name] = Known(everything.value[rows], everything.deviation[rows], sample)
    own = slice(0, len(layers))
    of_layers = {*found._fields} - {"defined"}
    trained = found._replace(**{name: getattr(found, name)[own] for name in of_layers})
    partial = None
    if nuisances is not None and nuisances.shape[1]:
        nothing = {"nuisances": np.zeros((count, 1))}
        alone = evaluate.infer(nothing, measures, splits, groups, nuisances=nuisances, alphas=alphas)
        beside = evaluate.infer(
            features, measures, splits, groups, nuisances=nuisances, alphas=alphas,
            progress=progress and f"{progress}, nuisances removed",
        )  # fmt: skip
        if (alone.r2 > 1 - 1e-9).any():
            raise ValueError(
                "The nuisance measures predict a concept exactly, so nothing is left to be read beyond them; take others."
            )
        controls["nuisances"] = _known(alone.r2, alone.without, alone.defined, sample)
        partial = _known(
            1 - (1 - beside.r2) / (1 - alone.r2),
            1 - (1 - beside.without) / (1 - alone.without),
            found.defined,
            sample,
        )
    tests = None
    if permutations:
        tests = permutation_test(
            features, measures, splits, permutations, seed, groups=groups, alphas=alphas,
            progress=progress and f"{progress}, {permutations} permutations",
        )  # fmt: skip
    chosen = trained.inner.argmax(0)
    nested = _known(
        np.take_along_axis(trained.r2, chosen[None], 0),
        np.take_along_axis(trained.without, chosen[None, :, None], 0),
        found.defined,
        sample,
    )
    means = statistics.mean_without(np.moveaxis(trained.without, -1, 1), found.defined.transpose(2, 0, 1))
    member = evaluate.grouping(groups, count).of
    return Evidence(
        layers,
        tuple(concepts),
        count,
        means.shape[-1],
        float(splits.sum(1).mean()),
        float((~splits).sum(1).mean()),
        Known(everything.value[own], everything.deviation[own], sample),
        trained.r2,
        nested,
        chosen,
        controls,
        by_split,
        partial,
        tests,
        1 - np.square(trained.errors).sum(1) / np.square(measures - measures.mean(0)).sum(0),
        trained.dof,
        trained.alpha_all,
        np.concatenate([trained.dual_all[:, None], trained.dual], axis=1),
        Cases(
            measures,
            measures[None] - trained.errors,
            trained.leverage,
            np.moveaxis(trained.r2.mean(1)[..., None] - means, -1, 1)[:, member],
        ),
    )


def pool(classes: Sequence[Evidence]) -> Evidence:
    """The mean over independent classes of images: each counts the same, whatever the number of its images.

    Raises:
        ValueError: The classes differ in layers, measures, splits or controls.
    """

    def kind(one: Evidence) -> tuple[Any, ...]:
        there = {*one.controls}, one.partial is None, one.permutation is None
        return one.layers, one.concepts, len(one.chosen), *there

    first = classes[0]
    if any(kind(one) != kind(first) for one in classes):
        raise ValueError("Only classes with the same layers, measures, splits and controls can be pooled.")

    def mean(parts: Sequence[Known]) -> Known:
        return Known(
            np.mean([part.value for part in parts], axis=0),
            np.concatenate([part.deviation for part in parts], axis=-1) / len(parts),
            "+".join(part.sample for part in parts),
        )

    tests = None
    if first.permutation is not None:
        orders = [
            np.concatenate([one.permutation.observed[..., None], one.permutation.null], axis=-1)
            for one in classes
            if one.permutation is not None
        ]
        tests = compare_orders(np.mean(orders, axis=0))._replace(permuted=first.permutation.permuted)

    def each(name: str) -> list[Any]:
        return [getattr(one, name) for one in classes]

    return first._replace(
        **{name: sum(each(name)) for name in ("images", "groups")},
        **{name: float(np.mean(each(name))) for name in ("n_train", "n_test")},
        **{name: np.mean(each(name), axis=0) for name in ("splits", "r2_left_out", "dof")},
        **{name: mean(each(name)) for name in ("r2", "nested")},
        chosen=np.concatenate(each("chosen")),
        controls={name: mean([of[name] for of in each("controls")]) for name in first.controls},
        by_split={},
        partial=None if first.partial is None else mean(each("partial")),
        permutation=tests,
        alpha=np.exp(np.mean(np.log(each("alpha")), axis=0)),
        dual=None,
        cases=None,
    )


def _by_split(found: evaluate.Inference, kinds: np.ndarray, count: int) -> dict[str, ProbeScores]:
    """Scores of the layers with trained and with random weights, and of shuffled measures with trained ones."""

    def scores(kind: str, columns: slice) -> ProbeScores:
        rows = np.flatnonzero(kinds == kind)
        return ProbeScores(*(values[rows][..., columns] for values in (found.ols, found.r2, found.alpha)))

    measures = slice(0, count)
    return {
        "trained": scores("trained", measures),
        "random_weights": scores("random_weights", measures),
        "shuffled_measure": scores("trained", slice(count, None)),
    }


def _known(
    r2: Float[np.ndarray, "L S M"],
    without: Float[np.ndarray, "L S G M"],
    defined: Bool[np.ndarray, "S G M"],
    sample: str,
) -> Known:
    means = statistics.mean_without(np.moveaxis(without, -1, 1), defined.transpose(2, 0, 1))
    return Known(r2.mean(1), statistics.deviations(means), sample)


def _sample(measures: np.ndarray, splits: np.ndarray, groups: Sequence[str] | np.ndarray | None) -> str:
    digest = hashlib.sha256(
        np.ascontiguousarray(measures, np.float64).tobytes() + np.packbits(splits).tobytes()
    )
    digest.update(repr(None if groups is None else [*map(str, groups)]).encode())
    return digest.hexdigest()[:12]
