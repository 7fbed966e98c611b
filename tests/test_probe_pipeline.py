"""The main job end to end: its files, that they can be trusted, and how it fails."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats
from tiny_network import LAYERS, random_network

from scalecov_jax import checkpoints
from scalecov_jax import run as runner
from scalecov_jax.concepts.measure import MEASURES
from scalecov_jax.cutting import cut_checkpoint
from scalecov_jax.experiments import probe, probe_memory
from scalecov_jax.features import compute_features
from scalecov_jax.images.sources import open_images
from scalecov_jax.probes.splits import make_splits
from scalecov_jax.rcv import load_rcv, load_rcvs
from scalecov_jax.selection import select_layers
from scalecov_jax.settings import parse

CLASSES = ("striped_disc", "ringed_star")
TRUNK = LAYERS[:3]
SPLITS = 3
pytestmark = pytest.mark.usefixtures("quick_compilation", "quick_scenes")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "some_weights"
    checkpoints.save(folder, random_network())
    return folder


@pytest.fixture(scope="module")
def settings(weights):
    return {
        "title": "A test",
        "architecture": "tiny",
        "weights": str(weights),
        "images": "scenes",
        "image_class": ", ".join(CLASSES),
        "scenes": 80,
        "layers": ",".join(TRUNK),
        "pooling": "gap",
        "input_size": 32,
        "splits": SPLITS,
        "seed": 5,
        "alpha_min": 0.1,
        "alpha_max": 1e4,
        "alphas": 4,
        "batch_size": 16,
        "permutations": 0,
        "nuisances": "",
        "pixels": False,
    }


def run(settings, workdir, **options):
    return runner.run("probe", settings, workdir, command=["probe.py", "--seed=5"], **options)


def table(workdir, name):
    return pd.read_csv(workdir / f"{name}.csv", keep_default_na=False, na_values=[""])


def findings_of(workdir, *texts, level=None):
    """Those whose quantity and place hold all texts."""
    return [
        x
        for x in summary_of(workdir)["findings"]
        if level in (None, x["level"]) and all(text in f"{x['quantity']}, {x['at']}" for text in texts)
    ]


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    """A finished run and its text."""
    workdir = tmp_path_factory.mktemp("runs") / "first"
    return workdir, run(settings, workdir)


def summary_of(workdir):
    return json.loads((workdir / "summary.json").read_text())


def refused(settings, workdir, message, **options):
    """The run fails with one line that matches, and nothing is written."""
    with pytest.raises(ValueError, match=message) as error:
        run(settings, workdir, **options)
    assert "\n" not in str(error.value)
    assert not (workdir / "scores.csv").exists()


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
    tables = {
        "scores",
        "layers",
        "contrasts",
        "choices",
        "images",
        "rcvs",
        "classes",
        "widths",
        "cuts",
        "skipped",
    }
    assert {f"{name}.csv" for name in tables} == {name for name in names if name.endswith(".csv")} - {
        "features/measures.csv"
    }
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
    with (workdir / "scores.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert (
        ",".join(header)
        == "architecture,weights,condition,concept,image_class,layer,split,estimator,alpha,r2"
    )
    assert len(rows) == len(CLASSES) * len(TRUNK) * SPLITS * 3 * 2
    scores = table(workdir, "scores")
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
    assert (least_squares["at"], least_squares["value"]) == (
        f"tiny {ols['layer']}",
        pytest.approx(ols["r2_mean"]),
    )
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
    changed = {
        **settings,
        "architecture": "",
        "weights": f"{weights},{tmp_path / 'other'}",
        "layers": "",
        "image_class": CLASSES[0],
        "dtype": "bfloat16",
    }
    run(changed, tmp_path / "both")
    summary = summary_of(tmp_path / "both")
    assert set(summary["networks"]) == {"some_weights", "other"}
    layers = table(tmp_path / "both", "widths").groupby("weights")["layer"].apply(list)
    assert layers.to_dict() == {"some_weights": [*LAYERS], "other": ["stem", "block_1"]}
    assert len(table(tmp_path / "both", "scores")) == (len(LAYERS) + 2) * SPLITS * 3 * 2
    headlines = findings_of(tmp_path / "both", level="headline")
    names = (f"tiny ({name}) " for name in ("some_weights", "other"))
    assert all(x["at"].startswith(name) for x, name in zip(headlines, names, strict=True))
    for name, layers in (("some_weights", LAYERS), ("other", LAYERS[:2])):
        layer = summary["networks"][name]["selected"]["ridge"]["layer"]
        assert layer in layers
        assert checkpoints.load(tmp_path / "both" / "pruned" / name).module.last == layer
        text = cut_checkpoint(
            str(weights if name == "some_weights" else tmp_path / "other"),
            str(tmp_path / f"cut_{name}"),
            None,
            str(tmp_path / "both"),
        )
        assert f"cut after {layer}" in text


def test_layers_that_the_pooling_is_not_defined_at_are_left_out_and_named(settings, weights, tmp_path):
    changed = {
        **settings,
        "pooling": "corrected_gap",
        "layers": "",
        "input_size": 31,
        "image_class": CLASSES[0],
    }
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
    assert (
        "the mean over the pixels of a map that no padding reaches" in (workdir / "report.html").read_text()
    )
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


# Evidence


@pytest.fixture(scope="module")
def weighed(settings, tmp_path_factory):
    """Two concepts, grouped splits, and every control, on few images."""
    folder = tmp_path_factory.mktemp("weighed")
    names = [f"{one}_{index:04d}" for one in CLASSES for index in range(60)]
    lines = [f"{name},patient {index // 3}" for index, name in enumerate(names)]
    (folder / "patients.csv").write_text("\n".join(["image,patient", *lines]) + "\n")
    changed = {
        **settings,
        "concept": "log_scale,mean_red",
        "scenes": 60,
        "splitting": "auto",
        "groups": f"csv:{folder / 'patients.csv'}:patient",
        "permutations": 39,
        "nuisances": "mean_green,box_centre_x",
        "pixels": True,
        "probes": "local_ridge",
        "layers": "stem,block_1",
    }
    run(changed, folder / "run")
    return changed, folder / "run"


def test_evidence_is_tabled_for_every_class_concept_and_layer(weighed):
    _, workdir = weighed
    layers = table(workdir, "layers")
    keys = {*layers[["concept", "image_class", "layer"]].itertuples(index=False, name=None)}
    assert keys == {
        (concept, name, layer)
        for concept in ("log_scale", "mean_red")
        for name in (*CLASSES, "all")
        for layer in ("stem", "block_1")
    }
    assert len(layers) == len(keys)
    pooled = layers["image_class"] == "all"
    for some, counts in ((layers[~pooled], [60, 20]), (layers[pooled], [120, 40])):
        assert some[["images", "groups"]].drop_duplicates().to_numpy().tolist() == [counts]
    for row in layers.itertuples():
        reach = stats.t.ppf(0.975, row.groups - 1) * row.error  # of groups, not of images
        assert (row.low, row.high) == pytest.approx((row.r2 - reach, min(row.r2 + reach, 1)))
        assert 1 / 40 <= row.p <= 1
        assert 1 < row.dof < 60
    assert {*table(workdir, "contrasts")["against"]} == {
        "peak",
        "random_weights",
        "pixels",
        "nuisances",
        "shuffled_measure",
        "beyond_nuisances",
    }
    choices = table(workdir, "choices")
    agreed = choices[~choices["chosen"].str.contains(",")]  # other splits, other layers: that may be better
    assert len(agreed)
    assert (agreed["r2"] <= agreed["best_r2"] + 1e-9).all()
    images = table(workdir, "images")
    assert len(images) == 2 * 2 * 2 * 60
    assert {*images["group"]} == {f"patient {index}" for index in range(40)}


def test_findings_hold_the_numbers_of_the_tables(weighed):
    _, workdir = weighed
    contrasts = table(workdir, "contrasts").query("image_class == 'all'")
    layers = table(workdir, "layers").query("image_class == 'all'").set_index(["concept", "layer"])
    choices = table(workdir, "choices").query("image_class == 'all'").set_index("concept")
    headlines = findings_of(workdir, level="headline")
    assert len(headlines) == 2
    for concept, title, headline in zip(
        ("log_scale", "mean_red"), ("logarithm of object scale", "mean red"), headlines, strict=True
    ):
        assert title in headline["quantity"]
        layer = headline["at"].removeprefix("tiny ")
        row = layers.loc[concept, layer]
        values = [headline[name] for name in ("value", "low", "high")]
        assert values == pytest.approx([row["r2"], row["low"], row["high"]])
        others = layers.loc[concept].query("may_be_best and layer != @layer").index
        assert all(other in headline["note"] for other in others)
        at = contrasts[(contrasts["concept"] == concept) & (contrasts["layer"] == layer)].set_index("against")
        for against, text in {
            "random_weights": f"R² of {title} above that of random weights",
            "pixels": f"R² of {title} above that of the pixels alone",
            "nuisances": f"R² of {title} above that of the nuisance measures",
            "beyond_nuisances": f"partial R² of {title}",
        }.items():
            (finding,) = findings_of(workdir, text)
            difference = at.loc[against, ["difference", "low", "high"]].tolist()
            assert [finding[name] for name in ("value", "low", "high")] == pytest.approx(difference)
        (p,) = findings_of(workdir, f"family-wise p that {title}")
        assert p["value"] == pytest.approx(row["p_family"])
        assert "39 permutations of groups, and images within groups" in p["note"]
        (nested,) = findings_of(workdir, f"R² of {title} at the layer chosen inside")
        assert nested["value"] == pytest.approx(choices.loc[concept, "r2"])


def test_classes_of_different_sizes_are_reported_by_themselves_too(weighed):
    settings, tables = runner.read(weighed[1])
    tables["classes"].loc[0, "n_train"] = 30
    page = probe.report(settings, tables)
    titles = ("logarithm of object scale", "mean red")
    places = ("tiny", *(f"tiny, {name}" for name in CLASSES))
    assert [section.heading for section in page.sections[:6]] == [
        f"{at}: {title}" for title in titles for at in places
    ]
    layers = (
        tables["layers"].query("concept == 'log_scale' and image_class == @CLASSES[1]").set_index("layer")
    )
    (best,) = (
        x for x in page.findings if x.at.startswith(f"tiny, {CLASSES[1]} ") and "logarithm" in x.quantity
    )
    assert best.level == "result"
    assert best.value == pytest.approx(layers["r2"].max())


def test_there_is_one_caution_for_each_kind(weighed):
    settings, tables = runner.read(weighed[1])
    tables["layers"] = tables["layers"].assign(low=-0.25, high=0.9, p_family=0.5, groups=12)
    tables["choices"] = tables["choices"].assign(r2=tables["choices"]["best_r2"] - 0.125)
    tables["cuts"] = tables["cuts"].assign(max_difference=1.0, largest=4.0)
    scores = tables["scores"]
    ridge = scores.query("condition == 'trained' and estimator == 'ridge' and layer == 'block_1'").index
    scores.loc[ridge[:2], "r2"] = [-5.5, -2.0]
    cautions = {x.quantity: x for x in probe.report(settings, tables).findings if x.level == "caution"}
    expected = {
        "output of the cut network": 0.25,
        "smallest R² by ridge": -5.5,
        "independent images or groups": 12,
        "chosen inside the training parts": 0.125,
        "family-wise p": 0.5,
        "lower end of the 95 % interval": -0.25,
    }
    for text, value in expected.items():
        (caution,) = (x for quantity, x in cautions.items() if text in quantity)
        assert caution.value == pytest.approx(value)
    assert len(cautions) == len(expected) + sum("as many independent features" in text for text in cautions)


def test_one_definition_of_every_number(weighed):
    """Scores, tables, headline, summary and cut are of one ridge R2, and name one layer."""
    _, workdir = weighed
    summary, keys = summary_of(workdir), ["concept", "image_class", "layer"]
    scores = table(workdir, "scores").query("condition == 'trained' and estimator == 'ridge'")
    layers = table(workdir, "layers").set_index(keys)
    means = scores.groupby(keys)["r2"].mean()
    pooled = scores.groupby(["concept", "layer"])["r2"].mean()
    for (concept, image_class, layer), row in layers.iterrows():
        r2 = pooled[concept, layer] if image_class == "all" else means[concept, image_class, layer]
        assert row["r2"] == pytest.approx(r2, abs=1e-12)
    behind = table(workdir, "contrasts").query("against == 'peak'").set_index(keys)
    assert (layers["may_be_best"] | (behind["high"] < 0)).all()  # no statement contradicts another
    peaks = behind[behind["difference"] == 0].reset_index("layer")["layer"]
    assert len(peaks) == 2 * 3
    for concept in ("log_scale", "mean_red"):
        selected = summary["concepts"][concept]["selected"]["ridge"]
        assert peaks[concept, "all"] == selected["layer"]
        best = layers.loc[concept, "all", selected["layer"]]
        assert selected["r2_mean"] == pytest.approx(best["r2"], abs=1e-12)
    cut = summary["pruning"]["layer"]
    assert cut == summary["selected"]["ridge"]["layer"]
    assert checkpoints.load(workdir / "pruned" / "some_weights").module.last == cut


def test_the_vectors_are_files(weighed, weights):
    _, workdir = weighed
    rcvs = load_rcvs(workdir / "rcvs.npz")
    assert {(one.measure, one.image_class, one.layer) for one in rcvs} == {
        (concept, name, layer)
        for concept in ("log_scale", "mean_red")
        for name in CLASSES
        for layer in ("stem", "block_1")
    }
    keys = ["concept", "image_class", "layer"]
    layers, images = (table(workdir, name).set_index(keys).sort_index() for name in ("layers", "images"))
    network = checkpoints.load(weights)
    for row in table(workdir, "rcvs").itertuples():
        layer = layers.loc[row.concept, row.image_class, row.layer]
        assert (row.r2, row.alpha) == pytest.approx((layer["r2"], layer["alpha"]))
        assert 0 < row.mean_angle < row.largest_angle < 180
        assert row.mean_cosine == row.least_cosine  # of two classes
        rcv = load_rcv(workdir / "rcvs.npz", row.concept, row.layer, image_class=row.image_class)
        assert row.norm == pytest.approx(np.linalg.norm(rcv.weights))
        source = open_images("scenes", row.image_class, count=60, seed=5, size=32)
        read = rcv.predict(compute_features(network, source, (row.layer,), batch_size=16))
        measured = images.loc[[(row.concept, row.image_class, row.layer)], "measure"].to_numpy()
        assert np.mean(read) == pytest.approx(np.mean(measured), abs=1e-5)
        assert np.std(measured) == pytest.approx(rcv.sigma)
    with pytest.raises(ValueError, match="was fitted on the network tiny"):
        rcvs[0].predict(compute_features(random_network(seed=3), source, ("stem", "block_1"), batch_size=16))


def test_patients_stay_together_unless_asked_for(weighed):
    """Splits, intervals and tests go by the groups that are given."""
    changed, workdir = weighed
    groups = np.array([f"patient {index // 3}" for index in range(60)])
    for mask in make_splits("auto", 60, SPLITS, 5, groups=groups):
        assert not {*groups[mask]} & {*groups[~mask]}
    summary = summary_of(workdir)
    assert summary["n_train"] == dict.fromkeys(CLASSES, 42)
    assert not findings_of(workdir, "images of a group", level="caution")
    apart = {**changed, "splitting": "random", "permutations": 0, "concept": "log_scale", "probes": ""}
    run({**apart, "nuisances": "", "pixels": False}, workdir.parent / "apart")
    (caution,) = findings_of(workdir.parent / "apart", "images of a group", level="caution")
    assert (caution["at"], caution["value"]) == (CLASSES[0], 40)
    assert CLASSES[1] in caution["note"]
    assert "config.splitting=grouped." in caution["note"]


def test_scores_hold_every_concept_and_probe(weighed):
    scores = table(weighed[1], "scores")
    trained = scores[scores["condition"] == "trained"]
    assert {*trained[["concept", "estimator"]].itertuples(index=False, name=None)} == {
        (concept, estimator)
        for concept in ("log_scale", "mean_red")
        for estimator in ("ols", "ridge", "local_ridge")
    }
    concepts = summary_of(weighed[1])["concepts"]
    for concept in ("log_scale", "mean_red"):
        for one in select_layers(scores[scores["concept"] == concept], ("stem", "block_1")):
            assert concepts[concept]["selected"][one.estimator]["layer"] == one.layer
    grids = [grid for section in runner.page(weighed[1]).sections for grid in section.tables]
    assert any("local_ridge" in grid.columns for grid in grids)


def test_measures_are_kept_and_read_again(weighed, monkeypatch):
    changed, workdir = weighed
    before = (workdir / "layers.csv").read_bytes()
    measured = (workdir / "features" / "measures.csv").read_text()

    def refuse(example):
        raise ValueError(f"{example.name} was measured again")

    for name in ("mean_red", "mean_green"):
        assert measured.count(name) == 120
        monkeypatch.setitem(MEASURES, name, MEASURES[name]._replace(measure=refuse))
    run(changed, workdir, resume=True)
    assert (workdir / "layers.csv").read_bytes() == before


# Photographs


def write_voc(folder, boxes, broken=()):
    """Noise images of 32 pixels whose boxes have the given sides."""
    rng = np.random.default_rng(0)
    for part in ("Annotations", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    for index, side in enumerate(boxes):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        pixels[:side, :side] = 255 - 6 * side
        path = folder / "JPEGImages" / f"{index:02d}.png"
        Image.fromarray(pixels).save(path)
        if index in broken:
            path.write_bytes(path.read_bytes()[:1000])
        (folder / "Annotations" / f"{index:02d}.xml").write_text(
            f"<annotation><filename>{path.name}</filename><object><name>car</name><bndbox><xmin>1</xmin><ymin>1"
            f"</ymin><xmax>{side}</xmax><ymax>{side}</ymax></bndbox></object></annotation>"
        )
    return folder


@pytest.fixture
def photographs(settings, tmp_path):
    return {**settings, "images": str(tmp_path / "voc"), "image_class": "car"}


def test_truncated_images_are_counted_and_named_and_cost_only_themselves(photographs, tmp_path):
    sides = np.random.default_rng(1).permutation(np.arange(4, 30))
    write_voc(tmp_path / "voc", sides, broken=(3, 17))
    run(photographs, tmp_path / "run")
    # The measures still belong to the images: scale is found, and its shuffled control is not.
    ridge = table(tmp_path / "run", "scores").query("estimator == 'ridge'")
    means = ridge.groupby("condition")["r2"].mean()
    trained, random, shuffled = (means[name] for name in ("trained", "random_weights", "shuffled_measure"))
    assert trained > 0.7
    assert random > 0.5
    assert shuffled < 0.2
    summary = summary_of(tmp_path / "run")
    assert summary["skipped"] == {"unreadable image": 2}
    assert summary["images"] == {"car": 24}
    assert runner.page(tmp_path / "run").skipped == {"unreadable image": ["03.png", "17.png"]}
    cases = table(tmp_path / "run", "cases")
    assert all((tmp_path / "run" / file).exists() for file in cases["file"])
    assert (tmp_path / "run" / "figures" / "some_weights-all-cases.svg").exists()
    with np.load(tmp_path / "run" / "features" / "some_weights-car-trained.npz") as features:
        np.testing.assert_array_equal(features["indices"], [i for i in range(26) if i not in (3, 17)])
    before = (tmp_path / "run" / "scores.csv").read_bytes()
    run(photographs, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "scores.csv").read_bytes() == before
    assert summary_of(tmp_path / "run")["skipped"] == {"unreadable image": 2}


PROBE = """
import json, sys
import tiny_network
from scalecov_jax import run

