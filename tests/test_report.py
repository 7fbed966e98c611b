import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from scalecov_jax.report import figures, page, sketches, style
from scalecov_jax.scores import CONDITIONS, ESTIMATORS, Score

WIDTHS = {"stem": 4, "block1": 9, "block2": 24}
N_TRAIN = 8
MEANS = {"stem": 0.2, "block1": 0.5, "block2": 0.9}
HOSTILE = "<script>alert('x')</script> & \"quoted\""
VOID = {"meta", "img", "br", "link", "hr", "input"}


def tiny_scores(architecture="net", splits=3):
    scores = []
    for layer, mean in MEANS.items():
        for condition in CONDITIONS:
            for estimator in ESTIMATORS:
                for split in range(splits):
                    r2 = mean + 0.01 * split if condition == "trained" else -0.02 * split
                    if estimator == "ols" and layer == "block1":
                        r2 -= 6.0
                    alpha = 10.0**split if estimator == "ridge" else None
                    scores.append(
                        Score(
                            architecture, "w", condition, "scale", "car", layer, split, estimator, alpha, r2
                        )
                    )
    return scores


def tiny_report(**changes):
    scores = tiny_scores()
    selected = [page.Selected("ridge", "block2", 0.91, 0.01), page.Selected("ols", "block2", 0.9, 0.02)]
    pruning = page.Pruning("block2", 1000, 400, 0.0)
    result = page.ArchitectureResult(
        name="net",
        subtitle="11 car images",
        selected=selected,
        rows=page.layer_rows(scores, "net", WIDTHS, N_TRAIN),
        pruning=pruning,
        images=page.score_images(scores, "net", WIDTHS, N_TRAIN, selected),
    )
    report = page.Report(
        title="Where scale lives",
        answer=page.answer_sentence("Object scale", selected[0], 3, "11 car images", pruning),
        results=[result],
        warnings=["D is near n_train at block1"],
        skipped={"truncated file": ["a.jpg", "b.jpg"]},
        sections=[page.Section("Images", "First.\n\nSecond.")],
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
    text = outline.words
    expected = "Object scale is best readable at block2 (ridge R² 0.91 ± 0.01, 3 splits, 11 car images); "
    assert expected + "cutting there keeps 40 % of the parameters." in text
    for words in (
        "60.00 % removed",
        "1,000 → 400 parameters",
        "2 images skipped",
        "truncated file: 2",
        "b.jpg",
    ):
        assert words in text
    for words in (
        "D is near n_train at block1",
        "First.",
        "scripts/probe.py --seed=0",
        "best: ridge, least squares",
    ):
        assert words in text


def test_every_layer_has_a_row_and_the_selected_one_is_marked():
    html = page.render_report(tiny_report())
    rows = re.findall(r'<tr( class="peak")?><th scope="row">(\w+)', html)
    assert rows == [("", "stem"), ("", "block1"), (' class="peak"', "block2")]
    assert html.count('title="about as many independent features') == 1  # stem: 0.5, block1: 1.1, block2: 3
    assert "−5.49 ± 0.01" in html


def test_rows_summarise_the_scores():
    row = page.layer_rows(tiny_scores(), "net", WIDTHS, N_TRAIN)[2]
    assert (row.layer, row.width, row.ratio, row.alpha) == ("block2", 24, 3.0, 10.0)
    assert row.ridge == pytest.approx((0.91, 0.01))
    assert row.ridge_shuffled_measure == pytest.approx((-0.02, 0.02))
    empty = page.layer_rows(tiny_scores(), "other", WIDTHS, N_TRAIN)[0]
    assert (empty.ols, empty.ridge, empty.alpha) == (None, None, None)


def test_everything_is_escaped():
    base = tiny_report()
    result = base.results[0]
    rows = [result.rows[0]._replace(layer=HOSTILE)]
    image = page.Image(b"\xff\xd8jpeg", HOSTILE, HOSTILE)
    html = page.render_report(
        page.Report(
            title=HOSTILE,
            answer=HOSTILE,
            results=[
                result._replace(
                    name=HOSTILE,
                    subtitle=HOSTILE,
                    rows=rows,
                    selected=[result.selected[0]._replace(layer=HOSTILE)],
                    pruning=page.Pruning(HOSTILE, 2, 1, 0.0),
                    images=[image],
                )
            ],
            warnings=[HOSTILE],
            skipped={HOSTILE: [HOSTILE]},
            sections=[page.Section(HOSTILE, HOSTILE, [image])],
            provenance={HOSTILE: HOSTILE},
        )
    )
    assert "<script" not in html
    outline = Outline(html)
    assert outline.words.count(HOSTILE) >= 14
    assert [image["alt"] for image in outline.attributes("img")] == [HOSTILE, HOSTILE]


def test_what_is_missing_is_a_dash_and_never_nan():
    base = tiny_report()
    nan = float("nan")
    row = page.LayerRow("stem", 4, nan, (nan, nan), None, (float("-inf"), 0.0), None, nan)
    result = base.results[0]._replace(rows=[row], images=(), pruning=page.Pruning("stem", 4, 2, nan))
    text = Outline(page.render_report(base._replace(results=[result]))).words.lower()
    assert not re.search(r"\b(nan|inf|none)\b", text)
    assert "– ± –" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.001, "0.00"), (-3861.4, "−3,861"), (0.895, "0.90"), (None, "–"), (float("nan"), "–")],
)
def test_numbers_are_for_people(value, text):
    assert page.number(value) == text


