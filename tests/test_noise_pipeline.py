"""The noise experiment end to end: its files, that they agree with each other, and how it fails."""

import json

import numpy as np
import pytest
from tiny_network import LAYERS, random_network

from scalecov_jax import checkpoints
from scalecov_jax.paper import noise as features
from scalecov_jax.paper.noise_probes import NoiseEffect, NoisePrediction, NoiseScore
from scalecov_jax.pipelines import noise
from scalecov_jax.report import noise as report
from scalecov_jax.report import page
from scalecov_jax.tables import read_table

MAPS = LAYERS[:3]
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "some_weights"
    checkpoints.save(folder, random_network())
    return folder


@pytest.fixture(scope="module")
def settings(weights):
    return {
        "title": "A <test>",
        "weights": str(weights),
        "layers": "",
        "sizes": "32,20,24,28,36",
        "per_size": 6,
        "train": 5,
        "test": 10,
        "splits": 3,
        "ranges": "24-32",
        "scaling": "common",
        "random_weights": True,
        "seed": 1,
        "batch_size": 4,
        "dtype": "float32",
    }


def run(settings, workdir, **options):
    return noise.run(settings, str(workdir), command=["noise.py", "--seed=1"], **options)


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "first"
    return workdir, run(settings, workdir)


def summary_of(workdir):
    return json.loads((workdir / "summary.json").read_text())


def median(scores, **wanted):
    found = [s.r2 for s in scores if all(getattr(s, name) == value for name, value in wanted.items())]
    return np.median(found)


def test_files_and_rows(finished):
    workdir, _ = finished
    scores = read_table(workdir / "noise.csv", NoiseScore)
    # 5 widths; block_2 is clean from 32 pixels on, at 2 of them, which is too few.
    layers = 3 + 2 * 2  # GAP, and corrected GAP with its distance
    # Settings of the trained network (one for the range) and of the random one; targets, splits, estimators.
    assert len(scores) == layers * (4 + 3) * 3 * 3 * 2
    assert {(s.smallest, s.largest) for s in scores} == {(20, 36), (24, 32)}
    assert {s.layer for s in scores if s.pooling == "corrected_gap"} == {"stem", "block_1"}
    assert len({s[:-2] for s in scores}) == len(scores)
    effects = read_table(workdir / "effects.csv", NoiseEffect)
    assert len(effects) == (3 + 2) * 2
    predictions = read_table(workdir / "predictions.csv", NoisePrediction)
    assert {p.layer for p in predictions} == {"block_1", "block_2"}
    assert sum(p.target == "width" for p in predictions) == 3 * 3 * (
        10 + 9
    )  # (layer, pooling) pairs, splits, held out
    names = {path.name for path in (workdir / "features").iterdir()}
    conditions = ("trained", "random_weights")
    assert names == {f"some_weights-{c}-{s}.npz" for c in conditions for s in (20, 24, 28, 32, 36)}
    assert len([*(workdir / "figures").glob("*.png")]) == len([*(workdir / "figures").glob("*.svg")]) == 4


def test_summary_and_page_agree_with_the_scores(finished):
    workdir, table = finished
    scores = read_table(workdir / "noise.csv", NoiseScore)
    summary = summary_of(workdir)
    assert summary["undefined"] == {"some_weights": {"block_2": 32}}
    layers = summary["layers"]["some_weights"]
    assert (layers["reference"], layers["last"]) == ("block_1", "block_2")
    wanted = {
        "condition": "trained",
        "setting": "larger",
        "target": "width",
        "estimator": "ridge",
        "smallest": 20,
    }
    for layer, pooling in (("block_1", "gap"), ("block_1", "corrected_gap"), ("block_2", "gap")):
        r2 = page.number(float(median(scores, layer=layer, pooling=pooling, **wanted)))
        assert r2 in summary["answer"]
        assert r2 in table
    assert "3 random splits of 30 images" in summary["answer"]
    assert "undefined" in table
    assert summary["provenance"]["command"] == "noise.py --seed=1"
    html = (workdir / "report.html").read_text()
    assert "A &lt;test&gt;" in html
    assert summary["answer"] in html
    assert "corrected GAP would need images of at least, in px: block_2 32." in html


def test_sections_and_comparison_are_rebuilt_from_the_folder(finished):
    workdir, _ = finished
    html = (workdir / "report.html").read_text()
    for path in (workdir / "figures").iterdir():
        path.unlink()
    (section,) = report.sections(workdir)
    assert len([*(workdir / "figures").glob("*.png")]) == 4
    for paragraph in section.text.split("\n\n"):
        assert paragraph in html.replace("&#39;", "'")
    for table in section.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert [row[0] for row in table.rows] == list(MAPS)
    rows = report.compare(workdir)
    assert [row._asdict() for row in rows] == summary_of(workdir)["compared"]
    assert {row.section for row in rows} == {"4.2"}
    assert {row.published for row in rows} == {"–"}  # what was published is InceptionV3's mixed0
    assert any("24 to 32 px" in row.quantity for row in rows)
    scores = read_table(workdir / "noise.csv", NoiseScore)
    wanted = {
        "condition": "trained",
        "setting": "published",
        "target": "width",
        "estimator": "ols",
        "smallest": 20,
    }
    r2 = page.number(float(median(scores, layer="block_1", pooling="gap", **wanted)))
    assert rows[0].ours.startswith(f"{r2} (")