run.run("probe", json.loads(sys.argv[1]), sys.argv[2], command=["probe.py"])
"""


def test_killed_run_is_resumed_to_the_same_bytes(photographs, tmp_path):
    write_voc(tmp_path / "voc", range(4, 28))
    workdir = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", PROBE, json.dumps(photographs), workdir],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    try:
        deadline = time.monotonic() + 240
        while not (workdir / "features" / "some_weights-car-trained.npz").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (workdir / "scores.csv").exists()
    assert len(list((workdir / "features").glob("*.npz"))) < 3
    refused(photographs, workdir, "pass --resume")
    run(photographs, workdir, resume=True)
    run(photographs, tmp_path / "unbroken")
    assert (workdir / "scores.csv").read_bytes() == (tmp_path / "unbroken" / "scores.csv").read_bytes()


@pytest.mark.parametrize(
    ("boxes", "broken", "change", "message"),
    [
        (range(4, 13), (), {}, "9 usable images .* at least 10"),
        (range(4, 16), (0, 1, 2), {}, "measured on 9 images; at least 10"),
        ([8] * 24, (), {}, r"is 0\.0625 for all 24 images"),
        (range(4, 28), (), {"image_class": "cat"}, "no object of class 'cat'.*car"),
        (
            range(4, 28),
            (),
            {"images": "/nowhere/VOC2007"},
            "no such folder; expected a folder of images",
        ),
    ],
)
def test_photographs_that_cannot_be_used(photographs, tmp_path, boxes, broken, change, message):
    write_voc(tmp_path / "voc", boxes, broken)
    refused({**photographs, **change}, tmp_path / "run", message)


# Settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "tinny"}, "config.architecture: .*did you mean tiny"),
        ({"architecture": "resnet50"}, "some_weights holds tiny, but config.architecture is resnet50"),
        ({"layers": "stem,block_3"}, "no layer 'block_3'; did you mean block_"),
        ({"weights": " , "}, "config.weights is ''; expected at least 1 value"),
        ({"weights": "/nowhere/weights"}, "/nowhere/weights is no folder; expected a checkpoint"),
        ({"images": ""}, "config.images is ''; expected at least 1 value"),
        ({"image_class": ""}, "config.image_class is ''; expected at least 1 value"),
        (
            {"weights": "/nowhere/weights", "image_class": "ringed_disk"},
            "/nowhere/weights is no folder.*did you mean ringed_disc",
        ),
        ({"image_class": "ringed_disk"}, "did you mean ringed_disc"),
        ({"scenes": 0}, "config.scenes is 0; expected at least 1"),
        ({"splits": 0}, "config.splits is 0"),
        ({"alphas": 0}, "config.alphas is 0"),
        ({"batch_size": -1}, "config.batch_size is -1"),
        ({"input_size": 0}, "config.input_size is 0"),
        ({"seed": -1}, "config.seed is -1"),
        ({"alpha_min": 0.0}, "0 < alpha_min <= alpha_max"),
        ({"alpha_max": 0.01}, "0 < alpha_min <= alpha_max"),
        ({"concept": "scael"}, "There is no concept measure 'scael'. Did you mean .*scale"),
        ({"concept": ""}, "config.concept is ''; expected at least 1 value"),
        ({"concept": "scale,scale"}, "config.concept is 'scale,scale'; expected different values"),
        ({"concept": "scale", "nuisances": "scale"}, "config.nuisances: scale is a concept as well"),
        ({"nuisances": "redness"}, "There is no concept measure 'redness'"),
        ({"nuisances": "file_size"}, "file_size.*striped_disc_0000"),
        ({"probes": "lasso"}, "There is no probe lasso; there are ridge"),
        (
            {"splitting": "groupd"},
            "config.splitting is 'groupd'; expected one of auto, random, stratified, grouped",
        ),
        ({"permutations": 5}, "config.permutations is 5; expected 0 for none, or at least 19"),
        ({"groups": "patients.csv"}, "expected csv:PATH:COLUMN"),
        ({"dtype": "float16"}, "'float16'; expected one of float32, bfloat16"),
        ({"pooling": "mean"}, "config.pooling is 'mean'; expected one of gap, max, corrected_gap"),
        (
            {"pooling": "corrected_gap", "layers": "stem,softmax"},
            r"undefined on images of 32 x 32 pixels at softmax \(sees the whole image\)",
        ),
        (
            {"pooling": "corrected_gap", "layers": "stem,block_2", "input_size": 31},
            r"undefined on images of 31 x 31 pixels at block_2 \(defined from 32 pixels\)\. Leave these layers out",
        ),
        (
            {"pooling": "corrected_gap", "layers": "", "input_size": 3},
            r"at stem \(defined from 4 pixels\), block_1 \(defined from 16 pixels\), block_2 .*, softmax \(sees the whole image",
        ),
    ],
)
def test_settings_that_cannot_be_used(settings, tmp_path, change, message):
    refused({**settings, **change}, tmp_path / "run", message)


def test_two_weights_of_one_name(settings, weights, tmp_path):
    checkpoints.save(tmp_path / "some_weights", random_network(seed=1))
    refused(
        {**settings, "weights": f"{weights},{tmp_path / 'some_weights'}"},
        tmp_path / "run",
        "Two weights are called",
    )


def test_pruned_weights_have_no_later_layer(settings, tmp_path):
    checkpoints.save(tmp_path / "cut", random_network(last="stem"))
    changed = {**settings, "weights": str(tmp_path / "cut"), "layers": "block_1"}
    refused(changed, tmp_path / "run", "stops at stem, before 'block_1'; choose one of stem")


# Pruning


@pytest.mark.parametrize("estimator", ["ols", "ridge"])
def test_prune_by_scores(finished, weights, tmp_path, estimator):
    layer = summary_of(finished[0])["selected"][estimator]["layer"]
    text = cut_checkpoint(str(weights), str(tmp_path / "cut"), None, str(finished[0]), estimator)
    assert f"tiny cut after {layer}" in text
    assert checkpoints.load(tmp_path / "cut").module.last == layer


def test_prune_by_layer(weights, tmp_path):
    text = cut_checkpoint(str(weights), str(tmp_path / "cut"), "block_1", None)
    assert text.startswith(
        "tiny cut after block_1: 6,144 -> 1,440 parameters (76.56 % less than without its head)"
    )
    head = cut_checkpoint(str(weights), str(tmp_path / "head"), "softmax", None)
    assert "6,309 -> 6,309 parameters (0.00 % less" in head
    with pytest.raises(ValueError, match="cut exists"):
        cut_checkpoint(str(weights), str(tmp_path / "cut"), "stem", None)
    with pytest.raises(ValueError, match="no layer 'block_11'; did you mean block_1"):
        cut_checkpoint(str(weights), str(tmp_path / "other"), "block_11", None)
    with pytest.raises(ValueError, match="stops at block_1, before 'block_2'"):
        cut_checkpoint(str(tmp_path / "cut"), str(tmp_path / "other"), "block_2", None)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        (None, "holds no layer selected by ridge for some_weights"),
        ("{", "holds no layer"),
        (
            '{"selected": {"ols": {"layer": "stem"}}, "architecture": "tiny"}',
            "holds no layer selected by ridge",
        ),
        ('{"networks": {"other": {}}}', "for some_weights"),
        ('{"selected": {"ridge": {"layer": "add_1"}}, "architecture": "resnet50"}', "is about resnet50, but"),
    ],
)
def test_scores_that_choose_no_layer(weights, tmp_path, summary, message):
    if summary is not None:
        (tmp_path / "summary.json").write_text(summary)
    with pytest.raises(ValueError, match=message):
        cut_checkpoint(str(weights), str(tmp_path / "cut"), None, str(tmp_path))
    assert not (tmp_path / "cut").exists()


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
