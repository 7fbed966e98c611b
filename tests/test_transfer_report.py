"""What the report of the transfer says of made-up predictions: verdicts, cautions, published values, escaped names."""

import numpy as np
import pandas as pd
import pytest
from test_report import HOSTILE

from scalecov_jax.experiments.transfer import Settings
from scalecov_jax.experiments.transfer_report import NO_TEST, UNCUT, report, verdict
from scalecov_jax.imaging.image_set import ImageSet, Pixels
from scalecov_jax.imaging.patches import MAGNIFICATIONS
from scalecov_jax.report.page import render_report
from scalecov_jax.transfer import metrics

LAYERS = ("stem", "mixed0", "mixed1", "avg_pool")
NETWORKS = (("inception_v3", "tiny-inception"), ("resnet50", "tiny-resnet"))
ERRORS = {"whole": 0.5, "pruned": 0.3, "scratch": 0.8}  # as shares of the area


def made_up_patches(groups=8, names=None):
    rng = np.random.default_rng(0)
    magnification = np.tile(np.repeat(MAGNIFICATIONS, 3), groups)
    area = 0.55 * magnification**2 * rng.uniform(0.8, 1.2, len(magnification))
    group = np.repeat(names or [f"patient {index}" for index in range(groups)], 3 * len(MAGNIFICATIONS))
    known = {"name": group, "group": group, "area": area, "magnification": magnification}
    return ImageSet(pd.DataFrame(known), Pixels)


