"""What is regressed, on which splits, and what is inferred from it."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from scalecov_jax.concepts.compute import Measured, check_measures, measure_all
from scalecov_jax.concepts.measure import get_measures
from scalecov_jax.images.example import Source
from scalecov_jax.probes import evaluate, sample_size
from scalecov_jax.probes.permutation import Permuted
from scalecov_jax.probes.probe import PROBES
from scalecov_jax.probes.splits import make_splits


@dataclass(frozen=True)
class Design:
    """The settings of probing.

    Attributes:
        concepts: Names of concept measures, see `concepts.measure`; the first decides where to cut.
        splitting: See `splits.make_splits`.
        splits: Number of splits or folds.
        seed: Of the splits, the shuffling, the permutations, the random weights and the projection of pixels.
        alphas: Penalties of ridge to choose from.
        probes: Further probes by name, see `probes.probe.PROBES`; least squares and ridge are always there.
        permutations: For the tests; none if 0.
        nuisances: Names of measures that should not matter.
        pixels: Whether pixels alone are a control.
        sizes: Numbers of training images for the sweep of `sample_size.sweep`; none when empty.
    """

    concepts: tuple[str, ...] = ("scale",)
    splitting: str = "auto"
    splits: int = 25
    seed: int = 0
    alphas: Float[np.ndarray, " A"] = field(default_factory=lambda: evaluate.ALPHAS)
    probes: tuple[str, ...] = ()
    permutations: int = 0
    nuisances: tuple[str, ...] = ()
    pixels: bool = False
    sizes: tuple[int, ...] = ()


def check_design(design: Design) -> None:
    """Make sure that every name in a design is known.

    Raises:
        ValueError: Unknown measures or probes, or a measure that comes twice.
    """
    get_measures((*design.concepts, *design.nuisances))
    if unknown := [name for name in design.probes if name not in PROBES]:
        raise ValueError(f"There is no probe {', '.join(unknown)}; there are {', '.join(PROBES)}.")


def measure(source: Source, design: Design, cache: Path | None = None, progress: bool = False) -> Measured:
    """Concept and nuisance measures of a source, before any forward pass.

    Raises:
        ValueError: See `compute.measure_all` and `compute.check_measures`; splits, permutations or training parts that cannot be
            had of these images and groups.
    """
    measured = measure_all(
        get_measures((*design.concepts, *design.nuisances)),
        source,
        cache=cache and cache / "measures.csv",
        progress="measures" if progress else None,
    )
    measures = measured.values[:, : len(design.concepts)]
    for values in measures.T:
        check_measures(values, measured.names)
    # Refused here and not after the forward passes.
    make_splits(
        design.splitting,
        len(measures),
        design.splits,
        design.seed,
        groups=measured.groups,
        values=measures[:, 0],
    )
    if design.permutations:
        Permuted.draw(measures, 1, design.seed, measured.groups)
    if design.sizes:
        sample_size.usable_sizes(design.sizes, len(measured.values))
    return measured