def test_published_values_stand_beside_mixed0_of_inception(finished, tmp_path):
    workdir, _ = finished
    for name in ("noise.csv", "effects.csv", "summary.json"):
        text = (workdir / name).read_text().replace("block_1", "mixed0").replace("tiny", "inception_v3")
        (tmp_path / name).write_text(text)
    rows = report.compare(tmp_path)
    assert [row.published for row in rows] == ["about 1", "below 0"] * 2 + ["–"]
    assert all(row.quantity.startswith("InceptionV3 mixed0") for row in rows[:4])
    scores = read_table(tmp_path / "noise.csv", NoiseScore)
    wanted = {
        "condition": "trained",
        "setting": "published",
        "target": "width",
        "estimator": "ols",
        "smallest": 20,
    }
    gap, corrected = (
        float(median(scores, layer="mixed0", pooling=pooling, **wanted)) for pooling in features.POOLED
    )
    assert rows[0].difference == f"about {page.number(gap - 1)}"
    assert rows[1].difference == ("agrees" if corrected < 0 else "above 0")


def test_resume_computes_no_feature_twice_and_gives_the_same_bytes(finished, settings, monkeypatch):
    workdir, _ = finished
    before = (workdir / "noise.csv").read_bytes()
    (workdir / "summary.json").unlink()
    redone = workdir / "features" / "some_weights-trained-28.npz"
    redone.unlink()
    redone.with_suffix(".partial.npz").write_bytes(b"PK\3\4 half of a file")  # as a kill leaves it
    calls, real = [], features._both_poolings
    monkeypatch.setattr(features, "_both_poolings", lambda *a: calls.append(a[2].shape[1]) or real(*a))
    run(settings, workdir, resume=True)
    assert {*calls} == {28}
    assert (workdir / "noise.csv").read_bytes() == before
    assert summary_of(workdir)["sizes"] == [20, 24, 28, 32, 36]


def test_pruned_network_without_random_weights_at_one_layer(settings, tmp_path):
    checkpoints.save(tmp_path / "cut", random_network(last="block_1"))
    changed = {
        **settings,
        "weights": str(tmp_path / "cut"),
        "layers": "block_1",
        "ranges": "",
        "random_weights": False,
        "scaling": "each",
        "sizes": "24,28,32,36,40",
    }
    run(changed, tmp_path / "run")
    layers = summary_of(tmp_path / "run")["layers"]["cut"]
    assert layers["reference"] == layers["last"] == "block_1"
    scores = read_table(tmp_path / "run" / "noise.csv", NoiseScore)
    assert {s.condition for s in scores} == {"trained"}
    assert "random weights" not in (tmp_path / "run" / "figures" / "noise-cut-layers.svg").read_text()


def test_nothing_defined_is_named_and_not_nan(settings, tmp_path):
    changed = {**settings, "layers": "block_2", "sizes": "16,20,24", "ranges": "", "random_weights": False}
    table = run(changed, tmp_path / "run")
    assert "undefined          below 32 px" in table
    summary = summary_of(tmp_path / "run")
    assert summary["undefined"] == {"some_weights": {"block_2": 32}}
    assert summary["layers"]["some_weights"]["reference"] is None
    assert "corrected GAP" not in summary["answer"]
    assert "nan" not in table.lower()
    assert {s.setting for s in read_table(tmp_path / "run" / "noise.csv", NoiseScore)} == {
        "published",
        "larger",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": ""}, "config.weights is empty; expected a checkpoint folder"),
        ({"weights": "/nowhere"}, "/nowhere is no folder"),
        ({"layers": "block_11"}, "no layer 'block_11'; did you mean block_1"),
        ({"layers": "softmax"}, "softmax of tiny has no map to pool"),
        ({"sizes": "20,24"}, "config.sizes has '20,24'; expected at least 3 different widths"),
        ({"sizes": "20,24,24,28"}, "expected at least 3 different widths"),
        ({"sizes": "20,24,x,-3,28"}, "config.sizes has x, -3 in it"),
        ({"sizes": ""}, "config.sizes has ''"),
        ({"ranges": "24-25"}, "config.ranges has '24-25', which holds 0|holds 1 of config.sizes"),
        ({"ranges": "wide"}, "config.ranges has 'wide', which holds 0 of config.sizes"),
        (
            {"ranges": "20-28", "test": 20},
            "the range 20-28 gives 18 images, but config.train and config.test need 25",
        ),
        ({"test": 60}, "config.sizes gives 30 images, but config.train and config.test need 65"),
        ({"per_size": 1}, "config.per_size is 1; expected at least 2"),
        ({"train": 1}, "config.train is 1; expected at least 2"),
        ({"test": 1}, "config.test is 1"),
        ({"splits": 0, "seed": -1}, "config.splits is 0; expected at least 1; config.seed is -1"),
        ({"batch_size": 0}, "config.batch_size is 0"),
        ({"dtype": "float16"}, "config.dtype is 'float16'; expected one of float32, bfloat16"),
        ({"scaling": "none"}, "config.scaling is 'none'; expected one of each, common"),
    ],
)
def test_settings_that_cannot_be_used(settings, tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        run({**settings, **change}, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_images_below_the_networks_minimum(settings, tmp_path):
    checkpoints.save(tmp_path / "inception", random_network("inception_v3", last="conv2d_5", width=0.1))
    changed = {**settings, "weights": str(tmp_path / "inception"), "sizes": "8,40,48,56,64", "ranges": ""}
    with pytest.raises(
        ValueError, match=r"inception needs images of at least .* pixels up to conv2d_5; got 8 x 8"
    ):
        run(changed, tmp_path / "run")
    assert not (tmp_path / "run").exists()
