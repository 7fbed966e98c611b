"""What is inferred from a sample, and what may not be concluded from it."""

import numpy as np
import pytest

from scalecov_jax import evidence_table
from scalecov_jax.evidence import pool, weigh
from scalecov_jax.probes.splits import random_splits

N, ALPHAS = 48, np.logspace(-1, 4, 6)


def sample(seed, noise=(0.3, 0.6, 3.0), **options):
    """Three layers that read a measure less and less well."""
    rng = np.random.default_rng(seed)
    measure = rng.normal(size=(N, 1))
    features = {f"layer_{k}": measure + sd * rng.normal(size=(N, 6)) for k, sd in enumerate(noise)}
    splits = random_splits(N, 6, options.pop("splits_of", 0))
    return weigh(features, measure, ["size"], splits, alphas=ALPHAS, **options)


def test_results_on_other_images_or_splits_do_not_subtract():
    one, same = sample(0), sample(0)
    assert not (one.r2 - same.r2).value.any()
    for other in (sample(1), sample(0, splits_of=3), sample(0, groups=np.arange(N) // 2)):
        with pytest.raises(
            ValueError, match=r"R2 of the sample \w{12} and of the sample \w{12} cannot be compared"
        ):
            one.r2 - other.r2
    pooled = pool([one, sample(1)])
    assert not (pooled.r2 - pool([same, sample(1)]).r2).value.any()
    with pytest.raises(ValueError, match="cannot be compared image by image"):
        pooled.r2 - one.r2


@pytest.mark.parametrize("seed", range(12))
def test_no_statement_contradicts_another(seed):
    """A layer that is shown to be worse has a difference from the peak below 0; no interval of R2 leaves what R2 can be."""
    evidence = sample(seed, noise=(0.02, 0.5, 0.55, 0.7, 1.0, 4.0) if seed % 2 else (0.8, 0.9, 1.0, 1.1, 4.0))
    layers = evidence_table.layer_rows("w", "car", evidence)
    to_peak = {
        row.layer: row for row in evidence_table.contrast_rows("w", "car", evidence) if row.against == "peak"
    }
    for row in layers:
        assert row.may_be_best or to_peak[row.layer].high < 0
        assert row.low <= row.r2 <= row.high <= 1
        assert row.bootstrap_high <= 1
        assert row.resampled_high <= 1
    assert any(row.may_be_best for row in layers)
    (choice,) = evidence_table.choice_rows("w", "car", evidence)
    assert choice.high <= 1


def test_intervals_end_at_1_where_they_would_leave_it():
    rows = [
        row
        for seed in range(12)
        for row in evidence_table.layer_rows("w", "car", sample(seed, groups=np.arange(N) % 3))
    ]
    assert any(row.high == 1 for row in rows)
