"""scores.csv: what is written is read, and what is no score is named."""

import pytest

from scalecov_jax.scores import CONDITIONS, ESTIMATORS, Score, read_scores, write_scores

HEADER = "architecture,weights,condition,concept,image_class,layer,split,estimator,alpha,r2"
GOOD = "resnet50,keras,trained,scale,car,add_15,0,ridge,10.0,0.5"
SCORES = [
    Score("net", "w", condition, "scale", "car", f"layer_{split}", split, estimator, alpha, r2)
    for condition in CONDITIONS
    for estimator, alpha in zip(ESTIMATORS, (None, 0.1 + 0.2), strict=True)
    for split, r2 in enumerate((1 / 3, -1234567.891, 1e-17, -0.0, 1.0))
]


def write(tmp_path, *lines):
    path = tmp_path / "scores.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_round_trip_is_exact(tmp_path):
    path = tmp_path / "scores.csv"
    write_scores(path, iter(SCORES))
    assert read_scores(path) == SCORES
    first, *rows = path.read_bytes().decode().split("\n")
    assert first == HEADER
    assert rows[0] == "net,w,trained,scale,car,layer_0,0,ols,,0.3333333333333333"
    assert rows[-1] == ""
    assert len(rows) == len(SCORES) + 1


def test_names_with_commas_quotes_and_line_ends_survive(tmp_path):
    odd = [SCORES[0]._replace(weights='a,b "c"\nd', image_class="", layer="größe")]
    write_scores(tmp_path / "scores.csv", odd)
    assert read_scores(tmp_path / "scores.csv") == odd


def test_no_scores(tmp_path):
    write_scores(tmp_path / "scores.csv", [])
    assert read_scores(tmp_path / "scores.csv") == []


@pytest.mark.parametrize(
    ("lines", "got"),
    [
        ([HEADER.replace("r2", "R2"), GOOD], "alpha,R2"),
        ([HEADER.removesuffix(",r2"), GOOD], "alpha\\.$"),
        ([HEADER + ",extra", GOOD], "extra"),
        ([GOOD], "got resnet50"),
        ([], "got "),
    ],
)
def test_another_header_is_refused(tmp_path, lines, got):
    path = write(tmp_path, *lines)
    with pytest.raises(ValueError, match=got) as error:
        read_scores(path)
    assert f"{path}: expected the header {HEADER}" in str(error.value)
    path.write_text("")
    with pytest.raises(ValueError, match="got nothing"):
        read_scores(path)


BAD = [
    GOOD.replace("trained", "train"),
    GOOD.replace("ridge", ""),
    GOOD.replace("0.5", "nan"),
    GOOD.replace("0.5", "-inf"),
    GOOD.replace("0.5", "high"),
    GOOD.replace("0.5", ""),
    GOOD.replace("10.0", "ten"),
    GOOD.replace(",0,", ",0.5,"),
    GOOD + ",7",
    GOOD.removesuffix(",0.5"),
    "",
]


@pytest.mark.parametrize("bad", BAD)
def test_a_row_that_is_no_score_is_named(tmp_path, bad):
    path = write(tmp_path, HEADER, GOOD, bad, GOOD)
    with pytest.raises(ValueError, match=r"lines \[3\] \(1 in all\)") as error:
        read_scores(path)
    assert str(path) in str(error.value)


def test_all_bad_rows_are_named_together(tmp_path):
    with pytest.raises(ValueError, match=r"lines \[2, 4, 5, 6, 7, 8, 9, 10, 11, 12\] \(11 in all\)"):
        read_scores(write(tmp_path, HEADER, BAD[0], GOOD, *BAD[1:]))
