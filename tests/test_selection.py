"""The layer that scores select."""

import numpy as np
import pandas as pd
import pytest

from scalecov_jax.selection import Selected, interpolates, select_layer, select_layers

LAYERS = ("early", "middle", "late")


def table(r2, estimator="ridge", condition="trained", image_class="car"):
    """Scores from {layer: [R2 of each split]}."""
    rows = [(layer, split, value) for layer, values in r2.items() for split, value in enumerate(values)]
    names = {"condition": condition, "image_class": image_class, "estimator": estimator}
    return pd.DataFrame(rows, columns=["layer", "split", "r2"]).assign(**names)


# One far negative split: the mean R2 of "late" drowns (-1.1), while its mean of exp(R2 - 1) is the highest.
DROWNED = {"early": [0.1, 0.1, 0.1], "middle": [0.4, 0.4, 0.4], "late": [0.9, 0.9, -5.1]}


def test_published_rule_for_ols_and_mean_for_ridge():
    assert np.exp(np.array(DROWNED["late"]) - 1).mean() > np.exp(0.4 - 1)
    ols = select_layer(table(DROWNED, "ols"), LAYERS, "ols")
    assert ols == Selected(
        "ols", "late", pytest.approx(-1.1), pytest.approx(np.std([0.9, 0.9, -5.1], ddof=1))
    )
    assert select_layer(table(DROWNED), LAYERS, "ridge") == Selected(
        "ridge", "middle", pytest.approx(0.4), pytest.approx(0.0)
    )


def test_mean_and_sd_are_over_classes_and_splits():
    both = (
        table({"early": [0.2, 0.4], "late": [0.1, 0.1]}),
        table({"early": [0.6, 0.8], "late": [0.1, 0.2]}, image_class="cat"),
    )
    scores = pd.concat(both)
    selected = select_layer(scores, ("early", "late"), "ridge")
    assert selected.layer == "early"
    assert selected.r2_mean == pytest.approx(0.5)
    assert selected.r2_sd == pytest.approx(np.std([0.2, 0.4, 0.6, 0.8], ddof=1))


def test_of_equal_layers_the_first_wins():
    for estimator in ("ols", "ridge"):
        scores = table({"middle": [0.5, 0.5], "late": [0.5, 0.5], "early": [0.4, 0.4]}, estimator)
        assert select_layer(scores, LAYERS, estimator).layer == "middle"
        assert select_layer(scores, ("late", "middle", "early"), estimator).layer == "late"


def test_one_split_has_no_spread():
    assert select_layer(table({"early": [0.5]}), ("early",), "ridge") == Selected("ridge", "early", 0.5, 0.0)


def test_only_scores_of_the_trained_network_and_the_estimator_count():
    scores = table(DROWNED)
    others = [
        table({"early": [0.99, 0.99]}, condition="random_weights"),
        table({"early": [0.99, 0.99]}, condition="shuffled_measure"),
        table({"early": [0.99, 0.99]}, "ols"),
        table({"no candidate": [0.99, 0.99]}),
    ]
    every = pd.concat([scores, *others])
    assert select_layer(every, LAYERS, "ridge") == select_layer(scores, LAYERS, "ridge")


def test_order_of_scores_does_not_matter():
    scores = pd.concat([table(DROWNED), table(DROWNED, "ols")])
    assert [(one.estimator, one.layer) for one in select_layers(scores[::-1], LAYERS)] == [
        ("ols", "late"),
        ("ridge", "middle"),
    ]


def test_layers_without_a_score_are_named():
    random = table({layer: [0.5] for layer in LAYERS}, condition="random_weights")
    scores = pd.concat([table({"middle": [0.5]}), random])
    with pytest.raises(ValueError, match="No ridge score of the trained network at early, late"):
        select_layer(scores, LAYERS, "ridge")
    with pytest.raises(ValueError, match="No ols score"):
        select_layers(scores, ("middle",))


def test_interpolates_where_width_is_near_the_number_of_images():
    assert [interpolates(ratio) for ratio in (0.1, 0.5, 0.51, 1.0, 1.99, 2.0, 10.0)] == [
        *(False, False),
        *(True, True, True),
        *(False, False),
    ]
