"""The main job end to end: its files, that they can be trusted, and how it fails."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats
from tiny_network import LAYERS, random_network

from scalecov_jax import checkpoints, evidence_table, experiment
from scalecov_jax.concepts.measure import MEASURES
from scalecov_jax.design import Design
from scalecov_jax.features import compute_features
from scalecov_jax.images.sources import open_source
from scalecov_jax.pipelines import probe, prune
from scalecov_jax.probes.sample_size import SizeScore
from scalecov_jax.probes.splits import make_splits
from scalecov_jax.rcv import RcvRow, load_rcv, load_rcvs
from scalecov_jax.scores import Score
from scalecov_jax.selection import select_layers
from scalecov_jax.tables import read_table

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
        "dtype": "float32",
    }


def run(settings, workdir, **options):
    return probe.run(settings, str(workdir), command=["probe.py", "--seed=5"], **options)


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    """A finished run and what it told."""
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
    workdir, table = finished
    names = {str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file()}
    assert {"scores.csv", "summary.json", "report.html", "scalecov_run.json"} <= names
    assert {
        f"features/some_weights-{image_class}-{condition}.npz"
        for image_class in CLASSES
        for condition in ("trained", "random_weights")
    } == {name for name in names if name.startswith("features/")}
    for ending in ("png", "svg"):
        assert f"figures/some_weights-all-ridge.{ending}" in names
        assert f"figures/some_weights-all-ols.{ending}" in names
        assert f"figures/some_weights-pruning.{ending}" in names
    page = (workdir / "report.html").read_text()
    assert "tiny" in page
    assert "The scenes" in page
    assert str(workdir / "report.html") in table


def test_scores_have_one_row_for_everything(finished):
    workdir, _ = finished
    with (workdir / "scores.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert (
        ",".join(header)
        == "architecture,weights,condition,concept,image_class,layer,split,estimator,alpha,r2"
    )
    assert len(rows) == len(CLASSES) * len(TRUNK) * SPLITS * 3 * 2
    scores = read_table(workdir / "scores.csv", Score)
    keys = {(s.condition, s.image_class, s.layer, s.split, s.estimator) for s in scores}
    assert len(keys) == len(rows)
    assert {(s.architecture, s.weights, s.concept) for s in scores} == {("tiny", "some_weights", "scale")}
    assert {s.condition for s in scores} == {"trained", "random_weights", "shuffled_measure"}
    assert {s.layer for s in scores} == set(TRUNK)
    assert {s.alpha is None for s in scores if s.estimator == "ols"} == {True}
    assert {s.alpha for s in scores if s.estimator == "ridge"} <= set(np.geomspace(0.1, 1e4, 4))
    assert max(s.r2 for s in scores) <= 1


def test_summary_agrees_with_the_scores(finished):
    workdir, table = finished
    summary = summary_of(workdir)
    assert set(summary["selected"]) == {"ols", "ridge"}
    for one in select_layers(read_table(workdir / "scores.csv", Score), TRUNK):
        written = summary["selected"][one.estimator]
        assert written == {"layer": one.layer, "r2_mean": one.r2_mean, "r2_sd": one.r2_sd}
        assert one.layer in table
    assert (summary["architecture"], summary["weights"]) == ("tiny", "some_weights")
    assert summary["images"] == dict.fromkeys(CLASSES, 80)
    assert summary["n_train"] == dict.fromkeys(CLASSES, 56)
    assert summary["widths"] == {"stem": 8, "block_1": 16, "block_2": 32}
    assert summary["skipped"] == {}
    # 56 images to train: of the widths 8, 16 and 32 only the last is more than half of that.
    assert sum("at block_2 there are about as many" in warning for warning in summary["warnings"]) == 1
    assert all(warning.startswith("tiny, ") for warning in summary["warnings"])


def test_provenance_tells_how_to_repeat_the_run(finished, settings):
    provenance = summary_of(finished[0])["provenance"]
    assert provenance["command"] == "probe.py --seed=5"
    assert provenance["seed"] == "5"
    assert json.loads(provenance["config"]) == settings
    for name in ("date", "wall time", "device", "versions", "weights"):
        assert provenance[name]
    assert "some_weights: tests" in provenance["weights"]


def test_pruned_network_gives_the_captured_feature(finished, weights):
    workdir, _ = finished
    summary = summary_of(workdir)
    layer = summary["selected"]["ridge"]["layer"]
    pruned = checkpoints.load(workdir / "pruned" / "some_weights")
    assert pruned.module.last == pruned.card.notes["pruned_after"] == layer
    source, _ = open_source("scenes", CLASSES[0], count=80, seed=5, size=32)
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
    text = run(settings, tmp_path / "dry", estimate_only=True)
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
    assert list(summary["networks"]["some_weights"]["widths"]) == list(LAYERS)
    assert list(summary["networks"]["other"]["widths"]) == ["stem", "block_1"]
    scores = read_table(tmp_path / "both" / "scores.csv", Score)
    assert len(scores) == (len(LAYERS) + 2) * SPLITS * 3 * 2
    for name, layers in (("some_weights", LAYERS), ("other", LAYERS[:2])):
        layer = summary["networks"][name]["selected"]["ridge"]["layer"]
        assert layer in layers
        assert checkpoints.load(tmp_path / "both" / "pruned" / name).module.last == layer
        text = prune.run(
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
    table = run(changed, workdir)
    undefined = {"block_2": 32, "pre_softmax": None, "softmax": None}
    summary = summary_of(workdir)
    assert (summary["pooling"], summary["undefined"]) == ("corrected_gap", undefined)
    assert list(summary["widths"]) == ["stem", "block_1"]
    sentence = (
        "corrected_gap is undefined at block_2 (defined from 32 pixels), pre_softmax (sees the whole image), "
        "softmax (sees the whole image)"
    )
    assert sentence in summary["warnings"][0]
    assert sentence in table
    page = (workdir / "report.html").read_text()
    assert sentence in page
    assert "the mean over the pixels of a map that no padding reaches" in page
    assert {s.layer for s in read_table(workdir / "scores.csv", Score)} == {"stem", "block_1"}
    assert "nan" not in (workdir / "scores.csv").read_text()
    # Of the features, against compute_features; of the cut, under the same pooling.
    assert summary["pruning"]["max_difference"] < 1e-4
    source, _ = open_source("scenes", CLASSES[0], count=80, seed=5, size=31)
    network = checkpoints.load(weights)
    with np.load(workdir / "features" / f"some_weights-{CLASSES[0]}-trained-corrected_gap.npz") as cached:
        for pooling, equal in (("corrected_gap", True), ("gap", False)):
            found = compute_features(
                network, source, ("block_1",), size=31, batch_size=16, pooling=pooling
            ).values["block_1"]
            assert np.allclose(found, cached["layer_block_1"], rtol=1e-4, atol=1e-5) == equal
    text = run(changed, tmp_path / "dry", estimate_only=True)
    assert f"features {2 * 4 * 80 * 24 / 1e6:.1f} MB" in text


def test_same_seed_same_bytes_also_with_settings_of_earlier_versions(settings, finished, tmp_path):
    """Without a pooling they mean the global average, which the summary names; another pooling gives other scores."""
    earlier = {name: value for name, value in settings.items() if name != "pooling"}
    run(earlier, tmp_path / "earlier")
    assert (tmp_path / "earlier" / "scores.csv").read_bytes() == (finished[0] / "scores.csv").read_bytes()
    assert (summary_of(finished[0])["pooling"], summary_of(finished[0])["undefined"]) == ("gap", {})
    run({**settings, "pooling": "max", "image_class": CLASSES[0]}, tmp_path / "max")
    assert summary_of(tmp_path / "max")["pooling"] == "max"

    def first_class(workdir):
        scores = read_table(workdir / "scores.csv", Score)
        return {one[:8]: one.r2 for one in scores if one.image_class == CLASSES[0]}

    found, expected = first_class(tmp_path / "max"), first_class(finished[0])
    assert found.keys() == expected.keys()
    assert found != expected


def test_probe_is_pure(settings):
    """`experiment.probe` without files: the same seed gives the same scores; another seed does not."""
    source, _ = open_source("scenes", CLASSES[0], count=80, seed=5, size=32)

    def scores(seed):
        result = experiment.probe(
            random_network(),
            "w",
            {CLASSES[0]: source},
            Design(splits=SPLITS, seed=seed, alphas=np.geomspace(0.1, 1e4, 4)),  # shapes compiled already
            layers=("block_1",),
            batch_size=16,
            dtype=jnp.float32,
        )
        return result.scores

    assert scores(1) == scores(1) != scores(2)


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
    layers = read_table(workdir / "layers.csv", evidence_table.LayerRow)
    keys = {(row.concept, row.image_class, row.layer) for row in layers}
    assert keys == {
        (concept, name, layer)
        for concept in ("log_scale", "mean_red")
        for name in (*CLASSES, "all")
        for layer in ("stem", "block_1")
    }
    assert len(layers) == len(keys)
    assert {(row.images, row.groups) for row in layers if row.image_class != "all"} == {(60, 20)}
    assert {(row.images, row.groups) for row in layers if row.image_class == "all"} == {(120, 40)}
    for row in layers:
        reach = stats.t.ppf(0.975, row.groups - 1) * row.error  # of groups, not of images
        assert (row.low, row.high) == pytest.approx((row.r2 - reach, min(row.r2 + reach, 1)))
        assert 1 / 40 <= row.p <= 1
        assert 1 < row.dof < 60
    against = {row.against for row in read_table(workdir / "contrasts.csv", evidence_table.ContrastRow)}
    assert against == {
        "peak",
        "random_weights",
        "pixels",
        "nuisances",
        "shuffled_measure",
        "beyond_nuisances",
    }
    choices = read_table(workdir / "choices.csv", evidence_table.ChoiceRow)
    agreed = [
        row for row in choices if "," not in row.chosen
    ]  # other splits, other layers: that may be better
    assert agreed
    assert all(row.r2 <= row.best_r2 + 1e-9 for row in agreed)
    cases = read_table(workdir / "images.csv", evidence_table.CaseRow)
    assert len(cases) == 2 * 2 * 2 * 60
    assert {row.group for row in cases} == {f"patient {index}" for index in range(40)}


def test_one_definition_of_every_number(weighed):
    """Scores, tables, headline, summary and cut are of one ridge R2, and name one layer."""
    _, workdir = weighed
    scores, summary = read_table(workdir / "scores.csv", Score), summary_of(workdir)
    layers = read_table(workdir / "layers.csv", evidence_table.LayerRow)
    for row in layers:
        r2 = [
            s.r2
            for s in scores
            if (s.condition, s.estimator, s.concept, s.layer) == ("trained", "ridge", row.concept, row.layer)
            and row.image_class in (s.image_class, "all")
        ]
        assert row.r2 == pytest.approx(np.mean(r2), abs=1e-12)
    peaks = {}
    for row in read_table(workdir / "contrasts.csv", evidence_table.ContrastRow):
        if row.against == "peak" and row.difference == 0:
            peaks[row.concept, row.image_class] = row.layer
        if row.against == "peak":  # no statement contradicts another
            (layer,) = (
                one
                for one in layers
                if (one.concept, one.image_class, one.layer) == (row.concept, row.image_class, row.layer)
            )
            assert layer.may_be_best or row.high < 0
    assert len(peaks) == 2 * 3
    for concept in ("log_scale", "mean_red"):
        selected = summary["concepts"][concept]["selected"]["ridge"]
        (best,) = (
            row
            for row in layers
            if (row.concept, row.image_class, row.layer) == (concept, "all", selected["layer"])
        )
        assert peaks[concept, "all"] == selected["layer"]
        assert selected["r2_mean"] == pytest.approx(best.r2, abs=1e-12)
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
    rows = read_table(workdir / "rcvs.csv", RcvRow)
    layers = read_table(workdir / "layers.csv", evidence_table.LayerRow)
    cases = read_table(workdir / "images.csv", evidence_table.CaseRow)
    network = checkpoints.load(weights)
    for row in rows:
        (layer,) = (
            one
            for one in layers
            if (one.concept, one.image_class, one.layer) == (row.concept, row.image_class, row.layer)
        )
        assert (row.r2, row.alpha) == (pytest.approx(layer.r2), pytest.approx(layer.alpha))
        assert 0 < row.mean_angle < row.largest_angle < 180
        assert row.mean_cosine == row.least_cosine  # of two classes
        rcv = load_rcv(workdir / "rcvs.npz", row.concept, row.layer, image_class=row.image_class)
        assert row.norm == pytest.approx(np.linalg.norm(rcv.weights))
        source, _ = open_source("scenes", row.image_class, count=60, seed=5, size=32)
        read = rcv.predict(compute_features(network, source, (row.layer,), batch_size=16))
        measured = [
            one.measure
            for one in cases
            if (one.concept, one.image_class, one.layer) == (row.concept, row.image_class, row.layer)
        ]
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
    assert not any("into both the training and the held-out part" in text for text in summary["warnings"])
    assert "39 permutations of groups, and images within groups" in (workdir / "report.html").read_text()
    apart = {**changed, "splitting": "random", "permutations": 0, "concept": "log_scale", "probes": ""}
    run({**apart, "nuisances": "", "pixels": False}, workdir.parent / "apart")
    told = summary_of(workdir.parent / "apart")["warnings"]
    assert sum("into both the training and the held-out part" in text for text in told) == len(CLASSES)
    assert all("config.splitting=grouped." in text for text in told if "into both" in text)


def test_scores_hold_every_concept_and_probe(weighed):
    scores = read_table(weighed[1] / "scores.csv", Score)
    assert {(s.concept, s.estimator) for s in scores if s.condition == "trained"} == {
        (concept, estimator)
        for concept in ("log_scale", "mean_red")
        for estimator in ("ols", "ridge", "local_ridge")
    }
    concepts = summary_of(weighed[1])["concepts"]
    for concept in ("log_scale", "mean_red"):
        some = [s for s in scores if s.concept == concept]
        for one in select_layers(some, ("stem", "block_1")):
            assert concepts[concept]["selected"][one.estimator]["layer"] == one.layer
    found = concepts["mean_red"]["evidence"]["all"]
    (row,) = (
        one
        for one in read_table(weighed[1] / "layers.csv", evidence_table.LayerRow)
        if (one.concept, one.image_class, one.layer) == ("mean_red", "all", found["layer"])
    )
    assert [*found["interval"], found["r2"]] == pytest.approx([row.low, row.high, row.r2])
    assert found["layer"] in found["may_be_best"]


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
    scores = read_table(tmp_path / "run" / "scores.csv", Score)
    trained, random, shuffled = (
        np.mean([s.r2 for s in scores if (s.condition, s.estimator) == (condition, "ridge")])
        for condition in ("trained", "random_weights", "shuffled_measure")
    )
    assert trained > 0.7
    assert random > 0.5
    assert shuffled < 0.2
    summary = summary_of(tmp_path / "run")
    assert summary["skipped"] == {"unreadable image": 2}
    assert summary["images"] == {"car": 24}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "03.png" in page
    assert "17.png" in page
    with np.load(tmp_path / "run" / "features" / "some_weights-car-trained.npz") as features:
        np.testing.assert_array_equal(features["indices"], [i for i in range(26) if i not in (3, 17)])
    before = (tmp_path / "run" / "scores.csv").read_bytes()
    run(photographs, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "scores.csv").read_bytes() == before
    assert summary_of(tmp_path / "run")["skipped"] == {"unreadable image": 2}


PROBE = """
import json, sys
import tiny_network
from scalecov_jax.pipelines import probe