def test_page_without_extras_is_well_formed():
    outline = Outline(page.render_report(page.Report("T", "A", [])))
    assert not re.search("skipped|Provenance", outline.words)


def test_an_image_of_unknown_kind_is_refused():
    section = page.Section("h", "t", [page.Image(b"GIF89a", "alt")])
    with pytest.raises(ValueError, match="SVG, PNG or JPEG"):
        page.render_report(tiny_report(sections=[section]))


def all_figures():
    scores = tiny_scores()
    return [
        figures.score_curves(scores, "net", "ols", list(WIDTHS), widths=WIDTHS, n_train=N_TRAIN),
        figures.score_curves(scores, "net", "ridge", list(WIDTHS), title="t"),
        figures.ols_against_width(scores, "net", WIDTHS, N_TRAIN),
        sketches.network_sketch({"stem": 10, "block1": 400, "block2": 1000}, "block1"),
    ]


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_figures_are_the_same_bytes_twice(tmp_path):
    for index, (one, two) in enumerate(zip(all_figures(), all_figures(), strict=True)):
        first, second = style.save(one, tmp_path / f"{index}.a"), style.save(two, tmp_path / f"{index}.b")
        for path, again in zip(first, second, strict=True):
            assert path.stat().st_size > 1000
            assert path.read_bytes() == again.read_bytes()
        assert [path.name for path in first] == [f"{index}.a.png", f"{index}.a.svg"]
        assert b"<dc:date>" not in first[1].read_bytes()


def test_curves_mark_the_peak_and_name_every_layer():
    figure = figures.score_curves(tiny_scores(), "net", "ridge", list(WIDTHS))
    assert "block2: R² = 0.91" in words(figure)
    labels = figure.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == list(WIDTHS)
    assert [label.get_fontweight() for label in labels] == ["normal", "normal", "bold"]
    assert "block1: R² = 0.51" in words(
        figures.score_curves(tiny_scores(), "net", "ridge", list(WIDTHS), peak="block1")
    )


def test_of_many_layers_some_are_named_and_the_marked_one_is():
    axes = Figure().subplots()
    style.name_layers(axes, [f"layer{at}" for at in range(60)], marked=40)
    shown = {label.get_text(): label.get_fontweight() for label in axes.get_xticklabels()}
    assert {name for name, weight in shown.items() if weight == "bold"} == {"layer40"}
    assert 18 <= len(shown) <= style.MOST_NAMES
    assert "layer59" in shown
    assert [f"layer{at:.0f}" for at in axes.get_xticks()] == list(shown)


def test_ols_curve_averages_the_published_score():
    scores = tiny_scores()
    axes = figures.score_curves(scores, "net", "ols", list(WIDTHS), widths=WIDTHS, n_train=N_TRAIN).axes[0]
    line = next(line for line in axes.get_lines() if line.get_label() == "trained")
    expected = [np.mean(np.exp(np.array([m, m + 0.01, m + 0.02]) - 1)) for m in (0.2, -5.5, 0.9)]
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), expected)
    assert "D ≈ n_train: least squares interpolates" in axes.get_legend_handles_labels()[1]


def test_a_layer_without_scores_is_named():
    with pytest.raises(ValueError, match=r"block9; the scores hold stem, block1, block2"):
        figures.score_curves(tiny_scores(), "net", "ridge", ["stem", "block9"])
    with pytest.raises(ValueError, match=r"'block9'; the layers are stem"):
        sketches.network_sketch({"stem": 1}, "block9")


def test_sketch_tells_the_share_removed():
    text = words(sketches.network_sketch({"stem": 10, "block1": 400, "block2": 1000}, "block1"))
    assert "cut after block1" in text
    assert "400 parameters kept, 60.00 % removed" in text


def test_figures_leave_the_global_style_alone():
    before = dict(matplotlib.rcParams)
    sketches.network_sketch({"stem": 1, "block1": 2}, "stem")
    assert dict(matplotlib.rcParams) == before


def test_written_report_is_utf8(tmp_path):
    path = tmp_path / "report.html"
    page.write_report(path, tiny_report())
    assert "±" in path.read_text(encoding="utf-8")
