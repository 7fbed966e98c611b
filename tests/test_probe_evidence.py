"""What the main job infers: intervals, tests, controls and vectors, of two concepts and grouped images."""

import re

import numpy as np
import probe_runs
import pytest
from probe_runs import CLASSES, SPLITS, findings_of, run, settings_of, summary_of, table
from scipy import stats
from tiny_network import random_network

from scalecov_jax import checkpoints
from scalecov_jax import run as runner
from scalecov_jax.concepts.measure import MEASURES
from scalecov_jax.experiments import probe
from scalecov_jax.extraction import compute_features
from scalecov_jax.imaging.sources import open_images
from scalecov_jax.probes.splits import make_splits
from scalecov_jax.selection import select_layers
from scalecov_jax.vectors import load_rcv, load_rcvs

pytestmark = pytest.mark.usefixtures("quick_compilation", "quick_scenes")
weights = probe_runs.weights


@pytest.fixture(scope="module")
def weighed(weights, tmp_path_factory):
    """Two concepts, grouped splits, and every control, on few images."""
    folder = tmp_path_factory.mktemp("weighed")
    names = [f"{one}_{index:04d}" for one in CLASSES for index in range(60)]
    lines = [f"{name},patient {index // 3}" for index, name in enumerate(names)]
    (folder / "patients.csv").write_text("\n".join(["image,patient", *lines]) + "\n")
    changed = {
        **settings_of(weights),
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
    others = {"peak", "random_weights", "pixels", "nuisances", "shuffled_measure", "beyond_nuisances"}
    assert {*table(workdir, "contrasts")["against"]} == others
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
        if len(others) > (len(layers.loc[concept]) - 1) / 2:
            assert [str(len(others))] == re.findall(r"\d+(?= of)", headline["note"])
        else:
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
    layers = tables["layers"].query("concept == 'log_scale' and image_class == @CLASSES[1]")
    (best,) = (x for x in page.findings if x.at.startswith(places[2] + " ") and "logarithm" in x.quantity)
    assert best.level == "result"
    assert best.value == pytest.approx(layers["r2"].max())


def test_there_is_one_caution_for_each_kind(weighed):
    settings, tables = runner.read(weighed[1])
    tables["layers"] = tables["layers"].assign(low=-0.25, high=0.9, p_family=0.5, groups=12, images=40)
    tables["contrasts"] = tables["contrasts"].assign(difference=0.0625, low=-0.125, high=0.25)
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
        "number of images": 40,
        "best layer less that of a control": 0.0625,
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
