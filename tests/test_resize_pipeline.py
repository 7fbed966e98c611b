"""Resizing end to end: its files, that they agree with each other, and every mistake before anything is computed."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from golden_tables import assert_golden
from PIL import Image
from tiny_network import random_network

from scalecov_jax import checkpoints
from scalecov_jax import run as runner
from scalecov_jax.experiments import resize, resize_maths
from scalecov_jax.imaging import scenes
from scalecov_jax.settings import parse

CLASSES = len(scenes.CLASSES)
pytestmark = pytest.mark.usefixtures("quick_compilation", "quick_scenes")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    checkpoints.save(folder / "small", random_network(classes=CLASSES))
    checkpoints.save(folder / "other", random_network(classes=CLASSES, width=0.5, input_size=24))
    checkpoints.save(folder / "five", random_network())
    checkpoints.save(folder / "cut", random_network(last="block_1"))
    return folder


@pytest.fixture(scope="module")
def settings(weights):
    return {
        "title": "A <test>",
        "weights": f"{weights / 'small'},{weights / 'other'}",
        "images": "scenes",
        "scenes": 2,
        "scene_size": 32,
        "sizes": "24, 16,32",
        "filters": "nearest,lanczos",
        "filled": 0.5,
        "seed": 5,
    }


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, weights, settings):
    """Eleven noise images of the five classes, listed in index.csv."""
    folder, rng = tmp_path_factory.mktemp("data") / "photographs", np.random.default_rng(0)
    folder.mkdir()
    rows = [("file", "class_index")]
    for index in range(11):
        pixels = rng.integers(0, 256, (20 + index, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
        rows.append((f"{index:02d}.png", index % 5))
    with (folder / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return {**settings, "weights": str(weights / "five"), "images": str(folder)}


def run(settings, workdir, **options):
    return runner.run("resize", settings, workdir, command=["resize.py", "--seed=5"], **options)


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "first"
    return workdir, run(settings, workdir)


@pytest.fixture(scope="module")
def tables(finished):
    return runner.read(finished[0])[1]


def summary_of(workdir):
    return json.loads((workdir / "summary.json").read_text())


def only(findings, *texts):
    """The only finding whose quantity and place hold all texts."""
    (chosen,) = (x for x in findings if all(text in f"{x['quantity']}, {x['at']}" for text in texts))
    return chosen


def test_files_and_rows(finished, tables):
    workdir, text = finished
    figures = {f"{name}-{kind}s" for name in ("small", "other") for kind in ("filter", "group")}
    files = {f"{figure}.{kind}" for figure in figures for kind in ("png", "svg")}
    assert {path.name for path in (workdir / "figures").iterdir()} == files
    cached = {
        f"{w}-{s}-{f}.npz" for w in ("small", "other") for s in (16, 24, 32) for f in ("nearest", "lanczos")
    }
    assert {path.name for path in (workdir / "classified").iterdir()} == cached
    assert str(workdir / "report.html") in text
    rows = tables["resize"]
    assert len(rows) == 2 * 32 * 3 * 2
    assert not rows.duplicated(["weights", "image", "filter", "size"]).any()
    assert rows["probability"].between(0, 1).all()
    assert rows["rank"].between(1, CLASSES).all()
    assert rows["group"].nunique() == 4
    assert rows["group"].str.startswith("filled").equals(rows["object_ratio"] >= 0.5)
    # At its own size a scene is not touched, so that filters agree.
    assert (rows[rows["size"] == 32].groupby(["weights", "image"])["probability"].nunique() == 1).all()
    assert tables["networks"].to_numpy().tolist() == [["small", "tiny", 32], ["other", "tiny", 24]]
    assert tables["images"][["width", "height", "left_out"]].drop_duplicates().to_numpy().tolist() == [
        [32, 32, ""]
    ]


def test_tables_are_those_kept(finished):
    # Architectures and images, which summary.json told before, have tables since.
    assert_golden(finished[0], "resize")


def test_findings_agree_with_the_tables(finished, tables):
    workdir, text = finished
    findings = summary_of(workdir)["findings"]
    curves = tables["curves"].query("filter == 'lanczos' and weights == 'other'").set_index(["group", "size"])
    flat = (
        tables["plateaus"].query("filter == 'lanczos' and weights == 'other'").set_index(["measure", "group"])
    )
    (filled,) = (group for group in curves.index.unique("group") if group.startswith("filled"))
    for group in ("all", filled):
        at = f"tiny (other), {group.split(' ')[0]} images"
        for quantity, measure, end, published in (
            ("smallest size at which the mean probability", "probability", "first", 19),
            ("largest size at which the mean probability", "probability", "last", 32),
            ("smallest size at which top-5", "top5", "first", 21),
        ):
            finding = only(findings, quantity, at)
            assert (finding["value"], finding["published"]) == (flat.loc[(measure, group), end], published)
            assert finding["source"] == "section 4.1, Figure 6, in proportion to 24 px"
            assert finding["level"] == (
                "headline" if group == "all" and measure == "probability" else "result"
            )
        point = curves.loc[(group, 24)]
        for name, measure, factor in (
            ("the mean probability at 24", "probability", 1),
            ("top-1 at 24", "top1", 100),
        ):
            finding = only(findings, name, at)
            expected = [factor * point[f"{measure}{end}"] for end in ("", "_low", "_high")]
            assert [finding["value"], finding["low"], finding["high"]] == pytest.approx(expected)
        inside = curves.loc[group]["probability"].loc[24:32]
        loss = only(findings, "loss of the mean probability between 19 and 32 px", at)
        assert loss["value"] == pytest.approx(flat.loc[("probability", group), "value"] - inside.min())
        assert loss["published"] == "none visible"
    filters = tables["filters"].query("weights == 'other'").set_index("size")
    finding = only(findings, "difference of a filter", "tiny (other)")
    assert finding["value"] == filters.loc[filters["difference"].abs().idxmax(), "difference"]
    assert all(x["level"] == "caution" or x["quantity"] in text for x in findings)
    assert only(findings, "fewer than 30")["value"] == 4
    assert summary_of(workdir)["provenance"]["command"] == "resize.py --seed=5"


def test_page_is_rendered_from_the_folder(finished, tables):
    workdir, _ = finished
    html, page = (workdir / "report.html").read_text(), runner.page(workdir)
    assert "A &lt;test&gt;" in html
    assert [x.to_dict() for x in page.findings] == summary_of(workdir)["findings"]
    assert [x.heading for x in page.sections] == ["Resizing: tiny (small)", "Resizing: tiny (other)"]
    for section in page.sections:
        assert str(section.html) in html
        for image in section.images:
            assert image.png == (workdir / "figures" / f"{image.name}.png").read_bytes()
        by_size, by_group = section.tables
        assert [row[0] for row in by_size.rows] == ["16", "24", "32"]
        assert [row[0] for row in by_group.rows] == [*tables["curves"]["group"].unique()]
    point = (
        tables["curves"]
        .query("weights == 'small' and group == 'all' and filter == 'lanczos' and size == 16")
        .iloc[0]
    )
    row = page.sections[0].tables[0].rows[0]
    assert row[1].startswith(f"{point['probability']:.3f} (")
    assert row[2].startswith(f"{100 * point['top1']:.1f} (")
    assert [finding.published for finding in page.findings].count("none visible") == 4


def test_resume_computes_nothing_twice_and_gives_the_same_bytes(finished, settings, monkeypatch):
    workdir, _ = finished
    before = {path.name: path.read_bytes() for path in workdir.glob("*.csv")}
    redone = workdir / "classified" / "other-24-lanczos.npz"
    redone.unlink()
    redone.with_suffix(".partial.npz").write_bytes(b"PK\3\4 half of a file")  # as a kill leaves it
    (workdir / "summary.json").unlink()
    sizes, compute = [], resize_maths.compute_features

    def counted(*args, size, **kwargs):
        sizes.append(size)
        return compute(*args, size=size, **kwargs)

    monkeypatch.setattr(resize_maths, "compute_features", counted)
    run(settings, workdir, resume=True)
    assert sizes == [24]
    assert {path.name: path.read_bytes() for path in workdir.glob("*.csv")} == before
    with pytest.raises(ValueError, match="first exists; pass --resume"):
        run(settings, workdir)
    with pytest.raises(ValueError, match=r"cannot be resumed \(seed: 5, now 6\)"):
        run({**settings, "seed": 6}, workdir, resume=True)


def test_photographs_of_which_two_cannot_be_read(photographs, tmp_path):
    """A truncated image costs only itself; without boxes and a second filter there are no ratios and no differences."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for path in Path(photographs["images"]).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "03.png").write_bytes((folder / "03.png").read_bytes()[:800])
    changed = {**photographs, "images": str(folder), "filters": "bilinear", "square": "stretch"}
    text = run(changed, tmp_path / "run")
    tables = runner.read(tmp_path / "run")[1]
    assert tables["resize"]["object_ratio"].isna().all()
    assert {*tables["resize"]["group"].map(resize_maths.kind_of)} == {"smaller images", "larger images"}
    assert tables["filters"].empty
    assert tables["images"].query("left_out != ''")[["image", "left_out"]].to_numpy().tolist() == [
        ["03.png", "unreadable image"]
    ]
    findings = summary_of(tmp_path / "run")["findings"]
    for quantity, value in (("smaller than", 10), ("stretched", 9), ("left out", 1), ("fewer than 30", 3)):
        assert only(findings, quantity)["value"] == value
    assert only(findings, "smallest size at which the mean")["at"] == "tiny, all images"
    assert "nan" not in (text + json.dumps(findings)).lower()
    assert "03.png" in (tmp_path / "run" / "report.html").read_text()


