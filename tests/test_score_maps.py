"""Maps keep the sums of scores; receptive fields as derived and as quoted."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from scalecov_jax.explanation.score_maps import (
    PUBLISHED,
    Prior,
    binary_map,
    from_local_mean,
    map_scores,
    quoted_fields,
    spread,
    spread_evenly,
)
from scalecov_jax.models.receptive_field import ReceptiveField, receptive_field

TRUE = (3, 5, 10, 14, 24, 32, 52, 68, 108, 140, 220, 284, 444, 572, 764)
QUOTED = (3, 5, 9, 13, 21, 29, 45, 61, 93, 125, 189, 253, 381, 509, 637)


@pytest.mark.parametrize("size", [1, 5, 28, 300])
@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_sums_are_kept(size, ratio):
    scores = np.random.default_rng(size).normal(size=(2, 8, 6))
    rows, columns = (
        spread(ReceptiveField(size, 4, -(size // 2)), count, 4 * count, Prior(ratio)) for count in (8, 6)
    )
    maps = map_scores(scores, rows, columns)
    assert maps.shape == (2, 32, 24)
    np.testing.assert_allclose(maps.sum((1, 2)), scores.sum((1, 2)), rtol=1e-10)
    np.testing.assert_allclose(spread_evenly(scores[:, 0, 0], 3, 5).sum((1, 2)), scores[:, 0, 0])


def test_a_position_is_a_cut_gaussian_around_its_middle():
    field = ReceptiveField(9, 4, -4)
    for prior in (Prior(), PUBLISHED):
        column = spread(field, 5, 40, prior)[:, 3]
        expected = np.exp(-(np.arange(-4, 5) ** 2) / (2 * (9 * prior.ratio) ** 2))
        np.testing.assert_allclose(column[8:17], expected / expected.sum())
        assert column.sum() == pytest.approx(column[8:17].sum())
    assert spread(field, 5, 40, PUBLISHED)[:, 0].sum() < 0.7  # lost beyond the border, as published
    with pytest.raises(ValueError, match="sees nothing of an image of 8 pixels"):
        spread(field, 5, 8)


def test_receptive_fields_true_and_as_quoted():
    names = [f"block{block}_conv{one}" for block in range(1, 8) for one in (1, 2)] + ["conv15"]
    fields = [receptive_field("dr_grader", name) for name in names]
    quoted = quoted_fields(fields)
    assert tuple(one.size for one in fields) == TRUE
    assert tuple(one.size for one in quoted) == QUOTED
    with pytest.raises(ValueError, match="15 convolutions, got 1"):
        quoted_fields(fields[:1])


def test_binary_maps_show_what_stands_out():
    total = np.zeros((10, 10))
    total[3, 4] = 1
    assert binary_map(total).sum() == 1
    assert binary_map(np.stack([total, -total])).sum((1, 2)).tolist() == [1, 0]


def test_a_dark_spot_that_should_be_dark_speaks_for_the_target_beside_its_local_mean():
    rng = np.random.default_rng(0)
    inputs, gradients = np.full((1, 24, 20, 3), 0.8), np.zeros((1, 2, 24, 20, 3))
    inputs[0, 5, 6], gradients[0, 0, 5, 6] = 0.3, -1.0
    gradients[0, 1] = rng.normal(size=(24, 20, 3))
    constants = rng.normal(size=(1, 2, 1, 1))
    before = (gradients * inputs[:, None]).sum(-1) + constants
    found = from_local_mean(before, gradients, inputs, 2.0)
    np.testing.assert_allclose(found.sum((2, 3)), before.sum((2, 3)), rtol=1e-12)
    assert before[0, 0].argmin() == found[0, 0].argmax() == 5 * 20 + 6
    inputs[:] = 0.8  # nothing but surroundings: all of it is spread
    flat = from_local_mean(before * 0, gradients, inputs, 2.0) + (gradients * inputs[:, None]).sum(-1)
    np.testing.assert_allclose(flat, gaussian_filter((gradients * 0.8).sum(-1), (0, 0, 2, 2)), atol=1e-12)
