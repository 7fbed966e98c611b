"""MAE and kappa over magnifications against scikit-learn, and what has none."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score, mean_absolute_error

from scalecov_jax.concepts.nuclei import PUBLISHED_MEANS, nearest_class
from scalecov_jax.imaging.image_set import ImageSet, Pixels
from scalecov_jax.transfer.metrics import KEYS, held_out, scores, totals

MEANS = dict(PUBLISHED_MEANS)
CLASSES = sorted(MEANS)


def simulated(seed, n, noise, present=tuple(MEANS)):
    rng = np.random.default_rng(seed)
    magnification = rng.choice(present, n)
    true = np.array([MEANS[m] for m in magnification]) * rng.uniform(0.8, 1.2, n)
    return true, true * np.exp(noise * rng.standard_normal(n)), magnification


def predictions(true, predicted, magnification):
    nearest = nearest_class(predicted, MEANS)
    frame = {"magnification": magnification, "area": true, "predicted": predicted, "nearest": nearest}
    return pd.DataFrame(frame).assign(**dict.fromkeys(KEYS, "x"))


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("present", [tuple(MEANS), (5.0, 40.0), (8.0, 10.0, 30.0)])
def test_against_scikit_learn(noise, present):
    true, predicted, magnification = simulated(int(noise * 10), 300, noise, present)
    measured = scores(predictions(true, predicted, magnification), CLASSES)
    total, parts = measured.iloc[0], measured[1:]
    assert (total["magnification"], total["n"]) == ("all", 300)
    assert total["mae"] == pytest.approx(mean_absolute_error(true, predicted), rel=1e-12, abs=1e-12)
    nearest = nearest_class(predicted, MEANS)
    for kappa, weights in ((total["kappa"], None), (total["kappa_quadratic"], "quadratic")):
        expected = cohen_kappa_score(
            magnification.astype(str), nearest.astype(str), labels=[str(m) for m in MEANS], weights=weights
        )
        assert kappa == pytest.approx(expected, abs=1e-12)
    assert parts["magnification"].tolist() == [f"{m:g}" for m in sorted(present)]
    for _, part in parts.iterrows():
        mine = magnification == float(part["magnification"])
        assert part["n"] == mine.sum()
        assert part["mae"] == pytest.approx(
            mean_absolute_error(true[mine], predicted[mine]), rel=1e-12, abs=1e-12
        )
    assert parts[["kappa", "kappa_quadratic"]].isna().all(axis=None)
    macro = totals(measured)["macro_mae"].tolist()
    assert macro == pytest.approx([parts["mae"].mean()])  # every magnification counts alike


def test_one_magnification_has_no_kappa():
    measured = scores(predictions(*simulated(0, 40, 1.0, (10.0,))), CLASSES)
    assert measured["magnification"].tolist() == ["all", "10"]
    assert measured["mae"][0] == pytest.approx(measured["mae"][1])
    assert measured[["kappa", "kappa_quadratic"]].isna().all(axis=None)


def test_constant_predictions_have_kappa_zero():
    true, predicted, magnification = simulated(1, 100, 0.1)
    total = scores(predictions(true, np.full_like(predicted, 100.0), magnification), CLASSES).iloc[0]
    assert total["kappa"] == pytest.approx(0, abs=1e-12)
    assert total["kappa_quadratic"] == pytest.approx(0, abs=1e-12)


def test_held_out_patches_and_their_nearest_magnification():
    true, predicted, magnification = simulated(2, 60, 0.5, (5.0, 40.0))
    names, train = np.array([f"g{at}" for at in range(60)]), np.arange(60) % 3 > 0
    known = {"name": names, "group": names, "area": true, "magnification": magnification}
    data = ImageSet(pd.DataFrame(known), Pixels)
    measured = held_out(data, train, predicted[~train], model="whole", seed=3)
    assert [*measured] == ["model", "seed", "patch", "group", "magnification", "area", "predicted", "nearest"]
    assert measured["patch"].tolist() == np.flatnonzero(~train).tolist()
    means = [true[train & (magnification == m)].mean() for m in (5.0, 40.0)]
    nearest = np.abs(measured["predicted"].to_numpy()[:, None] - means).argmin(1)
    assert measured["nearest"].tolist() == np.array([5.0, 40.0])[nearest].tolist()
    with pytest.raises(ValueError, match="20 of 20 areas are not finite"):
        held_out(data, train, np.full(20, np.inf), model="whole")


def test_magnifications_that_are_no_class_are_named():
    true, predicted, magnification = simulated(3, 30, 0.1)
    magnification[:2] = 7.5, 60
    frame = predictions(true, predicted, magnification)
    with pytest.raises(
        ValueError, match=r"Magnifications 7\.5, 60 are none of the classes 5, 8, 10, 15, 20, 30, 40\."
    ):
        scores(frame, CLASSES)
    with pytest.raises(ValueError, match="no patches"):
        scores(frame[:0], CLASSES)
