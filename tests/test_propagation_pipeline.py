"""scripts/explain.py --method=score_propagation on a tiny network: files, conservation, going on, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from golden_tables import assert_golden
from PIL import Image
from skimage.draw import disk
from tiny_network import random_network

from scalecov_jax import checkpoints
from scalecov_jax import run as runner
from scalecov_jax.experiments import explain, explain_scores
from scalecov_jax.experiments.explain_inputs import Subject
from scalecov_jax.explanation.localisation import average_precision
from scalecov_jax.explanation.target import class_logit, head_unit
from scalecov_jax.imaging.image_set import Example
from scalecov_jax.probes.splits import random_splits
from scalecov_jax.settings import parse
from scalecov_jax.vectors import fit_rcvs, save_rcvs

# Tables that there were not before, and what is kept of single networks.
NEW = ["localised/*"]
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    checkpoints.save(folder / "whole", random_network())
    checkpoints.save(folder / "headless", random_network(last="block_2"))
    for name in ("images", "more"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    for number in range(15):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("images" if number < 3 else "more") / f"{number}.png")
    changes = {"weights": str(folder / "whole"), "images": str(folder / "images"), "random_weights": False}
    return {**changes, "method": "score_propagation", "shown": 1, "batch_size": 2, "layer": "block_1"}


def run(settings, workdir, **options):
    return runner.run("explain", settings, workdir, command=["explain.py"], **options)


def scores_of(folder):
    return runner.read(folder)[1]["scores"]


def finding(folder, quantity, at=""):
    """The finding with these words."""
    (found,) = (
        found
        for found in json.loads((folder / "summary.json").read_text())["findings"]
        if quantity in found["quantity"] and at in found["at"]
    )
    return found


@pytest.fixture(scope="module")
def done(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "all"
    run({**settings, "classes": "all"}, folder)
    return folder


def test_parts_add_up_in_every_file(done):
    scores = scores_of(done)
    assert scores["image"].tolist() == [f"{image}.png" for image in range(3) for _ in range(5)]
    assert scores["target"].tolist() == [str(target) for target in range(5)] * 3
    np.testing.assert_allclose(scores["sum_of_parts"], scores["logit"], rtol=1e-4)
    assert scores["relative_error"].max() < 1e-4
    error = finding(done, "largest relative error")
    assert (error["value"], error["level"]) == (
        pytest.approx(1e6 * scores["relative_error"].max()),
        "headline",
    )
    share = (scores["input"] / scores["logit"]).median()
    assert finding(done, "share of the score that the input has")["value"] == pytest.approx(share)
    np.testing.assert_allclose(runner.read(done)[1]["totals"]["held"], 1, rtol=1e-4)
    with np.load(done / "scores.npz", allow_pickle=False) as file:
        logits = scores["logit"].to_numpy().reshape(3, 5)
        np.testing.assert_array_equal(file["layer_scores"], logits)
        assert file["layer_total"].shape == (3, 5, 32, 32)
        np.testing.assert_allclose(file["layer_total"].sum((2, 3), dtype=float), logits, rtol=1e-4)
        layers = ("stem", "pool", "block_1", "block_2", "pre_softmax")
        parts = [file[f"layer_{name}"].reshape(3, 5, -1).sum(2) for name in ("input", *layers)]
        np.testing.assert_allclose(sum(parts), logits, rtol=1e-4)
        assert file["layer_block_1"].ndim == 4
        assert tuple(file["layers"][:4]) == layers[:4]  # not by name


@pytest.mark.parametrize(("run", "name"), [("done", "score_propagation"), ("located", "localisation")])
def test_tables_are_those_kept(run, name, request):
    folder = request.getfixturevalue(run)
    folder = folder if name == "score_propagation" else folder[0]
    assert_golden(folder, name, tables=NEW, columns=["relative_error"])


def test_figures_and_page(done):
    names = {one.name for one in (done / "figures").glob("*.png")}
    walks = {f"walk_whole_001_{column:02}.png" for column in range(1, 6)}
    assert names == {"maps_whole_001.png", *walks}
    pictures = runner.read(done)[1]["pictures"].set_index(["figure", "row"]).loc[("maps_whole_001", "0")]
    score = scores_of(done).iloc[0]
    sums = f"logit {score['logit']:.6g}, sum {score['sum_of_parts']:.6g}"
    assert pictures["title"].tolist() == ["0.png", sums, "> 2 sd", "over the image"]
    with Image.open(done / pictures["file"].iloc[2]) as binary:
        assert {*np.asarray(binary).ravel().tolist()} == {0, 255}
    html = (done / "report.html").read_text()
    assert sums in html
    assert "de la Torre" in html
    (first, *others) = sorted((done / "blink").iterdir())
    assert (first.name, len(others)) == ("whole_001_01.gif", 4)
    with Image.open(first) as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (2, (32, 32), 700)


def test_only_some_arrays_are_kept_and_the_prior_may_be_the_published_one(settings, done, tmp_path):
    changes = {"classes": "1", "kept": 1, "prior": "published", "deviations": 0.5}
    run({**settings, **changes}, tmp_path / "run")
    reds = []
    for gif in (tmp_path / "run/blink/whole_001_01.gif", done / "blink/whole_001_02.gif"):
        with Image.open(gif) as frames:
            frames.seek(1)
            red, green, _ = np.moveaxis(np.asarray(frames.convert("RGB"), int), 2, 0)
            reds.append(np.mean(red > green + 50))
    assert reds[0] > 2 * reds[1] > 0
    with np.load(tmp_path / "run/scores.npz") as file, np.load(done / "scores.npz") as every:
        np.testing.assert_allclose(file["layer_scores"][:, 0], every["layer_scores"][:, 1], rtol=1e-5)
        assert file["layer_total"].shape == (1, 1, 32, 32)
        np.testing.assert_allclose(file["layer_block_1"][0, 0], every["layer_block_1"][0, 1], atol=1e-5)
        lost = file["layer_total"][0, 0] - every["layer_total"][0, 1]
    assert np.abs(lost).max() > 0
    held = finding(tmp_path / "run", "total maps hold")
    assert held["level"] == "caution"
    with np.load(tmp_path / "run/scores.npz") as file:
        total = file["layer_total"].sum(dtype=float) / file["layer_scores"][0, 0]
    assert held["value"] == pytest.approx(total, rel=1e-5)


def test_constants_of_the_grader_lie_in_the_fields_that_its_source_quotes():
    network = random_network("dr_grader", input_size=256, width=0.125)
    constants = {
        f"block{block}_conv{one}": np.zeros((1, 1, 512 >> block, 512 >> block))
        for block in range(1, 8)
        for one in (1, 2)
    }
    constants["conv15"] = np.zeros((1, 1, 1, 1))
    constants["block2_conv1"][..., 64, 64] = 1.0
    widths = []
    for prior in ("true", "published", "quoted"):
        one = explain_scores.spread_constants(constants, network, 256, prior)["block2_conv1"][0, 0]
        assert one.sum() == pytest.approx(1)
        widths.append(np.count_nonzero(one.any(0)))
    assert widths == [10, 10, 9]


@pytest.fixture(scope="module")
def located(settings, tmp_path_factory):
    """Six retinas without their renderer: noise, of which the second has no lesion; two images a patient."""
    rng = np.random.default_rng(1)

    def retinas(count, seed, size):
        examples = []
        for index in range(count):
            mask = np.zeros((size, size), np.uint8)
            if index != 1:
                mask[4:8, 5:7], mask[20, 20] = 1, 3
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            examples.append(Example(pixels, "2", None, mask, f"patient_{index // 2}", f"eye_{index}"))
        return examples

    folder = tmp_path_factory.mktemp("located") / "run"
    asked = {"images": "retina", "scenes": 6, "localisation": True, "randomisation": True, "smoothing": "0,2"}
    changes = {**settings, **asked, "classes": "predicted,severity"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scalecov_jax.imaging.retina.examples", retinas)
        table = run(changes, folder)
        before = {one: one.stat().st_mtime_ns for one in (folder / "localised").iterdir()}
        run(changes, folder, resume=True)
    assert before == {one: one.stat().st_mtime_ns for one in (folder / "localised").iterdir()}
    return folder, table


def test_maps_are_located_beside_masks(located):
    folder, table = located
    rows = [*runner.read(folder)[1]["localisation"].itertuples()]
    own = ["score_propagation", "score_propagation local", "score_propagation unsigned"]
    methods = [*own, "sobel", "gradient_x_input", "gradient", "full_grad", "grad_cam block_1"]
    assert [row.method for row in rows[:32:4]] == methods
    assert [row.smoothing for row in rows[:4]] == [0, 2, 0, 2]
    assert len(rows) == 5 * 8 * 2 * 2  # images, methods, targets, smoothings
    edges = {(row.image, row.smoothing, row.precision) for row in rows if row.method == "sobel"}
    assert len(edges) == 5 * 2  # no target changes them
    assert {row.image for row in rows} == {f"eye_{index}" for index in (0, 2, 3, 4, 5)}
    assert {row.target for row in rows} == {"predicted", "severity"}
    assert {row.precision_chance for row in rows} == {9 / 32**2}
    left_out = finding(folder, "images without a lesion")
    assert (left_out["value"], left_out["level"]) == (pytest.approx(100 / 6), "caution")
    assert "1 of 6 images have nothing in their mask, or nothing left of it" in table
    with np.load(folder / "scores.npz") as file:
        for row in rows[:4]:
            if row.smoothing == 0:
                total = file["layer_total"][0, ["predicted", "severity"].index(row.target)]
                mask = np.zeros((32, 32), bool)
                mask[4:8, 5:7] = mask[20, 20] = True
                assert row.precision == pytest.approx(average_precision(total, mask), rel=1e-3)
    assert file_targets(folder)[:2] == [rows[0].explained, "severity"]
    assert all(row.precision_other is not None for row in rows)
    for image, other in (("eye_0", 5), ("eye_2", 0), ("eye_3", 0), ("eye_5", 3)):  # of another patient
        row = next(row for row in rows if (row.image, row.target) == (image, "severity"))
        with np.load(folder / "scores.npz") as file:
            expected = average_precision(file["layer_total"][other, 1], mask)
        assert row.precision_other == pytest.approx(expected, rel=1e-3)


def file_targets(folder):
    with np.load(folder / "scores.npz") as file:
        return file["layer_targets"].ravel().tolist()


def test_methods_are_compared_and_maps_depend_on_weights(located):
    folder, _ = located
    tables = runner.read(folder)[1]
    methods, rows = tables["methods"], tables["localisation"]
    assert len(methods) == 2 * 2 * 3 * 8
    assert (methods["holm"].isna() == (methods["method"] == "score_propagation")).all()
    assert (methods["low"] <= methods["mean"]).all()
    assert (methods["mean"] <= methods["high"]).all()
    names = ["weights", "target", "smoothing", "method"]
    for measure in ("hit", "recall", "precision"):
        own = methods[methods["measure"] == measure].set_index(names)
        means = rows.groupby(names, sort=False)[[measure, f"{measure}_chance", f"{measure}_other"]].mean()
        np.testing.assert_allclose(own[["mean", "chance", "other"]], means.loc[own.index])
    own = methods.query("target == 'severity' and smoothing == 2 and measure == 'precision'")
    best = own.loc[own["mean"].idxmax(), "method"]
    for row in own.itertuples():
        if row.method in (best, "score_propagation"):
            where = "severity, smoothed by 2 px, 5 images of 3"
            found = finding(folder, f"precision-recall, {row.method}", where)
            assert [found[name] for name in ("value", "low", "high")] == [row.mean, row.low, row.high]
    assert {*tables["randomised"]["weights"]} == {"whole"}
    assert {f"localisation_{one:02}.png" for one in range(1, 5)} < {
        one.name for one in (folder / "figures").iterdir()
    }


def test_the_predicted_class_is_named_and_kept(settings, done, tmp_path):
    run({**settings, "limit": 2}, tmp_path / "run")
    scores, every = scores_of(tmp_path / "run").set_index("image"), scores_of(done)
    best = every.loc[every.groupby("image")["logit"].idxmax()].set_index("image").loc[scores.index]
    assert scores["target"].tolist() == best["target"].tolist()
    np.testing.assert_allclose(scores["logit"], best["logit"], rtol=1e-5)
    before = (tmp_path / "run/scores.npz").stat().st_mtime_ns, (tmp_path / "run/scores.csv").read_bytes()
    run({**settings, "limit": 2}, tmp_path / "run", resume=True)
    after = (tmp_path / "run/scores.npz").stat().st_mtime_ns, (tmp_path / "run/scores.csv").read_bytes()
    assert after == before


def test_photographs_of_the_fundus_are_trimmed(settings, tmp_path):
    (tmp_path / "eyes").mkdir()
    for number, radius in enumerate((40, 50)):
        image = np.full((120, 160, 3), 5, np.uint8)
        image[disk((60, 70 + number), radius)] = (200, 90, 40)
        Image.fromarray(image).save(tmp_path / "eyes" / f"{number}.png")
    Image.fromarray(np.full((120, 160, 3), 90, np.uint8)).save(tmp_path / "eyes" / "wall.png")
    run({**settings, "images": str(tmp_path / "eyes"), "trim": True, "shown": 2}, tmp_path / "run")
    totals = np.load(tmp_path / "run" / "scores.npz")["layer_total"]
    assert np.corrcoef(totals[0].ravel(), totals[1].ravel())[0, 1] > 0.9  # the same eye once it is trimmed
    skipped = runner.read(tmp_path / "run")[1]["skipped"]
    assert skipped[["image", "reason"]].to_numpy().tolist() == [["wall.png", "unreadable image"]]
    assert finding(tmp_path / "run", "left out (unreadable image)")["value"] == pytest.approx(100 / 3)


def test_memory_is_named_beforehand(settings):
    text = explain.plan(parse(explain.Settings, {**settings, "classes": "1,3"}))
    assert int(text.split("peak_bytes ")[1].split()[0]) > 2 * 2 * 32 * 32 * 3 * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "headless"}, "has no classes: it stops at block_2.*rcv:scale@block_2"),
        ({"classes": "1,9"}, "no class '9'"),
        ({"prior": "quoted"}, "prior is quoted, but whole is tiny"),
        ({"deviations": -1.0}, "config.deviations is -1.0; expected at least 0"),
        ({"prior": "gaussian"}, "config.prior is 'gaussian'; expected one of true, published, quoted"),
        ({"smoothing": "1,x"}, "config.smoothing is 'x'; expected a number"),
        ({"localisation": True}, "needs masks, but none of the 3 images"),
        ({"localisation": True, "layer": "block_9"}, "no module is called 'block_9'"),
    ],
)
def test_mistakes_are_named_before_anything_is_computed(settings, changes, message, tmp_path):
    if "weights" in changes:
        changes = {"weights": str(Path(settings["weights"]).parent / changes["weights"])}
    with pytest.raises(ValueError, match=message):
        run({**settings, **changes}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_projections_on_rcvs_need_no_head(settings, tmp_path):
    weights, images = (str(Path(settings["weights"]).parent / name) for name in ("headless", "more"))
    network = checkpoints.load(Path(weights))
    rng = np.random.default_rng(0)
    values, measure = rng.normal(size=(30, 32)).astype(np.float32), {"mean_luminance": rng.normal(size=30)}
    save_rcvs(tmp_path / "rcvs.npz", fit_rcvs(network, "block_2", values, measure, random_splits(30, 3, 0)))
    changes = {"weights": weights, "images": images, "target": "rcv:mean_luminance@block_2"}
    changes["rcvs"] = str(tmp_path / "rcvs.npz")
    run({**settings, **changes}, tmp_path / "run")
    scores = scores_of(tmp_path / "run")
    assert {*scores["target"]} == {"mean_luminance@block_2"}
    assert scores["relative_error"].max() < 1e-4


def test_more_than_can_be_held_is_refused(settings, monkeypatch, tmp_path):
    monkeypatch.setattr(explain_scores, "MOST_BYTES", 50_000)
    with pytest.raises(ValueError, match=r"arrays of 3 images take .* set config.kept to at most \d+ images"):
        run({**settings, "classes": "all"}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_quoted_fields_need_all_convolutions():
    network = random_network("dr_grader", width=0.0625, input_size=256)
    settings = parse(explain.Settings, {"method": "score_propagation", "prior": "quoted"})
    early = head_unit(network, "block3_conv1", np.ones(4))
    with pytest.raises(
        ValueError, match="the target lies at block3_conv1; the source quotes 15 convolutions"
    ):
        explain_scores.check_scores(Subject("net", network, settings, [early], source=range(2)))
    explain_scores.check_scores(Subject("net", network, settings, [class_logit(network, 1)], source=range(2)))


def test_masks_and_images_of_which_nothing_is_left(settings, tmp_path):
    folder = tmp_path / "eyes"
    folder.mkdir()
    mask = np.zeros((320, 320), np.uint8)
    mask[0, 0] = 255  # between the pixels that are taken at 32 x 32
    Image.fromarray(np.full((320, 320, 3), 90, np.uint8)).save(folder / "1.png")
    Image.fromarray(mask).save(folder / "1_lesions.png")
    (folder / "index.csv").write_text("file,mask\n1.png,1_lesions.png\n")
    changed = {**settings, "images": str(folder)}
    with pytest.raises(
        ValueError, match="Nothing is left of the masks of 1 images at the size that whole takes"
    ):
        run({**changed, "localisation": True}, tmp_path / "run")
    with pytest.raises(ValueError, match=r"None of the 1 images in .* can be used \(1\.png: no visible disc"):
        run({**changed, "trim": True}, tmp_path / "trimmed")
