"""Inputs drawn after public bug reports (shared/cases): each gives the outcome that its expected.txt asks for."""

import asyncio
import contextlib
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from probe_runs import settings_of, table
from tiny_network import random_network

from scalecov_jax import checkpoints
from scalecov_jax import run as runner
from scalecov_jax.concepts.csv_column import csv_column
from scalecov_jax.concepts.measure import get_measures
from scalecov_jax.imaging import eyes, sources
from scalecov_jax.imaging.copies import with_copies_together
from scalecov_jax.imaging.folder import annotated, read_folder
from scalecov_jax.imaging.image_set import ImageError
from scalecov_jax.imaging.labelled import open_labelled
from scalecov_jax.imaging.patches import cut_patches, prepare_patches
from scalecov_jax.models.port import port

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.large, pytest.mark.usefixtures("quick_compilation")]
MASKS = {
    "26": ("white", "red", "black", "opaque", "la"),
    "28": ("full", "m255", "m1", "labels", "labels300", "labels8"),
    "29": (
        *("uint16", "int32", "uint32", "int64", "int16", "float32", "big"),
        *("channel", "zlib", "bigtiff", "ome", "imagej", "npy", "rgb"),
    ),
    "32": ("void",),
}


@pytest.fixture(scope="module")
def made(shared, tmp_path_factory):
    """A function that makes the input of a case and returns its folder."""

    @cache
    def make(number):
        (case,) = (shared / "cases").glob(f"{number}_*")
        folder = tmp_path_factory.mktemp(case.name)
        path = os.pathsep.join(map(str, (ROOT, case.parent)))
        environment = {**os.environ, "PYTHONPATH": path, "PRODUCT": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        subprocess.run(
            [sys.executable, case / "make_input.py", folder], env=environment, check=True, timeout=120
        )
        return folder

    return make


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    checkpoints.save(folder, random_network())
    return folder


@pytest.fixture
def probe(weights, tmp_path):
    """Run the main job on a folder of images, with the layers stem and block_1 of a tiny network."""

    def run(images, workdir=None, *, resume=False, **changed):
        given = {**settings_of(changed.pop("weights", weights)), "images": str(images), "image_class": "car"}
        given |= {"title": "", "layers": "stem,block_1", "batch_size": 8}
        workdir = workdir or tmp_path / "run"
        runner.run("probe", given | changed, workdir, command=["probe.py"], resume=resume)
        return workdir

    return run


def ages(folder, file, column, **options):
    """Values of a column by the name of the image."""
    images = sources.open_images(str(folder), "car", **options)
    measure = csv_column(file, column)
    return {images[at].name: measure(images[at]) for at in range(len(images))}


@pytest.mark.parametrize("link", [False, True])
def test_01_imagenet_as_kaggle_unpacks_it(made, tmp_path, link):
    folder = tmp_path / "ILSVRC"
    shutil.copytree(made("01") / "ILSVRC", folder)
    if link:
        (folder / "JPEGImages").symlink_to("Data")
    images = sources.open_images(str(folder), "n02958343")
    assert len(images) == 14
    sides = sorted(np.subtract(images[at].box[2:], images[at].box[:2]).max() for at in range(14))
    assert (sides[0], sides[-1]) == (9, 59)  # from the first to the last pixel, as in VOC


@pytest.mark.parametrize("kind", ["case", "png", "windows"])
def test_03_extensions_and_case(made, kind):
    assert len(sources.open_images(str(made("03") / kind), "car")) == 14


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("space", "traffic light"),
        ("slash", "car/truck"),
        ("chinese", "汽车"),
        ("dollar", "US$ a_{ $"),
        ("dots", "../../evil"),
        ("html", "<b>car</b>"),
        ("colon", "a:b"),
        ("quote", "driver's car"),
    ],
)
def test_08_class_names(made, probe, tmp_path, folder, name):
    workdir = probe(made("08") / folder, image_class=name)
    assert {*table(workdir, "layers")["image_class"]} == {name}
    assert len(list((workdir / "features").glob("*.npz"))) == 2
    assert [one.name for one in tmp_path.iterdir()] == ["run"]
    assert "<b>car" not in (workdir / "report.html").read_text()


def test_08_a_class_name_with_a_comma(made, probe):
    with pytest.raises(ValueError, match="Objects present: car, red 14"):
        probe(made("08") / "comma", image_class="car, red")


def test_10_normal_forms(made):
    folder = made("10")
    assert len(sources.open_images(str(folder / "voc"), "car")) == 14
    found = ages(folder / "same", folder / "ages.csv", "age")
    assert sorted(found.values()) == [*range(14)]
    assert found[unicodedata.normalize("NFC", "Bäume é 03.jpg")] == 3


