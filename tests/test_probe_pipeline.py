"""The main job end to end: its files, that they can be trusted, and how it fails."""

import json

import numpy as np
import probe_runs
import pytest
from golden_tables import assert_golden
from probe_runs import CLASSES, SPLITS, TRUNK, findings_of, run, summary_of, table
from tiny_network import LAYERS, random_network

from scalecov_jax import checkpoints
from scalecov_jax import run as runner
from scalecov_jax.cutting import cut_checkpoint
from scalecov_jax.experiments import probe, probe_memory
from scalecov_jax.extraction import compute_features
from scalecov_jax.imaging.sources import open_images
from scalecov_jax.selection import select_layers
from scalecov_jax.settings import parse

pytestmark = pytest.mark.usefixtures("quick_compilation", "quick_scenes")
weights, settings = probe_runs.weights, probe_runs.settings


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    """A finished run and its text."""
    workdir = tmp_path_factory.mktemp("runs") / "first"
    return workdir, run(settings, workdir)


# What is written


def test_all_files_are_there(finished):
    workdir, text = finished
    names = {str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file()}
    assert {"scores.csv", "summary.json", "report.html", "scalecov_run.json", "rcvs.npz"} <= names
    assert {
        f"features/some_weights-{image_class}-{condition}.npz"
        for image_class in CLASSES
        for condition in ("trained", "random_weights")
    } == {name for name in names if name.startswith("features/")}
    for ending in ("png", "svg"):
        assert f"figures/some_weights-all-ridge.{ending}" in names
        assert f"figures/some_weights-all-ols.{ending}" in names
    assert "The scenes" in (workdir / "report.html").read_text()
    assert str(workdir / "report.html") in text
    tables = {"scores", "layers", "contrasts", "choices", "images"}
    tables |= {"rcvs", "classes", "widths", "cuts", "skipped"}
    found = {name for name in names if name.endswith(".csv")} - {"features/measures.csv"}
    assert found == {f"{name}.csv" for name in tables}
    page = runner.page(workdir)  # of what is on disk
    assert [x.to_dict() for x in page.findings] == summary_of(workdir)["findings"]
    assert page.lead.name == "some_weights-all-ridge"
    for image in (image for image in page.images if image.name):
        assert image.content == (workdir / "figures" / f"{image.name}.svg").read_bytes()
    for grid in (grid for section in page.sections for grid in section.tables):
        assert [row[0] for row in grid.rows] == list(TRUNK)
        assert all(len(row) == len(grid.columns) for row in grid.rows)
    assert "nan" not in (text + json.dumps(summary_of(workdir)["findings"])).lower()


def test_scores_have_one_row_for_everything(finished):
    workdir, _ = finished
    scores = table(workdir, "scores")
    assert " ".join(scores) == (
        "architecture weights condition concept image_class layer split estimator alpha r2"
    )
    assert len(scores) == len(CLASSES) * len(TRUNK) * SPLITS * 3 * 2
    assert not scores.duplicated([*scores][:-2]).any()
    for column, values in {
        "architecture": {"tiny"},
        "weights": {"some_weights"},
        "concept": {"scale"},
        "condition": {"trained", "random_weights", "shuffled_measure"},
        "layer": {*TRUNK},
    }.items():
        assert {*scores[column]} == values
    assert scores["alpha"].isna().equals(scores["estimator"] == "ols")
    assert {*scores["alpha"].dropna()} <= {*np.geomspace(0.1, 1e4, 4)}
    assert scores["r2"].max() <= 1


def test_summary_agrees_with_the_scores(finished):
    workdir, text = finished
    summary = summary_of(workdir)
    assert set(summary["selected"]) == {"ols", "ridge"}
    for one in select_layers(table(workdir, "scores"), TRUNK):
        written = summary["selected"][one.estimator]
        assert written["layer"] == one.layer
        assert (written["r2_mean"], written["r2_sd"]) == pytest.approx((one.r2_mean, one.r2_sd), rel=1e-12)
        assert one.layer in text
    (headline,) = findings_of(workdir, level="headline")
    ridge = summary["selected"]["ridge"]
    assert (headline["at"], headline["value"]) == (f"tiny {ridge['layer']}", pytest.approx(ridge["r2_mean"]))
    (least_squares,) = findings_of(workdir, "least squares at the best layer")
    ols = summary["selected"]["ols"]
    assert least_squares["at"] == f"tiny {ols['layer']}"
    assert least_squares["value"] == pytest.approx(ols["r2_mean"])
    assert (summary["architecture"], summary["weights"]) == ("tiny", "some_weights")
    assert summary["images"] == dict.fromkeys(CLASSES, 80)
    assert summary["n_train"] == dict.fromkeys(CLASSES, 56)
    widths = table(workdir, "widths").set_index("layer")
    assert widths["width"].to_dict() == {"stem": 8, "block_1": 16, "block_2": 32}
    assert summary["skipped"] == {}
    # 56 images to train: of the widths 8, 16 and 32 only the last is more than half of that.
    (caution,) = findings_of(workdir, "as many independent features", level="caution")
    assert (caution["at"], caution["value"]) == ("tiny", 1)
    assert "tiny: block_2." in caution["note"]