def test_images_none_of_which_can_be_decoded(photographs, tmp_path):
    for path in Path(photographs["images"]).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 400 if path.suffix == ".png" else None])
    with pytest.raises(ValueError, match="None of the 11 images can be decoded"):
        run({**photographs, "images": str(tmp_path)}, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ({"weights": "", "images": ""}, ("config.weights is ''; expected at least 1 value", "config.images is ''")),
        ({"sizes": "16"}, ("config.sizes is '16'; expected at least 2 values",)),
        ({"sizes": "16,16"}, ("config.sizes is '16,16'; expected different values",)),
        ({"sizes": "16,0"}, ("config.sizes is '16,0'; expected at least 1",)),
        ({"sizes": "16,²"}, ("config.sizes is '²'; expected an integer",)),
        ({"filters": "lanczos,bicubc"}, ("config.filters is 'bicubc'; expected one of", "did you mean bicubic?")),
        ({"square": "pad"}, ("config.square is 'pad'; expected one of crop, stretch",)),
        ({"filled": 0.0, "limit": -1}, ("config.filled is 0.0", "config.limit is -1; expected at least 0")),
        ({"scenes": 0, "scene_size": 4}, ("config.scenes is 0", "config.scene_size is 4; expected at least 8")),
        ({"batch_size": 0, "seed": -1}, ("config.batch_size is 0", "config.seed is -1; expected at least 0")),
        ({"dtype": "float16", "limit": 9}, ("'float16'; expected one of float32, bfloat16",)),
        ({"limit": 9}, ("config.limit is 9; expected 0 or at least 10",)),
        ({"weights": "/nowhere/weights", "images": "/nowhere"}, ("/nowhere/weights is no folder", "/nowhere: no such folder")),
        ({"class_indices": "car"}, ("Classes are given as name:index",)),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used(photographs, tmp_path, change, messages):
    with pytest.raises(ValueError, match=re.escape(messages[0])) as error:
        run({**photographs, **change}, tmp_path / "run")
    for message in messages[1:]:
        assert message in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cut", "cut: This tiny stops at block_1, before softmax"),
        (
            "five",
            r"no class of five, which has 5 classes \(0 to 4; it names none of them\): .*label 'striped_disc'",
        ),
    ],
)
def test_networks_that_cannot_name_scenes(settings, weights, name, message, monkeypatch):
    monkeypatch.setattr(scenes, "examples", None)  # nothing is rendered
    with pytest.raises(ValueError, match=message):
        resize.check(parse(resize.Settings, {**settings, "weights": str(weights / name)}))


