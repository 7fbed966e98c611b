"""The noise experiment end to end: its files, that they agree with each other, and how it fails."""

import json
import re

import numpy as np
import pandas as pd
import probe_runs
import pytest
from test_noise_golden import GOLDEN
from tiny_network import LAYERS, random_network

from scalecov_jax import checkpoints
from scalecov_jax import run as runner
from scalecov_jax.experiments import noise, noise_features
from scalecov_jax.settings import parse

MAPS = LAYERS[:3]
pytestmark = pytest.mark.usefixtures("quick_compilation")
weights = probe_runs.weights


@pytest.fixture(scope="module")
def settings(weights):
    return {
        "title": "A <test>",
        "weights": str(weights),
        "sizes": "32,20,24,28,36",
        "per_size": 6,
        "test": 10,
        "splits": 3,
        "ranges": "24-32",
        "seed": 1,
        "batch_size": 4,
    }


def run(settings, workdir, **options):
    return runner.run("noise", settings, workdir, command=["noise.py", "--seed=1"], **options)


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "first"
    return workdir, run(settings, workdir)


@pytest.fixture(scope="module")
def tables(finished):
    return runner.read(finished[0])[1]


def summary_of(workdir):
    return json.loads((workdir / "summary.json").read_text())


def value(findings, *texts):
    """Of the only finding whose quantity and place hold all texts."""
    (chosen,) = (x for x in findings if all(text in f"{x['quantity']}, {x['at']}" for text in texts))
    return chosen["value"]


def median(scores, layer, pooling, setting="larger", estimator="ridge", target="width", smallest=20):
    wanted = {"condition": "trained", "layer": layer, "pooling": pooling, "setting": setting}
    wanted |= {"estimator": estimator, "target": target, "smallest": smallest}
    return scores[(scores[[*wanted]] == pd.Series(wanted)).all(axis=1)]["r2"].median()


def test_files_and_rows(finished, tables):
    workdir, _ = finished
    scores, effects, predictions, layers = (
        tables[name] for name in ("noise", "effects", "predictions", "layers")
    )
    # 5 widths; block_2 is clean from 32 pixels on, at 2 of them, which is too few.
    readouts = 3 + 2 * 2  # GAP, and corrected GAP with its distance
    # Settings of the trained network (one for the range) and of the random one; targets, splits, estimators.
    assert len(scores) == readouts * (4 + 3) * 3 * 3 * 2
    assert {*zip(scores["smallest"], scores["largest"], strict=True)} == {(20, 36), (24, 32)}
    assert {*scores.loc[scores["pooling"] == "corrected_gap", "layer"]} == {"stem", "block_1"}
    assert not scores.duplicated([*scores][:-2]).any()
    assert scores["alpha"].isna().equals(scores["estimator"] == "ols")
    assert len(effects) == (3 + 2) * 2
    assert {*predictions["layer"]} == {"block_1", "block_2"}
    pairs, held_out = 3, 10 + 9  # (layer, pooling) pairs
    assert (predictions["target"] == "width").sum() == pairs * 3 * held_out
    assert layers["layer"].tolist() == list(MAPS)
    assert layers["needed"].tolist() == [4, 16, 32]
    assert layers["start"].fillna(0).tolist() == [20, 20, 0]
    names = {path.name for path in (workdir / "features").iterdir()}
    conditions = ("trained", "random_weights")
    assert names == {f"some_weights-{c}-{s}.npz" for c in conditions for s in (20, 24, 28, 32, 36)}
    figures = [
        f"noise-some_weights-{x}"
        for x in (
            "block_1-published-width",
            "block_1-published-inverse_width",
            "block_2-larger-width",
            "layers",
        )
    ]
    files = {f"{figure}.{kind}" for figure in figures for kind in ("png", "svg")}
    assert {path.name for path in (workdir / "figures").iterdir()} == files


def test_features_are_those_of_the_golden_tables(finished):
    with np.load(GOLDEN / "features.npz") as golden:
        for key in golden:
            condition, pooling, layer = key.split("/")
            parts = []
            for size in (20, 24, 28, 32, 36):
                with np.load(finished[0] / "features" / f"some_weights-{condition}-{size}.npz") as file:
                    parts += [file[name]] if (name := f"layer_{pooling}-{layer}") in file else []
            np.testing.assert_allclose(np.concatenate(parts), golden[key], rtol=1e-4, atol=1e-5)


