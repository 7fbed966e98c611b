"""Figures from tables: the alt text says what the table holds, and the same table gives the same bytes."""

import numpy as np
import pandas as pd
import pytest

from scalecov_jax.report.numbers import interval, number, percent, signed
from scalecov_jax.report.plots import (
    bars,
    curves,
    image_grid,
    matrix,
    median_split,
    predicted_against_true,
    r2_by_layer,
)


def scores():
    rows = [("A", layer, at + split / 10) for at, layer in enumerate(("b", "a")) for split in range(5)]
    return pd.DataFrame([*rows, ("B", "a", -7.0)], columns=["series", "layer", "r2"])


def test_r2_by_layer():
    images = [
        r2_by_layer(
            scores(), ["b", "none", "a"], name="n", caption="c", blank=["none"], blank_label="undefined"
        )
        for _ in "12"
    ]
    assert images[0].content == images[1].content
    assert images[0].alt == "R² by layer, medians. A: b 0.20, a 1.20. B: a −7.00."
    assert (images[0].name, images[0].caption) == ("n", "c")
    assert images[0].content.startswith(b"<?xml")
    assert images[0].png.startswith(b"\x89PNG")


def predictions():
    rng = np.random.default_rng(0)
    split, true = np.repeat(np.arange(4), 6), np.tile(np.arange(6.0), 4)
    predicted = true + rng.normal(size=24) * (1 + split)
    return pd.DataFrame({"panel": "x", "split": split, "true": true, "predicted": predicted})


def test_median_split_is_the_lower_of_the_middle_two():
    frame = predictions()
    r2 = [
        1
        - ((part["true"] - part["predicted"]) ** 2).sum() / ((part["true"] - part["true"].mean()) ** 2).sum()
        for _, part in frame.groupby("split")
    ]
    split, value = median_split(frame)
    assert value == pytest.approx(sorted(r2)[1])
    assert r2[split] == pytest.approx(value)


def test_predicted_against_true():
    frame = predictions()
    image = predicted_against_true(
        frame, {"x": "GAP", "y": "max"}, unit="width (px)", name="n", caption="c", empty="undefined"
    )
    value = number(median_split(frame)[1])
    assert (
        image.alt
        == f"Predicted against true width (px) of held-out images. R² of the median split: GAP {value}, max no value."
    )
    assert image.png.startswith(b"\x89PNG")


def test_numbers():
    assert [number(x) for x in (None, float("nan"), -0.001, -1.234, 1234.5)] == [
        "–",
        "–",
        "0.00",
        "−1.23",
        "1,234",
    ]
    assert interval(0.5, -0.1, 1.0) == "0.50 (−0.10 to 1.00)"
    assert interval(0.5, None, 1.0) == "0.50"
    assert [percent(x) for x in (0.123, None)] == ["12 %", "–"]
    assert [signed(x) for x in (0.5, -0.5)] == ["+0.50", "−0.50"]


def test_curves_of_layers_and_of_numbers():
    frame = pd.DataFrame(
        [("p", "A", "b", 0.1), ("p", "A", "a", 0.5), ("p", "A", "c", -9.0), ("q", "B", "b", np.nan)],
        columns=["panel", "series", "x", "value"],
    )
    image = curves(
        frame, x="layer", y="R²", name="n", caption="c", order=["b", "a", "c"], limits=(-1.0, 1.0), lines={"chance": 0.2}
    )  # fmt: skip
    assert image.alt == "R² by layer. p, A: 0.10 at b to −9.00 at c; largest 0.50 at a."
    numbers = frame[:2].assign(x=[10.0, 100.0], low=0.0, high=0.6).drop(columns="panel")
    image = curves(numbers, x="px", y="MAE", name="n", caption="c", log="xy", shaded={"flat": (20.0, 50.0)})
    assert image.alt == "MAE by px. A: 0.10 at 10.0 to 0.50 at 100.0; largest 0.50 at 100.0."
    assert image.png.startswith(b"\x89PNG")
    hollow = [numbers.assign(hollow=values) for values in ([False, False], [True, False])]
    pictures = [
        curves(x, x="px", y="MAE", name="n", caption="c", marks={"trained": 30.0}).png for x in hollow
    ]
    assert pictures[0] != pictures[1]


def test_bars():
    rows = [("a", "A", 0.5, 0.2, 0.7), ("b", "A", -0.1, -0.3, 0.1), ("a", "B", np.nan, np.nan, np.nan)]
    frame = pd.DataFrame(rows, columns=["label", "series", "value", "low", "high"])
    image = bars(frame, x="Br", name="n", caption="c")
    assert image.alt == "Br: a, A 0.50 (0.20 to 0.70); b, A −0.10 (−0.30 to 0.10); a, B – (– to –)."
    assert image.content == bars(frame, x="Br", name="n", caption="c").content


def test_matrix_few_and_many_columns():
    few = pd.DataFrame([[0.1, 0.9], [np.nan, 1.0]], index=["cat", "dog"], columns=["x", "y"])
    image = matrix({"l": few}, rows="fitted to", columns="read in", name="n", caption="c", limits=(0.0, 1.0))
    assert image.alt == "fitted to by read in. l, cat: x 0.10, y 0.90; l, dog: x –, y 1.00."
    many = pd.DataFrame(np.eye(12))
    assert matrix({"": many}, rows="r", columns="c", name="n", caption="c", limits=(0.0, 1.0)).png


def test_image_grid():
    picture, heat = np.zeros((4, 5, 3), np.uint8), np.eye(3)
    rows = {"one": [("photo", picture), ("map", heat)], "two": [("photo", picture)]}
    image = image_grid(
        rows, alt="two rows", name="n", caption="c", scale=(0.0, 1.0, "inferno"), label="share"
    )
    assert image.alt == "two rows"
    assert image.png.startswith(b"\x89PNG")
