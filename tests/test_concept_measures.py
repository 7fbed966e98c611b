"""Measures by name: parameters, columns of CSV files, sizes, nuisances, and the list of all."""

from pathlib import Path

import numpy as np
import pytest
from skimage.color import rgb2gray

from scalecov_jax.concepts.compute import measure_all
from scalecov_jax.concepts.measure import MEASURES, ConceptMeasure, get_measure, get_measures
from scalecov_jax.concepts.texture import masked_glcm
from scalecov_jax.imaging.image_set import Box, Example

RNG = np.random.default_rng(0)
DOCS = Path(__file__).parents[1] / "docs" / "measures.md"


def example(name="a.png", height=12, width=20):
    image = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), np.int32)
    mask[2:9, 3:14] = 1
    return Example(image, "car", Box(3, 2, 14, 9), mask, "", name, 1200, 0.5)


# Names


def test_every_measure_gives_a_finite_number_and_is_described():
    one = example()
    text = DOCS.read_text()
    for name, entry in MEASURES.items():
        assert entry.name == name
        assert get_measure(f" {name}") is entry
        assert np.isfinite(entry.measure(one))
        assert entry.title
        assert f"`{name}`" in text, name
    assert {one.unit for one in MEASURES.values()} <= {
        "",
        "px",
        "px^2",
        "um",
        "um^2",
        "levels",
        "levels^2",
        "bytes/px",
    }


def test_parameters():
    one = example()
    default = get_measure("glcm_contrast")
    same = get_measure("glcm_contrast:distance=1:angle=0")
    assert same.measure(one) == default.measure(one)
    assert (same.name, same.unit) == ("glcm_contrast:distance=1:angle=0", "levels^2")
    assert same.title == "GLCM contrast (distance=1, angle=0)"
    swapped = get_measure("glcm_asm_masked:published=1:angle=45-135:distance=2")
    direct = masked_glcm("asm", distance=(2,), angle=(45, 135), published=True)
    assert swapped.measure(one) == direct(one) != get_measure("glcm_asm_masked").measure(one)
    assert get_measure("count:border=0").measure(one) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("glcm_contrst", r"no concept measure 'glcm_contrst'\. Did you mean glcm_contrast or"),
        ("zzz", r"There are scale, .*file_size and csv:PATH:COLUMN"),
        ("", r"no concept measure ''\. There are scale"),
        ("scale:distance=1", r"'distance' is no parameter of it; scale has no parameters"),
        ("glcm_asm:depth=1:angle=x", r"'depth' is no .*; angle is 'x'; glcm_asm has .* distance=1:angle=0"),
        ("glcm_asm:distance=1:distance=2", "'distance' comes twice"),
        ("glcm_asm:distance", "distance is ''"),
        ("glcm_asm:distance=0:angle=30-45", r"distance 0, angle 30; expected distances of 1 px .* 0, 45, 90"),
        ("glcm_asm_masked:published=yes", "published is 'yes'; .* distance=5:angle=0:published=0"),
        ("csv:", "expected csv:PATH:COLUMN"),
        ("csv:a.csv", "expected csv:PATH:COLUMN"),
        ("csv:no_such.csv:age", r"no_such\.csv: no such file"),
    ],
)
def test_names_that_are_none(name, message):
    with pytest.raises(ValueError, match=message):
        get_measure(name)


def test_problems_of_all_names_come_at_once():
    assert [one.name for one in get_measures(["scale", "count"])] == ["scale", "count"]
    with pytest.raises(ValueError, match=r"scale comes twice\..*'scael'.*angle 1;"):
        get_measures(["scale", "scael", "scale", "glcm_asm:angle=1"])


def test_an_own_measure(monkeypatch):
    mine = ConceptMeasure("mine", lambda example: float(example.image[0, 0, 0]))
    monkeypatch.setitem(MEASURES, "mine", mine)
    assert get_measure("mine") is mine
    tuned = ConceptMeasure("tuned", lambda _: 0.0, configure=lambda power=2.0: lambda example: 3**power)
    monkeypatch.setitem(MEASURES, "tuned", tuned)
    assert get_measure("tuned:power=0.5").measure(example()) == 3**0.5


# Sizes and nuisances


