"""The one reader of CSV files that a researcher brings, and how their lines find their images."""

import csv
import io
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path, PurePosixPath

import pandas as pd
from absl import logging

from scalecov_jax.imaging.decoding import SUFFIXES
from scalecov_jax.imaging.image_set import listed

NAMES = (
    "image", "file", "filename", "file_name", "name", "image_id", "image_name", "image name", "image_path", "path", "id_code",
)  # fmt: skip
_SEPARATORS = (",", ";", "\t")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")


def read_csv(path: str | Path) -> pd.DataFrame:
    """Read a table of text: one header line, cells without blanks around them, indexed by the line in the file.

    UTF-8 with or without a byte order mark; separated by commas, semicolons or tabs, whichever the header has most of. In tables
    separated by semicolons or tabs the numbers of a column may have decimal commas. Columns without a name stay only if they hold
    anything.

    Raises:
        ValueError: No such file, another encoding, a quotation mark that is not closed, columns of one name, lines longer than
            the header; names the file, and all such lines.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        near = get_close_matches(path.name, [one.name for one in path.parent.glob("*.[cCtT][sS][vV]")], n=1)
        hint = f"; did you mean {near[0]}?" if near else "; expected a CSV file with one line per image."
        raise ValueError(f"{path}: no such file{hint}")
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content:
        raise ValueError(f"{path}: not UTF-8 (UTF-16, or no text); save it as CSV UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}: line {line} is not UTF-8 (Latin-1?); save it as CSV UTF-8.") from None
    header = text.split("\n", 1)[0]
    separator = max(_SEPARATORS, key=header.count)
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    lines, start, rows = [], 1, []
    try:
        for row in reader:
            lines.append(start)
            rows.append([cell.strip() for cell in row])
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}: line {start} cannot be read ({error}); is a quotation mark left open?"
        ) from None
    columns = rows[0] if rows else []
    body = [(line, row) for line, row in zip(lines[1:], rows[1:], strict=True) if any(row)]
    problems = [
        f"line {line} has {len(row)} cells"
        for line, row in body
        if len(row) > len(columns) and any(row[len(columns) :])
    ]
    twice = [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]
    problems += [f"{columns.count(name)} columns are called {name!r}" for name in twice]
    if problems:
        raise ValueError(
            f"{path}: {listed(problems)}; expected {len(columns)} cells per line, in columns of different names."
        )
    padded = [(row + [""] * len(columns))[: len(columns)] for _, row in body]
    table = pd.DataFrame(padded, index=[line for line, _ in body], columns=columns, dtype=object)
    table = table.loc[
        :, [bool(name) or bool((table.iloc[:, at] != "").any()) for at, name in enumerate(columns)]
    ]
    if separator != ",":
        for name in {*table} - {""}:
            filled = table[name][table[name] != ""]
            if (
                len(filled)
                and filled.str.fullmatch(_DECIMAL_COMMA).any()
                and filled.str.fullmatch(r"[+-]?[0-9]+(,[0-9]+)?").all()
            ):
                say(f"{path}: the commas of column {name!r} are read as decimal points.")
                table[name] = table[name].str.replace(",", ".")
    table.attrs["path"] = str(path)
    return table


def find_column(table: pd.DataFrame, *names: str) -> str | None:
    """The column of one of these names, in this order; else of one that differs in case and blanks alone."""
    plain = {_plain(column): column for column in reversed([*table.columns])}
    for name in names:
        if name in table:
            return name
    return next((plain[_plain(name)] for name in names if _plain(name) in plain), None)


def required_column(table: pd.DataFrame, *names: str) -> str:
    """Likewise.

    Raises:
        ValueError: There is none; names the file and the columns it has.
    """
    found = find_column(table, *names)
    if found is None:
        near = get_close_matches(names[0], [*filter(None, table.columns)], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(
            f"{table.attrs['path']}: no column {' or '.join(map(repr, names))}{hint} The columns are "
            f"{', '.join(filter(None, table.columns)) or 'none'}."
        )
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", unicodedata.normalize("NFC", name).strip().casefold())


def name_column(table: pd.DataFrame) -> str:
    """The column that names the images: one of `NAMES`, else the first whose cells end like image files, else the first of text.

    Never a column of numbers under another name, such as the row number that pandas writes.

    Raises:
        ValueError: There is none.
    """
    found = find_column(table, *NAMES)
    if found is not None:
        return found
    texts = [one for one in table.columns if one and not table[one].str.fullmatch(_NUMBER).all()]
    files = [one for one in texts if any(_suffix(cell) for cell in table[one])]
    if not texts:
        raise ValueError(
            f"{table.attrs['path']}: no column names the images; expected one called {', '.join(NAMES)}. The columns are "
            f"{', '.join(filter(None, table.columns)) or 'none'}."
        )
    return (files or texts)[0]


def finder(table: pd.DataFrame) -> Callable[[str], tuple[list[int], list[int]]]:
    """From the name of an image to the lines that belong to it, and the lines that could.

    A line belongs to an image if both names are equal; else if they end alike, folder by folder as far as both have folders, the
    extensions of image files left aside: 7.png and a/7 belong to a/7.png, but b/7.png does not. Separators of Windows and normal
    forms of Unicode make no difference.
    """
    by_name: dict[str, list[tuple[int, tuple[str, ...], str]]] = defaultdict(list)
    for line, name in table[name_column(table)].items():
        if name:
            parts = _parts(name)
            by_name[parts[-1]].append((line, parts, _text(name)))  # pyright: ignore[reportArgumentType]

    def find(name: str) -> tuple[list[int], list[int]]:
        parts = _parts(name)
        alike = [row for row in by_name.get(parts[-1], []) if _end_alike(row[1], parts)]
        could = [line for line, _, _ in alike]
        return [line for line, _, text in alike if text == _text(name)] or could, could

    return find


def join(table: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """Which line of a table belongs to each image, see `finder`; how many images have one, and by which column, is logged.

    Args:
        table: See `read_csv`.
        names: Of the images.

    Returns:
        Line numbers by the place of the image; images without a line are absent.

    Raises:
        ValueError: No image has a line, images have several, or a line several images; says which.
    """
    column, path, find = name_column(table), table.attrs["path"], finder(table)
    found = {place: lines for place, name in enumerate(names) if (lines := find(name))[0]}
    places: dict[int, list[int]] = defaultdict(list)
    for place, (lines, _) in found.items():
        places[lines[0]].append(place)
    problems = []
    for line, of in places.items():
        # A name that is one image's own does not mean others of that name in folders below.
        exact = [place for place in of if _text(names[place]) == _text(str(table.at[line, column]))]
        if len(of) > 1 and len(exact) != 1:
            problems.append(f"line {line} names {' and '.join(names[place] for place in of[:3])}")
        for place in {*of} - {*exact} if exact else ():
            del found[place]
    for place, (lines, could) in found.items():
        if len(every := sorted({*lines, *({*could} - {*places})})) > 1:
            problems.append(f"{names[place]} is named in lines {', '.join(map(str, every))}")
    if problems:
        raise ValueError(f"{path}: expected one line per image: {listed(problems)}.")
    if not found:
        raise ValueError(
            f"{path}: column {column!r} names none of the {len(names)} images, such as {', '.join([*names][:2])}; it begins with "
            f"{', '.join(map(repr, table[column][:2])) or 'nothing'}."
        )
    lines = pd.Series({place: lines[0] for place, (lines, _) in found.items()}, dtype=int)
    unused = len(table) - lines.nunique()
    say(
        f"{path}: column {column!r} names {len(lines)} of {len(names)} images; {unused} of its {len(table)} lines name none."
    )
    return lines


@cache
def say(text: str) -> None:
    """Log a sentence once, though the same files are read several times."""
    logging.info("%s", text)


def texts(path: str | Path, column: str, names: Sequence[str]) -> pd.Series:
    """The cells of a column by the place of the image; images without a line, or whose cell says nothing, are absent.

    Raises:
        ValueError: See `read_csv`, `required_column` and `join`.
    """
    table = read_csv(path)
    cells = table[required_column(table, column)]
    found = join(table, names).map(cells)
    return found[[not absent(one) for one in found]]


def absent(text: object) -> bool:
    """Whether a cell says nothing: empty, or as programs write what is missing."""
    return not isinstance(text, str) or text.casefold() in ("", "nan", "na", "n/a", "none", "null")


def number(text: str) -> float:
    """A finite number, as people write it in tables: digits with a decimal point and perhaps an exponent.

    Raises:
        ValueError: Anything else, such as 1_3, inf, 3 %, or a comma, which may stand for thousands or decimals.
    """
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        hint = ", with a decimal point and no commas" if "," in text else ""
        raise ValueError(f"{text!r}; expected a number{hint}")
    return float(text)


def same_file(first: str, second: str) -> bool:
    """Whether two names can be of one image, as in `join`."""
    return _end_alike(_parts(first), _parts(second))


def _text(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip().replace("\\", "/"))


def _suffix(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return suffix if suffix.casefold() in SUFFIXES else ""


def _parts(name: str) -> tuple[str, ...]:
    path = PurePosixPath(_text(name))
    return (path.with_suffix("") if _suffix(path.name) else path).parts or (name,)


def _end_alike(first: Iterable[str], second: Iterable[str]) -> bool:
    pairs: Iterator[tuple[str, str]] = zip(reversed([*first]), reversed([*second]), strict=False)
    return all(one == other for one, other in pairs)
