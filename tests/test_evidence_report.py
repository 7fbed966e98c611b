import re
from types import SimpleNamespace

import numpy as np
import pytest
from test_report import HOSTILE, Outline, words

from scalecov_jax.evidence import Evidence, Known, pool, weigh
from scalecov_jax.evidence_table import ALL, ContrastRow, LayerRow, choice_rows, contrast_rows, layer_rows
from scalecov_jax.probes.splits import random_splits
from scalecov_jax.probes.statistics import Estimate, Interval
from scalecov_jax.report import evidence_answer, evidence_figures, page, style
from scalecov_jax.report.evidence import sections

N, LAYERS = 24, ("stem", "block1", "block2")
CONCEPTS = ("scale", f"noise {HOSTILE}")
NAMES = [f"{i:02d} {HOSTILE}.jpg" for i in range(N)]


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    """A measure that block1 and block2 read, and one that nothing reads."""
    rng = np.random.default_rng(0)
    scale = rng.normal(size=N)

    def layer(noise):
        return (scale[:, None] + noise * rng.normal(size=(N, 5))).astype(np.float32)

    return weigh(
        dict(zip(LAYERS, (layer(20.0), layer(0.3), layer(0.25)), strict=True)),
        np.stack([scale, rng.normal(size=N)], axis=1),
        CONCEPTS,
        random_splits(N, 4, seed=0),
        random_weights={name: layer(10.0) for name in LAYERS},
        pixels=layer(10.0),
        nuisances=scale[:, None] + 3 * rng.normal(size=(N, 2)),
        permutations=19,
    )


def only(evidence, layers=slice(None), concepts=slice(None)):
    """Some layers and concepts of the evidence."""

    def cut(known):
        own = layers if len(known.value) == len(evidence.layers) else slice(None)
        return Known(known.value[own, concepts], known.deviation[own, concepts], known.sample)

    tests, cases = evidence.permutation, evidence.cases
    return evidence._replace(
        layers=evidence.layers[layers],
        concepts=evidence.concepts[concepts],
        r2=cut(evidence.r2),
        splits=evidence.splits[layers][..., concepts],
        nested=Known(
            evidence.nested.value[:, concepts], evidence.nested.deviation[:, concepts], evidence.nested.sample
        ),
        chosen=np.minimum(evidence.chosen[:, concepts], len(evidence.layers[layers]) - 1),
        controls={name: cut(known) for name, known in evidence.controls.items()},
        partial=cut(evidence.partial),
        permutation=type(tests)(*(values[layers, concepts] for values in tests[:-1]), tests.permuted),
        r2_left_out=evidence.r2_left_out[layers, concepts],
        dof=evidence.dof[layers, concepts],
        alpha=evidence.alpha[layers, concepts],
        cases=type(cases)(
            cases.measure[:, concepts], *(values[layers][..., concepts] for values in cases[1:])
        ),
    )