@pytest.mark.parametrize("name", ["my nets", "net#1", "net 50%", "net%20a", "what?", "[x=1]", "ümlaut"])
def test_11_paths(made, probe, weights, tmp_path, name):
    own = tmp_path / name / "tiny"
    shutil.copytree(weights, own)
    images = made("11") / "data set (2), v2 [x=1] & ü"
    workdir = probe(images, tmp_path / f"out {name}", weights=own)
    assert checkpoints.load(workdir / "pruned" / "tiny").card.architecture == "tiny"
    assert table(workdir, "layers")["images"].tolist() == [14, 14]


def test_11_a_comma_in_weights(probe, made, tmp_path):
    with pytest.raises(ValueError, match=r"a is no folder.*b is no folder"):
        probe(made("11") / "data set (2), v2 [x=1] & ü", weights=tmp_path / "a,b")


def test_14_copies_are_one_group(made, caplog):
    folder = made("14")
    images = with_copies_together(sources.open_images(str(folder / "thrice"), "car"))
    assert (len(images), images.table["group"].nunique()) == (48, 16)
    assert "32 of 48 images" in caplog.text
    assert with_copies_together(sources.open_images(str(folder / "once"), "car")).table[
        "group"
    ].nunique() == len(sources.open_images(str(folder / "once"), "car"))


@pytest.mark.parametrize("file", ["ages", "named", "patient_first"])
def test_16_rows_join_by_names_and_never_by_numbers(made, file):
    assert ages(made("16") / "voc", made("16") / f"{file}.csv", "age") == {
        f"{at}.jpg": at for at in range(20)
    }


@pytest.mark.parametrize(
    ("file", "column", "expected"),
    [
        ("semi", "age", lambda at: at + 0.5),
        ("comma", "age", None),
        ("thousands", "cells", None),
        ("under", "code", None),
        ("percent", "share", None),
        ("na", "age", None),
        ("spaces", "age", float),
        ("capital", "Age", float),
    ],
)
def test_18_numbers_in_tables(made, file, column, expected):
    folder = made("18")
    if expected:
        found = ages(folder / "voc", folder / f"{file}.csv", column)
        assert found == {f"{at:04d}.jpg": expected(at) for at in range(14)}
    else:
        with pytest.raises(ValueError, match=rf"00\d\d\.jpg: line \d+ of .*{file}\.csv has {column}"):
            ages(folder / "voc", folder / f"{file}.csv", column)


def test_19_an_index_with_a_byte_order_mark(made):
    tissue = sources.open_images(f"annotated:{made('19') / 'tissue'}")
    photos = sources.open_images(str(made("19") / "photos"))
    assert (len(tissue), len(photos)) == (12, 6)
    assert all(images[at].mask is not None for images in (tissue, photos) for at in range(len(images)))
    assert [one.mask.sum() for one in (photos[at] for at in range(6))] == [900] * 6


def test_20_separators_of_windows(made):
    folder = made("20")
    assert len(sources.open_images(f"annotated:{folder / 'tissue'}")) == 12
    assert sum(len(eyes.open_eyes(str(folder / "eyes"), part=part, size=32)) for part in eyes.PARTS) == 60
    assert ages(folder / "voc", folder / "ages.csv", "age") == {f"{at:04d}.jpg": at for at in range(14)}
    labelled = open_labelled(str(folder / "labelled"))
    labels = labelled.table.set_index("name")["label"].to_dict()
    assert labels == {f"images/{at}.png": str(at % 5) for at in range(12)}


@pytest.mark.parametrize(
    ("file", "groups", "alone"), [("patients", 18, 12), ("nan", 18, 12), ("float", 12, 0)]
)
def test_21_images_without_a_group(made, caplog, file, groups, alone):
    images = sources.open_images(str(made("21") / "voc"), "car")
    found = sources.regroup(images, f"csv:{made('21')}/{file}.csv:patient").table["group"]
    assert found.nunique() == groups
    assert "" not in {*found}
    assert (f"patient of {alone} images" in caplog.text) == bool(alone)


