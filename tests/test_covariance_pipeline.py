"""Covariance as an operation end to end: its files, that they can be trusted, and how it fails."""

import json
import re

import numpy as np
import probe_runs
import pytest
from golden_tables import assert_golden
from tiny_network import LAYERS, random_network

from scalecov_jax import checkpoints
from scalecov_jax import run as runner
from scalecov_jax.experiments import covariance
from scalecov_jax.settings import parse

CLASSES = ("striped_disc", "ringed_star", "checkered_triangle")
TRUNK = LAYERS[:3]
WIDTHS = {"stem": 8, "block_1": 16, "block_2": 32}
TABLES = ("change", "linearity", "angles", "transfer", "readings")
pytestmark = pytest.mark.usefixtures("quick_compilation", "quick_scenes")
weights = probe_runs.weights


@pytest.fixture(scope="module")
def settings(weights):
    return {
        "title": "A test <of> covariance",
        "weights": str(weights),
        "classes": ", ".join(CLASSES),
        "scenes": 60,
        "objects": 4,
        "ratios": 5,
        "smallest": 0.05,
        "largest": 0.8,
        "layers": ",".join(TRUNK),
        "splits": 3,
        "seed": 5,
        "batch_size": 16,
    }


def run(settings, workdir, **options):
    return runner.run("covariance", settings, workdir, command=["covariance.py", "--seed=5"], **options)


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    """A finished run and what the terminal shows."""
    workdir = tmp_path_factory.mktemp("runs") / "first"
    return workdir, run(settings, workdir)


@pytest.fixture(scope="module")
def tables(finished):
    return runner.read(finished[0])[1]


def summary_of(workdir):
    return json.loads((workdir / "summary.json").read_text())


def at_peak(tables, table, column, estimator="ridge", **wanted):
    """Mean, least and greatest of a column over classes at the layer of the largest mean R2 of r."""
    rows = tables["linearity"].query(
        f"condition == 'trained' and measure == 'r' and estimator == '{estimator}'"
    )
    peak = rows.groupby("layer")["r2"].mean().idxmax()
    rows = tables[table]
    for name, value in {"condition": "trained", "estimator": estimator, "layer": peak, **wanted}.items():
        rows = rows[rows[name] == value]
    return peak, rows[column].mean(), rows[column].min(), rows[column].max()


def test_all_files_are_there(finished):
    workdir, text = finished
    names = {str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file()}
    figures = ("shares", "responses", "steps", "linearity", "angles", "transfer")
    assert names == {
        *(f"{name}.csv" for name in TABLES),
        *(f"figures/some_weights-{name}.{ending}" for name in figures for ending in ("png", "svg")),
        "figures/growing.jpg",
        "features/some_weights-trained.npz",
        "features/some_weights-random_weights.npz",
        "summary.json",
        "report.html",
        "scalecov_run.json",
    }
    assert str(workdir / "report.html") in text
    html = (workdir / "report.html").read_text()
    assert "A test &lt;of&gt; covariance" in html
    assert "<of>" not in html
    assert not re.search(r"\bnan\b", html + text, re.IGNORECASE)


def test_tables_have_one_row_for_everything(tables):
    change, linearity, angles = (tables[name] for name in ("change", "linearity", "angles"))
    groups = len(TRUNK) * 3 * 2  # layers, conditions, estimators
    assert len(change) == groups * len(CLASSES) * 3 * 2
    assert change.groupby("layer")["width"].first().to_dict() == WIDTHS
    bound = change["best"] + 1e-9
    assert ((change["rcv_low"] >= 0) & (change["rcv_low"] <= change["rcv_high"])).all()
    assert (change["rcv_high"] <= bound).all()
    assert ((change["rcv"] > 0) & (change["rcv"] <= bound)).all()
    assert ((change["pattern"] > 0) & (change["pattern"] <= bound)).all()
    assert change["chance"].equals(1 / change["width"])
    others = change[["published_step", "smallest_step", "pattern_step"]].max(axis=1)
    assert (change["best_step"] >= others - 1e-9).all()
    assert (change["best_step"] <= change["own_step"] + 1e-9).all()
    assert (change["best_step"] <= bound).all()
    assert len(linearity) == groups * len(CLASSES) * 3
    assert {*linearity["measure"]} == {"r", "sqrt_r", "log_r"}
    compared = groups * 2 // 3  # not with the shuffled measure
    assert len(tables["transfer"]) == compared * len(CLASSES) ** 2
    per_layer = 3 * (len(CLASSES) + 3)  # metrics; classes and pairs of them
    # No two layers are equally wide.
    assert len(angles) == compared * per_layer + 4 * 3 * len(CLASSES) * 2
    assert angles["value"].abs().max() <= 1
    assert len(tables["readings"]) == 2 * len(CLASSES) * 3 * 4 * 5


