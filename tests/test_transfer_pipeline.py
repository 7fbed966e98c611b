"""The transfer from names to files: a tiny run on rendered tissue, resumed, its findings, and every wrong setting."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from golden_tables import assert_golden
from tiny_network import random_network

from scalecov_jax import checkpoints
from scalecov_jax import run as runner
from scalecov_jax.atomic import write_json
from scalecov_jax.experiments import transfer
from scalecov_jax.imaging import tissue
from scalecov_jax.imaging.image_set import Example, image_set
from scalecov_jax.transfer import fine_tuning

RENDERED = tissue.regions
CONFIGS = Path(__file__).parents[1] / "configs"
pytestmark = pytest.mark.usefixtures("quick_compilation")


def config(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config().to_dict()


def dots(count, seed, *, size):
    """Stands in for rendered tissue, which takes long to compile: dark discs, larger from image to image."""
    images = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        y, x = np.mgrid[:size, :size]
        near = (y % 16 - 8) ** 2 + (x % 16 - 8) ** 2 <= 12 + 4 * (number % 4)
        labels = np.where(near, 1 + (y // 16) * 100 + x // 16, 0).astype(np.int32)
        image = rng.integers(150, 256, (size, size, 3)) - 120 * near[..., None]
        name = f"patient_{number}"
        images.append(Example(image.astype(np.uint8), None, None, labels, name, name))
    return image_set(images).assign(magnification=40.0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    checkpoints.save(folder, random_network())
    return str(folder)


@pytest.fixture(scope="module")
def settings(weights):
    changes = {
        "weights": weights,
        "data": "tissue",
        "regions": 8,
        "region_size": 128,
        "size": 32,
        "magnifications": "10,20,40",
        "limit": 3,
        "labels": "instances",
        "seeds": 2,
        "inner_splits": 2,
        "head_epochs": 3,
        "epochs": 1,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "targets": "standardised",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tissue, "regions", dots)
        yield config("nuclei") | changes


def run(settings, folder, **options):
    return runner.run("transfer", settings, folder, command=["transfer.py"], **options)


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    return folder, run(settings, folder)


def test_heads_on_frozen_features(finished):
    folder, text = finished
    assert "report.html" in text
    tables = runner.read(folder)[1]
    errors, sweep, models = (tables[name] for name in ("transfer", "sweep", "models"))
    assert len(errors) == 2 * 2 * 3 * 4
    assert {*errors["magnification"]} == {"all", "10", "20", "40"}
    assert {*errors["trainable"]} == {"head", "ridge"}
    assert {*sweep["layer"]} == {"stem", "block_1", "block_2", "avg_pool"}
    assert len(sweep) == 2 * 2 * 2 * 4
    whole = errors.query("weights == 'tiny' and layer == 'avg_pool' and magnification == 'all'")
    same = sweep.query("condition == 'trained' and layer == 'avg_pool'")
    both = whole.merge(same, left_on=["trainable", "seed"], right_on=["head", "seed"])
    assert len(both) == 4
    np.testing.assert_allclose(both["mae_x"], both["mae_y"])
    assert {*models["layer"]} <= {"stem", "block_1", "block_2", "avg_pool"}
    assert (models["flops"] > 0).all()
    assert len(tables["comparisons"]) == 2 * 2 * 3
    page = (folder / "report.html").read_text()
    assert not re.search(r"\b(nan|inf|None)\b", page)
    figures = {f"tiny-{name}" for name in ("sweep", "magnification", "predicted", "confusion")} | {"patches"}
    assert {path.stem for path in (folder / "figures").iterdir()} == figures


def test_tables_are_those_kept(finished):
    assert_golden(finished[0], "transfer")


def test_findings_are_what_the_predictions_say(finished):
    folder, text = finished
    predictions = runner.read(folder)[1]["predictions"]
    error = (predictions["area"] - predictions["predicted"]).abs()
    mae = error.groupby([predictions[name] for name in ("trainable", "model", "seed")]).mean().unstack()
    findings = {x["quantity"]: x for x in json.loads((folder / "summary.json").read_text())["findings"]}
    for trainable, name in (("ridge", "ridge on frozen features"), ("head", "head by gradient descent")):
        difference = findings[f"MAE, pruned − whole, {name}"]
        assert difference["level"] == "headline"
        expected = mae.loc[(trainable, "pruned")] - mae.loc[(trainable, "whole")]
        assert difference["value"] == pytest.approx(expected.mean())
        for model, named in (("whole", "whole"), ("pruned", "pruned"), ("scratch", "from scratch")):
            seeds, finding = mae.loc[(trainable, model)], findings[f"MAE, {named}, {name}"]
            ends = (seeds.mean() - seeds.std(), seeds.mean() + seeds.std())
            assert (finding["low"], finding["high"]) == pytest.approx(ends)
            assert finding["quantity"] in text
    cautions = {quantity: x["value"] for quantity, x in findings.items() if x["level"] == "caution"}
    assert cautions["smallest Holm p that 2 seeds and 2 tests can reach"] == 1.0
    held_out = predictions.groupby("seed")["group"].unique().map(set)
    assert cautions["source images ever held out"] == len(set.union(*held_out))


def test_resume_computes_nothing_twice(settings, finished, monkeypatch):
    folder, first = finished
    before = (folder / "transfer.csv").read_bytes()

    def refuse(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(transfer, "compute_features", refuse)
    monkeypatch.setattr(transfer, "prepare_patches", refuse)
    assert run(settings, folder, resume=True) == first
    assert (folder / "transfer.csv").read_bytes() == before
    with pytest.raises(ValueError, match="seeds: 2, now 3"):
        run(settings | {"seeds": 3}, folder, resume=True)


def test_fine_tuning_goes_on_where_it_stopped(settings, tmp_path, monkeypatch):
    settings = settings | {"trainable": "all", "layer": "block_1"}
    count, step = [], fine_tuning._train_step

    def diverge(*args):
        count.append(1)
        state, loss = step(*args)
        return state, loss * np.float32(np.nan if len(count) > 15 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(fine_tuning, "_train_step", diverge)
        with pytest.raises(FloatingPointError, match=r"not finite at step"):
            run(settings, tmp_path / "run")
    finished = [*(tmp_path / "run" / "training").glob("*/predictions.npz")]
    assert finished
    times = {path: path.stat().st_mtime_ns for path in finished}
    table = run(settings, tmp_path / "run", resume=True)
    assert times == {path: path.stat().st_mtime_ns for path in finished}
    assert len([*(tmp_path / "run" / "training").glob("*/predictions.npz")]) == 6
    errors = runner.read(tmp_path / "run")[1]["transfer"]
    assert {*zip(errors["weights"], errors["layer"], strict=True)} == {
        ("tiny", "avg_pool"),
        ("tiny", "block_1"),
        ("random (tiny)", "avg_pool"),
    }
    assert not (tmp_path / "run" / "sweep.csv").exists()
    assert_golden(tmp_path / "run", "fine_tuning", tables=["patches/*"])
    assert (tmp_path / "run" / "figures" / "tiny-learning.png").exists()
    assert table == run(settings, tmp_path / "other").replace(str(tmp_path / "other"), str(tmp_path / "run"))


def test_the_published_rule_takes_the_layer_of_an_earlier_run(settings, tmp_path):
    summary = {
        "networks": {"tiny": {"architecture": "tiny", "selected": {"ridge": {"layer": "block_1"}}}},
    }
    write_json(tmp_path / "summary.json", summary)
    run(settings | {"auto": "scale", "scores": str(tmp_path)}, tmp_path / "run")
    predictions = runner.read(tmp_path / "run")[1]["predictions"]
    assert {*predictions[predictions["model"] == "pruned"]["layer"]} == {"block_1"}
    with pytest.raises(ValueError, match="holds no layer selected by ridge for tiny"):
        run(settings | {"auto": "scale", "scores": str(tmp_path / "none")}, tmp_path / "x")


def test_the_split_is_fixed_when_asked_for(settings, tmp_path):
    run(settings | {"fixed_split": True, "layer": "block_1"}, tmp_path / "run")
    tables = runner.read(tmp_path / "run")[1]
    ridge = tables["transfer"].query("trainable == 'ridge' and magnification == 'all'")["mae"].tolist()
    assert ridge[:3] == ridge[3:]
    assert {*tables["comparisons"]["trainable"]} == {"head"}
    findings = runner.page(tmp_path / "run").findings
    (repeated,) = (
        x for x in findings if x.quantity == "seeds with the same predictions for the same patches"
    )
    assert repeated.at == "tiny, ridge on frozen features"
    assert [x.value for x in findings if x.quantity == "splits that the seeds share"] == [1]


def test_a_single_seed_is_no_test(settings, tmp_path):
    run(settings | {"seeds": 1, "layer": "block_2"}, tmp_path / "run")
    assert runner.read(tmp_path / "run")[1]["comparisons"].empty
    findings = runner.page(tmp_path / "run").findings
    headlines = [x for x in findings if x.level == "headline"]
    assert [x.low for x in headlines] == [None, None]
    assert all(x.note.startswith("No test") for x in headlines)
    assert [x.value for x in findings if x.quantity == "number of seeds"] == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": ""}, r"config\.weights is ''; expected at least 1 value"),
        ({"data": ""}, r"config\.data is empty; expected a folder of annotated images, or tissue"),
        ({"trainable": "some"}, r"config\.trainable is 'some'; expected one of head, all"),
        ({"seeds": 0}, r"config\.seeds is 0; expected at least 1"),
        ({"held_out": 1.0}, r"config\.held_out is 1\.0; expected 0\.001 to 0\.999"),
        ({"magnifications": "10,x"}, r"config\.magnifications is 'x'; expected a number"),
        ({"magnifications": "10,-5"}, r"config\.magnifications is '10\.0,-5\.0'; expected 0\.01"),
        ({"auto": "scale"}, r"config\.scores is empty"),
        ({"layer": "block_9"}, r"tiny has no layer 'block_9'; did you mean block_"),
        ({"layer": "softmax"}, r"A regression head cannot follow softmax; choose one of stem"),
        ({"architecture": "resnet50"}, r"holds tiny, but config\.architecture is resnet50"),
        ({"data": "/nowhere", "layer": "stam"}, r"/nowhere: no such folder.*did you mean stem"),
        ({"seeds": 0, "labels": "none"}, r"config\.labels is 'none'.*config\.seeds is 0"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(settings, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(settings | changes, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_source_image_is_refused(settings, tmp_path):
    with pytest.raises(ValueError, match=r"All \d+ images belong to patient_0; a split by source"):
        run(settings | {"regions": 1}, tmp_path / "run")


def test_rendered_tissue_and_both_configs_fit_the_pipeline():
    assert set(config("nuclei")) == set(config("tissue"))
    assert len(RENDERED(3, 0)) == 3