@pytest.mark.parametrize(
    ("number", "kind"), [(number, kind) for number, kinds in MASKS.items() for kind in kinds]
)
def test_masks_of_every_kind_give_the_true_counts_and_areas(made, number, kind):
    folder = made(number) / kind
    truth = pd.read_csv(folder / "truth.csv", index_col="image")
    images = sources.open_images(f"annotated:{folder / 'tissue'}")
    assert len(images) == 12
    count, area = get_measures(["count", "area"])
    for at in range(12):
        one = images[at]
        expected = truth.loc[one.name[:3]]
        assert count.measure(one) == expected["count"]
        assert area.measure(one) == pytest.approx(expected["area"], abs=0.01)
    (patch,) = cut_patches(images[11], 40.0, 160, [], magnifications=(40.0,))
    assert (patch.nuclei, patch.area) == (expected["count"], pytest.approx(expected["area"], rel=0.01))


@pytest.mark.parametrize("kind", ["stack", "bool", "png1bit"])
def test_29_what_is_no_label_image(made, kind):
    """A stack is refused; a mask of two values has no numbers, and its parts are the nuclei."""
    folder = made("29") / kind
    truth = pd.read_csv(folder / "truth.csv", index_col="image")
    (count,) = get_measures(["count"])
    if kind == "stack":
        with pytest.raises((ValueError, ImageError), match="planes of 160 x 160 pixels"):
            count.measure(sources.open_images(f"annotated:{folder / 'tissue'}")[0])
    else:
        images = sources.open_images(f"annotated:{folder / 'tissue'}")
        assert [count.measure(images[at]) for at in range(12)] == truth["count"].tolist()


GRADES = {"36": {"plain": 60, "spaces": 60, "float": 60, "blank": 59, "minus": 59}}
GRADES["37"] = dict.fromkeys(["aptos", "idrid", "messidor2", "capital", "eyepacs_usage", "semicolon"], 60)
GRADES["37"] |= {"uppercase_side": 60, "od_os": 60}
GRADES["38"] = {"subset": 60, "upper": 60}
ALONE = ("aptos", "idrid")  # names that tell no patient


@pytest.mark.parametrize(
    ("number", "kind"), [(number, kind) for number, kinds in GRADES.items() for kind in kinds]
)
def test_grades_as_they_are_published(made, number, kind):
    parts = {
        part: eyes.open_eyes(str(made(number) / kind), part=part, size=32, shares=(0.4, 0.3, 0.3)).table
        for part in eyes.PARTS
    }
    every = pd.concat(parts.values())
    assert len(every) == GRADES[number][kind]
    assert {*every["grade"]} == {*range(5)}
    patients = [{*rows["group"]} for rows in parts.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == (60 if kind in ALONE else 30)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("two", r"trainLabels\.csv.*sampleSubmission|sampleSubmission.*trainLabels\.csv"), ("extra", "4 ")],
)
def test_38_folders_that_are_refused_or_told(made, caplog, kind, said):
    folder = str(made("38") / kind)
    if kind == "two":
        with pytest.raises(ValueError, match=said):
            eyes.open_eyes(folder, part="train", size=32)
    else:
        found = sum(len(eyes.open_eyes(folder, part=part, size=32)) for part in eyes.PARTS)
        assert found == 56


def test_38_a_table_beside_the_folder(made):
    with pytest.raises(ValueError, match="no CSV file"):
        eyes.open_eyes(str(made("38") / "outside" / "train"), part="train", size=32)


