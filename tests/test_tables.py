"""docs/tables.md names every file and column that the experiments write."""

import re
from pathlib import Path

import pandas as pd
import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "tables.md").read_text()
GOLDEN = Path(__file__).parent / "golden"
WRITTEN = {str(path.relative_to(GOLDEN)).removesuffix(".gz"): path for path in GOLDEN.rglob("*.csv*")}
FILES = dict(re.findall(r"^### (\S+\.csv)\n(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL))
COMMON = {*re.findall(r"`(\w+)`", "".join(re.findall(r"^\| `.*? \|", TEXT, re.MULTILINE)))}
COLUMNS = {file: re.findall(r"^    (.+)$", text, re.MULTILINE)[0].split(", ") for file, text in FILES.items()}


@pytest.mark.parametrize("file", WRITTEN)
def test_the_columns_of_a_file_are_those_of_the_document(file):
    own = [name for name in COLUMNS if file.endswith(name)] or [
        name for name in COLUMNS if Path(name).name == Path(file).name
    ]
    assert [*pd.read_csv(WRITTEN[file], nrows=0)] in [COLUMNS[name] for name in own]


@pytest.mark.parametrize("file", FILES)
def test_every_column_is_explained(file):
    explained = {*re.findall(r"`(\w+)`", "".join(re.findall(r"^- (?:.+\n?)+", FILES[file], re.MULTILINE)))}
    assert {*COLUMNS[file]} <= explained | COMMON


def test_every_file_of_the_document_is_written():
    assert [file for file in FILES if not any(name.endswith(file) for name in WRITTEN)] == []