def test_tables_are_those_kept(finished):
    assert_golden(finished[0], "covariance")


def test_scale_is_read_and_a_shuffled_measure_is_not(tables):
    rows = tables["linearity"].query("estimator == 'ridge' and measure == 'r'")
    within = rows.groupby(["condition", "layer"])["r2_within"].mean()
    assert within["trained"].min() > within["shuffled_measure"].max() + 0.15


def test_transfer_on_the_diagonal_is_the_held_out_r2(tables):
    key = ["condition", "estimator", "image_class", "layer"]
    transfer = tables["transfer"]
    own = transfer[transfer["image_class"] == transfer["test_class"]]
    both = own.merge(tables["linearity"].query("measure == 'r'"), on=key, validate="one_to_one")
    assert len(both) == len(own)
    np.testing.assert_allclose(both["r2_x"], both["r2_median"], rtol=1e-9)
    assert transfer["r2"].between(transfer["r2_low"], transfer["r2_high"]).all()
    assert (transfer["r2_own_intercept"] <= 1).all()


def test_findings_are_those_of_the_tables(finished, tables):
    workdir, text = finished
    findings = {(x["quantity"], x["at"]): x for x in summary_of(workdir)["findings"]}
    standardised = {"measure": "r", "metric": "standardised"}
    for estimator, how in (("ridge", "ridge"), ("ols", "least squares")):
        for quantity, factor, published, table, column, wanted in (
            ("change of the reading for a change of r within an object", 1, 1, "linearity", "slope", {"measure": "r"}),
            ("change of the reading for the step φ + σ v, in σ", 1, 1, "linearity", "factor", {"measure": "r"}),
            ("share of the change of features along the RCV", 100, 100, "change", "rcv", standardised),
            ("share explained by steps: published: σ v", 100, None, "change", "published_step", standardised),
            ("R² of the change of log r within objects", 1, None, "linearity", "r2_within", {"measure": "log_r"}),
            ("cosine of patterns, two classes", 1, None, "angles", "value", {"kind": "classes", "metric": "pattern"}),
        ):  # fmt: skip
            peak, *expected = at_peak(tables, table, column, estimator, **wanted)
            finding = findings[quantity, f"tiny {peak}, {how}"]
            shown = [finding[name] for name in ("value", "low", "high")]
            np.testing.assert_allclose(shown, factor * np.array(expected))
            assert finding["published"] == published
            assert (finding["level"] == "headline") == (estimator == "ridge" and published is not None)
            assert finding["quantity"] in text
    page = runner.page(workdir)
    published = [finding.published for finding in page.findings if finding.published is not None]
    assert published == [1.0, 1.0, 100.0] * 2


def test_cautions_name_the_layers_that_cannot_be_read(settings, tables):
    linearity = tables["linearity"].copy()
    trained = (linearity["condition"] == "trained") & (linearity["measure"] == "r")
    of = trained & (linearity["estimator"] == "ridge") & (linearity["image_class"] == CLASSES[1])
    linearity.loc[of, ["r2", "r2_median"]] = 0.5
    linearity.loc[of & (linearity["layer"] == "stem"), ["r2", "r2_median"]] = -0.5
    linearity.loc[of & (linearity["layer"] == "block_2"), "r2"] = -0.75
    page = covariance.report(parse(covariance.Settings, settings), {**tables, "linearity": linearity})
    cautions = {x.value: x for x in page.findings if x.level == "caution" and x.at.endswith("ridge")}
    assert {value: x.at for value, x in cautions.items()} == {
        -0.5: "tiny stem, ridge",
        -0.75: "tiny block_2, ridge",
    }
    assert "at stem;" in cautions[-0.5].note
    assert "at block_2:" in cautions[-0.75].note
    (near,) = (x for x in page.findings if x.quantity.startswith("features for each scene"))
    assert near.value == pytest.approx(16 / 30)  # of the layers between a half and twice the scenes of a half
    assert "block_1, block_2" in near.note


