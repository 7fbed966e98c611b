"""What is inferred from a sample, and what may not be concluded from it."""

import numpy as np
import pytest

from scalecov_jax.evidence import pool, weigh
from scalecov_jax.experiments.probe_tables import (
    SHOWN,
    case_table,
    choice_table,
    contrast_table,
    image_table,
    layer_table,
)
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
    layers = layer_table(evidence, "w", "car").set_index("layer")
    to_peak = contrast_table(evidence, "w", "car").query("against == 'peak'").set_index("layer")
    assert (layers["may_be_best"] | (to_peak["high"] < 0)).all()
    assert ((layers["low"] <= layers["r2"]) & (layers["r2"] <= layers["high"])).all()
    assert (layers[["high", "bootstrap_high", "resampled_high"]] <= 1).all(axis=None)
    assert layers["may_be_best"].any()
    assert (choice_table(evidence, "w", "car")["high"] <= 1).all()


def test_intervals_end_at_1_where_they_would_leave_it():
    assert any(
        (layer_table(sample(seed, groups=np.arange(N) % 3), "w", "car")["high"] == 1).any()
        for seed in range(12)
    )


@pytest.mark.parametrize("grouped", [False, True])
def test_cases_are_the_images_that_move_the_lead(grouped):
    groups = np.arange(N) // 2 if grouped else np.arange(N)
    evidence = sample(0, groups=groups)
    names = [f"{index:02d}.jpg" for index in range(N)]
    images = image_table(evidence, "w", "car", names, [*map(str, groups)])
    assert len(images) == 3 * N
    table = case_table(images, layer_table(evidence, "w", "car"))
    peak, second, _ = np.argsort(-evidence.r2.value[:, 0])
    lead = evidence.cases.influence[peak, :, 0] - evidence.cases.influence[second, :, 0]
    order = np.argsort(-evidence.cases.leverage[peak, :, 0], kind="stable")
    order = np.array([at for k, at in enumerate(order) if groups[at] not in groups[order[:k]]])
    order = order[np.argsort(-lead[order], kind="stable")]
    expected = [*order[lead[order] > 0][:SHOWN], *order[lead[order] < 0][::-1][:SHOWN]]
    assert len(expected) == 2 * SHOWN
    assert table["at"].tolist() == expected
    assert table["image"].tolist() == [names[at] for at in expected]
    assert table["group"].is_unique
    np.testing.assert_allclose(table["lead"], lead[expected])
    for column, layer in (("read_at_peak", peak), ("read_at_second", second)):
        np.testing.assert_allclose(table[column], evidence.cases.prediction[layer, expected, 0])
    np.testing.assert_allclose(table["leverage"], evidence.cases.leverage[peak, expected, 0])
    np.testing.assert_allclose(table["measure"], evidence.cases.measure[expected, 0])
    with pytest.raises(ValueError, match="no single images"):
        image_table(pool([evidence, sample(1)]), "w", "all", names, names)
