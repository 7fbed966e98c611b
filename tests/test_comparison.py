"""The three models on tiny networks: where they are cut, heads on frozen features, nested choice of the cut, tests."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import RidgeCV
from sklearn.metrics import cohen_kappa_score
from sklearn.preprocessing import StandardScaler
from tiny_network import random_network

from scalecov_jax import api, checkpoints
from scalecov_jax import run as runner
from scalecov_jax.cutting import cut_checkpoint, pruned_network
from scalecov_jax.extraction import compute_features
from scalecov_jax.imaging.image_set import ImageSet, Pixels
from scalecov_jax.probes.evaluate import ALPHAS
from scalecov_jax.probes.splits import grouped_splits
from scalecov_jax.transfer import comparison, metrics
from scalecov_jax.transfer.fine_tuning import Recipe
from scalecov_jax.vectors import load_rcv, load_rcvs

pytestmark = pytest.mark.usefixtures("quick_compilation", "quick_scenes")

MEANS = {10.0: 60.0, 20.0: 220.0, 40.0: 900.0}


def patches(groups=8, each=9, seed=0):
    """Patches that are made up: noise whose brightness falls with the area."""
    rng = np.random.default_rng(seed)
    group = np.repeat([f"g{i}" for i in range(groups)], each)
    magnification = np.tile(list(MEANS), groups * each // 3)
    area = np.array([MEANS[m] for m in magnification]) * np.exp(0.2 * rng.normal(size=len(group)))

    def render(index):
        image = np.random.default_rng(index).integers(0, max(2, int(256 - area[index] / 8)), (32, 32, 3))
        return Pixels(image.astype(np.uint8))

    names = [str(index) for index in range(len(group))]
    known = {"name": names, "group": group, "area": area, "magnification": magnification}
    return ImageSet(pd.DataFrame(known), render)


def test_the_whole_network_ends_with_its_pooled_output_or_where_its_weights_end():
    network = random_network()
    assert comparison.whole_layer(network) == "avg_pool"
    assert comparison.cut_layers(network) == ("stem", "block_1", "block_2", "avg_pool")
    cut = pruned_network(network, "block_1")
    assert comparison.whole_layer(cut) == "block_1"
    assert comparison.cut_layers(cut) == ("stem", "block_1")


def test_starting_points():
    network = random_network(width=2.0)
    whole, pruned, scratch, again, other = (
        comparison.starting_point(network, model, "stem", seed)
        for model, seed in (("whole", 0), ("pruned", 0), ("scratch", 1), ("scratch", 1), ("scratch", 2))
    )
    assert [one.module.last for one in (whole, pruned, scratch)] == ["avg_pool", "stem", "avg_pool"]
    assert set(pruned.variables["params"]) == {"stem"}
    kernel = [one.variables["params"]["block_1"]["kernel"] for one in (network, whole, scratch, again, other)]
    np.testing.assert_array_equal(kernel[0], kernel[1])
    np.testing.assert_array_equal(kernel[2], kernel[3])
    assert not np.allclose(kernel[0], kernel[2])
    assert not np.allclose(kernel[2], kernel[4])


def test_fine_tuning_of_all_models_is_read_back_once_finished(tmp_path):
    data = patches()
    train = dict(enumerate(grouped_splits(data.column("group"), 2, 0, classes=data.column("magnification"))))
    recipe = Recipe(1, 8, 1e-3, "standardised", "running")

    def tuned():
        layers = dict.fromkeys(train, "block_1")
        return comparison.fine_tuned(
            random_network(width=2.0), "tiny", data, train, layers, Path(tmp_path), size=32, recipe=recipe
        )

    predictions, learning = tuned()
    models = predictions[["model", "layer", "weights", "seed"]].drop_duplicates()
    assert [*models.itertuples(index=False, name=None)] == [
        (model, layer, "tiny", seed)
        for seed in (0, 1)
        for model, layer in (("whole", "avg_pool"), ("pruned", "block_1"), ("scratch", "avg_pool"))
    ]
    assert len(learning) == 6
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("predictions.npz")}
    assert len(times) == 6
    for first, again in zip((predictions, learning), tuned(), strict=True):
        pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("predictions.npz")}


@pytest.mark.parametrize("preprocessing", [None, "raw"])
def test_saved_networks_and_heads_predict_what_was_reported(tmp_path, preprocessing):
    data = patches()
    train = dict(enumerate(grouped_splits(data.column("group"), 1, 0, classes=data.column("magnification"))))
    options = {
        "size": 32,
        "recipe": Recipe(2, 8, 3e-3, "standardised", "recomputed"),
        "preprocessing": preprocessing,
    }
    start = random_network(width=2.0)
    predictions, _ = comparison.fine_tuned(start, "tiny", data, train, {0: "block_1"}, tmp_path, **options)
    for (model, layer), rows in predictions.groupby(["model", "layer"]):
        network = checkpoints.load(tmp_path / f"tiny-{model}-0" / "network")
        head = load_rcv(tmp_path / f"tiny-{model}-0" / "head.npz")
        found = compute_features(network, data.take(rows["patch"].to_numpy()), (layer,), size=32)
        np.testing.assert_allclose(head.predict(found), rows["predicted"], rtol=1e-4)
        spread = rows["area"] - rows["area"].mean()
        error = (rows["area"] - rows["predicted"]) ** 2
        assert head.r2 == pytest.approx(1 - error.sum() / (spread**2).sum())
    # The pruned one is explained by command, probed, and cut again.
    folder = tmp_path / "tiny-pruned-0"
    network = checkpoints.load(folder / "network")
    given = {"weights": str(folder / "network"), "rcvs": str(folder / "head.npz"), "method": "grad_cam"}
    given |= {"target": "rcv:nucleus_area@block_1", "layer": "block_1", "size": 32, "scenes": 4, "shown": 2}
    given |= {"image_class": "striped_disc", "randomisation": False}
    runner.run("explain", given, tmp_path / "explained", command=["explain.py"])
    assert len(runner.read(tmp_path / "explained")[1]["maps"]) == 4
    probed = api.probe(
        network,
        data,
        "mean_luminance",
        layers=("block_1",),
        splits=3,
        permutations=0,
        random_control=False,
        size=32,
    )
    assert [*probed.table()["layer"]] == ["block_1"]
    cut_checkpoint(str(folder / "network"), str(tmp_path / "cut"), "stem", None)
    assert checkpoints.load(tmp_path / "cut").card.preprocessing == (
        preprocessing or start.card.preprocessing
    )


@pytest.fixture(scope="module")
def features():
    """The area is linear in the middle layer, noisy in the others."""
    data, rng = patches(), np.random.default_rng(1)
    noise = {
        name: rng.normal(size=(len(data), 6)).astype(np.float32) for name in ("early", "middle", "whole")
    }
    for name, size in (("early", 3.0), ("middle", 0.05), ("whole", 1.0)):
        noise[name][:, 0] = data.column("area") / 300 + size * rng.normal(size=len(data))
    return data, noise


def test_the_cut_is_chosen_on_the_training_part_alone(features):
    data, values = features
    train = dict(enumerate(grouped_splits(data.column("group"), 3, 0, classes=data.column("magnification"))))
    first = {0: train[0]}
    assert comparison.select_cuts(values, data, train, splits=2) == dict.fromkeys(range(3), "middle")
    # Nothing outside the training part of the first seed may change its choice.
    spoilt = {name: np.where(train[0][:, None], v, 1e3 * np.sign(v)) for name, v in values.items()}
    area = np.where(train[0], data.column("area"), 1e4)
    moved = data.assign(area=area)
    assert comparison.select_cuts(spoilt, moved, first, splits=2) == {0: "middle"}
    swapped = {name: values[name].copy() for name in values}
    swapped["early"][~train[0]], swapped["middle"][~train[0]] = (
        values["middle"][~train[0]],
        values["early"][~train[0]],
    )
    assert comparison.select_cuts(swapped, data, first, splits=2) == {0: "middle"}


def test_ridge_heads_predict_as_scikit_learn(features, tmp_path):
    data, values = features
    train = dict(
        zip(
            (5, 6),
            grouped_splits(data.column("group"), 2, 0, classes=data.column("magnification")),
            strict=True,
        )
    )
    layers = {5: "middle", 6: "early"}
    both = {"trained": values, "random_weights": values}
    named = {"architecture": "tiny", "weights": "w"}
    descent = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-2, "path": tmp_path / "heads.npz"}
    predictions, errors = comparison.heads_compared(both, data, train, layers, **named, **descent)
    assert len(errors) == 2 * 2 * 3 * 2
    saved = {(one.measure, one.layer): one for one in load_rcvs(tmp_path / "heads.npz")}
    groups = predictions.groupby(["trainable", "model", "seed"])
    assert groups.ngroups == 2 * 3 * 2
    for (trainable, model, seed), part in groups:
        layer, mask = layers[seed] if model == "pruned" else "whole", train[seed]
        assert {*part["layer"]} == {layer}
        np.testing.assert_array_equal(part["patch"], np.flatnonzero(~mask))
        head = saved[f"nucleus_area_{trainable}_{seed}", layer]
        np.testing.assert_allclose(head.predict(values[layer][~mask]), part["predicted"], rtol=1e-9)
        if trainable == "ridge":
            x = StandardScaler().fit_transform(values[layer].astype(float))
            fitted = RidgeCV(ALPHAS).fit(x[mask], data.column("area")[mask])
            np.testing.assert_allclose(part["predicted"], fitted.predict(x[~mask]), rtol=1e-7)


def made_up(data, train, shift):
    """Predictions whose error is known: the pruned network errs less by `shift` px."""
    rng = np.random.default_rng(2)
    made = []
    for seed, mask in train.items():
        sign = rng.choice([-1.0, 1.0], (~mask).sum())
        for model, error in (("whole", 50.0 + seed), ("pruned", 50.0 - shift), ("scratch", 90.0)):
            named = {
                "architecture": "tiny",
                "weights": "w",
                "model": model,
                "layer": "l",
                "trainable": "ridge",
            }
            made.append(
                metrics.held_out(data, mask, data.column("area")[~mask] + error * sign, **named, seed=seed)
            )
    return pd.concat(made, ignore_index=True)


def test_evaluation_and_tests_equal_scikit_learn_and_scipy():
    data = patches(groups=12)
    train = dict(enumerate(grouped_splits(data.column("group"), 6, 0, classes=data.column("magnification"))))
    predictions = made_up(data, train, 8.0)
    scores = metrics.scores(predictions, [*MEANS])
    assert len(scores) == 6 * 3 * 4
    of = scores.set_index(["model", "seed", "magnification"]).sort_index()
    for (model, seed), part in predictions.groupby(["model", "seed"]):
        total = of.loc[(model, seed, "all")]
        assert total["mae"] == pytest.approx((part["predicted"] - part["area"]).abs().mean())
        means = np.array(
            [data.column("area")[train[seed] & (data.column("magnification") == m)].mean() for m in MEANS]
        )
        nearest = np.abs(part["predicted"].to_numpy()[:, None] - means[None]).argmin(1)
        true = np.searchsorted(list(MEANS), part["magnification"])
        assert total["kappa"] == pytest.approx(cohen_kappa_score(true, nearest))
        assert total["kappa_quadratic"] == pytest.approx(
            cohen_kappa_score(true, nearest, weights="quadratic")
        )
        assert of.loc[(model, seed)]["n"].drop("all").sum() == total["n"] == len(part)
    compared = metrics.compare_models(predictions, scores).set_index(["base", "metric"])
    mae = compared.loc[("whole", "mae")]
    totals = scores[scores["magnification"] == "all"].pivot(index="seed", columns="model", values="mae")
    assert mae["p"] == pytest.approx(stats.wilcoxon(totals["pruned"], totals["whole"], method="exact").pvalue)
    assert (mae["wins"], mae["seeds"], mae["smallest_p"]) == (6, 6, 2 / 2**6)
    assert mae["difference"] == pytest.approx(-8 - 2.5)
    assert mae["low"] <= mae["difference"] <= mae["high"] < 0
    family = compared.loc["whole"].loc[["mae", "kappa"]]
    assert family["p_holm"].min() == pytest.approx(2 * family["p"].min())
    assert np.isnan(compared.loc[("whole", "kappa_quadratic"), "p_holm"])
    assert compared.loc[("scratch", "mae"), "base_mean"] == pytest.approx(90.0)


def test_other_patches_cannot_be_compared():
    data = patches(groups=12)
    train = dict(enumerate(grouped_splits(data.column("group"), 3, 0, classes=data.column("magnification"))))
    predictions = made_up(data, train, 8.0)
    with pytest.raises(ValueError, match="only on the same seeds and held-out patches"):
        metrics.compare_models(predictions[1:], metrics.scores(predictions[1:], [*MEANS]))


def test_layer_scores_are_errors_of_the_held_out_part():
    data = patches()
    train = dict(enumerate(grouped_splits(data.column("group"), 2, 0, classes=data.column("magnification"))))
    predicted = {
        "a": np.tile(data.column("area") + 10, (2, 1)),
        "b": np.where([*train.values()], 1e9, data.column("area") - 3),
    }
    scores = metrics.layer_scores(predicted, data, train, weights="w")
    assert [*zip(scores["layer"], scores["seed"], strict=True)] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    np.testing.assert_allclose(scores[["mae", "macro_mae"]], np.tile([[10], [10], [3], [3]], 2))