def test_page_is_rendered_from_the_folder_alone(finished):
    workdir, _ = finished
    page = runner.page(workdir)
    assert [x.to_dict() for x in page.findings] == summary_of(workdir)["findings"]
    headings = ["Covariance: tiny, ridge", "Covariance: tiny, least squares", "The objects"]
    assert [section.heading for section in page.sections] == headings
    assert [len(section.images) for section in page.sections] == [6, 0, 1]
    assert page.sections[2].images[0].content == (workdir / "figures" / "growing.jpg").read_bytes()
    html = (workdir / "report.html").read_text()
    for section in page.sections:
        assert section.heading in html
        for table in section.tables:
            assert all(len(row) == len(table.columns) for row in table.rows)
        for image in section.images[:6] if section.heading.endswith("ridge") else ():
            assert image.content == (workdir / "figures" / f"{image.name}.svg").read_bytes()
            assert len(image.alt) < 3000
    layers, neighbours = page.sections[0].tables
    assert [row[0] for row in layers.rows] == list(TRUNK)
    assert [row[0] for row in neighbours.rows] == ["stem, block_1", "block_1, block_2"]
    assert [row[1] for row in neighbours.rows] == ["–", "–"]


def test_resumed_run_computes_no_feature_twice_and_writes_the_same(settings, finished, monkeypatch):
    workdir, _ = finished
    before = {path: path.read_bytes() for path in workdir.rglob("*.csv")}
    (workdir / "summary.json").unlink()
    killed = workdir / "features" / "some_weights-random_weights.npz"
    killed.unlink()
    killed.with_suffix(".partial.npz").write_bytes(b"PK\3\4 half of a file")  # as a kill leaves it
    calls, real = [], covariance.compute_features
    monkeypatch.setattr(
        covariance, "compute_features", lambda *a, **k: calls.append(k["progress"]) or real(*a, **k)
    )
    run(settings, workdir, resume=True)
    assert calls == ["some_weights-random_weights"]
    assert {path: path.read_bytes() for path in workdir.rglob("*.csv")} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": "striped_disc,ringed_sta"}, "config.classes: .*'ringed_sta'; did you mean ringed_star"),
        ({"classes": "striped_disc"}, "'striped_disc'; expected at least 2 values"),
        ({"classes": "striped_disc,striped_disc"}, "expected different values"),
        ({"ratios": 1}, "config.ratios is 1; expected at least 2"),
        ({"smallest": 0.0}, "config.smallest is 0.0 and largest 0.8; .*0 < smallest < largest <= 1"),
        ({"largest": 1.5}, "0 < smallest < largest <= 1"),
        ({"smallest": 0.9}, "0 < smallest < largest <= 1"),
        ({"layers": "stem,block_3"}, "no layer 'block_3'; did you mean block_"),
        ({"estimators": "ridge,lasso"}, "config.estimators is 'lasso'; expected one of ols, ridge"),
        ({"estimators": ""}, "config.estimators is ''; expected at least 1 value"),
        ({"weights": ""}, "config.weights is ''; expected at least 1 value"),
        ({"weights": "/nowhere/weights"}, "/nowhere/weights is no folder"),
        ({"scenes": 19}, "config.scenes is 19; expected at least 20"),
        ({"objects": 1}, "config.objects is 1; expected at least 2"),
        ({"splits": 0}, "config.splits is 0"),
        ({"batch_size": 0}, "config.batch_size is 0"),
        ({"seed": -1}, "config.seed is -1"),
        ({"size": -1}, "config.size is -1"),
        ({"dtype": "float16"}, "'float16'; expected one of float32, bfloat16"),
        (
            {"ratios": 1, "classes": "x,y", "smallest": 2},
            "config.ratios.*config.smallest.*config.classes.*'y'",
        ),
    ],
)
def test_settings_that_cannot_be_used(settings, tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        run({**settings, **change}, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_size_below_the_networks_minimum(settings, tmp_path):
    checkpoints.save(tmp_path / "inception", random_network("inception_v3", width=1 / 16, last="mixed0"))
    changed = {**settings, "weights": str(tmp_path / "inception"), "layers": "mixed0", "size": 10}
    with pytest.raises(
        ValueError, match="inception needs images of at least 27 x 27 pixels up to mixed0; got 10 x 10"
    ):
        run(changed, tmp_path / "run")
    assert not (tmp_path / "run").exists()
