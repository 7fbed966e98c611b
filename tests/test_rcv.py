"""Regression concept vectors: what they are, that they outlive their run, and where they may be used."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler
from tiny_network import random_network

from scalecov_jax.checkpoints import fingerprints
from scalecov_jax.cutting import pruned_network
from scalecov_jax.explanation.target import rcv_projection
from scalecov_jax.extraction import Features
from scalecov_jax.probes.evaluate import ALPHAS
from scalecov_jax.probes.splits import random_splits
from scalecov_jax.vectors import check_rcvs, fit_rcvs, load_rcv, load_rcvs, rcv_table, save_rcvs

LAYER = "block_1"


@pytest.fixture(scope="module")
def network():
    return random_network()


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(7)
    features = (rng.normal(size=(80, 8)) @ rng.normal(size=(8, 8)) + 3).astype(np.float32)
    values = features @ rng.normal(size=8) + 0.1 * rng.normal(size=80)
    return features, {"size": values, "nothing": rng.permutation(values)}


@pytest.fixture(scope="module")
def rcvs(network, problem):
    return fit_rcvs(network, "stem", *problem, random_splits(80, 10, 0))


def of_stem(network, features, **changes):
    given = Features({"stem": features}, np.arange(len(features)), (), fingerprints(network, ["stem"]), "gap")
    return given._replace(**changes)


def test_they_are_ridge_on_all_images_with_held_out_r2(problem, rcvs):
    """Not the last fold that came out well: the direction uses all images, its R2 none that it was fitted to."""
    features, measures = problem
    size, nothing = rcvs
    scaler = StandardScaler().fit(features.astype(np.float64))
    peer = RidgeCV(ALPHAS).fit(scaler.transform(features.astype(np.float64)), measures["size"])
    np.testing.assert_allclose(size.weights, peer.coef_ / scaler.scale_, rtol=1e-9)
    np.testing.assert_allclose(size.scale, scaler.scale_, rtol=1e-12)
    np.testing.assert_allclose(size.mean, scaler.mean_, rtol=1e-12)
    assert size.alpha == pytest.approx(peer.alpha_)
    np.testing.assert_allclose(
        size.predict(features), peer.predict(scaler.transform(features.astype(np.float64))), rtol=1e-9
    )
    assert size.r2 > 0.95
    assert nothing.r2 < 0.1
    np.testing.assert_allclose(size.direction, size.weights / np.linalg.norm(size.weights))


def test_the_pattern_is_how_features_change_with_the_measure(problem, rcvs):
    features, measures = problem
    y = measures["size"]
    slopes = [np.polyfit(y, x.astype(np.float64), 1)[0] for x in features.T]
    np.testing.assert_allclose(rcvs[0].pattern, slopes, rtol=1e-6)
    assert abs(rcvs[0].vector("pattern") @ rcvs[0].vector("filter")) < 0.95  # features are correlated here
    with pytest.raises(ValueError, match="no vector 'patern'; expected one of filter, pattern"):
        rcvs[0].vector("patern")


def test_a_step_moves_the_reading_by_standard_deviations(problem, rcvs):
    features, measures = problem
    size = rcvs[0]
    for sigmas in (1.0, -2.5):
        moved = size.step(features, sigmas)
        np.testing.assert_allclose(
            size.predict(moved) - size.predict(features), sigmas * measures["size"].std(), rtol=1e-9
        )
        assert (
            np.linalg.norm(moved - features, axis=1).max()
            <= np.linalg.norm(size.step(features, sigmas, "pattern") - features, axis=1).max() * 1.05
        )
    along = size.step(features, 1.0, "pattern") - features
    np.testing.assert_allclose(along[0], measures["size"].std() * size.pattern, rtol=1e-6)


def test_they_are_the_same_when_read_again(network, problem, rcvs, tmp_path):
    save_rcvs(tmp_path / "rcvs.npz", rcvs)
    for one, other in zip(load_rcvs(tmp_path / "rcvs.npz"), rcvs, strict=True):
        for field in dataclasses.fields(one):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
    rcvs[1].save(tmp_path / "one.npz")
    assert load_rcv(tmp_path / "one.npz").measure == "nothing"
    assert load_rcv(tmp_path / "rcvs.npz", "size", "stem").measure == "size"
    with pytest.raises(
        ValueError, match=r"several RCVs fit layer 'stem'; there are size at stem .*; nothing at stem"
    ):
        load_rcv(tmp_path / "rcvs.npz", layer="stem")
    with pytest.raises(ValueError, match="there is no RCV of measure 'sise'; there are size at stem"):
        load_rcv(tmp_path / "rcvs.npz", "sise")
    with pytest.raises(ValueError, match="There is no file"):
        load_rcvs(tmp_path / "absent.npz")
    (tmp_path / "broken.npz").write_bytes((tmp_path / "rcvs.npz").read_bytes()[:300])
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name in ("broken", "other"):
        with pytest.raises(
            ValueError, match=rf"{name}\.npz is damaged, or of another version .* Expected rcvs\.npz"
        ):
            load_rcvs(tmp_path / f"{name}.npz")


def test_features_of_another_layer_network_or_pooling_are_refused(network, problem, rcvs):
    features, _ = problem
    size = rcvs[0]
    np.testing.assert_array_equal(size.predict(of_stem(network, features)), size.predict(features))
    with pytest.raises(ValueError, match="was fitted at stem; these features are of block_1"):
        size.predict(of_stem(network, features, values={"block_1": features}))
    with pytest.raises(
        ValueError, match=r"was fitted on the network tiny-\w{12}; these features are of tiny-"
    ):
        size.predict(of_stem(random_network(seed=1), features))
    with pytest.raises(ValueError, match="pooled by gap; these were pooled by max"):
        size.step(of_stem(network, features, pooling="max"))
    with pytest.raises(ValueError, match=r"reads features \[N, 8\], got \[80, 7\]"):
        size.predict(features[:, :7])


def test_rcvs_of_another_layer_or_network_are_refused_by_name(network, rcvs):
    check_rcvs(network, "stem", rcvs)
    check_rcvs(pruned_network(network, LAYER), "stem", rcvs)  # the same network up to there
    with pytest.raises(
        ValueError, match=r"RCV of size was fitted at stem, not at block_1; the RCV of nothing"
    ):
        check_rcvs(network, LAYER, rcvs)
    with pytest.raises(
        ValueError, match=r"the RCV of size was fitted on the network tiny-\w{12}, not on tiny-"
    ):
        rcv_projection(random_network(seed=1), rcvs[0])
    every = fingerprints(network, network.architecture.layers)
    assert len({*every.values()}) == len(every)
    other = network._replace(card=dataclasses.replace(network.card, preprocessing="caffe"))
    assert fingerprints(other, ["stem"])["stem"] != every["stem"]


def test_a_row_says_how_far_a_vector_can_be_relied_on(rcvs):
    rng = np.random.default_rng(0)
    size, nothing = rcvs
    turned = dataclasses.replace(size, weights=-size.weights)
    splits = {"stem": np.stack([np.stack([size.weights, rng.normal(size=8)], 1) for _ in range(4)])}
    rows = [
        *rcv_table({"a": [size, nothing], "b": [turned, nothing]}, {"a": splits, "b": splits}).itertuples()
    ]
    assert [(row.image_class, row.concept) for row in rows] == [
        ("a", "size"), ("a", "nothing"), ("b", "size"), ("b", "nothing"),
    ]  # fmt: skip
    assert rows[0].norm == pytest.approx(np.linalg.norm(size.weights))
    assert rows[0].mean_angle == pytest.approx(0, abs=1e-4)
    assert 30 < rows[1].mean_angle <= rows[1].largest_angle <= 180
    assert rows[0].mean_cosine == rows[0].least_cosine == pytest.approx(-1)
    alone = rcv_table({"a": [size]}, {"a": {"stem": splits["stem"][:1]}})
    assert alone[["mean_angle", "least_cosine"]].isna().all(axis=None)
