"""The front door: what a researcher brings, and what is carried away."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler
from test_adopted import Theirs
from tiny_network import random_network

import scalecov_jax as sc
from scalecov_jax.models.architecture import ARCHITECTURES
from scalecov_jax.probes.evaluate import ALPHAS
from scalecov_jax.probes.splits import random_splits

pytestmark = pytest.mark.usefixtures("quick_compilation")
RNG = np.random.default_rng(0)
COUNT = 60
AGE = RNG.normal(size=COUNT)
FEATURES = {
    "early": RNG.normal(size=(COUNT, 5)) + 0.2 * AGE[:, None],
    "late": RNG.normal(size=(COUNT, 7)) + 1.5 * AGE[:, None],
}


@pytest.fixture(scope="module")
def found():
    return sc.probe(FEATURES, AGE, permutations=99, splits=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs in two subfolders whose brightness grows with the column age."""
    folder = tmp_path_factory.mktemp("study")
    rows = []
    for number in range(30):
        name = f"{'ab'[number % 2]}/{number:02d}.png"
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = RNG.integers(0, 60, (40, 48, 3)) + 6 * number
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
        rows.append((f"{number:02d}", number + RNG.normal(), f"p{number // 3}", "x"))
    table = pd.DataFrame(rows, columns=["image", "age", "patient", "note"])
    table.to_csv(folder / "measures.csv")
    return folder


def test_the_package_is_imported_fast_and_names_its_front_door():
    code = "import sys, scalecov_jax as sc; print('pandas' in sys.modules, {*sc.__all__} <= {*dir(sc)})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "True"]
    with pytest.raises(AttributeError, match="has no probing; it has cut, explain"):
        sc.probing  # noqa: B018


def test_features_need_no_network(found):
    table = found.table()
    assert [*table["layer"]] == ["early", "late"]
    assert (found.best, found.peak_set) == ("late", ("late",))
    assert table["p"].iloc[1] == 0.01
    splits = random_splits(COUNT, 10, 0)
    for layer, values in FEATURES.items():
        scaled = StandardScaler().fit_transform(values)
        scores = [RidgeCV(ALPHAS).fit(scaled[one], AGE[one]).score(scaled[~one], AGE[~one]) for one in splits]
        assert table.set_index("layer")["r2"][layer] == pytest.approx(np.mean(scores), rel=1e-9)


def test_the_report_doubts_what_is_not_shown():
    """On noise: nothing is read, no more than from a shuffled measure, and the images are few."""
    rng = np.random.default_rng(1)
    noise = sc.probe(
        {"a": rng.normal(size=(30, 5)), "b": rng.normal(size=(30, 5))}, rng.normal(size=30), permutations=99
    )
    table = noise.table().set_index("layer").loc[noise.best]
    doubts = {one.quantity: one for one in noise._doubts(noise.table())}
    assert {one.level for one in doubts.values()} == {"caution"}
    assert [one.value for one in doubts.values()][0::2] == [table["p_family"], 30]


def test_layers_are_compared(found):
    one = found.compare("late", "early")
    table = found.table().set_index("layer")["r2"]
    assert one.difference == pytest.approx(table["late"] - table["early"])
    assert one.low < one.difference < one.high
    assert one.p < 0.05
    back = found.compare("early", "late")
    assert (back.difference, back.p) == (pytest.approx(-one.difference), pytest.approx(one.p))
    same = found.compare("late")
    assert (same.difference, same.p) == (0, 1)
    nested = found.evidence.nested
    assert found.compare("chosen", "early").difference == pytest.approx(nested.value[0, 0] - table["early"])
    other = sc.probe({"late": FEATURES["late"] + RNG.normal(size=(COUNT, 1))}, AGE, permutations=0, splits=10)
    assert found.compare("early", "late", other).difference < 0
    with pytest.raises(ValueError, match="cannot be compared image by image"):
        found.compare("late", "late", sc.probe(FEATURES, AGE, permutations=0, splits=10, seed=1))
    with pytest.raises(ValueError, match="The layer 'middle' was not probed; there are early, late"):
        found.compare("middle")


