"""What the README shows is run from its own text."""

import re
from pathlib import Path

import numpy as np

from scalecov_jax.concepts.measure import MEASURES
from scalecov_jax.models.architecture import ARCHITECTURES

README = Path(__file__).parents[1] / "README.md"


def test_custom_concept_probe_and_architecture(monkeypatch, capsys):
    """One after the other: probe and architecture go on with what came before."""
    monkeypatch.chdir(README.parent)
    for registry, name in ((MEASURES, "warmth"), (ARCHITECTURES, "small")):
        monkeypatch.setitem(registry, name, None)  # gone after the test
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 4
    for code in blocks:
        exec(compile(code, README.name, "exec"), names)
        (expected,) = re.findall(r"# \[(.*?)\]", code)
        printed = np.array(capsys.readouterr().out.strip("[] \n").split(), float)
        np.testing.assert_allclose(printed, [float(value) for value in expected.split(",")], atol=0.05)


def test_files_and_headings_that_are_linked_exist():
    text = README.read_text()
    headings = [
        re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)", text, re.M)
    ]
    links = re.findall(r"\]\((?!http)(.*?)\)|src=\"(.*?)\"", text)
    assert len(links) >= 8
    for link in map("".join, links):
        file, _, heading = link.partition("#")
        assert (README.parent / file).exists(), link
        assert file or heading in headings, link