def test_findings_agree_with_the_scores(finished, tables):
    workdir, text = finished
    summary, scores = summary_of(workdir), tables["noise"]
    findings, headlines = summary["findings"], [x for x in summary["findings"] if x["level"] == "headline"]
    assert len(headlines) == 3
    for layer, pooling, name in (
        ("block_1", "gap", "width from GAP"),
        ("block_1", "corrected_gap", "width from corrected GAP"),
        ("block_2", "gap", "width from GAP"),
    ):
        assert value(headlines, layer, name) == pytest.approx(median(scores, layer, pooling))
    few = {"setting": "published", "estimator": "ols"}
    for smallest in (20, 24):
        at = f"block_1, {smallest} to"
        for name, options in (
            ("width from GAP", {"pooling": "gap"}),
            ("1 / width from GAP", {"pooling": "gap", "target": "inverse_width"}),
            ("width from corrected GAP", {"pooling": "corrected_gap"}),
        ):
            expected = median(scores, "block_1", smallest=smallest, **few, **options)
            assert value(findings, at, f"R² of {name} (least squares") == pytest.approx(expected)
    effects = tables["effects"].set_index(["condition", "pooling", "layer"])["between_widths"]
    for pooling, name in noise.NAMES.items():
        share = 100 * effects["trained", pooling, "block_1"]
        assert value(findings, f"between widths, {name}") == pytest.approx(share)
    distance = median(scores, "block_1", "corrected_gap_distance", estimator="ols", target="log_width")
    assert value(findings, "log width") == pytest.approx(distance)
    assert summary["provenance"]["command"] == "noise.py --seed=1"
    for finding in findings:
        assert finding["level"] == "caution" or finding["quantity"] in text
        assert finding["level"] != "caution" or finding["sentence"] in text


def test_cautions_agree_with_the_scores(finished, tables):
    scores = tables["noise"].query("condition == 'trained' and smallest == 20 and pooling == 'gap'")
    ridge = scores.query("target == 'width' and estimator == 'ridge'")
    cautions = [x for x in summary_of(finished[0])["findings"] if x["level"] == "caution"]
    failed = ridge.query("setting == 'larger' and r2 < -1")
    assert len(failed)
    assert value(cautions, "smallest R²") == failed["r2"].min()
    assert all(layer in cautions[0]["note"] for layer in failed["layer"].unique())
    few = tables["noise"].query(
        "condition == 'trained' and pooling == 'gap' and setting == 'published' and target == 'width' and estimator == 'ridge'"
    )
    ends = few["alpha"].isin([few["alpha"].min(), few["alpha"].max()])
    assert value(cautions, "penalty") == pytest.approx(100 * ends.mean())


def test_readable_width_is_a_caution(settings, tables):
    """Corrected GAP that predicts the width must be reported."""
    scores = tables["noise"].copy()
    corrected = (scores["pooling"] == "corrected_gap") & (scores["setting"] == "larger")
    scores.loc[corrected & (scores["layer"] == "stem") & (scores["estimator"] == "ridge"), "r2"] = 0.75
    page = noise.report(parse(noise.Settings, settings), {**tables, "noise": scores})
    (caution,) = (x for x in page.findings if x.level == "caution" and "corrected GAP" in x.quantity)
    assert caution.value == 0.75
    assert "stem" in caution.at
    assert "block_1" not in caution.note


def test_two_networks_of_one_family_are_told_apart(settings, tables):
    twice = {
        name: pd.concat([table, table.assign(weights="others")], ignore_index=True)
        for name, table in tables.items()
    }
    page = noise.report(parse(noise.Settings, settings), twice)
    headlines = [x.at for x in page.findings if x.level == "headline"]
    assert headlines == [
        f"tiny ({weights}) {layer}, 20 to 36 px"
        for weights in ("some_weights", "others")
        for layer in ("block_1", "block_1", "block_2")
    ]
    assert len(page.sections) == 2


def test_page_is_rendered_from_the_folder(finished):
    workdir, _ = finished
    html = (workdir / "report.html").read_text()
    assert "A &lt;test&gt;" in html
    page = runner.page(workdir)
    assert [x.to_dict() for x in page.findings] == summary_of(workdir)["findings"]
    (section,) = page.sections
    assert str(section.html) in html
    for image in section.images:
        assert image.content == (workdir / "figures" / f"{image.name}.svg").read_bytes()
        assert image.png == (workdir / "figures" / f"{image.name}.png").read_bytes()
    for table in section.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert [row[0] for row in table.rows] == list(MAPS)
    assert re.search(r"at least, in px:\s+block_2 32\.", section.html)
    assert section.tables[0].rows[2][1] == "undefined below 32 px"
    row = dict(zip(section.tables[0].columns, section.tables[0].rows[2], strict=True))
    effects = runner.read(workdir)[1]["effects"].set_index(["condition", "pooling", "layer"])[
        "between_widths"
    ]
    assert row["GAP, between widths"] == f"{100 * effects['trained', 'gap', 'block_2']:.0f} %"
    assert row["corrected GAP, between widths"] == "–"
    medians = runner.read(workdir)[1]["noise"].query("smallest == 20 and condition == 'trained'")
    assert section.tables[0].rows[1][3] == f"{median(medians, 'block_1', 'gap'):.2f}".replace("-", "−")


