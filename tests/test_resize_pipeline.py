"""Resizing end to end: its files, that a report can be rebuilt from them, and every mistake before anything is computed."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from golden_tables import assert_golden
from PIL import Image
from tiny_network import random_network

from scalecov_jax import checkpoints
from scalecov_jax.images import scenes
from scalecov_jax.paper import resizing
from scalecov_jax.paper.resizing import Classified
from scalecov_jax.paper.resizing_curves import Point
from scalecov_jax.pipelines import resize
from scalecov_jax.report import page
from scalecov_jax.report import resizing as report
from scalecov_jax.tables import read_table

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
        "class_indices": "",
        "scenes": 2,
        "scene_size": 32,
        "sizes": "24, 16,32",
        "filters": "nearest,lanczos",
        "square": "crop",
        "filled": 0.5,
        "limit": 0,
        "seed": 5,
        "batch_size": 16,
        "dtype": "float32",
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
    return resize.run(settings, str(workdir), command=["resize.py", "--seed=5"], **options)


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "first"
    return workdir, run(settings, workdir)


def summary_of(workdir):
    return json.loads((workdir / "summary.json").read_text())


def test_all_files_are_there(finished):
    workdir, text = finished
    names = {str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file()}
    assert {
        "resize.csv",
        "curves.csv",
        "plateaus.csv",
        "filters.csv",
        "grid.csv",
        "summary.json",
        "report.html",
    } <= names
    for name in ("small", "other"):
        for size in (16, 24, 32):
            assert f"classified/{name}-{size}-nearest.npz" in names
        for kind in ("filters", "groups"):
            assert {f"figures/{name}-{kind}.png", f"figures/{name}-{kind}.svg"} <= names
    assert str(workdir / "report.html") in text
    assert summary_of(workdir)["answer"] in text
    content = (workdir / "report.html").read_text()
    assert "A &lt;test&gt;" in content
    assert "none visible" in content


def test_rows_hold_every_image_size_and_filter(finished):
    rows = read_table(finished[0] / "resize.csv", Classified)
    assert len(rows) == 2 * 32 * 3 * 2
    assert len({row[:2] + row[4:6] for row in rows}) == len(rows)
    assert all(0 <= row.probability <= 1 and 1 <= row.rank <= CLASSES for row in rows)
    assert all(row.object_ratio is not None and 0 < row.object_ratio <= 1 for row in rows)
    assert len({row.group for row in rows}) == 4
    for row in rows:
        assert row.group.startswith("filled") == (row.object_ratio >= 0.5)
    # At its own size a scene is not touched, so that filters agree.
    at_own_size = {(row.weights, row.image): set() for row in rows}
    for row in rows:
        if row.size == 32:
            at_own_size[row.weights, row.image].add(row.probability)
    assert all(len(values) == 1 for values in at_own_size.values())


def test_tables_are_those_kept(finished):
    assert_golden(finished[0], "resize")


def test_summary_and_report_are_those_of_the_tables(finished):
    workdir, _ = finished
    summary = summary_of(workdir)
    rows, points = read_table(workdir / "resize.csv", Classified), read_table(workdir / "curves.csv", Point)
    for point in points:
        if point.group == "all":
            chosen = [
                row for row in rows if row[0] == point.weights and row[4:6] == (point.filter, point.size)
            ]
            assert point.images == len(chosen) == 32
            assert point.probability == pytest.approx(np.mean([row.probability for row in chosen]))
    assert summary["images"] == 32
    assert summary["networks"]["other"] == {"architecture": "tiny", "input_size": 24}
    assert summary["provenance"]["command"] == "resize.py --seed=5"
    assert [row._asdict() for row in report.compare(workdir)] == summary["compared"]
    sections = report.sections(workdir)
    assert [one.heading for one in sections] == ["Resizing: tiny (small)", "Resizing: tiny (other)"]
    content = page.render_report(page.Report("", "", (), sections=sections))
    for section in sections:
        assert len(section.images) == 2
        assert len(section.tables[0].rows) == len(section.tables[1].rows) == 3
    # The rebuilt sections are part of the page that the run wrote.
    part = content[content.index('<section aria-labelledby="section-1"') :]
    part = part[part.index("<p>") : part.index("</section>")]
    assert part in (workdir / "report.html").read_text()


def test_resume_computes_nothing_twice_and_gives_the_same_bytes(finished, settings, monkeypatch):
    workdir, _ = finished
    before = (workdir / "resize.csv").read_bytes()
    redone = workdir / "classified" / "other-24-lanczos.npz"
    redone.unlink()
    (workdir / "summary.json").unlink()
    sizes, compute = [], resizing.compute_features

    def counted(*args, size, **kwargs):
        sizes.append(size)
        return compute(*args, size=size, **kwargs)

    monkeypatch.setattr(resizing, "compute_features", counted)
    run(settings, workdir, resume=True)
    assert sizes == [24]
    assert (workdir / "resize.csv").read_bytes() == before
    with pytest.raises(ValueError, match="first exists; pass --resume"):
        run(settings, workdir)
    with pytest.raises(ValueError, match=r"cannot be resumed \(seed: 5, now 6\)"):
        run({**settings, "seed": 6}, workdir, resume=True)


def test_photographs(photographs, tmp_path):
    resize.check(photographs)
    text = run({**photographs, "filters": "bilinear"}, tmp_path / "run")
    assert "tiny, 11 images: the mean probability of the true class is flat at " in text
    rows = read_table(tmp_path / "run" / "resize.csv", Classified)
    assert {row.object_ratio for row in rows} == {None}
    assert {row.group.partition(" (")[0] for row in rows} == {"smaller images", "larger images"}
    assert (tmp_path / "run" / "filters.csv").read_text().count("\n") == 1  # nothing to compare with
    summary = summary_of(tmp_path / "run")
    assert "11 of 11 images are smaller than 32 px" in " ".join(summary["warnings"])
    assert len(summary["compared"]) == 4


def test_a_truncated_photograph_is_named_and_costs_only_itself(photographs, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for path in Path(photographs["images"]).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    broken = folder / "03.png"
    broken.write_bytes(broken.read_bytes()[:800])
    changed = {**photographs, "images": str(folder), "sizes": "16,24", "filters": "lanczos"}
    run(changed, tmp_path / "run")
    summary = summary_of(tmp_path / "run")
    assert (summary["images"], summary["skipped"]) == (10, {"unreadable image": 1})
    assert "03.png" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ({"weights": "", "images": " ,"}, ("config.weights is empty; expected a checkpoint", "config.images is empty")),
        ({"sizes": "16"}, ("config.sizes has 16; expected at least two different sizes",)),
        ({"sizes": "16,16"}, ("config.sizes has 16,16; expected at least two different",)),
        ({"sizes": "16,0,-3,2.5,²,24"}, ("config.sizes has 0, -3, 2.5, ² in it",)),
        ({"sizes": ""}, ("config.sizes is empty; expected pixels",)),
        ({"filters": "lanczos,bicubc"}, ("config.filters has 'bicubc'; did you mean bicubic?",)),
        ({"square": "pad"}, ("config.square is 'pad'; expected one of crop, stretch",)),
        ({"filled": 0.0, "limit": -1}, ("config.filled is 0.0", "config.limit is -1; expected at least 0")),
        ({"scenes": 0, "scene_size": 4}, ("config.scenes is 0", "config.scene_size is 4; expected at least 8")),
        ({"batch_size": 0, "seed": -1}, ("config.batch_size is 0", "config.seed is -1; expected at least 0")),
        ({"dtype": "float16"}, ("'float16'; expected one of float32, bfloat16",)),
        ({"weights": "/nowhere/weights"}, ("/nowhere/weights is no folder",)),
        ({"images": "/nowhere/photographs"}, ("/nowhere/photographs: no such folder; expected index.csv",)),
        ({"class_indices": "car"}, ("Classes are given as name:index",)),
        ({"limit": 9}, ("9 labelled images; at least 10 are needed",)),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used(photographs, tmp_path, change, messages):
    for function in (lambda one: run(one, tmp_path / "run"), resize.check):
        with pytest.raises(ValueError, match=re.escape(messages[0])) as error:
            function({**photographs, **change})
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
def test_networks_that_cannot_name_scenes(settings, weights, name, message):
    with pytest.raises(ValueError, match=message):
        resize.check({**settings, "weights": str(weights / name)})


def test_labels_outside_the_classes_are_named(photographs, tmp_path):
    for path in Path(photographs["images"]).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    index = tmp_path / "index.csv"
    index.write_text(index.read_text().replace("03.png,3", "03.png,7").replace("05.png,0", "05.png,x"))
    with pytest.raises(
        ValueError, match=r"no class of five, .*: 03\.png: label 7; 05\.png: label 'x', expected an integer"
    ):
        resize.check({**photographs, "images": str(tmp_path)})
