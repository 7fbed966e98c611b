"""Tables on disk come back as they were; every bad line is named at once."""

from typing import NamedTuple

import pytest

from scalecov_jax.tables import read_table, write_table


class Row(NamedTuple):
    name: str
    count: int
    share: float
    kept: bool
    alpha: float | None


ROWS = [
    Row("a, b", 3, 0.1 + 0.2, True, None),
    Row('quote "x"\nnew line', -1, 1e-300, False, 2.5),
    Row("", 0, 0.0, True, 1.0),
]


def test_round_trip(tmp_path):
    path = tmp_path / "rows.csv"
    write_table(path, Row, ROWS)
    assert read_table(path, Row) == ROWS
    assert not list(tmp_path.glob("*.partial"))


def test_every_bad_line_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    header = "name,count,share,kept,alpha\n"
    path.write_text(
        header + "a,1,0.5,True,\na,x,0.5,True,\na,1,nan,True,\na,1,0.5,yes,\na,1,0.5,True\na,1,inf,True,1\n"
    )
    with pytest.raises(ValueError, match=r"lines \[3, 4, 5, 6, 7\] \(5 in all\) hold no valid Row"):
        read_table(path, Row)
    path.write_text("name,number\n")
    with pytest.raises(ValueError, match="expected the header name,count,share,kept,alpha, got name,number"):
        read_table(path, Row)
    path.write_text("")
    with pytest.raises(ValueError, match="got nothing"):
        read_table(path, Row)