def test_published_values_stand_beside_mixed0_of_inception(finished, settings, tables):
    renamed = {
        name: table.replace({"block_1": "mixed0", "tiny": "inception_v3"}) for name, table in tables.items()
    }
    page = noise.report(parse(noise.Settings, settings), renamed)
    published = [finding for finding in page.findings if finding.published is not None]
    assert [finding.reported for finding in published] == ["about 1", "below 0"] * 2
    assert all(finding.at.startswith("InceptionV3 mixed0") for finding in published)
    assert {finding.published for finding in runner.page(finished[0]).findings} == {None}


def test_resume_computes_no_feature_twice_and_gives_the_same_bytes(finished, settings, monkeypatch):
    workdir, _ = finished
    before = {path.name: path.read_bytes() for path in workdir.glob("*.csv")}
    (workdir / "summary.json").unlink()
    redone = workdir / "features" / "some_weights-trained-28.npz"
    redone.unlink()
    redone.with_suffix(".partial.npz").write_bytes(b"PK\3\4 half of a file")  # as a kill leaves it
    calls, real = [], noise_features._both_poolings
    monkeypatch.setattr(noise_features, "_both_poolings", lambda *a: calls.append(a[2].shape[1]) or real(*a))
    run(settings, workdir, resume=True)
    assert {*calls} == {28}
    assert {path.name: path.read_bytes() for path in workdir.glob("*.csv")} == before
    assert summary_of(workdir)["settings"]["sizes"] == [32, 20, 24, 28, 36]


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
    tables = runner.read(tmp_path / "run")[1]
    assert {*tables["noise"]["condition"]} == {"trained"}
    assert tables["layers"]["layer"].tolist() == ["block_1"]
    assert {"block_1, 24 to 40 px"} == {
        x.at.removeprefix("tiny ") for x in runner.page(tmp_path / "run").findings if x.level == "headline"
    }
    (curves,) = (x for x in runner.page(tmp_path / "run").sections[0].images if x.name.endswith("layers"))
    assert "random weights" not in curves.alt


def test_nothing_defined_is_said_in_words(settings, tmp_path):
    changed = {**settings, "layers": "block_2", "sizes": "16,20,24", "ranges": "", "random_weights": False}
    text = run(changed, tmp_path / "run")
    summary = summary_of(tmp_path / "run")
    assert "corrected" not in summary["answer"]
    assert "nan" not in (text + json.dumps(summary["findings"])).lower()
    tables = runner.read(tmp_path / "run")[1]
    assert tables["layers"][["needed", "start"]].fillna(0).to_numpy().tolist() == [[32, 0]]
    assert {*tables["noise"]["setting"]} == {"published", "larger"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": ""}, "config.weights is ''; expected at least 1 value"),
        ({"weights": "/nowhere"}, "/nowhere is no folder"),
        ({"layers": "block_11"}, "no layer 'block_11'; did you mean block_1"),
        ({"layers": "softmax"}, "softmax of tiny has no map to pool"),
        ({"sizes": "20,24"}, "config.sizes is '20,24'; expected at least 3 values"),
        ({"sizes": "20,24,24,28"}, "config.sizes is '20,24,24,28'; expected different values"),
        ({"sizes": "20,24,x,28"}, "config.sizes is 'x'; expected an integer"),
        ({"sizes": "20,24,-3,28"}, "config.sizes is '20,24,-3,28'; expected 1 to 99999"),
        ({"ranges": "24-25"}, "config.ranges has 24-25, which holds 1 of the sizes"),
        ({"ranges": "wide"}, "config.ranges has 'wide'; expected two integers such as 150-300"),
        (
            {"ranges": "20-28", "test": 20},
            "ranges has 20-28, which gives 18 images, but train and test need 25",
        ),
        ({"test": 60}, "config.sizes gives 30 images, but train and test need 65"),
        ({"splits": 0, "seed": -1}, "config.splits is 0; expected at least 1; config.seed is -1"),
        ({"dtype": "float16"}, "config.dtype is 'float16'; expected one of float32, bfloat16"),
        ({"scaling": "none"}, "config.scaling is 'none'; expected one of each, common"),
        ({"split": 3}, "config.split is no setting; did you mean splits?"),
    ],
)
def test_settings_that_cannot_be_used(settings, tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        run({**settings, **change}, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_images_below_the_networks_minimum_and_missing_weights_at_once(settings, tmp_path):
    checkpoints.save(tmp_path / "inception", random_network("inception_v3", last="conv2d_5", width=0.1))
    changed = {
        **settings,
        "weights": f"{tmp_path / 'inception'},/nowhere",
        "sizes": "8,40,48,56,64",
        "ranges": "",
    }
    with pytest.raises(
        ValueError, match=r"inception needs images of at least .* pixels up to conv2d_5; got 8 x 8"
    ) as error:
        run(changed, tmp_path / "run")
    assert "/nowhere is no folder" in str(error.value)
    assert not (tmp_path / "run").exists()
