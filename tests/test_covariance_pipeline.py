"""Covariance as an operation end to end: its files, that they can be trusted, and how it fails."""

import json
import re

import numpy as np
import pytest
from golden_tables import assert_golden
from tiny_network import LAYERS, random_network

from scalecov_jax import checkpoints
from scalecov_jax.paper.compared import Compared
from scalecov_jax.paper.covariance_rows import Angle, Change, Linearity, Reading, Transfer
from scalecov_jax.pipelines import covariance
from scalecov_jax.report import covariance as report
from scalecov_jax.report import page
from scalecov_jax.tables import read_table

CLASSES = ("striped_disc", "ringed_star", "checkered_triangle")
TRUNK = LAYERS[:3]
WIDTHS = {"stem": 8, "block_1": 16, "block_2": 32}
pytestmark = pytest.mark.usefixtures("quick_compilation", "quick_scenes")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "some_weights"
    checkpoints.save(folder, random_network())
    return folder


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
        "size": 0,
        "layers": ",".join(TRUNK),
        "estimators": "ridge,ols",
        "splits": 3,
        "seed": 5,
        "batch_size": 16,
        "dtype": "float32",
    }


def run(settings, workdir, **options):
    return covariance.run(settings, str(workdir), command=["covariance.py", "--seed=5"], **options)


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    """A finished run and what it told."""
    workdir = tmp_path_factory.mktemp("runs") / "first"
    return workdir, run(settings, workdir)


def test_all_files_are_there(finished):
    workdir, told = finished
    names = {str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file()}
    assert names == {
        *(f"{name}.csv" for name in ("change", "linearity", "angles", "transfer", "readings")),
        *(
            f"figures/some_weights-{name}.{ending}"
            for name in ("shares", "responses", "steps", "linearity", "angles", "transfer")
            for ending in ("png", "svg")
        ),
        "figures/growing.jpg",
        "features/some_weights-trained.npz",
        "features/some_weights-random_weights.npz",
        "summary.json",
        "report.html",
        "scalecov_run.json",
    }
    assert str(workdir / "report.html") in told
    text = (workdir / "report.html").read_text()
    assert "A test &lt;of&gt; covariance" in text
    assert "<of>" not in text
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_tables_have_one_row_for_everything(finished):
    workdir, _ = finished
    change = read_table(workdir / "change.csv", Change)
    groups = len(TRUNK) * 3 * 2  # layers, conditions, estimators
    assert len(change) == groups * len(CLASSES) * 3 * 2
    assert {row.width for row in change if row.layer == "block_2"} == {32}
    for row in change:
        assert 0 <= row.rcv_low <= row.rcv_high <= row.best + 1e-9
        assert 0 < row.rcv <= row.best + 1e-9
        assert 0 < row.pattern <= row.best + 1e-9
        assert row.chance == 1 / WIDTHS[row.layer]
        assert row.best_step >= max(row.published_step, row.smallest_step, row.pattern_step) - 1e-9
        assert row.best_step <= row.own_step + 1e-9
        assert row.best_step <= row.best + 1e-9
    linearity = read_table(workdir / "linearity.csv", Linearity)
    assert len(linearity) == groups * len(CLASSES) * 3
    assert {row.measure for row in linearity} == {"r", "sqrt_r", "log_r"}
    compared = groups * 2 // 3  # not with the shuffled measure
    assert len(read_table(workdir / "transfer.csv", Transfer)) == compared * len(CLASSES) ** 2
    angles = read_table(workdir / "angles.csv", Angle)
    per_layer = 3 * (len(CLASSES) + 3)  # metrics; classes and pairs of them
    assert len(angles) == compared * per_layer + 4 * 3 * len(CLASSES) * 2  # no two layers are equally wide
    assert all(-1 <= row.value <= 1 for row in angles)
    readings = read_table(workdir / "readings.csv", Reading)
    assert len(readings) == 2 * len(CLASSES) * 3 * 4 * 5


def test_tables_are_those_kept(finished):
    assert_golden(finished[0], "covariance")


def test_scale_is_read_and_a_shuffled_measure_is_not(finished):
    rows = read_table(finished[0] / "linearity.csv", Linearity)

    def within(condition, layer):
        wanted = (condition, "ridge", layer, "r")
        return np.mean(
            [r.r2_within for r in rows if (r.condition, r.estimator, r.layer, r.measure) == wanted]
        )

    trained, shuffled = ([within(one, layer) for layer in TRUNK] for one in ("trained", "shuffled_measure"))
    print(trained, shuffled)
    assert min(trained) > max(shuffled) + 0.15


