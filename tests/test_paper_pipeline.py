"""The whole paper on a tiny scale: every section, the report of them all, interruption and wrong settings."""

import csv
import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest
from golden_tables import assert_golden
from test_transfer_pipeline import dots
from tiny_network import random_network

from scalecov_jax import checkpoints, reproduction
from scalecov_jax.experiments import EXPERIMENTS, probe
from scalecov_jax.imaging import tissue
from scalecov_jax.settings import parse

CONFIG = Path(__file__).parents[1] / "configs" / "paper.py"
pytestmark = pytest.mark.usefixtures("quick_compilation", "quick_scenes")


def load(data):
    spec = importlib.util.spec_from_file_location("paper_config", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(data).to_dict()


def merge(settings, changes):
    return {
        name: merge(value, changes[name]) if isinstance(changes.get(name), dict) else changes.get(name, value)
        for name, value in settings.items()
    }


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """configs/paper.py:scenes, with a ResNet50 of a sixteenth of its width and few small images."""
    weights = tmp_path_factory.mktemp("weights") / "resnet50"
    network = random_network("resnet50", input_size=32, width=1 / 16, classes=16)
    checkpoints.save(weights, network)
    changes = {
        "weights": str(weights),
        "resize": {"scenes": 1, "scene_size": 32, "sizes": "24,32", "filters": "lanczos"},
        "noise": {
            "sizes": "64,96,128",
            "random_weights": False,
            "per_size": 9,
            "layers": "max_pool,add_1",
            "ranges": "",
        },
        "probe": {
            "image_class": "striped_disc,ringed_star",
            "scenes": 16,
            "input_size": 32,
            "splits": 3,
            "alphas": 3,
            "n_train": "4,6",
            "permutations": 19,
        },
        "covariance": {
            "classes": "striped_disc,ringed_star",
            "scenes": 20,
            "objects": 3,
            "ratios": 3,
            "size": 32,
            "layers": "add_1,add_2",
            "estimators": "ridge",
            "splits": 2,
        },
        "transfer": {
            "regions": 6,
            "region_size": 128,
            "size": 32,
            "magnifications": "10,20,40",
            "limit": 2,
            "seeds": 2,
            "head_epochs": 2,
        },
    }
    return merge(load("scenes"), changes)


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tissue, "regions", dots)
        table = reproduction.run(settings, str(folder), command=["reproduce.py"])
    return folder, table


def test_every_section_has_its_files_and_its_rows(finished):
    folder, table = finished
    rows = pd.read_csv(folder / "compared.csv", dtype=str, keep_default_na=False)
    text = (folder / "report.html").read_text()
    for name, heading in reproduction.SECTIONS.items():
        assert (folder / name / "report.html").exists()
        findings = json.loads((folder / name / "summary.json").read_text())["findings"]
        own = rows[rows["section"] == heading.split()[0]]
        expected = [f"{x['at']}: {x['quantity']}" for x in findings if x["level"] != "caution"]
        assert own["quantity"].tolist() == expected
        assert expected
        assert heading in text
    assert not rows.isin(["", "nan"]).any(axis=None)
    assert "ResNet50 add_15: R² by least squares at the published peak" in table
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["provenance"]["seed"] == "0"
    assert {row["section"] for row in summary["compared"]} == {*rows["section"]}


def test_tables_are_those_kept(finished):
    assert_golden(finished[0], "paper", tables=["noise/*"])  # which has tables of its own


def test_a_finished_section_is_run_again_only_if_it_is_damaged(finished, settings, monkeypatch):
    folder, table = finished

    def refuse(*arguments, **options):
        raise AssertionError("ran again")

    for name in reproduction.SECTIONS:
        monkeypatch.setitem(EXPERIMENTS, name, EXPERIMENTS[name]._replace(run=refuse))
    before = (folder / "compared.csv").read_bytes()
    assert reproduction.run(settings, str(folder), command=["reproduce.py"], resume=True) == table
    assert (folder / "compared.csv").read_bytes() == before
    files = {name: (folder / "resize" / name).read_bytes() for name in ("curves.csv", "summary.json")}
    (folder / "resize" / "curves.csv").write_bytes(files["curves.csv"][:-1])
    with pytest.raises(AssertionError, match="ran again"):
        reproduction.run(settings, str(folder), command=["reproduce.py"], resume=True)
    for name, content in files.items():
        (folder / "resize" / name).write_bytes(content)


def test_an_interrupted_run_goes_on_to_the_same_figures(finished, settings, tmp_path, monkeypatch):
    some = {**settings, "sections": "resize,probe"}
    interrupted = probe.class_tables

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(probe, "class_tables", interrupt)
    with pytest.raises(KeyboardInterrupt):
        reproduction.run(some, str(tmp_path / "run"), command=["reproduce.py"])
    monkeypatch.setattr(probe, "class_tables", interrupted)
    finished_stage = EXPERIMENTS["resize"]._replace(run=interrupt)  # is not run again
    monkeypatch.setitem(EXPERIMENTS, "resize", finished_stage)
    reproduction.run(some, str(tmp_path / "run"), command=["reproduce.py"], resume=True)
    with (finished[0] / "compared.csv").open() as whole, (tmp_path / "run" / "compared.csv").open() as part:
        expected = [row for row in csv.reader(whole) if row[0] in ("section", "4.1", "4.3")]
        assert list(csv.reader(part)) == expected


def test_wrong_settings_of_every_section_are_told_at_once(settings, tmp_path):
    wrong = merge(
        settings,
        {
            "resize": {"sizes": "none"},
            "covariance": {"classes": "striped_disk,ringed_star"},
            "transfer": {"seeds": 0},
        },
    )
    with pytest.raises(ValueError, match=r"In config\.resize") as error:
        reproduction.run(wrong, str(tmp_path / "run"), command=["reproduce.py"])
    assert "In config.covariance: config.classes: No scene class is called 'striped_disk'" in str(error.value)
    assert "In config.transfer: config.seeds is 0" in str(error.value)
    assert "In config.noise" not in str(error.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(
        ValueError, match=r"config\.sections is 'probes'; expected one of resize, noise.*probe\?"
    ):
        reproduction.run({**settings, "sections": "probes"}, tmp_path / "run", command=["reproduce.py"])


@pytest.mark.parametrize("data", ["photographs", "imagenet", "scenes"])
def test_the_configuration_names_its_data(data, tmp_path):
    config = load(data)
    shared = {name: value for name, value in config.items() if name not in reproduction.SECTIONS}
    settings = parse(reproduction.Settings, shared)
    own = {
        name: reproduction.section_settings(config, settings, name, tmp_path)
        for name in reproduction.SECTIONS
    }
    assert all(one["weights"] and one["seed"] == config["seed"] for one in own.values())
    classes = {"photographs": "car,cat,train", "imagenet": "n02058221,n01608432,n04037443"}
    assert config["probe"]["image_class"] == classes.get(data, "striped_disc,ringed_star,checkered_triangle")
    assert own["transfer"]["scores"] == ("" if data == "photographs" else str(tmp_path / "probe"))
    with pytest.raises(ValueError, match=r"configs/paper\.py:photos is not known"):
        load("photos")


def test_photographs_without_weights_say_how_to_get_them(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    config = {**load("photographs"), "weights": str(tmp_path / "none")}
    with pytest.raises(ValueError, match=r"scripts/port_weights\.py"):
        reproduction.run(config, str(tmp_path / "run"), command=["reproduce.py"])
