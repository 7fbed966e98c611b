"""What the README shows is run from its own text."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).parents[1] / "README.md"


def test_custom_concept_and_probe(monkeypatch, capsys):
    """One after the other: the probe goes on with the features of the concept."""
    monkeypatch.chdir(README.parent)
    names = {}
    for path in (README, README.parent / "docs/probes.md"):
        for code in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
            exec(compile(code, path.name, "exec"), names)
            (expected,) = re.findall(r"# \[(.*?)\]", code)
            printed = np.array(capsys.readouterr().out.strip("[] \n").split(), float)
            np.testing.assert_allclose(printed, [float(value) for value in expected.split(",")], atol=0.05)
            assert list(printed) == sorted(printed, reverse=True)


def test_files_that_are_linked_exist():
    links = re.findall(r"\]\((?!http)(.*?)\)|src=\"(.*?)\"", README.read_text())
    assert len(links) >= 8
    for link in map("".join, links):
        assert (README.parent / link).exists(), link
