"""Tables on disk come back as they were; every bad cell of a file is named at once."""

from typing import Literal, NamedTuple

import pytest

from scalecov_jax.tables import read_table, write_table


class Row(NamedTuple):
    name: str
    kind: Literal["ridge", "ols"]
    count: int
    share: float
    kept: bool
    alpha: float | None


HEADER = "name,kind,count,share,kept,alpha"
GOOD = "a,ridge,1,0.5,True,"
ROWS = [
    Row("a, b", "ridge", 3, 0.1 + 0.2, True, None),
    Row('quote "x"\nnew line', "ols", -1, 1e-300, False, 2.5),
    Row("größe", "ols", 0, -0.0, True, 1 / 3),
    Row("", "ols", 10**12, -1234567.891, True, 1.0),
    Row("NA", "ols", 0, 1e-17, True, 1.0),
]


def write(tmp_path, *lines):
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_round_trip_is_exact(tmp_path):
    path = tmp_path / "rows.csv"
    write_table(path, Row, iter(ROWS))
    rows = read_table(path, Row)
    assert rows == ROWS
    assert [[*map(type, row)] for row in rows] == [[*map(type, row)] for row in ROWS]
    assert path.read_bytes().decode().split("\n")[:2] == [HEADER, '"a, b",ridge,3,0.30000000000000004,True,']
    assert not list(tmp_path.glob("*.partial*"))
    write_table(path, Row, [])
    assert read_table(path, Row) == []


@pytest.mark.parametrize(
    ("lines", "got"),
    [
        ([HEADER.replace("share", "Share"), GOOD], "got name,kind,count,Share,"),
        ([HEADER.removesuffix(",alpha"), GOOD], r"got name,kind,count,share,kept\.$"),
        ([HEADER + ",extra,more", GOOD], "alpha,extra"),
        ([GOOD], "got a,ridge,1"),
        ([], "got nothing"),
    ],
)
def test_another_header_is_refused(tmp_path, lines, got):
    path = write(tmp_path, *lines)
    with pytest.raises(ValueError, match=got) as error:
        read_table(path, Row)
    assert f"{path}: expected the header {HEADER}" in str(error.value)
    path.write_text("")
    with pytest.raises(ValueError, match="got nothing"):
        read_table(path, Row)


BAD = {
    GOOD.replace("ridge", "rigde"): "kind is 'rigde' in {}, expected one of ridge, ols",
    GOOD.replace("1,", "x,"): "count is 'x' in {}, expected an integer",
    GOOD.replace("1,", "1.5,"): "count is '1.5' in {}, expected an integer",
    GOOD.replace("0.5", "nan"): "share is 'nan' in {}, expected a finite number",
    GOOD.replace("0.5", "-inf"): "share is '-inf' in {}, expected a finite number",
    GOOD.replace("0.5", ""): "share is '' in {}, expected a finite number",
    GOOD.replace("True", "yes"): "kept is 'yes' in {}, expected True or False",
    GOOD + "ten": "alpha is 'ten' in {}, expected a finite number or nothing",
    GOOD + ",": "not 6 cells in {}",
    GOOD + ",7,8,9": "not 6 cells in {}",
    GOOD.removesuffix(","): "not 6 cells in {}",
    "": "not 6 cells in {}",
}


@pytest.mark.parametrize("bad", BAD)
def test_a_line_that_is_no_row_is_named(tmp_path, bad):
    path = write(tmp_path, HEADER, GOOD, bad, GOOD)
    with pytest.raises(ValueError, match="lines") as error:
        read_table(path, Row)
    assert str(error.value) == f"{path}: {BAD[bad].format('lines [3] (1 in all)')}."


def test_all_bad_lines_are_named_together(tmp_path):
    path = write(tmp_path, HEADER, GOOD, *BAD, *[GOOD.replace("0.5", "low")] * 10)
    with pytest.raises(ValueError, match="lines") as error:
        read_table(path, Row)
    for problem in (
        "not 6 cells in lines [11, 12, 13, 14] (4 in all)",
        "kind is 'rigde' in lines [3] (1 in all)",
        "count is 'x', '1.5' in lines [4, 5] (2 in all)",
        "share is 'nan', '-inf', '', 'low' in lines [6, 7, 8, 15, 16, 17, 18, 19, 20, 21] (13 in all)",
        "kept is 'yes' in lines [9] (1 in all)",
    ):
        assert problem in str(error.value)
