"""Intervals cover and tests reject as often as they say, in the simulated images of benchmarks/coverage.py; run with -m slow."""

import importlib.util
from pathlib import Path

import pytest
from scipy import stats

pytestmark = pytest.mark.slow

_spec = importlib.util.spec_from_file_location(
    "coverage_benchmark", Path(__file__).parents[1] / "benchmarks" / "coverage.py"
)
benchmark = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(benchmark)


@pytest.fixture
def simulate(tmp_path):
    """Cells of a study by (design, quantity, method)."""

    def run(study, images, width, replicates):
        path = tmp_path / "replicates.csv"
        benchmark.run([benchmark.Task(study, images, width, one) for one in range(replicates)], path)
        cells = benchmark.summarise(benchmark.read(path))
        return {(cell.design, cell.quantity, cell.method): cell for cell in cells}

    return run


def assert_share(cell, low, high):
    """The share of intervals that cover, or of tests that reject, is not significantly (1 %) outside."""
    share = cell.covers if cell.covers == cell.covers else cell.expected
    count = round(share * cell.replicates)
    assert stats.binomtest(count, cell.replicates, low, "less").pvalue > 0.01, (cell, low)
    assert stats.binomtest(count, cell.replicates, high, "greater").pvalue > 0.01, (cell, high)


@pytest.mark.parametrize(
    ("images", "width", "replicates"), [(50, 64, 400), (50, 2048, 400), (500, 64, 120), (500, 2048, 120)]
)
def test_intervals_of_r2_cover(simulate, images, width, replicates):
    cells = simulate("single", images, width, replicates)
    assert_share(cells["leading", "r2", "jackknife"], 0.93, 0.97)
    assert_share(cells["heavy", "r2", "jackknife"], 0.93, 0.97)


def test_intervals_of_differences_and_of_the_nested_r2_cover(simulate):
    cells = simulate("five", 100, 512, 400)
    for design in ("equal", "close", "clear"):
        assert_share(cells[design, "nested", "jackknife"], 0.93, 0.97)
        assert_share(cells[design, "peak set", "holds the best"], 0.95, 1)
    for design in ("equal", "close"):
        assert_share(cells[design, "difference", "jackknife"], 0.93, 0.97)


def test_intervals_over_patients_cover_where_those_over_images_do_not(simulate):
    cells = simulate("grouped", 100, 512, 300)
    assert_share(cells["leading", "r2", "jackknife"], 0.93, 0.97)
    assert cells["leading", "r2", "jackknife over images"].covers < 0.93


@pytest.mark.parametrize(("images", "replicates"), [(50, 2000), (500, 400)])
def test_permutation_tests_reject_one_null_in_twenty(simulate, images, replicates):
    for (_, _, method), cell in simulate("tests", images, 0, replicates).items():
        if method != "any of the three":
            assert_share(cell, 0.04, 0.06)


def test_permutations_of_patients_reject_one_null_in_twenty(simulate):
    for (_, _, method), cell in simulate("patients", 50, 0, 1000).items():
        if method != "any of the three":
            assert_share(cell, 0.04, 0.06)


def test_patients_that_are_not_told_make_everything_significant(simulate):
    assert min(cell.expected for cell in simulate("untold", 50, 0, 30).values()) > 0.9