def test_labels_outside_the_classes_and_too_few_images_are_named(photographs, tmp_path):
    for path in Path(photographs["images"]).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    index = tmp_path / "index.csv"
    index.write_text(index.read_text().replace("03.png,3", "03.png,7").replace("05.png,0", "05.png,x"))
    changed = parse(resize.Settings, {**photographs, "images": str(tmp_path)})
    with pytest.raises(
        ValueError, match=r"no class of five, .*: 03\.png: label 7; 05\.png: label 'x', expected an integer"
    ):
        resize.check(changed)
    lines = index.read_text().splitlines()
    index.write_text("\n".join(lines[:9]))
    for path in sorted(tmp_path.glob("*.png"))[8:]:
        path.unlink()
    with pytest.raises(ValueError, match="8 usable images; at least 10 are needed"):
        resize.check(changed)


def test_filled_images_and_losses_off_the_grid_of_a_published_network(settings, tables):
    """A network trained at 224 px that is flat where the paper says."""
    rng = np.random.default_rng(0)
    sizes, means = (96, 160, 192, 224, 225, 256, 288, 384), (0.2, 0.4, 0.7, 0.7, 0.6, 0.7, 0.7, 0.3)
    values = np.array(means)[None] + rng.normal(0, 0.05, (40, 1)) + rng.normal(0, 1e-4, (40, 8))
    rows = pd.DataFrame(
        {
            "weights": "w",
            "image": np.repeat([f"{n}.png" for n in range(40)], 8),
            "group": "images (shorter side 32 to 32 px)",
            "object_ratio": np.nan,
            "filter": "lanczos",
            "size": np.tile(sizes, 40),
            "probability": values.ravel(),
            "rank": 1,
        }
    )
    trained_at = {"w": 224}
    made = {
        "resize": rows,
        "curves": resize_maths.curves(rows),
        "plateaus": resize_maths.plateaus(rows, trained_at),
        "filters": resize_maths.filter_differences(rows),
        "grid": resize_maths.grid_losses(rows, trained_at),
        "networks": pd.DataFrame([("w", "resnet50", 224)], columns=[*tables["networks"]]),
        "images": pd.DataFrame([("0.png", 500.0, 500.0, "", "")], columns=[*tables["images"]]),
    }
    page = resize.report(parse(resize.Settings, settings), made)
    findings = [x.to_dict() for x in page.findings]
    assert {x["level"] for x in findings} == {"headline", "result"}
    smallest, largest = (only(findings, f"{end} size at which the mean") for end in ("smallest", "largest"))
    assert (smallest["value"], largest["value"]) == (192, 288)
    assert (smallest["published"], largest["published"]) == (175, 300)
    assert smallest["sentence"].startswith(
        "ResNet50, all images: smallest size at which the mean probability is flat is 192 px; published: 175 (section 4.1"
    )
    off = only(findings, "off the training's grid")
    assert off["value"] == pytest.approx(0.1, abs=0.001)
    assert off["low"] > 0.099
    assert off["note"] == "At 225 px; shown at 1 of 1 such sizes, mean 0.100."
    assert only(findings, "between 175 and 300 px")["value"] == pytest.approx(0, abs=0.001)
    (section,) = page.sections
    assert len(section.images) == 1
    assert "published" not in section.images[0].alt
    (table,) = (x for x in section.tables if x.columns[0] == "size, px")
    assert [table.rows[at][0] for at in table.strong] == ["192", "224", "256", "288"]
    assert section.tables[1].rows[0][3:] == (
        "192 to 288 px",
        "192 to 288 px",
        "96 or less to 384 px or more",
        "96 or less to 384 px or more",
    )
    assert "96, 160, 192, 224, 256, 288, 384 px" in section.html