def parts(patches, seeds, fixed):
    groups, noticed = np.unique(patches.column("group")), {}
    for seed in range(seeds):
        held_out = np.random.default_rng(0 if fixed else seed).permutation(groups)[: len(groups) // 3 + 1]
        noticed[seed] = ~np.isin(patches.column("group"), held_out)
    return noticed


def tables_of(
    patches,
    seeds=4,
    errors=ERRORS,
    trained=("head", "ridge"),
    layers=None,
    fixed=False,
    repeat=False,
    networks=NETWORKS,
):
    """Tables of a run whose predictions err by a share of the area, other at every patch and seed."""
    train, layers = parts(patches, seeds, fixed), layers or dict.fromkeys(range(seeds), "mixed1")
    predictions, sweep, learning, models = [], [], [], []
    for architecture, weights in networks:
        for trainable in trained:
            for seed, mask in train.items():
                test = np.flatnonzero(~mask)
                for number, (model, share) in enumerate(errors.items()):
                    rng = np.random.default_rng((0 if repeat else seed, number, len(architecture)))
                    sizes = share * rng.uniform(0.9, 1.1, len(test)) * rng.choice([-1, 1], len(test))
                    last = layers[seed] if model == "pruned" else "avg_pool"
                    named = {"architecture": architecture, "weights": weights, "model": model, "layer": last}
                    area = patches.column("area")[test] * (1 + sizes)
                    predictions.append(
                        metrics.held_out(patches, mask, area, **named, trainable=trainable, seed=seed)
                    )
                    curve = {
                        "epoch": [1, 2, 3],
                        "mse": [2e4, 1e4, 2e4 / 3],
                        "mae": [90.0, 45.0 + seed, 30.0 + seed],
                    }
                    learning.append(pd.DataFrame({"weights": weights, "model": model, "seed": seed, **curve}))
        for condition in ("trained", "random_weights"):
            for head in ("ridge", "head"):
                worse = 0.01 * np.arange(seeds)[:, None] + (condition != "trained")
                values = {
                    layer: patches.column("area") * (1 + 0.1 * depth + worse)
                    for depth, layer in enumerate(LAYERS, 1)
                }
                named = {"weights": weights, "condition": condition, "head": head}
                sweep.append(metrics.layer_scores(values, patches, train, **named))
        for model, last, parameters in (("whole", "avg_pool", 23_000_000), ("pruned", layers[0], 9_200_000)):
            models.append((architecture, weights, model, last, parameters, parameters * 250.0))
    predictions = pd.concat(predictions, ignore_index=True)
    scores = metrics.scores(predictions, np.array(MAGNIFICATIONS))
    more = {"learning": learning} if "all" in trained else {"sweep": sweep}
    counts = [
        ("all", len(patches), 8, 100.0, 10.0),
        *((f"{m:g}", 24, 8, 0.55 * m**2, 1.0) for m in MAGNIFICATIONS),
    ]
    return {
        "comparisons": metrics.compare_models(predictions, scores),
        "predictions": predictions,
        "models": pd.DataFrame(
            models, columns=["architecture", "weights", "model", "layer", "parameters", "flops"]
        ),
        **{name: pd.concat(frames, ignore_index=True) for name, frames in more.items()},
        "magnifications": pd.DataFrame(counts, columns=["magnification", "patches", "sources", "area", "sd"]),
        "left_out": pd.DataFrame({"reason": ["no whole nucleus"], "number": [2], "example": [HOSTILE]}),
    }


@pytest.fixture(scope="module")
def patches():
    return made_up_patches()


@pytest.fixture(scope="module")
def tables(patches):
    return tables_of(patches)


@pytest.fixture(scope="module")
def page(tables):
    return report(Settings(title=HOSTILE), tables)


def headlines(tables, **settings):
    return [x for x in report(Settings(**settings), tables).findings if x.level == "headline"]


def cautions(tables, **settings):
    return {x.quantity: x for x in report(Settings(**settings), tables).findings if x.level == "caution"}


@pytest.mark.parametrize(("pruned", "expected"), [(0.3, -1), (0.7, 1), (0.5, 0)])
def test_verdict_follows_the_data(patches, pruned, expected):
    tables = tables_of(patches, 9, {**ERRORS, "pruned": pruned}, ("all",), networks=NETWORKS[:1])
    (headline,) = headlines(tables)
    row = tables["comparisons"].query("metric == 'mae' and base == 'whole'").iloc[0]
    assert verdict(row) == expected
    assert (headline.value, headline.low, headline.high) == (row["difference"], row["low"], row["high"])
    assert headline.note.startswith(
        {-1: "Cutting made it better.", 1: "Cutting made it worse.", 0: "No difference was shown."}[expected]
    )
    assert f"Better in {row['wins']} of 9 seeds, exact Wilcoxon p = {row['p']:.2g}" in headline.note
    assert headline.published == pytest.approx(54.93 - 81.85)
    assert headline.at == "InceptionV3 cut after mixed1"


def test_an_interval_around_0_or_a_large_p_shows_nothing(patches):
    row = tables_of(patches, 9, trained=("all",))["comparisons"].iloc[0]
    assert verdict(row) == -1
    for change in ({"high": 0.1}, {"p_holm": 0.05}, {"p_holm": np.nan}):
        assert verdict(pd.Series({**row, **change})) == 0
    assert (
        verdict(pd.Series({**row, "low": np.nan, "high": np.nan})) == -1
    )  # a single source image has no interval


def test_findings_carry_what_was_published(page, tables):
    findings = {(x.quantity, x.at): x for x in page.findings}
    totals = metrics.totals(metrics.scores(tables["predictions"], np.array(MAGNIFICATIONS)))
    for metric, name, model, value in (
        ("mae", "MAE, whole", "whole", 70.08),
        ("kappa", "κ, pruned", "pruned", 0.623),
        ("mae", "MAE, from scratch", "scratch", 95.66),
        ("kappa", "κ, from scratch", "scratch", None),
    ):
        ours = totals.query(f"weights == 'tiny-resnet' and trainable == 'ridge' and model == '{model}'")[
            metric
        ]
        finding = findings[f"{name}, ridge on frozen features", "ResNet50"]
        assert finding.value == pytest.approx(ours.mean())
        assert finding.high == pytest.approx(ours.mean() + ours.std())
        assert finding.published == value
    removed = findings["parameters removed by the cut", "ResNet50 cut after mixed1"]
    assert (removed.value, removed.published) == (pytest.approx(60), 19)
    assert removed.note.startswith("23,000,000 and 9,200,000 parameters")
    best = findings["least MAE of any layer, ridge, chosen on the held-out patches", "ResNet50 stem"]
    sweep = tables["sweep"].query("weights == 'tiny-resnet' and condition == 'trained' and head == 'ridge'")
    assert best.value == pytest.approx(sweep.groupby("layer")["mae"].mean()["stem"])


def test_the_published_layer_is_compared_where_it_was_measured(tables):
    sweep = tables["sweep"].assign(layer=tables["sweep"]["layer"].replace("mixed0", "mixed8"))
    findings = report(Settings(), {**tables, "sweep": sweep}).findings
    (there,) = (x for x in findings if "at the published layer" in x.quantity)
    assert (there.at, there.published) == ("InceptionV3 mixed8", 54.93)
    rows = sweep.query("weights == 'tiny-inception' and condition == 'trained' and head == 'ridge'")
    assert there.value == pytest.approx(rows.groupby("layer")["mae"].mean()["mixed8"])


def test_cautions_name_every_weakness(tables):
    noticed = cautions(tables)
    assert noticed["smallest Holm p that 4 seeds and 4 tests can reach"].value == 4 / 8
    assert noticed["source images ever held out"].value == tables["predictions"]["group"].nunique()
    overlap = noticed["overlap of held-out images of two seeds"]
    assert 0 < overlap.value < 100
    many = made_up_patches(60)
    nine = tables_of(many, 9, layers={seed: "mixed1" if seed else "mixed0" for seed in range(9)})
    noticed = cautions(nine)
    assert {*noticed} == {
        "most layers at which a network was cut",
        "overlap of held-out images of two seeds",
    }
    cut = noticed["most layers at which a network was cut"]
    assert cut.value == 2
    assert cut.at.startswith("InceptionV3 cut after mixed1 (8), mixed0 (1) of 9 seeds; ResNet50 cut")
    seven = cautions(tables_of(many, 7))
    assert seven["smallest Holm p that 7 seeds and 4 tests can reach"].value == 4 / 64


def test_one_split_is_no_test_of_new_images(patches):
    noticed = cautions(tables_of(patches, 9, fixed=True), fixed_split=True)
    assert {*noticed} == {"source images ever held out", "splits that the seeds share"}
    same = tables_of(patches, 9, fixed=True, repeat=True)
    assert same["comparisons"].empty
    assert [x.note for x in headlines(same)] == [NO_TEST] * 4
    repeated = cautions(same)["seeds with the same predictions for the same patches"]
    assert repeated.at.startswith("InceptionV3, ridge on frozen features; InceptionV3, head")


def test_nothing_to_cut_is_said(patches):
    last = tables_of(patches, layers=dict.fromkeys(range(4), "avg_pool"))
    assert [x.note for x in headlines(last)] == [UNCUT] * 4


def test_weights_of_one_architecture_are_told_apart(patches):
    both = tables_of(patches, networks=(NETWORKS[0], ("inception_v3", "other")))
    assert {x.at for x in headlines(both)} == {
        "InceptionV3 (tiny-inception) cut after mixed1",
        "InceptionV3 (other) cut after mixed1",
    }


def test_fine_tuning_shows_learning_curves_and_no_sweep(patches):
    page = report(Settings(trainable="all", batch_norm="recomputed"), tables_of(patches, 2, trained=("all",)))
    images = page.sections[0].images
    assert [x.name.removeprefix("tiny-inception-") for x in images] == [
        *("learning", "magnification", "predicted", "confusion")
    ]
    # sqrt(2e4 / 3), and the mean of 30 and 31.
    assert "training RMSE, whole: 141 at 1 to 81.65 at 3" in images[0].alt
    assert "held-out MAE, whole: 90.00 at 1 to 30.50 at 3" in images[0].alt
    assert "recomputed after the last epoch" in page.sections[0].html.replace("\n", " ")


def test_confusion_holds_the_nearest_magnifications(page, tables):
    pruned = tables["predictions"].query(
        "weights == 'tiny-inception' and trainable == 'ridge' and model == 'pruned'"
    )
    (image,) = (x for x in page.sections[0].images if x.name == "tiny-inception-confusion")
    for magnification, part in pruned.groupby("magnification"):
        right = 100 * (part["nearest"] == magnification).mean()
        cells = image.alt.split(f"pruned, {magnification:g}X: ")[1].split(";")[0]
        assert f"{magnification:g}X {right:.0f}" in cells


def test_everything_is_escaped(page):
    html = render_report(page.report({HOSTILE: HOSTILE}))
    assert "<script" not in html
    assert (
        "resnet50"
        not in report(Settings(), tables_of(made_up_patches(), networks=NETWORKS[:1]))
        .sections[0]
        .html.lower()
    )