def picture(index):
    return np.random.default_rng(index).integers(0, 256, (300, 200 + 10 * index, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def found(evidence):
    parts = sections("w", "Net", "car", evidence, picture, NAMES)
    reading = {**page.READING, **evidence_answer.READING}
    rows, contrasts = layer_rows("w", "car", evidence), contrast_rows("w", "car", evidence)
    return SimpleNamespace(
        parts=parts,
        rows={(row.concept, row.layer): row for row in rows},
        contrasts={(row.concept, row.layer, row.against): row for row in contrasts},
        choices=choice_rows("w", "car", evidence),
        outline=Outline(page.render_report(page.Report("T", "A", [], sections=parts, reading=reading))),
    )


def test_there_is_one_part_a_concept_and_the_same_twice(evidence, found):
    assert [part.heading for part in found.parts] == [
        "Net, car: object scale",
        f"Net, car: {CONCEPTS[1]}",
    ]
    again = sections("w", "Net", "car", only(evidence, concepts=slice(1)), picture, NAMES)
    assert again == found.parts[:1]


def test_the_page_is_well_formed_escaped_and_without_nan(found):
    outline = found.outline
    assert not [tag for tag, _ in outline.tags if tag == "script"]
    assert HOSTILE in outline.words
    images = outline.attributes("img")
    assert len(images) == 8  # curve, bars and two panels of images, of each concept
    assert all("object scale" in image["alt"] or HOSTILE in image["alt"] for image in images)
    assert not re.search(r"\b(nan|inf|none)\b", outline.words.lower())
    assert all(f"{term} {text}" in outline.words for term, text in evidence_answer.READING.items())
    kinds = [image["src"].split(";")[0] for image in images[:4]]
    assert kinds == [*["data:image/svg+xml"] * 2, *["data:image/jpeg"] * 2]


def test_findings_hold_the_numbers_of_the_tables(found):
    text = found.parts[0].text
    best = max((found.rows["scale", layer] for layer in LAYERS), key=lambda row: row.r2)
    other = "block1" if best.layer == "block2" else "block2"
    assert found.rows["scale", other].may_be_best
    assert not found.rows["scale", "stem"].may_be_best
    n, choice = page.number, found.choices[0]
    assert (
        f"reads object scale best is {best.layer}: R² {n(best.r2)}, 95 % interval {n(best.low)} to {n(best.high)}."
        in text
    )
    assert (
        f"{other} cannot be told from it: with 95 % confidence the best layer is one of these 2 of 3." in text
    )
    assert (
        f"gives R² {n(choice.r2)} ({n(choice.low)} to {n(choice.high)}); the {n(choice.best_r2)} of" in text
    )
    assert f"{best.layer} reads more than it would of permuted measures: p 0.050, family-wise" in text
    assert "(19 permutations of images, smallest possible p 0.050)." in text
    for against, what in (
        ("random_weights", "above the same layer with random weights"),
        ("pixels", "above the pixels alone"),
        ("nuisances", "above the nuisance measures alone"),
        ("beyond_nuisances", "(partial R²)"),
    ):
        row = found.contrasts["scale", best.layer, against]
        assert f"{n(row.difference)} ({n(row.low)} to {n(row.high)}) {what}" in text
    assert "24 images; 4 splits with 16 images to train and 8 held out." in text
    assert "Only" not in text


def test_what_is_not_shown_is_said_to_be_so(found):
    text = found.parts[1].text
    rows = [found.rows[CONCEPTS[1], layer] for layer in LAYERS]
    best = max(rows, key=lambda row: row.r2)
    assert min(row.p_family for row in rows) > 0.05
    assert (
        f"no more than the best of permuted measures gives: family-wise p over all layers and measures {best.p_family:.3f}"
        in text
    )
    assert "Nothing is shown to be read at any layer." in text
    assert "It is not shown to be above" in text


def test_layer_table(found):
    table = found.parts[0].tables[0]
    assert [row[0] for row in table.rows] == [*LAYERS]
    row = found.rows["scale", "block1"]
    assert table.rows[1][1:4] == [
        page.number(row.r2),
        f"{page.number(row.low)} to {page.number(row.high)}",
        f"{page.number(row.resampled_low)} to {page.number(row.resampled_high)}",
    ]
    (best,) = table.strong
    assert table.rows[best][-2:] == ["the peak", "yes"]
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_case_table_holds_the_images_that_move_the_lead(evidence, found):
    table, cases = found.parts[0].tables[1], evidence.cases
    peak, second, _ = np.argsort(-evidence.r2.value[:, 0])
    lead = cases.influence[peak, :, 0] - cases.influence[second, :, 0]
    order = np.argsort(-lead)
    raising, lowering = order[lead[order] > 0][:6], order[lead[order] < 0][::-1][:6]
    assert [row[0] for row in table.rows] == [NAMES[i] for i in (*raising, *lowering)]
    first = raising[0]
    assert table.rows[0][1:] == [
        page.number(cases.measure[first, 0], 3),
        page.number(cases.prediction[peak, first, 0], 3),
        page.number(cases.prediction[second, first, 0], 3),
        page.number(cases.leverage[peak, first, 0]),
        f"+{page.number(lead[first], 4)}",
    ]
    assert table.rows[-1][-1].startswith("−")


def test_of_a_group_one_image_is_shown(evidence):
    cases = evidence.cases._replace(influence=np.repeat(evidence.cases.influence[:, ::2], 2, axis=1))
    grouped = only(evidence._replace(groups=N // 2, cases=cases), concepts=slice(1))
    (part,) = sections("w", "Net", "car", grouped, None, [f"{i // 2}-{i % 2}" for i in range(N)])
    shown = [row[0].split("-")[0] for row in part.tables[1].rows]
    assert len(set(shown)) == len(shown) >= 6
    assert "Intervals are over 12 groups (patients, slides or sources). Only 12 groups of images" in part.text
    assert len(part.images) == 2


@pytest.mark.parametrize("layers", [slice(None), slice(1, 2)])
def test_bare_evidence(evidence, layers):
    bare = only(evidence, layers, slice(1))._replace(permutation=None, controls={}, partial=None)
    (part,) = sections("w", "Net", "car", bare, picture, NAMES)
    assert "Measures were not permuted" in part.text
    assert "above" not in part.text
    several = layers == slice(None)
    assert ("cannot be told" in part.text) == several
    assert (len(part.images), len(part.tables)) == ((4, 2) if several else (1, 1))
    assert part.tables[0].rows[0][6:8] == ["–", "–"]


def test_pooled_classes_have_no_single_images(evidence):
    one = only(evidence, concepts=slice(1))
    (part,) = sections("w", "Net", ALL, pool([one, one]), None, ())
    assert part.heading == "Net, all classes: object scale"
    assert (len(part.images), len(part.tables)) == (2, 1)
    assert "48 images; 4 splits with 16 images to train and 8 held out, means over classes." in part.text


def test_names_are_one_an_image(evidence):
    with pytest.raises(ValueError, match="3 names for 24 images"):
        sections("w", "Net", "car", evidence, None, NAMES[:3])


def test_warnings(evidence):
    found = evidence_answer.warnings(evidence)
    assert not [message for message in found if message.startswith("object scale")]
    noise = "\n".join(found)
    best = evidence.r2.value[:, 1].argmax()
    p = evidence.permutation.p_family[best, 1]
    assert f"nothing is shown to be read at the best layer, {LAYERS[best]} (family-wise p {p:.3f})" in noise
    assert f"R² of the best layer, {LAYERS[best]}, may be 0 (95 % interval " in noise
    few = only(evidence, concepts=slice(1))
    few = few._replace(groups=19, nested=few.nested._replace(value=few.r2.value.max(0, keepdims=True) - 0.03))
    groups, optimism = evidence_answer.warnings(few)
    assert groups.startswith("Only 19 groups of images: with fewer than 20")
    assert "is optimistic" in optimism
    assert page.number(float(few.nested.value[0, 0])) in optimism


def test_titles_of_concepts():
    assert evidence_answer.concept_title("log_scale") == "logarithm of object scale"
    assert evidence_answer.concept_title("csv:nowhere.csv:age") == "csv:nowhere.csv:age"


def test_texts_of_numbers():
    assert evidence_answer.p_value(0.00049) == "0.0005"
    assert evidence_answer.p_value(0.001) == "0.001"
    assert evidence_answer.p_value(None) == evidence_answer.span(None, None) == "–"
    assert evidence_answer.listed(["a"]) == "a"
    assert evidence_answer.listed(["a", "b", "c"], "or") == "a, b or c"


def row(layer, r2, low, high, may_be_best, p):
    return LayerRow(
        *("w", "scale", "car", layer, 30, 30, r2, 0.1, low, high, low, high, None, None, r2, 3.0, 1.0),
        *(p, p, 0.5, may_be_best),
    )


ROWS = [
    row("a", -3.0, -6.0, -0.5, False, 0.9),
    row("b", -0.5, -2.0, 0.3, False, 0.5),
    row("c", 0.3, 0.1, 0.5, True, 0.04),
]


def markers(axes, marker):
    """Places of the markers that are drawn."""
    lines = [
        line for line in axes.get_lines() if line.get_marker() == marker and line.get_linestyle() == "None"
    ]
    points = [(x, y) for line in lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]
    return sorted((float(x), float(y)) for x, y in points if np.isfinite(y))


def test_curve_marks_layers_and_what_is_beyond_the_axis():
    controls = {
        "random_weights": [
            Estimate(value, 0.1, Interval(value - 0.2, value + 0.2)) for value in (-0.1, 0.0, 0.1)
        ],
        "pixels": [Estimate(0.2, 0.1, Interval(0.1, 0.3))],
    }
    shuffled = evidence_figures.Shuffled(np.array([-0.1, -0.1, -0.1]), np.array([0.0, 0.1, 0.1]), 99)
    figure = evidence_figures.evidence_curve(ROWS, controls, shuffled)
    (axes,) = figure.axes
    assert markers(axes, "o") == [(1.0, -0.5), (2.0, 0.3)]
    fills = [line.get_markerfacecolor() for line in axes.get_lines() if line.get_marker() == "o"]
    assert fills[1:3] == ["white", style.BLUE]
    assert markers(axes, "v") == [(0.0, -1.0), (1.0, -1.0)]
    assert markers(axes, "D") == [(3.0, 0.2)]
    assert [x for x, _ in markers(axes, "d")] == [2.0]
    labels = axes.get_xticklabels()
    assert [label.get_text() for label in labels] == ["a", "b", "c", "pixels"]
    assert [label.get_fontweight() for label in labels] == ["normal", "normal", "bold", "normal"]
    assert "c: R² 0.30 (0.10 to 0.50)" in words(figure)
    assert "(smallest possible 0.01)" in words(figure)


def test_bars_are_filled_where_zero_is_left_out():
    values = {
        "peak": [(-3.0, -6.0, -1.0), (-0.8, -1.5, 0.2), (0.0, 0.0, 0.0)],
        "pixels": [(2.0, 1.0, 4.0), (0.3, 0.1, 0.5), (0.1, -0.1, 0.3)],
    }
    contrasts = [
        ContrastRow("w", "scale", "car", layer, against, *one)
        for against, some in values.items()
        for layer, one in zip("abc", some, strict=True)
    ]
    above, below = evidence_figures.contrast_bars(contrasts).axes
    assert [axes.get_title(loc="left") for axes in (above, below)] == ["minus c, the peak", "minus pixels"]
    np.testing.assert_allclose([bar.get_height() for bar in above.patches], [-1.0, -0.8, 0.0])
    np.testing.assert_allclose([bar.get_height() for bar in below.patches], [1.5, 0.3, 0.1])
    white = (1.0, 1.0, 1.0, 1.0)
    assert [bar.get_facecolor() == white for bar in above.patches] == [False, True, True]
    assert [bar.get_facecolor() == white for bar in below.patches] == [False, False, True]
    assert [x for x, _ in markers(above, "v")] == [0.0, 1.0]
    assert markers(below, "^") == [(0.0, 1.5)]


def test_case_panel_is_small_and_the_same_twice():
    images = [np.random.default_rng(i).integers(0, 256, (400, 400, 3), dtype=np.uint8) for i in range(6)]
    titles = [f"$x{i}$\n$" for i in range(6)]
    panel = evidence_figures.case_panel(images, titles)
    assert panel.startswith(b"\xff\xd8")
    assert 10_000 < len(panel) <= evidence_figures.CASE_BYTES
    assert panel == evidence_figures.case_panel(images, titles)
    with pytest.raises(ValueError, match="1 titles for 6 images"):
        evidence_figures.case_panel(images, ["a"])
