"""MAE and kappa against scikit-learn; transfer.csv: what is written is read, and what is no outcome is named."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, mean_absolute_error

from scalecov_jax.concepts.nuclei import PUBLISHED_MEANS, nearest_class
from scalecov_jax.transfer.metrics import (
    Measured,
    Outcome,
    cohen_kappa,
    evaluate,
    macro_mae,
    read_outcomes,
    write_outcomes,
)

MEANS = dict(PUBLISHED_MEANS)


def simulated(seed, n, noise, present=tuple(MEANS)):
    rng = np.random.default_rng(seed)
    magnification = rng.choice(present, n)
    true = np.array([MEANS[one] for one in magnification]) * rng.uniform(0.8, 1.2, n)
    return true, true * np.exp(noise * rng.standard_normal(n)), magnification


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("present", [tuple(MEANS), (5.0, 40.0), (8.0, 10.0, 30.0)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_against_scikit_learn(noise, present, dtype):
    true, predicted, magnification = (
        one.astype(dtype) for one in simulated(int(noise * 10), 300, noise, present)
    )
    total, *parts = evaluate(true, predicted, magnification, MEANS)
    assert total[:2] == (None, 300)
    assert total.mae == pytest.approx(mean_absolute_error(true, predicted), rel=1e-6, abs=1e-12)
    nearest = nearest_class(predicted, MEANS)
    for kappa, weights in ((total.kappa, None), (total.kappa_quadratic, "quadratic")):
        expected = cohen_kappa_score(
            magnification.astype(str), nearest.astype(str), labels=[str(m) for m in MEANS], weights=weights
        )
        assert kappa == pytest.approx(expected, abs=1e-12)
    assert [part.magnification for part in parts] == sorted(present)
    for part in parts:
        mine = magnification == part.magnification
        assert part.n == mine.sum()
        assert part.mae == pytest.approx(
            mean_absolute_error(true[mine], predicted[mine]), rel=1e-6, abs=1e-12
        )
        assert part.kappa is part.kappa_quadratic is None


@pytest.mark.parametrize("seed", range(20))
def test_kappa_of_any_confusion(seed):
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 8))
    true, predicted = rng.integers(0, classes, (2, int(rng.integers(2, 40))))
    if len({*true, *predicted}) == 1:
        true[0] = 1 - true[0].clip(0, 1)
    labels = range(classes)
    assert cohen_kappa(true, predicted, classes) == pytest.approx(
        cohen_kappa_score(true, predicted, labels=labels), abs=1e-12
    )
    assert cohen_kappa(true, predicted, classes, quadratic=True) == pytest.approx(
        cohen_kappa_score(true, predicted, labels=labels, weights="quadratic"), abs=1e-12
    )


def test_kappa_by_hand():
    true = np.repeat([0, 0, 1, 1], [20, 5, 10, 15])
    predicted = np.repeat([0, 1, 0, 1], [20, 5, 10, 15])
    assert cohen_kappa(true, predicted, 2) == pytest.approx(0.4)
    assert cohen_kappa(np.array([0, 1]), np.array([1, 0]), 2) == -1
    assert cohen_kappa(np.array([0, 3]), np.array([0, 3]), 4) == 1


def test_undefined_kappa_is_none():
    same = np.full(5, 3)
    assert cohen_kappa(same, same, 7) is None
    assert cohen_kappa(same, same, 7, quadratic=True) is None
    assert cohen_kappa(same[:0], same[:0], 7) is None
    assert cohen_kappa(same, same - 1, 7) == 0


def test_kappa_of_unknown_classes_is_refused():
    with pytest.raises(ValueError, match=r"Classes \[-1, 7\] were given; expected 0 to 6"):
        cohen_kappa(np.array([0, 7]), np.array([-1, 3]), 7)


def test_one_magnification_has_no_kappa():
    true, predicted, magnification = simulated(0, 40, 1.0, (10.0,))
    total, part = evaluate(true, predicted, magnification, MEANS)
    assert total == (None, 40, part.mae, None, None)
    assert part.magnification == 10


def test_constant_predictions_have_kappa_zero():
    true, predicted, magnification = simulated(1, 100, 0.1)
    total = evaluate(true, np.full_like(predicted, 100.0), magnification, MEANS)[0]
    assert total.kappa == pytest.approx(0, abs=1e-12)
    assert total.kappa_quadratic == pytest.approx(0, abs=1e-12)


def test_values_that_are_not_finite_are_named_together():
    true, predicted, magnification = simulated(2, 30, 0.1)
    true[4], predicted[:12] = np.nan, np.inf
    with pytest.raises(ValueError, match="Not finite") as error:
        evaluate(true, predicted, magnification, MEANS)
    assert "1 of 30 true areas at [4]; 12 of 30 predicted areas at [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]." in str(
        error.value
    )


def test_magnifications_without_a_mean_are_named():
    true, predicted, magnification = simulated(3, 30, 0.1)
    magnification[:2] = 7.5, 60
    with pytest.raises(ValueError, match=r"magnifications 7\.5, 60; there are 5, 8, 10, 15, 20, 30, 40\."):
        evaluate(true, predicted, magnification, MEANS)
    with pytest.raises(ValueError, match="there are none"):
        evaluate(true, predicted, magnification, {})
    with pytest.raises(ValueError, match="no patches"):
        evaluate(true[:0], predicted[:0], magnification[:0], MEANS)


def test_macro_mae_weighs_magnifications_equally():
    rows = [
        Measured(None, 3, 99.0, 0.5, 0.5),
        Measured(5, 2, 1.0, None, None),
        Measured(40, 1, 4.0, None, None),
    ]
    assert macro_mae(rows) == 2.5
    assert macro_mae(Outcome("net", "w", "add_15", "all", 1, *row) for row in rows) == 2.5
    with pytest.raises(ValueError, match="got none"):
        macro_mae(rows[:1])
    with pytest.raises(ValueError, match="got 5, 40, 40"):
        macro_mae([*rows, rows[-1]])


HEADER = "architecture,weights,layer,trainable,seed,magnification,n,mae,kappa,kappa_quadratic"
GOOD = "resnet50,keras,add_15,all,1001,7.5,30,54.5,,"
TOTAL = "resnet50,keras,add_15,all,1001,all,90,54.5,0.5,-0.25"
OUTCOMES = [
    Outcome("net", "w", "add_15", trainable, seed, magnification, 10, 1 / 3 + abs(seed), kappa, kappa)
    for trainable in ("all", "head")
    for seed in (0, 1001, -3)
    for magnification, kappa in ((None, 0.1 + 0.2), (None, -1.0), (5.0, None), (7.5, None), (40.0, None))
]


def write(tmp_path, *lines):
    path = tmp_path / "transfer.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_round_trip_is_exact(tmp_path):
    path = tmp_path / "transfer.csv"
    write_outcomes(path, iter(OUTCOMES))
    assert read_outcomes(path) == OUTCOMES
    first, *rows = path.read_bytes().decode().split("\n")
    assert first == HEADER
    assert rows[0] == "net,w,add_15,all,0,all,10,0.3333333333333333,0.30000000000000004,0.30000000000000004"
    assert [row.split(",")[5] for row in rows[2:5]] == ["5", "7.5", "40"]
    assert rows[2].endswith(",0.3333333333333333,,")
    write_outcomes(path, [])
    assert read_outcomes(path) == []


def test_names_with_commas_quotes_and_line_ends_survive(tmp_path):
    odd = [OUTCOMES[0]._replace(weights='a,b "c"\nd', layer="größe")]
    write_outcomes(tmp_path / "transfer.csv", odd)
    assert read_outcomes(tmp_path / "transfer.csv") == odd


@pytest.mark.parametrize(
    "lines", [[HEADER.replace("mae", "MAE"), GOOD], [HEADER + ",extra", GOOD], [GOOD], []]
)
def test_another_header_is_refused(tmp_path, lines):
    path = write(tmp_path, *lines)
    with pytest.raises(ValueError, match="expected the header") as error:
        read_outcomes(path)
    assert f"{path}: expected the header {HEADER}, got " in str(error.value)
    path.write_text("")
    with pytest.raises(ValueError, match="got nothing"):
        read_outcomes(path)


BAD = [
    GOOD.replace("1001", "one"),
    GOOD.replace("7.5", ""),
    GOOD.replace("7.5", "total"),
    GOOD.replace("7.5", "nan"),
    GOOD.replace("7.5", "-5"),
    GOOD.replace(",30,", ",0,"),
    GOOD.replace(",30,", ",3.5,"),
    GOOD.replace("54.5", "nan"),
    GOOD.replace("54.5", "-1"),
    GOOD.replace("54.5", ""),
    TOTAL.replace("0.5,", "nan,"),
    TOTAL.replace("-0.25", "1.5"),
    GOOD + ",7",
    GOOD.removesuffix(","),
    "resnet50",
    "",
]


@pytest.mark.parametrize("bad", BAD)
def test_a_row_that_is_no_outcome_is_named(tmp_path, bad):
    path = write(tmp_path, HEADER, GOOD, bad, TOTAL)
    with pytest.raises(ValueError, match=r"lines \[3\] \(1 in all\)") as error:
        read_outcomes(path)
    assert str(path) in str(error.value)


def test_all_bad_rows_are_named_together(tmp_path):
    with pytest.raises(ValueError, match=r"lines \[2, 4, 5, 6, 7, 8, 9, 10, 11, 12\] \(16 in all\)"):
        read_outcomes(write(tmp_path, HEADER, BAD[0], GOOD, *BAD[1:]))