def test_provenance_tells_how_to_repeat_the_run(finished, settings):
    provenance = summary_of(finished[0])["provenance"]
    assert provenance["command"] == "probe.py --seed=5"
    assert provenance["seed"] == "5"
    written = json.loads(provenance["config"])
    assert parse(probe.Settings, written) == parse(probe.Settings, settings)
    for name in ("date", "wall time", "device", "versions", "weights"):
        assert provenance[name]
    assert "some_weights: tests" in provenance["weights"]


def test_pruned_network_gives_the_captured_feature(finished, weights):
    workdir, _ = finished
    summary = summary_of(workdir)
    layer = summary["selected"]["ridge"]["layer"]
    pruned = checkpoints.load(workdir / "pruned" / "some_weights")
    assert pruned.module.last == pruned.card.notes["pruned_after"] == layer
    source = open_images("scenes", CLASSES[0], count=80, seed=5, size=32)
    output = compute_features(pruned, source, (layer,), batch_size=16)
    with np.load(workdir / "features" / f"some_weights-{CLASSES[0]}-trained.npz") as cached:
        np.testing.assert_allclose(output.values[layer], cached[f"layer_{layer}"], rtol=1e-4, atol=1e-5)
    # Counted by hand: convolutions without bias, normalisations with bias, mean and variance, no head.
    parameters = np.cumsum([3 * 9 * 8 + 3 * 8, 8 * 9 * 16 + 3 * 16, 16 * 9 * 32 + 3 * 32])
    assert summary["pruning"]["layer"] == layer
    assert summary["pruning"]["parameters_before"] == parameters[2]
    assert summary["pruning"]["parameters_after"] == parameters[TRUNK.index(layer)]
    assert summary["pruning"]["max_difference"] < 1e-4


# Repeating and resuming


def test_resume_computes_no_feature_twice(finished, settings):
    workdir, _ = finished
    expected = (workdir / "scores.csv").read_bytes()
    (workdir / "scores.csv").unlink()
    untouched = sorted((workdir / "features").iterdir())
    times = [path.stat().st_mtime_ns for path in untouched]
    redone = workdir / "features" / f"some_weights-{CLASSES[0]}-random_weights.npz"
    redone.unlink()
    redone.with_suffix(".partial.npz").write_bytes(b"PK\3\4 half of a file")  # as a kill leaves it
    run(settings, workdir, resume=True)
    assert (workdir / "scores.csv").read_bytes() == expected
    assert sorted((workdir / "features").iterdir()) == untouched
    for path, before in zip(untouched, times, strict=True):
        assert (path.stat().st_mtime_ns == before) == (path != redone)


def test_existing_workdir_is_refused_and_other_settings_are_named(finished, settings):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    with pytest.raises(ValueError, match="first exists; pass --resume"):
        run(settings, workdir)
    with pytest.raises(ValueError, match=r"cannot be resumed \(seed: 5, now 6; splits: 3, now 2\)"):
        run({**settings, "seed": 6, "splits": 2}, workdir, resume=True)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_dry_run_writes_nothing(settings, tmp_path):
    text = probe.estimate(parse(probe.Settings, settings))
    assert "Memory planned, the network aside" in text
    assert not (tmp_path / "dry").exists()
    # 160 images, 8 + 16 + 32 features, 4 bytes, two passes
    assert f"features {2 * 4 * 160 * 56 / 1e6:.1f} MB" in text
    assert "160 images of striped_disc, ringed_star" in text
    assert "images/s" in text
    assert " s at " in text


# Several networks, other layers and precision


def test_several_networks_and_half_precision(settings, weights, tmp_path):
    checkpoints.save(tmp_path / "other", random_network(seed=1, last="block_1"))
    changed = {**settings, "architecture": "", "weights": f"{weights},{tmp_path / 'other'}"}
    changed |= {"layers": "", "image_class": CLASSES[0], "dtype": "bfloat16"}
    run(changed, tmp_path / "both")
    summary = summary_of(tmp_path / "both")
    assert set(summary["networks"]) == {"some_weights", "other"}
    layers = table(tmp_path / "both", "widths").groupby("weights")["layer"].apply(list)
    assert layers.to_dict() == {"some_weights": [*LAYERS], "other": ["stem", "block_1"]}
    assert len(table(tmp_path / "both", "scores")) == (len(LAYERS) + 2) * SPLITS * 3 * 2
    (apart,), choices = (
        table(tmp_path / "both", name).to_dict("records") for name in ("networks", "choices")
    )
    assert [apart["r2"], apart["r2_against"]] == pytest.approx([row["r2"] for row in choices])
    assert apart["difference"] == pytest.approx(apart["r2"] - apart["r2_against"])
    assert apart["low"] < apart["difference"] < apart["high"]
    assert_golden(
        tmp_path / "both", "networks/probe", tables=["[!nc]*", "c[!a]*"]
    )  # networks.csv and cases.csv
    headlines = findings_of(tmp_path / "both", level="headline")
    names = (f"tiny ({name}) " for name in ("some_weights", "other"))
    assert all(x["at"].startswith(name) for x, name in zip(headlines, names, strict=True))
    for name, layers in (("some_weights", LAYERS), ("other", LAYERS[:2])):
        layer = summary["networks"][name]["selected"]["ridge"]["layer"]
        assert layer in layers
        assert checkpoints.load(tmp_path / "both" / "pruned" / name).module.last == layer
        source = weights if name == "some_weights" else tmp_path / "other"
        text = cut_checkpoint(str(source), str(tmp_path / f"cut_{name}"), None, str(tmp_path / "both"))
        assert f"cut after {layer}" in text


