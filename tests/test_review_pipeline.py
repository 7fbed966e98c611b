"""The review end to end on a tiny network: its tables, that they agree with each other, and what it refuses."""

import numpy as np
import probe_runs
import pytest
from golden_tables import assert_golden

from scalecov_jax import run as runner
from scalecov_jax.checkpoints import load
from scalecov_jax.evidence import weigh
from scalecov_jax.experiments import review, review_maths
from scalecov_jax.extraction import compute_features
from scalecov_jax.imaging.image_set import Box, Example
from scalecov_jax.probes.splits import grouped_splits

pytestmark = pytest.mark.usefixtures("quick_compilation", "quick_scenes")
weights = probe_runs.weights


@pytest.fixture(scope="module")
def finished(weights, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "review"
    settings = {"weights": str(weights), "image_class": "striped_disc", "count": "40", "splits": "3", "orders": "2",
                "halvings": "2", "growing": "3", "beside": "box_centre_x", "layers": "stem,block_2,pre_softmax"}  # fmt: skip
    runner.run("review", settings, workdir, command=["experiment.py"])
    return workdir


def test_quantities_of_a_layer_agree_with_each_other_and_with_the_kernel(finished, weights):
    settings, tables = runner.read(finished)
    frame = tables["review"]
    assert_golden(finished, "review")
    wide = frame.pivot(index="layer", columns="quantity", values="value").loc[
        ["stem", "block_2", "pre_softmax"]
    ]
    maps = ["ap_filter", "ap_pattern", "ap_other", "ap_chance", "mass_filter", "mass_pattern"]
    assert wide[maps].loc["pre_softmax"].isna().all()  # a vector has no map
    assert np.isfinite(wide.drop(columns=maps).to_numpy()).all()
    assert np.isfinite(wide[maps].loc[["stem", "block_2"]].to_numpy()).all()
    bounded = frame.dropna(subset=["low"])
    assert (bounded["low"] <= bounded["value"] + 1e-12).all()
    assert (bounded["value"] <= bounded["high"] + 1e-12).all()
    np.testing.assert_allclose(wide["added_r2"].sum(), wide["stacked_r2"].iloc[0])
    source = review._open(settings)
    measure = np.array(
        [(b.x_max - b.x_min + 1) * (b.y_max - b.y_min + 1) / 128**2 for b in (e.box for e in source)]
    )
    features = compute_features(load(weights), source, [*wide.index])
    groups = [*source.column("group")]
    known = weigh(features.values, measure[:, None], ["scale"], grouped_splits(groups, 3, 0), groups=groups)
    np.testing.assert_allclose(wide["r2"], known.r2.value[:, 0], atol=1e-5)
    np.testing.assert_allclose(wide["unique_r2"] + wide["shared_r2"], known.r2_left_out[:, 0], atol=1e-5)


def test_entanglement_is_of_every_ordered_pair(finished):
    tables = runner.read(finished)[1]
    frame = tables["entanglement"]
    assert len(frame) == 6
    pairs = frame.set_index(["layer", "concept", "beside"])[["correlation", "reading_correlation", "cosine"]]
    swapped = pairs.rename_axis(index={"concept": "beside", "beside": "concept"}).reorder_levels(
        pairs.index.names
    )
    np.testing.assert_allclose(pairs, swapped.loc[pairs.index])


def test_objects_on_a_grid():
    image = np.zeros((40, 20, 3), np.uint8)
    box = Example(image, None, Box(1, 1, 10, 20), None, "g", "n")
    expected = np.zeros((4, 4), bool)
    expected[:2, :2] = True
    np.testing.assert_array_equal(review_maths.object_on_grid(box, 4), expected)
    mask = np.zeros((40, 20), bool)
    mask[:20, :10] = True
    np.testing.assert_array_equal(review_maths.object_on_grid(box._replace(box=None, mask=mask), 4), expected)
    small = review_maths.object_on_grid(box._replace(box=Box(20, 40, 20, 40)), 4)
    np.testing.assert_array_equal(np.argwhere(small), [[3, 3]])
    with pytest.raises(ValueError, match="box or a mask"):
        review_maths.object_on_grid(box._replace(box=None), 4)


def test_changes_of_an_image():
    image = np.arange(50 * 50 * 3, dtype=np.uint32).reshape(50, 50, 3).astype(np.uint8)
    one = Example(image, None, None, None, "g", "n")
    np.testing.assert_array_equal(review.flip(review.flip(one)).image, image)
    np.testing.assert_array_equal(review.shift(one).image[2:, 2:], image[:-2, :-2])
    assert review.brighten(one._replace(image=np.full_like(image, 100))).image.mean() == 120


def test_other_images_are_of_other_groups():
    groups = np.array([*"abcabcc"])
    assert (groups[review_maths.other_images([*groups])] != groups).all()


def test_all_mistakes_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"glcm_contrst.*nowhere") as refused:
        runner.check("review", {"weights": str(tmp_path), "concept": "glcm_contrst", "images": "nowhere"})
    assert str(tmp_path) in str(refused.value)
    with pytest.raises(ValueError, match=r"beside.*layers has stem alone"):
        runner.check("review", {"beside": "scale", "layers": "stem"})
