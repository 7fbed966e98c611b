"""Tables that a researcher brings: encodings, separators, headers, numbers, and how lines find images."""

import unicodedata

import pytest

from scalecov_jax.concepts.csv_column import csv_column
from scalecov_jax.imaging.csv_file import join, name_column, number, read_csv, texts
from scalecov_jax.imaging.image_set import Example


def write(tmp_path, text, **options):
    path = tmp_path / "table.csv"
    path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text, **options)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "image,age\na.jpg,3\nb.jpg,4\n",
        "\ufeffimage,age\r\na.jpg,3\r\nb.jpg,4\r\n",
        "image;age\na.jpg;3\nb.jpg;4\n",
        " image \t age\na.jpg\t 3 \nb.jpg\t4",
        'image,age,\n\n"a.jpg","3",\n"b.jpg",4,\n,,\n',
        ",image,age\n7,a.jpg,3\n8,b.jpg,4\n",
    ],
)
def test_every_way_to_write_a_table(tmp_path, text):
    found = texts(write(tmp_path, text, encoding="utf-8", newline=""), "age", ["a.jpg", "b.jpg"])
    assert {**found} == {0: "3", 1: "4"}


def test_a_cell_of_any_length_and_over_lines(tmp_path):
    table = read_csv(write(tmp_path, f'image,note\n"a",{"x" * 200_000}\n"b","two\nlines"\nc,d\n'))
    assert [len(one) for one in table["note"]] == [200_000, 9, 1]
    assert [*table.index] == [2, 3, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,age\na,1\n".encode("utf-16"), "not UTF-8"),
        ("image,age\nb\xe4r,1\n".encode("latin-1"), "line 2 is not UTF-8"),
        ('image,age\na,"1\nb,2\n', "line 2 cannot be read"),
        ("image,age,age\na,1,2\n", "2 columns are called 'age'"),
        ("image,age\na,1,2,3\nb,1\nc,1,9\n", "line 2 has 4 cells; line 4 has 3 cells"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read_csv(write(tmp_path, text))
    assert "table.csv" in str(error.value)


def test_no_such_file_and_no_such_column(tmp_path):
    path = write(tmp_path, "image,Age at scan\na,1\n")
    with pytest.raises(ValueError, match=r"did you mean table\.csv"):
        read_csv(tmp_path / "tabel.csv")
    assert {**texts(path, "age_at scan", ["a"])} == {0: "1"}
    with pytest.raises(ValueError, match="no column 'Age at can'; did you mean 'Age at scan'"):
        texts(path, "Age at can", ["a"])


def test_row_numbers_are_never_names(tmp_path):
    rows = [3, 1, 2, 0]
    written = ",picture,age\n" + "".join(f"{row},{name}.jpg,{name}\n" for row, name in enumerate(rows))
    table = read_csv(write(tmp_path, written))
    assert name_column(table) == "picture"
    assert [table.at[line, "age"] for line in join(table, ["0.jpg", "1.jpg", "2.jpg", "3.jpg"])] == [
        "0",
        "1",
        "2",
        "3",
    ]
    with pytest.raises(ValueError, match="no column names the images"):
        name_column(read_csv(write(tmp_path, ",age\n0,1\n")))


def test_names_meet_by_their_ends(tmp_path):
    composed = unicodedata.normalize("NFC", "é")
    lines = [
        "D:\\study\\a\\1.png",
        "b/1",
        unicodedata.normalize("NFD", composed) + ".tif",
        "1.v2",
        "elsewhere.png",
    ]
    table = read_csv(write(tmp_path, "file\n" + "\n".join(lines), encoding="utf-8"))
    assert {**join(table, ["a/1.png", "b/1.jpg", composed + ".TIF", "1.v2.png", "2.png"])} == {
        0: 2,
        1: 3,
        2: 4,
        3: 5,
    }
    with pytest.raises(
        ValueError, match=r"names none of the 2 images, such as x\.png, y\.png; it begins with"
    ):
        join(table, ["x.png", "y.png"])


def test_a_line_is_of_one_image_and_an_image_of_one_line(tmp_path):
    table = read_csv(write(tmp_path, "image\n1.png\n2\n2.png\n"))
    assert {**join(table, ["1.png", "a/1.png"])} == {0: 2}
    with pytest.raises(
        ValueError, match=r"line 2 names a/1\.png and b/1\.png; 2\.jpg is named in lines 3, 4"
    ):
        join(table, ["a/1.png", "b/1.png", "2.jpg"])


def test_numbers_as_people_write_them():
    assert [number(text) for text in ("3", "-0.5", "+.5", "1e-3", "4.")] == [3, -0.5, 0.5, 0.001, 4]
    for text in ("1_3", "1,5", "1,000", "3 %", "", "nan", "inf", "1e999", "0x10", "٣"):
        with pytest.raises(ValueError, match="expected a number"):
            number(text)


def test_decimal_commas_where_they_cannot_be_anything_else(tmp_path):
    assert {**texts(write(tmp_path, "image;age\na;1,5\nb;2\n"), "age", "ab")} == {0: "1.5", 1: "2"}
    measure = csv_column(write(tmp_path, 'image,age\na,"1,5"\nb,2\n'), "age")
    with pytest.raises(ValueError, match=r"line 2 of .*table\.csv has age '1,5'; .*no commas"):
        measure(Example(None, None, None, None, "", "a"))
    assert measure(Example(None, None, None, None, "", "x/b.png")) == 2


def test_cells_that_say_nothing_are_absent(tmp_path):
    path = write(tmp_path, "image,patient\na,p\nb,\nc,NaN\nd,3.0\n")
    assert {**texts(path, "patient", "abcd")} == {0: "p", 3: "3.0"}
