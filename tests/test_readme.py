"""What the README shows is run from its own text."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).parents[1] / "README.md"


def test_custom_concept(monkeypatch, capsys):
    monkeypatch.chdir(README.parent)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    (expected,) = re.findall(r"# \[(.*?)\]", code)
    printed = np.array(capsys.readouterr().out.strip("[] \n").split(), float)
    np.testing.assert_allclose(printed, [float(value) for value in expected.split(",")], atol=0.05)
    assert list(printed) == sorted(printed, reverse=True)


def test_files_that_are_linked_exist():
    links = re.findall(r"\]\((?!http)(.*?)\)|src=\"(.*?)\"", README.read_text())
    assert len(links) >= 8
    for link in map("".join, links):
        assert (README.parent / link).exists(), link