def test_a_vector_is_saved_loaded_and_predicts(found, tmp_path):
    found.rcv().save(tmp_path / "age.npz")
    vector = sc.rcv(tmp_path / "age.npz")
    assert vector.layer == "late"
    predicted = vector.predict(FEATURES["late"])
    assert np.corrcoef(predicted, AGE)[0, 1] > 0.9
    moved = vector.predict(vector.step(FEATURES["late"], 2.0))
    np.testing.assert_allclose(moved - predicted, 2 * AGE.std(), rtol=1e-9)


def test_a_page_and_a_figure(found, tmp_path):
    html = found.report(tmp_path / "report.html").read_text()
    assert "late" in html
    assert found.plot().content.startswith(b"<?xml")
    assert 'src="data:image/svg+xml;base64,' in found.plot()._repr_html_()
    assert "<table" in found._repr_html_()


def test_measures_in_every_form(tmp_path):
    frame = pd.DataFrame({"age": AGE, "length": RNG.normal(size=COUNT)})
    two = sc.probe(FEATURES, frame, permutations=0, splits=3)
    assert two.evidence.concepts == ("age", "length")
    assert sc.probe(FEATURES, frame, "length", permutations=0, splits=3).evidence.concepts == ("length",)
    assert sc.probe(FEATURES, frame["age"], permutations=0, splits=3).evidence.concepts == ("age",)
    np.savez(tmp_path / "features.npz", **FEATURES)
    stored = sc.probe(str(tmp_path / "features.npz"), AGE, permutations=0, splits=3)
    assert stored.table()["r2"].to_numpy() == pytest.approx(
        two.table().query("concept == 'age'")["r2"].to_numpy()
    )
    grouped = sc.probe(FEATURES, AGE, groups=np.arange(COUNT) // 4, permutations=0, splits=3)
    assert grouped.evidence.groups == 15


def test_features_that_cannot_be_probed():
    bad = {"short": np.zeros((5, 2)), "text": np.full((COUNT, 2), "x"), "nan": np.full((COUNT, 2), np.nan)}
    with pytest.raises(ValueError, match=r"short is .*; text is .*; nan has 120 values that are not finite"):
        sc.probe(bad, AGE)
    with pytest.raises(ValueError, match="concept measure is 1 for all"):
        sc.probe(FEATURES, np.ones(COUNT))
    with pytest.raises(ValueError, match="5 groups for 60 images"):
        sc.probe(FEATURES, AGE, groups=[1] * 5)
    with pytest.raises(ValueError, match="no features of middle; there are early, late"):
        sc.probe(FEATURES, AGE, layers=["middle"])
    with pytest.raises(ValueError, match=r"the shape \(60, 1, 1\)"):
        sc.probe(FEATURES, AGE[:, None, None])


def test_what_cannot_be_read_is_refused_before_the_network_runs_or_is_logged(caplog):
    pictures = RNG.integers(0, 256, (12, 8, 8, 3), np.uint8)
    images = sc.images([*pictures]).assign(age=np.ones(12), size=AGE[:12])

    def network(pixels):
        raise AssertionError("spent")

    with pytest.raises(ValueError, match="concept measure is 1 for all"):
        sc.probe(network, images, "age", size=8)
    with pytest.raises(ValueError, match="All 12 images belong to p"):
        sc.probe(network, images.assign(group="p"), "size", size=8)
    table = sc.probe({"dead": np.ones((COUNT, 3)), **FEATURES}, AGE, splits=3, permutations=19).table()
    assert "same features at dead:" in caplog.text
    assert np.isfinite(table.set_index("layer").loc["dead", ["r2", "low", "high", "p"]].astype(float)).all()


def test_a_folder_and_a_table(folder):
    images = sc.images(folder, measures=folder / "measures.csv", groups="patient")
    assert len(images) == 30
    assert len({*images.column("group")}) == 10
    found = sc.probe(random_network(), images, "age", permutations=0, splits=4, size=32)
    assert found.best in ("stem", "block_1", "block_2", "avg_pool", "pre_softmax", "softmax")
    assert found.table().set_index("layer")["r2"]["stem"] > 0.8
    assert set(found.evidence.controls) == {"random_weights"}
    frame = pd.read_csv(folder / "measures.csv", index_col=0).set_index("image")
    frame.index = [f"{name:02d}" for name in frame.index]
    again = sc.images(folder, measures=frame, groups="patient")
    np.testing.assert_allclose(again.column("age"), images.column("age"))
    with pytest.raises(ValueError, match="The column note of the images holds 'x'"):
        sc.probe(random_network(), images, "note")


def test_files_arrays_and_rendered_images(folder):
    paths = sorted(folder.glob("a/*.png"))
    assert [one.name for one in sc.images(paths)] == [path.name for path in paths]
    arrays = RNG.integers(0, 256, (3, 8, 9, 3)).astype(np.uint8)
    np.testing.assert_array_equal(sc.images(arrays)[1].image, arrays[1])
    assert sc.images([arrays[0, ..., 0]])[0].image.shape == (8, 9, 3)
    assert len(sc.images("scenes", image_class="striped_disc", count=3, size=32)) == 3
    with pytest.raises(ValueError, match=r"float64 of shape \(8, 9, 3\); expected uint8"):
        sc.images([arrays[0] / 255])
    with pytest.raises(ValueError, match=r"No such file: none\.png"):
        sc.images(["none.png"])


def test_features_maps_and_a_cut(folder, tmp_path):
    network, images = random_network(), sc.images(folder)
    pooled = sc.features(network, images, ["stem", "block_1"], size=32)
    unpooled = sc.maps(network, images, ["stem", "block_1"], size=32)
    for layer, values in pooled.values.items():
        np.testing.assert_allclose(unpooled[layer].mean((1, 2)), values, rtol=1e-4, atol=1e-6)
    table = pooled.table()
    assert [*table.index] == [one.name for one in images]
    assert table.shape == (30, sum(values.shape[1] for values in pooled.values.values()))
    sc.save(sc.cut(network, "block_1"), tmp_path / "cut")
    cut = sc.load(tmp_path / "cut")
    again = sc.features(cut, images, size=32).values
    np.testing.assert_allclose(again["block_1"], pooled.values["block_1"], rtol=1e-6)


def test_a_function_is_probed_like_a_network(folder):
    images = sc.images(folder, measures=folder / "measures.csv")

    def model(pixels):
        return {"mean": pixels.mean((1, 2)), "maps": pixels[:, ::4, ::4].astype(np.float32)}

    found = sc.probe(model, images, "age", permutations=0, splits=4, size=32)
    np.testing.assert_allclose(found.features["maps"][:, 0], found.features["mean"][:, 0], rtol=0.1)
    assert found.table()["r2"].min() > 0.9
    assert not found.evidence.controls
    for pooling in ("corrected_gap", "cls", "middle"):
        with pytest.raises(ValueError, match=f"The pooling is '{pooling}'; .* expected one of gap, max"):
            sc.features(model, images, pooling=pooling)
    with pytest.raises(ValueError, match="3 groups for 30 images"):
        sc.probe(model, images, "age", groups=[1, 2, 3])


def test_a_flax_module_is_probed_unedited(folder):
    variables = Theirs().init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    try:
        network = sc.load((Theirs(), variables), input_size=32)
        images = sc.images(folder, measures=folder / "measures.csv")
        found = sc.probe(network, images, "age", permutations=0, splits=4)
        assert found.evidence.layers == ("stem", "blocks_0", "blocks_1", "classify")
        assert set(found.evidence.controls) == {"random_weights"}
        with pytest.raises(ValueError, match="resnet50 is an architecture of this package"):
            sc.load((Theirs(), variables), "resnet50", input_size=32)
    finally:
        ARCHITECTURES.pop("Theirs", None)


def test_where_a_network_looks(folder):
    images = sc.images(sorted(folder.glob("a/*.png"))[:3])
    for target in ("predicted", 2):
        maps = sc.explain(random_network(), images, "block_2", target=target, size=32)
        assert maps.shape == (3, 32, 32)
        assert maps.min() >= 0
        assert maps.max() <= 1 + 1e-6