def test_layers_that_the_pooling_is_not_defined_at_are_left_out_and_named(settings, weights, tmp_path):
    changed = {**settings, "pooling": "corrected_gap", "layers": "", "input_size": 31}
    changed |= {"image_class": CLASSES[0]}
    workdir = tmp_path / "corrected"
    text = run(changed, workdir)
    summary, widths = summary_of(workdir), table(workdir, "widths").set_index("layer")
    assert widths["width"].dropna().index.tolist() == ["stem", "block_1"]
    left_out = widths[widths["width"].isna()]["defined_from"]
    assert left_out.fillna(0).to_dict() == {"block_2": 32, "pre_softmax": 0, "softmax": 0}
    (caution,) = findings_of(workdir, "layers left out", "corrected_gap", level="caution")
    assert caution["value"] == 3
    sentence = (
        "block_2 (defined from 32 pixels), pre_softmax (sees the whole image), softmax (sees the whole image)"
    )
    assert sentence in caution["note"]
    assert sentence in text
    assert "the mean over the pixels that no padding reaches" in (workdir / "report.html").read_text()
    assert {*table(workdir, "scores")["layer"]} == {"stem", "block_1"}
    assert "nan" not in (workdir / "scores.csv").read_text()
    # Of the features, against compute_features; of the cut, under the same pooling.
    assert summary["pruning"]["max_difference"] < 1e-4
    source = open_images("scenes", CLASSES[0], count=80, seed=5, size=31)
    network = checkpoints.load(weights)
    with np.load(workdir / "features" / f"some_weights-{CLASSES[0]}-trained-corrected_gap.npz") as cached:
        for pooling, equal in (("corrected_gap", True), ("gap", False)):
            found = compute_features(
                network, source, ("block_1",), size=31, batch_size=16, pooling=pooling
            ).values["block_1"]
            assert np.allclose(found, cached["layer_block_1"], rtol=1e-4, atol=1e-5) == equal
    text = probe.estimate(parse(probe.Settings, changed))
    assert f"features {2 * 4 * 80 * 24 / 1e6:.1f} MB" in text


def test_same_seed_same_bytes_and_another_pooling_gives_other_scores(settings, finished, tmp_path):
    run({name: value for name, value in settings.items() if name != "pooling"}, tmp_path / "again")
    assert (tmp_path / "again" / "scores.csv").read_bytes() == (finished[0] / "scores.csv").read_bytes()
    run({**settings, "pooling": "max", "image_class": CLASSES[0]}, tmp_path / "max")
    found, expected = (
        table(workdir, "scores").query("image_class == @CLASSES[0]").reset_index(drop=True)
        for workdir in (tmp_path / "max", finished[0])
    )
    assert found[[*found][:-2]].equals(expected[[*expected][:-2]])
    assert not found["r2"].equals(expected["r2"])


def test_probe_is_pure(settings):
    """`probe_memory.probe` without files: the same seed gives the same scores; another seed does not."""
    source = open_images("scenes", CLASSES[0], count=80, seed=5, size=32)

    def scores(seed):
        changed = parse(probe.Settings, {**settings, "seed": seed, "layers": "block_1"})
        return probe_memory.probe(random_network(), "w", {CLASSES[0]: source}, changed)[CLASSES[0]].scores

    assert scores(1).equals(scores(1))
    assert not scores(1).equals(scores(2))


def test_the_size_of_the_training_part_is_swept(settings, tmp_path):
    run({**settings, "n_train": "6,10,300", "image_class": CLASSES[0]}, tmp_path / "run")
    rows = table(tmp_path / "run", "sample_size")
    assert {*rows["n_train"]} == {6, 10}  # 300 are more than there are
    assert {*rows["layer"]} == {*TRUNK}
    (dip,) = findings_of(tmp_path / "run", "at the dip of least squares")
    assert 6 / 8 <= dip["value"] <= 10 / 8
    for given, problem in (("6,many", "expected an integer"), ("1", "expected at least 2")):
        with pytest.raises(ValueError, match=problem):
            run({**settings, "n_train": given}, tmp_path / given)