PREFIXES = (
    "module.",
    "backbone.",
    "model.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "encoder.",
)
PREFIXES += ("resnet.", "net.resnet.", "module.encoder_q.", "model.backbone.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_47_prefixes(made, prefix):
    network = port(made("47") / f"{prefix}x.safetensors", "resnet50", "torch", force_preprocessing=True)
    assert network.card.notes["prefix"] == prefix
    assert network.card.options["classes"] == 5


def test_47_several_networks_and_a_foreign_head(made):
    with pytest.raises(ValueError, match=r"encoder_k\..*encoder_q\.|encoder_q\..*encoder_k\."):
        port(made("47") / "moco.safetensors", "resnet50", "torch", force_preprocessing=True)
    options = {"last": "add_16", "force_preprocessing": True}
    assert port(
        made("47") / "moco.safetensors", "resnet50", "torch", prefix="encoder_q.", force_preprocessing=True
    )
    assert (
        port(made("47") / "backbone_and_head.safetensors", "resnet50", "torch", **options).module.last
        == "add_16"
    )


@pytest.mark.parametrize("kind", ["dropout_linear", "two_layers", "no_head", "classifier"])
def test_48_own_heads(made, kind):
    file, options = made("48") / f"{kind}.safetensors", {"force_preprocessing": True}
    with pytest.raises(ValueError, match=r"pass --last=(avg_pool|add_16)"):
        port(file, "resnet50", "torch", **options)
    for last in ("add_16", "avg_pool"):
        assert port(file, "resnet50", "torch", last, **options).module.last == last


@pytest.mark.parametrize(
    ("kind", "classes"), [("no_bias", 5), ("one_output", 1), ("half", 5), ("bfloat16", 5), ("untracked", 5)]
)
def test_48_files_that_are_read(made, kind, classes):
    network = port(made("48") / f"{kind}.safetensors", "resnet50", "torch", force_preprocessing=True)
    assert network.variables["params"]["pre_softmax"]["kernel"].shape[-1] == classes


@pytest.mark.parametrize("kind", ["int8", "one_channel", "cifar_stem"])
def test_48_files_that_are_refused(made, kind):
    with pytest.raises(ValueError, match=rf"{kind}\.safetensors") as error:
        port(made("48") / f"{kind}.safetensors", "resnet50", "torch", force_preprocessing=True)
    assert "\n" not in str(error.value)


def test_52_class_names(made):
    read = runpy.run_path(str(ROOT / "scripts" / "port_weights.py"))["read_class_names"]
    for name in ("plain", "blank", "bom", "crlf"):
        assert read(made("52") / f"{name}.txt") == ["tench", "goldfish", "Bäume", "d", "e"]
    for name in ("latin.txt", "json.json"):
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            read(made("52") / name)


def test_58_in_the_loop_of_a_notebook(made, probe, tmp_path):
    async def cells():
        probe(made("58") / "voc", tmp_path / "one")
        with pytest.raises(ValueError, match="one"):
            probe(made("58") / "voc", tmp_path / "one")
        return probe(made("58") / "voc", tmp_path / "two")

    assert table(asyncio.run(cells()), "layers")["images"].tolist() == [20, 20]


@contextlib.contextmanager
def small_disk(size):
    """Outside pytest's folders, which it could not remove if a killed run left the disk mounted."""
    disk = Path(tempfile.mkdtemp(prefix="small_disk_"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
        disk.rmdir()


@pytest.mark.parametrize("size", ["20k", "60k", "300k"])
def test_41_a_full_disk(made, probe, size):
    """One error that names a file, and the run goes on where there is space again."""
    with small_disk(size) as disk:
        with pytest.raises(OSError, match="No space left") as error:
            probe(made("41") / "voc", disk / "run")
        assert str(disk) in str(error.value)
        subprocess.run(["mount", "-o", "remount,size=80m", disk], check=True)
        probe(made("41") / "voc", disk / "run", resume=(disk / "run").exists())
        assert table(disk / "run", "layers")["images"].tolist() == [20, 20]


def test_41_patches_and_checkpoints_on_a_full_disk(made):
    images = annotated(read_folder(made("41") / "tissue"), 40.0)
    network = port(made("41") / "model.safetensors", "resnet50", "torch", force_preprocessing=True)
    for write in (
        lambda disk: prepare_patches(images, disk / "patches", size=160, magnifications=(40.0, 20.0)),
        lambda disk: checkpoints.save(disk / "net", network),
    ):
        with small_disk("200k") as disk, pytest.raises(OSError, match="No space left") as error:
            write(disk)
        assert str(disk) in str(error.value)


def test_55_a_terminal_that_knows_ascii_only(made, weights, tmp_path):
    settings = {
        "weights": weights,
        "architecture": "tiny",
        "images": made("55") / "car",
        "image_class": "car",
    }
    settings |= {"layers": "stem,block_1", "splits": 3, "permutations": 0, "pixels": False}
    command = [sys.executable, "scripts/probe.py", "--config=configs/boxes.py", "--imports=tiny_network"]
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    command += [f"--workdir={tmp_path / 'run'}"]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = {**os.environ, **ascii_only, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8").count("R²") > 3


def test_58_from_standard_input(made):
    """Decoding processes need no main file."""
    program = f"""
from scalecov_jax.imaging import batching, sources
images, skipped = sources.open_images({str(made("58") / "voc")!r}, "car"), []
print(sum(int(one.valid.sum()) for one in batching.batches(images, 32, 8, skipped, workers=2)), skipped)
"""
    options = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    found = subprocess.run([sys.executable, "-"], input=program, timeout=300, **options)
    assert found.stdout.strip() == "20 []", found.stderr


@pytest.mark.parametrize(
    "key", ["state_dict", "model_state_dict", "net", "twice", "lightning_model", "bfloat16", "half"]
)
def test_46_dicts_around_the_tensors(made, key):
    pytest.importorskip("torch")
    (file,) = made("46").glob(f"{key}.*")
    assert port(file, "resnet50", "torch", force_preprocessing=True).module.last == "softmax"
