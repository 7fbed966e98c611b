"""Table 2 beside ours, from the files of a finished transfer."""

import json

import pytest

from scalecov_jax.report.published_transfer import compare, sections
from scalecov_jax.tables import write_table
from scalecov_jax.transfer.results import Comparison, SweepScore


def spread(mean, sd):
    return {"mean": mean, "sd": sd}


@pytest.fixture
def folder(tmp_path):
    def model(mae, kappa):
        return {"ridge": {"mae": spread(mae, 5.0), "kappa": spread(kappa, 0.05)}, "head": {}}

    network = {
        "architecture": "resnet50",
        "models": {
            "whole": model(100.0, 0.5),
            "pruned": model(80.5, 0.55),
            "scratch": model(150.0, None),
        },
        "layers": {"0": "add_9", "1": "add_9", "2": "add_15"},
        "costs": {"whole": {"parameters": 200, "flops": 1}, "pruned": {"parameters": 150, "flops": 1}},
    }
    patches = {"count": 1234, "groups": 17}
    (tmp_path / "summary.json").write_text(
        json.dumps({"networks": {"net": network, "other": {"architecture": "tiny"}}, "patches": patches})
    )
    one = Comparison(
        "net", "ridge", "mae", "whole", 100.0, 5.0, 80.5, 5.0, -19.5, -30.0, -2.0, 9, 10, 0.0059, 0.0117, 0.002
    )  # fmt: skip
    write_table(tmp_path / "comparisons.csv", Comparison, [one, one._replace(trainable="head")])
    rows = [SweepScore("net", "trained", "ridge", "add_15", seed, 90.0 + seed, 1.0) for seed in range(3)]
    rows += [row._replace(condition="random_weights", mae=1e3) for row in rows]
    write_table(tmp_path / "sweep.csv", SweepScore, rows)
    return tmp_path


def test_rows(folder):
    rows = {row.quantity: row for row in compare(folder)}
    whole = rows["ResNet50, whole: MAE, px"]
    assert whole[2:5] == ("70.08 ± 12.49", "100 ± 5.00", "29.92")
    assert "ridge on frozen features, 1,234 patches of 17 source images" in whole.explanation
    pruned = rows["ResNet50, pruned (published cut add_15, here mostly add_9): κ"]
    assert pruned[2:5] == ("0.623 ± 0.040", "0.550 ± 0.050", "−0.073")
    assert rows["ResNet50, from scratch: MAE, px"].ours == "150 ± 5.00"
    assert "ResNet50, from scratch: κ" not in rows  # undefined here
    gain = rows["ResNet50: pruned − whole, MAE (px)"]
    assert gain.published == "−15.32"
    assert gain.difference == "−4.18"
    assert "leaves out 0; exact Wilcoxon p 0.0059, Holm 0.0117; better in 9 of 10 seeds" in gain.explanation
    assert rows["ResNet50, cut at the published layer add_15: MAE (px)"].ours == "91.00"
    assert rows["ResNet50: parameters removed by the cut (%)"][2:5] == ("19", "25.00", "6.00")


def test_an_interval_across_zero_is_named(folder):
    (one, _) = [
        Comparison("net", "ridge", "mae", "whole", 1, 1, 1, 1, 0.5, -3.0, 4.0, 5, 10, 0.9, 1.0, 0.002)
    ] * 2
    write_table(folder / "comparisons.csv", Comparison, [one])
    gain = next(row for row in compare(folder) if row.quantity.endswith("pruned − whole, MAE (px)"))
    assert "does not leave out 0" in gain.explanation


def test_without_a_sweep_that_row_is_absent(folder):
    (folder / "sweep.csv").unlink()
    assert not [row for row in compare(folder) if "published layer" in row.quantity]


def test_the_figures_of_the_transfer_are_shown(folder):
    (folder / "figures").mkdir()
    for stem in ("net-sweep", "net-ridge-magnification", "net-head-whole-confusion"):
        (folder / "figures" / f"{stem}.svg").write_bytes(b"<svg></svg>")
    (section,) = sections(folder)
    assert [image.caption for image in section.images] == [
        "net-ridge: MAE by magnification.",
        "net: MAE by the layer of the cut, random weights beside trained ones.",
    ]
