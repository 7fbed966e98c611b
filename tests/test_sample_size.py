"""The dip of least squares follows the number of features, on noise too; ridge has none."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler

from scalecov_jax.experiments.probe_report import _training_sizes
from scalecov_jax.probes.sample_size import MIN_HELD_OUT, dips, sweep

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
    return sweep(*data, SIZES, splits=8, seed=3)


def test_the_dip_follows_the_width(rows):
    found = {dip.layer: dip for dip in dips(rows).itertuples()}
    assert list(found) == ["narrow", "middle", "wide"]  # the widest has no dip inside the range
    for layer, dip in found.items():
        assert dip.n_train == dip.rank == dip.width == WIDTHS[layer]
        assert dip.ols < -1.5
        assert dip.ridge > -0.5


def test_the_dip_sits_at_the_rank_where_features_depend_on_each_other(data):
    features, measures = data
    mixed = features["narrow"] @ np.random.default_rng(1).normal(size=(20, 60)).astype(np.float32)
    both = {"mixed": np.concatenate([mixed, np.ones((160, 1), np.float32)], axis=1)}
    (dip,) = dips(sweep(both, measures, SIZES, splits=8)).itertuples()
    assert (dip.width, dip.rank, dip.n_train) == (61, 20, 20)


def test_scores_equal_scikit_learn(data, rows):
    features, measures = data
    order = np.random.default_rng((3, 5, 2)).permutation(160)
    train, test = order[:60], order[60:]
    scaler = StandardScaler().fit(features["middle"][train].astype(float))
    x = scaler.transform(features["middle"].astype(float))
    expected = LinearRegression().fit(x[train], measures[train]).score(x[test], measures[test])
    found = rows.query("layer == 'middle' and n_train == 60 and split == 5 and estimator == 'ols'")["r2"]
    assert found.tolist() == [pytest.approx(expected, rel=1e-9)]


def test_medians_are_over_splits(rows):
    dip = dips(rows).set_index("layer").loc["wide"]
    for estimator in ("ols", "ridge"):
        some = rows.query("layer == 'wide' and n_train == 80 and estimator == @estimator")["r2"]
        assert len(some) == 8
        assert dip[estimator] == np.median(some)


def test_sizes_that_cannot_be_cut_are_passed_over_or_refused(data):
    features, measures = data
    narrow = {"narrow": features["narrow"]}
    kept = sweep(narrow, measures, (30, 150, 151), splits=2)
    assert {*kept["n_train"]} == {30, 160 - MIN_HELD_OUT}
    with pytest.raises(ValueError, match="of 151 images cannot be cut from 160 images; expected 2 to 150"):
        sweep(narrow, measures, (151,))
    with pytest.raises(ValueError, match="of 1, 30 images"):
        sweep(narrow, measures, (1, 30))


def test_the_report_says_where_the_dip_lies(rows):
    rows = rows.assign(weights="net", image_class="noise")
    (finding,), (section,) = _training_sizes(rows, {"net": "Net"})
    assert (finding.at, finding.value, finding.low, finding.high) == ("Net, noise", 1, 1, 1)
    assert [row[:4] for row in section.tables[0].rows] == [
        ("narrow", "20", "20", "20"),
        ("middle", "40", "40", "40"),
        ("wide", "80", "80", "80"),
    ]
    assert "middle (rank 40)" in section.images[0].alt
    moved = rows["r2"].mask((rows["n_train"] == 10) & (rows["estimator"] == "ols"), -1000.0)
    (finding,), _ = _training_sizes(rows.assign(r2=moved), {"net": "Net"})
    assert finding.value == pytest.approx(10 / 40)
    assert _training_sizes(rows[rows["layer"] == "widest"], {"net": "Net"}) == ([], [])