def test_transfer_on_the_diagonal_is_the_held_out_r2(finished):
    workdir, _ = finished
    transfer = read_table(workdir / "transfer.csv", Transfer)
    linearity = read_table(workdir / "linearity.csv", Linearity)
    own = {row[:6]: row.r2_median for row in linearity if row.measure == "r"}
    for row in transfer:
        if row.image_class == row.test_class:
            np.testing.assert_allclose(row.r2, own[(*row[:5], row.layer)], rtol=1e-9)
        assert row.r2_low <= row.r2 <= row.r2_high
        assert row.r2_own_intercept <= 1


def test_summary_names_the_peak(finished):
    workdir, told = finished
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["networks"]["some_weights"]["widths"] == WIDTHS
    assert summary["networks"]["some_weights"]["size"] == 32
    assert summary["provenance"]["seed"] == "5"
    rows = read_table(workdir / "linearity.csv", Linearity)
    for estimator in ("ridge", "ols"):
        best = summary["networks"]["some_weights"]["peak"][estimator]
        means = {
            layer: np.mean(
                [
                    row.r2
                    for row in rows
                    if row[2:4] == ("trained", estimator) and (row.layer, row.measure) == (layer, "r")
                ]
            )
            for layer in TRUNK
        }
        assert best["layer"] == max(means, key=means.__getitem__)
        np.testing.assert_allclose(best["r2"], means[best["layer"]])
        assert best["layer"] in told


def test_report_is_rebuilt_from_the_folder_alone(finished):
    workdir, _ = finished
    sections = report.sections(workdir)
    assert [one.heading for one in sections] == ["tiny, ridge", "tiny, least squares", "The objects"]
    assert [len(one.images) for one in sections] == [6, 0, 1]
    assert all(isinstance(one, page.Section) for one in sections)
    html = (workdir / "report.html").read_text()
    for section in sections:
        assert section.heading in html
        for table in section.tables:
            assert all(len(row) == len(table.columns) for row in table.rows)
    assert [row[0] for row in sections[0].tables[0].rows] == list(TRUNK)


def test_published_beside_ours(finished):
    workdir, _ = finished
    rows = report.compare(workdir)
    assert len(rows) == 2 * 3
    assert all(isinstance(row, Compared) and all(row) for row in rows)
    summary = json.loads((workdir / "summary.json").read_text())
    peak = summary["networks"]["some_weights"]["peak"]["ridge"]["layer"]
    factors = [
        row.factor
        for row in read_table(workdir / "linearity.csv", Linearity)
        if row[2:4] == ("trained", "ridge") and (row.layer, row.measure) == (peak, "r")
    ]
    assert rows[0].published == "1"
    np.testing.assert_allclose(float(rows[0].ours), np.mean(factors), rtol=0.05)


def test_resumed_run_computes_no_features_and_writes_the_same(settings, finished, monkeypatch):
    workdir, _ = finished
    before = {path: path.read_bytes() for path in workdir.rglob("*.csv")}

    def refuse(*_, **__):
        raise AssertionError("features were computed again")

    monkeypatch.setattr(covariance, "compute_features", refuse)
    run(settings, workdir, resume=True)
    assert {path: path.read_bytes() for path in workdir.rglob("*.csv")} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": "striped_disc,ringed_sta"}, "config.classes: .*'ringed_sta'; did you mean ringed_star"),
        ({"classes": "striped_disc"}, "'striped_disc'; expected at least two different classes"),
        ({"classes": "striped_disc,striped_disc"}, "expected at least two different classes"),
        ({"ratios": 1}, "config.ratios is 1; expected at least 2"),
        ({"smallest": 0.0}, "config.smallest is 0.0 and config.largest 0.8; .*0 < smallest < largest <= 1"),
        ({"largest": 1.5}, "0 < smallest < largest <= 1"),
        ({"smallest": 0.9}, "0 < smallest < largest <= 1"),
        ({"layers": "stem,block_3"}, "no layer 'block_3'; did you mean block_"),
        ({"estimators": "ridge,lasso"}, "'ridge,lasso'; expected some of ols, ridge"),
        ({"estimators": ""}, "expected some of ols, ridge"),
        ({"weights": ""}, "config.weights is empty; expected a checkpoint folder"),
        ({"weights": "/nowhere/weights"}, "/nowhere/weights is no folder"),
        ({"scenes": 19}, "config.scenes is 19; expected at least 20"),
        ({"objects": 1}, "config.objects is 1; expected at least 2"),
        ({"splits": 0}, "config.splits is 0"),
        ({"batch_size": 0}, "config.batch_size is 0"),
        ({"seed": -1}, "config.seed is -1"),
        ({"size": -1}, "config.size is -1"),
        ({"dtype": "float16"}, "'float16'; expected one of float32, bfloat16"),
        ({"ratios": 1, "classes": "x", "dtype": "y"}, "config.ratios.*config.dtype.*config.classes"),
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
