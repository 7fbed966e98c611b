"""The dip of least squares follows the number of features, on noise too; ridge has none."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler

from scalecov_jax.experiments.probe_report import _training_sizes
from scalecov_jax.probes.sample_size import MIN_HELD_OUT, dips, medians, sweep

WIDTHS = {"narrow": 20, "middle": 40, "wide": 80, "widest": 300}
SIZES = (10, 20, 30, 40, 60, 80, 120)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    features = {layer: rng.normal(size=(160, width)).astype(np.float32) for layer, width in WIDTHS.items()}
    measures = 0.3 * sum(values[:, 0] for values in features.values()) + rng.normal(size=160)
    return features, measures


@pytest.fixture(scope="module")
def rows(data):
    return sweep(*data, SIZES, weights="net", image_class="noise", splits=8, seed=3)


def test_the_dip_follows_the_width(rows):
    found = {dip.layer: dip for dip in dips(rows)}
    assert list(found) == ["narrow", "middle", "wide"]  # the widest has no dip inside the range
    for layer, dip in found.items():
        assert dip.n_train == dip.rank == dip.width == WIDTHS[layer]
        assert dip.ols < -1.5
        assert dip.ridge > -0.5


def test_the_dip_sits_at_the_rank_where_features_depend_on_each_other(data):
    features, measures = data
    mixed = features["narrow"] @ np.random.default_rng(1).normal(size=(20, 60)).astype(np.float32)
    both = {"mixed": np.concatenate([mixed, np.ones((160, 1), np.float32)], axis=1)}
    (dip,) = dips(sweep(both, measures, SIZES, weights="net", image_class="noise", splits=8))
    assert (dip.width, dip.rank, dip.n_train) == (61, 20, 20)


def test_scores_equal_scikit_learn(data, rows):
    features, measures = data
    order = np.random.default_rng((3, 5, 2)).permutation(160)
    train, test = order[:60], order[60:]
    scaler = StandardScaler().fit(features["middle"][train].astype(float))
    x = scaler.transform(features["middle"].astype(float))
    expected = LinearRegression().fit(x[train], measures[train]).score(x[test], measures[test])
    found = next(r for r in rows if (r.layer, r.n_train, r.split, r.estimator) == ("middle", 60, 5, "ols"))
    assert found.r2 == pytest.approx(expected, rel=1e-9)


def test_medians_are_over_splits(rows):
    sizes, r2 = medians(rows, "wide", "ridge")
    np.testing.assert_array_equal(sizes, SIZES)
    some = [r.r2 for r in rows if (r.layer, r.estimator, r.n_train) == ("wide", "ridge", 120)]
    assert len(some) == 8
    assert r2[-1] == np.median(some)


def test_sizes_that_cannot_be_cut_are_passed_over_or_refused(data):
    features, measures = data
    narrow = {"narrow": features["narrow"]}
    kept = sweep(narrow, measures, (30, 150, 151), weights="net", image_class="noise", splits=2)
    assert {row.n_train for row in kept} == {30, 160 - MIN_HELD_OUT}
    with pytest.raises(ValueError, match="of 151 images cannot be cut from 160 images; expected 2 to 150"):
        sweep(narrow, measures, (151,), weights="net", image_class="noise")
    with pytest.raises(ValueError, match="of 1, 30 images"):
        sweep(narrow, measures, (1, 30), weights="net", image_class="noise")


def test_the_report_says_where_the_dip_lies(rows):
    (finding,), (section,) = _training_sizes(pd.DataFrame(rows), {"net": "Net"})
    assert (finding.at, finding.value, finding.low, finding.high) == ("Net, noise", 1, 1, 1)
    assert [row[:4] for row in section.tables[0].rows] == [
        ("narrow", "20", "20", "20"),
        ("middle", "40", "40", "40"),
        ("wide", "80", "80", "80"),
    ]
    assert "middle (rank 40)" in section.images[0].alt
    moved = [row._replace(r2=-1000.0) if (row.n_train, row.estimator) == (10, "ols") else row for row in rows]
    (finding,), _ = _training_sizes(pd.DataFrame(moved), {"net": "Net"})
    assert finding.value == pytest.approx(10 / 40)
    narrow = [row for row in rows if row.layer == "widest"]
    assert _training_sizes(pd.DataFrame(narrow), {"net": "Net"}) == ([], [])