probe.run(json.loads(sys.argv[1]), sys.argv[2], command=["probe.py"])
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
            "no such folder; expected the subfolders Annotations",
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
        ({"architecture": "tinny"}, "did you mean tiny"),
        ({"architecture": "resnet50"}, "some_weights holds tiny, but config.architecture is resnet50"),
        ({"layers": "stem,block_3"}, "no layer 'block_3'; did you mean block_"),
        ({"weights": ""}, "config.weights is empty; expected a checkpoint folder"),
        ({"weights": " , "}, "config.weights is empty"),
        ({"weights": "/nowhere/weights"}, "/nowhere/weights is no folder; expected a checkpoint"),
        ({"images": ""}, "config.images is empty"),
        ({"image_class": ""}, "config.image_class is empty"),
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
        ({"concept": ""}, "config.concept is empty"),
        ({"concept": "scale,scale"}, "scale comes twice"),
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
    text = prune.run(str(weights), str(tmp_path / "cut"), None, str(finished[0]), estimator)
    assert f"tiny cut after {layer}" in text
    assert checkpoints.load(tmp_path / "cut").module.last == layer


def test_prune_by_layer(weights, tmp_path):
    text = prune.run(str(weights), str(tmp_path / "cut"), "block_1", None)
    assert text.startswith(
        "tiny cut after block_1: 6,144 -> 1,440 parameters (76.56 % less than without its head)"
    )
    head = prune.run(str(weights), str(tmp_path / "head"), "softmax", None)
    assert "6,309 -> 6,309 parameters (0.00 % less" in head
    with pytest.raises(ValueError, match="cut exists"):
        prune.run(str(weights), str(tmp_path / "cut"), "stem", None)
    with pytest.raises(ValueError, match="no layer 'block_11'; did you mean block_1"):
        prune.run(str(weights), str(tmp_path / "other"), "block_11", None)
    with pytest.raises(ValueError, match="stops at block_1, before 'block_2'"):
        prune.run(str(tmp_path / "cut"), str(tmp_path / "other"), "block_2", None)
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
        prune.run(str(weights), str(tmp_path / "cut"), None, str(tmp_path))
    assert not (tmp_path / "cut").exists()


def test_the_size_of_the_training_part_is_swept(settings, tmp_path):
    run({**settings, "n_train": "6,10,300", "image_class": CLASSES[0]}, tmp_path / "run")
    rows = read_table(tmp_path / "run" / "sample_size.csv", SizeScore)
    assert {row.n_train for row in rows} == {6, 10}  # 300 are more than there are
    assert {row.layer for row in rows} == set(TRUNK)
    assert "against the number of training images" in (tmp_path / "run" / "report.html").read_text()
    for given, problem in (("6,many", "expected whole numbers"), ("1", "cannot be cut from")):
        with pytest.raises(ValueError, match=problem):
            run({**settings, "n_train": given}, tmp_path / given)
