"""Figures from tables: the alt text says what the table holds, and the same table gives the same bytes."""

import numpy as np
import pandas as pd
import pytest

from scalecov_jax.report.numbers import interval, number, percent, signed
from scalecov_jax.report.plots import median_split, predicted_against_true, r2_by_layer


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
    assert images[0] == images[1]
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
