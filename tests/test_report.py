import re
from html.parser import HTMLParser

import matplotlib
import pandas as pd
import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

from scalecov_jax.report import page, plots, style

HOSTILE = "<script>alert('x')</script> & \"quoted\""
VOID = {"meta", "img", "br", "link", "hr", "input"}


def tiny_report(**changes):
    figure = Figure()
    figure.subplots().plot([0, 1], [0, 1])
    table = page.Table("Scores", ("layer", "R²"), [("stem", "0.20"), ("block2", "−5.49 ± 0.01")], strong=[1])
    report = page.Report(
        title="Where scale lives",
        answer="Object scale is best readable at block2.",
        warnings=["D is near n_train at block1"],
        skipped={"truncated file": ["a.jpg", "b.jpg"]},
        sections=[
            page.Section(
                "Images", "First.\n\nSecond.", [page.Image(style.render(figure, "svg"), "A line.")], [table]
            )
        ],
        provenance={"command": "scripts/probe.py --seed=0", "seed": "0", "config": "a: 1\nb: 2"},
    )
    return report._replace(**changes)


class Outline(HTMLParser):
    """Keeps tags, their attributes and the text; fails on tags that do not balance."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def outline():
    return Outline(page.render_report(tiny_report()))


def test_page_is_self_contained(outline):
    names = {name for name, _ in outline.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base"}
    for tag, attributes in outline.tags:
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in {"src", "href"} and tag != "a":
                assert value.startswith("data:image/")
    html = page.render_report(tiny_report())
    assert not re.search(r"url\(|@import", html)
    ids = {attributes["id"] for _, attributes in outline.tags if "id" in attributes}
    links = [attributes["href"] for attributes in outline.attributes("a")]
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    assert [link for link in links if not link.startswith("#")] == ["https://doi.org/10.3390/make3020019"]


def test_page_is_readable_by_all(outline):
    assert outline.attributes("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in outline.attributes("img"))
    assert len(outline.attributes("caption")) == len(outline.attributes("table")) == 1
    assert len(outline.attributes("h1")) == 1


def test_page_says_what_was_found(outline):
    for words in (
        "Object scale is best readable at block2.",
        "2 images skipped",
        "truncated file: 2",
        "b.jpg",
        "D is near n_train at block1",
        "First.",
        "scripts/probe.py --seed=0",
        "−5.49 ± 0.01",
    ):
        assert words in outline.words
    assert re.findall(r'<tr( class="peak")?><th scope="row">(\w+)', page.render_report(tiny_report())) == [
        ("", "stem"),
        (' class="peak"', "block2"),
    ]


def test_everything_is_escaped():
    image = page.Image(b"\xff\xd8jpeg", HOSTILE, HOSTILE)
    table = page.Table(HOSTILE, (HOSTILE,), [(HOSTILE,)])
    html = page.render_report(
        page.Report(
            title=HOSTILE,
            answer=HOSTILE,
            warnings=[HOSTILE],
            skipped={HOSTILE: [HOSTILE]},
            sections=[page.Section(HOSTILE, HOSTILE, [image], [table])],
            provenance={HOSTILE: HOSTILE},
            reading=Markup.escape(HOSTILE),
        )
    )
    assert "<script" not in html
    outline = Outline(html)
    assert outline.words.count(HOSTILE) >= 14
    assert [image["alt"] for image in outline.attributes("img")] == [HOSTILE]


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.001, "0.00"), (-3861.4, "−3,861"), (0.895, "0.90"), (None, "–"), (float("nan"), "–")],
)
def test_numbers_are_for_people(value, text):
    assert page.number(value) == text


def test_page_without_extras_is_well_formed():
    outline = Outline(page.render_report(page.Report("T", "A")))
    assert not re.search("skipped|Provenance", outline.words)


def test_an_image_of_unknown_kind_is_refused():
    section = page.Section("h", "t", [page.Image(b"GIF89a", "alt")])
    with pytest.raises(ValueError, match="SVG, PNG or JPEG"):
        page.render_report(tiny_report(sections=[section]))


def test_figures_are_the_same_bytes_twice_and_leave_the_global_style_alone():
    before = dict(matplotlib.rcParams)
    frame = pd.DataFrame({"label": ["a", "b"], "value": [1.0, 2.0], "low": [0.0, 1.0], "high": [2.0, 3.0]})
    first, second = (plots.bars(frame, x="x", name="n", caption="c") for _ in "12")
    assert first.content == second.content
    assert b"<dc:date>" not in first.content
    assert min(len(first.content), len(first.png)) > 1000
    assert dict(matplotlib.rcParams) == before


def test_of_many_layers_some_are_named():
    axes = Figure().subplots()
    style.name_layers(axes, [f"layer{at}" for at in range(60)])
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert 18 <= len(shown) <= style.MOST_NAMES
    assert "layer59" in shown
    assert [f"layer{at:.0f}" for at in axes.get_xticks()] == shown


def test_written_report_is_utf8(tmp_path):
    path = tmp_path / "report.html"
    page.write_report(path, tiny_report())
    assert "±" in path.read_text(encoding="utf-8")
