"""The three models on tiny networks: where they are cut, heads on frozen features, nested choice of the cut, tests."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import RidgeCV
from sklearn.metrics import cohen_kappa_score
from sklearn.preprocessing import StandardScaler
from tiny_network import random_network

from scalecov_jax.cutting import pruned_network
from scalecov_jax.images.example import Example
from scalecov_jax.images.patches import Patches
from scalecov_jax.probes.evaluate import ALPHAS
from scalecov_jax.probes.splits import grouped_splits
from scalecov_jax.transfer import comparison, results
from scalecov_jax.transfer.comparison import Prediction
from scalecov_jax.transfer.fine_tuning import Recipe

pytestmark = pytest.mark.usefixtures("quick_compilation")

MEANS = {10.0: 60.0, 20.0: 220.0, 40.0: 900.0}


class Rendered(Patches):
    """Patches that are made up: noise whose brightness falls with the area."""

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        image = rng.integers(0, max(2, int(256 - self.area[index] / 8)), (32, 32, 3))
        return Example(image.astype(np.uint8), None, None, None, str(self.group[index]), str(index))


def patches(groups=8, each=9, seed=0):
    rng = np.random.default_rng(seed)
    group = np.repeat([f"g{i}" for i in range(groups)], each)
    magnification = np.tile(list(MEANS), groups * each // 3)
    area = np.array([MEANS[m] for m in magnification]) * np.exp(0.2 * rng.normal(size=len(group)))
    return Rendered((), area, magnification, group, group, ())


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
    train = grouped_splits(data.group, 2, 0, classes=data.magnification)
    recipe = Recipe(1, 8, 1e-3, "standardised", "running")

    def tuned():
        return list(
            comparison.fine_tuned(
                random_network(width=2.0),
                "tiny",
                data,
                train,
                ["block_1"] * 2,
                [0, 1],
                Path(tmp_path),
                size=32,
                recipe=recipe,
            )
        )

    first = tuned()
    assert [(one.model, one.layer, one.weights, one.seed) for one in first] == [
        (model, layer, weights, seed)
        for seed in (0, 1)
        for model, layer, weights in (
            ("whole", "avg_pool", "tiny"),
            ("pruned", "block_1", "tiny"),
            ("scratch", "avg_pool", "random (tiny)"),
        )
    ]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("predictions.npz")}
    assert len(times) == 6
    for one, other in zip(first, tuned(), strict=True):
        np.testing.assert_array_equal(one.area, other.area)
        assert one.curve == other.curve
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("predictions.npz")}


@pytest.fixture(scope="module")
def features():
    """The area is linear in the middle layer, noisy in the others."""
    data, rng = patches(), np.random.default_rng(1)
    noise = {
        name: rng.normal(size=(len(data), 6)).astype(np.float32) for name in ("early", "middle", "whole")
    }
    for name, size in (("early", 3.0), ("middle", 0.05), ("whole", 1.0)):
        noise[name][:, 0] = data.area / 300 + size * rng.normal(size=len(data))
    return data, noise


def test_the_cut_is_chosen_on_the_training_part_alone(features):
    data, values = features
    train = grouped_splits(data.group, 3, 0, classes=data.magnification)
    chosen = comparison.select_cuts(values, data, train, [0, 1, 2], splits=2)
    assert chosen == ("middle",) * 3
    # Nothing outside the training part of the first seed may change its choice.
    spoilt = {name: np.where(train[0][:, None], v, 1e3 * np.sign(v)) for name, v in values.items()}
    area = np.where(train[0], data.area, 1e4)
    moved = dataclasses.replace(data, area=area)
    assert comparison.select_cuts(spoilt, moved, train[:1], [0], splits=2) == ("middle",)
    swapped = {name: values[name].copy() for name in values}
    swapped["early"][~train[0]], swapped["middle"][~train[0]] = (
        values["middle"][~train[0]],
        values["early"][~train[0]],
    )
    assert comparison.select_cuts(swapped, data, train[:1], [0], splits=2) == ("middle",)


def test_ridge_heads_predict_as_scikit_learn(features):
    data, values = features
    train = grouped_splits(data.group, 2, 0, classes=data.magnification)
    solved = comparison.heads_compared(
        "tiny",
        "w",
        {"trained": values, "random_weights": values},
        data,
        train,
        ["middle", "early"],
        [5, 6],
        epochs=2,
        batch_size=16,
        learning_rate=1e-2,
    )
    assert len(solved.predictions) == 2 * 2 * 3
    for one in solved.predictions:
        assert one.layer == {"whole": "whole", "scratch": "whole"}.get(one.model, solved.layers[one.seed - 5])
        mask = train[one.seed - 5]
        np.testing.assert_array_equal(one.test, np.flatnonzero(~mask))
        if one.trainable == "ridge":
            x = StandardScaler().fit_transform(values[one.layer].astype(float))
            model = RidgeCV(ALPHAS).fit(x[mask], data.area[mask])
            np.testing.assert_allclose(one.area, model.predict(x[~mask]), rtol=1e-7)


def made_up(data, train, shift):
    """Predictions whose error is known: the pruned network errs less by `shift` px."""
    rng = np.random.default_rng(2)
    made = []
    for seed, mask in train.items():
        test = np.flatnonzero(~mask)
        sign = rng.choice([-1.0, 1.0], len(test))
        for model, error in (("whole", 50.0 + seed), ("pruned", 50.0 - shift), ("scratch", 90.0)):
            area = data.area[test] + error * sign
            made.append(Prediction("tiny", "w", model, "l", "ridge", seed, test, area))
    return made


def test_evaluation_and_tests_equal_scikit_learn_and_scipy():
    data = patches(groups=12)
    seeds = range(6)
    train = dict(zip(seeds, grouped_splits(data.group, 6, 0, classes=data.magnification), strict=True))
    evaluated = results.evaluate_predictions(made_up(data, train, 8.0), data, train)
    for one, rows in evaluated:
        error = np.abs(one.area - data.area[one.test])
        assert rows[0].mae == pytest.approx(error.mean())
        means = np.array([data.area[train[one.seed] & (data.magnification == m)].mean() for m in MEANS])
        predicted = np.abs(one.area[:, None] - means[None]).argmin(1)
        true = np.searchsorted(list(MEANS), data.magnification[one.test])
        assert rows[0].kappa == pytest.approx(cohen_kappa_score(true, predicted))
        assert rows[0].kappa_quadratic == pytest.approx(
            cohen_kappa_score(true, predicted, weights="quadratic")
        )
        assert sum(row.n for row in rows[1:]) == rows[0].n == len(one.test)
    rows = results.outcomes(evaluated)
    assert len(rows) == 6 * 3 * 4
    compared = results.adjust(results.compare_models(evaluated, data, "w"))
    by = {(one.base, one.metric): one for one in compared}
    mae = by["whole", "mae"]
    totals = {
        model: np.array([one.rows[0].mae for one in evaluated if one.prediction.model == model])
        for model in comparison.MODELS
    }
    assert mae.p == pytest.approx(stats.wilcoxon(totals["pruned"], totals["whole"], method="exact").pvalue)
    assert (mae.wins, mae.seeds, mae.smallest_p) == (6, 6, 2 / 2**6)
    assert mae.difference == pytest.approx(-8 - 2.5)
    assert mae.low <= mae.difference <= mae.high
    assert mae.high < 0
    family = sorted(by["whole", metric].p for metric in ("mae", "kappa"))
    assert min(by["whole", metric].p_holm for metric in ("mae", "kappa")) == pytest.approx(2 * family[0])
    assert by["whole", "kappa_quadratic"].p_holm is None
    assert by["scratch", "mae"].base_mean == pytest.approx(90.0)


def test_sweep_scores_are_errors_of_the_held_out_part():
    data = patches()
    train = dict(enumerate(grouped_splits(data.group, 2, 0, classes=data.magnification)))
    predicted = {"a": np.tile(data.area + 10, (2, 1)), "b": np.where([*train.values()], 1e9, data.area - 3)}
    scores = results.sweep_scores("w", "trained", "ridge", predicted, data, train)
    assert [(one.layer, one.seed) for one in scores] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert [one.mae for one in scores] == pytest.approx([10, 10, 3, 3])
    assert [one.macro_mae for one in scores] == pytest.approx([10, 10, 3, 3])