def test_sizes_and_nuisances_by_hand():
    one = example(height=12, width=20)
    values = {name: entry.measure(one) for name, entry in MEASURES.items()}
    assert (values["image_width"], values["image_height"], values["image_area"]) == (20, 12, 240)
    for channel, name in enumerate(("mean_red", "mean_green", "mean_blue")):
        assert values[name] == pytest.approx(one.image[..., channel].sum(dtype=int) / 240, rel=1e-12)
    grey = 255 * rgb2gray(one.image)
    assert values["mean_luminance"] == pytest.approx(grey.mean(), rel=1e-12)
    assert values["luminance_sd"] == pytest.approx(np.sqrt(((grey - grey.mean()) ** 2).mean()), rel=1e-12)
    assert values["box_centre_x"] == (3 + 14 - 1) / 2 / 20
    assert values["box_centre_y"] == (2 + 9 - 1) / 2 / 12
    assert values["file_size"] == 5
    assert (values["area"], values["area_um2"], values["perimeter_um"]) == (
        77,
        77 / 4,
        values["perimeter"] / 2,
    )


def test_a_box_over_the_whole_image_lies_in_the_middle():
    one = example()._replace(box=Box(1, 1, 20, 12))
    assert MEASURES["box_centre_x"].measure(one) == MEASURES["box_centre_y"].measure(one) == 0.5


def test_white_is_255():
    white = example()._replace(image=np.full((12, 20, 3), 255, np.uint8))
    assert MEASURES["mean_luminance"].measure(white) == pytest.approx(255)
    assert MEASURES["luminance_sd"].measure(white) == pytest.approx(0, abs=1e-9)


def test_what_an_example_lacks():
    bare = example()._replace(box=None, mask=None, file_bytes=None)
    for name in ("scale", "sqrt_scale", "log_scale", "box_centre_x", "box_centre_y"):
        with pytest.raises(ValueError, match=r"^a\.png: .*box"):
            MEASURES[name].measure(bare)
    with pytest.raises(ValueError, match=r"^a\.png: the size of its file"):
        MEASURES["file_size"].measure(bare)
    for name in [name for name in MEASURES if name.endswith("_masked")] + ["area", "count"]:
        with pytest.raises(ValueError, match=r"^a\.png: needs a mask"):
            MEASURES[name].measure(bare)


# Columns of CSV files


def column(tmp_path, text, of="age"):
    (tmp_path / "ages.csv").write_text(text)
    return get_measure(f"csv:{tmp_path / 'ages.csv'}:{of}")


def test_lines_are_found_by_name_file_name_and_stem(tmp_path):
    one = column(
        tmp_path, "file,age\na/1.png,1\nb/1.png,2\n3,3\nslide.v4,4\nc/d/5.tif,5\nx/6.jpg,6\n6.png,7\n"
    )
    assert one.title == "age"
    expected = {"a/1.png": 1, "b/1.png": 2, "deep/b/1.png": 2, "3.JPEG": 3, "e/3.png": 3, "slide.v4.png": 4}
    expected |= {"d/5.tif": 5, "5": 5, "6.png": 7, "x/6.jpg": 6}
    assert {name: one.measure(example(name)) for name in expected} == expected
    for name in ("1.png", "c/1.png", "slide.png", "e/5.tif", "7.png"):
        with pytest.raises(ValueError, match=f"^{name}: "):
            one.measure(example(name))


@pytest.mark.parametrize("named", ["image", "file", "filename", "name", "anything"])
def test_which_column_names_the_image(tmp_path, named):
    one = column(tmp_path, f"{named},x,age\na.png,b.png,3.5\nb.png,a.png,4\n")
    assert one.measure(example("a.png")) == 3.5
    wanted = column(tmp_path, "name,image,age\nb,a.png,1\na,b.png,2\n")
    assert wanted.measure(example("a.png")) == 1


def test_bad_lines_come_in_one_error(tmp_path):
    text = (
        "\ufefffile,age\n0.png,1\n1.png,\n2.png,old\n3.png,3\n3.png,4\n5.png,inf\nunused.png,n/a\n6.png,6\n"
    )
    one = column(tmp_path, text)
    source = [example(f"{index}.png") for index in range(7)]
    with pytest.raises(ValueError, match="cannot be measured on 5 of 7 images") as caught:
        measure_all([one], source)
    message = str(caught.value)
    for part in (
        "1.png: line 3 of",
        "has age ''; expected a number",
        "2.png: line 4 of",
        "3.png: lines 5, 6 name it in",
        "4.png: no line names it in",
        "5.png: line 7 of",
    ):
        assert part in message
    assert "unused" not in message
    found = measure_all([one], [source[0], source[6]], cache=tmp_path / "cache.csv")
    assert found.values.tolist() == [[1], [6]]
    assert not (tmp_path / "cache.csv").exists()  # the file may change


def test_columns_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"no column 'agee'; did you mean 'age'\? The columns are file, age"):
        column(tmp_path, "file,age\n", of="agee")
    with pytest.raises(ValueError, match=r"no column 'age'\. The columns are none"):
        column(tmp_path, "")
