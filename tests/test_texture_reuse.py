"""Reuse of texture: two kinds of tissue, the binary loss, intervals over patients, R2 in sample, and the pipeline."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_tables import assert_golden
from PIL import Image
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score
from tiny_network import random_network

from scalecov_jax import checkpoints
from scalecov_jax import run as runner
from scalecov_jax.cutting import pruned_network
from scalecov_jax.experiments import texture
from scalecov_jax.experiments import texture_maths as maths
from scalecov_jax.experiments.texture_maths import in_sample_r2, score_texture
from scalecov_jax.explanation.target import class_probability
from scalecov_jax.extraction import compute_features
from scalecov_jax.imaging import tissue
from scalecov_jax.imaging.image_set import Example, image_set
from scalecov_jax.models.layers import WHOLE
from scalecov_jax.report.numbers import number as shown
from scalecov_jax.settings import parse
from scalecov_jax.transfer.classification import HEAD, detected, fine_tune_detector, with_one_output
from scalecov_jax.transfer.fine_tuning import Recipe, Regressor, Units, _train_step, fine_tune, initial_state

CONFIG = Path(__file__).parents[1] / "configs" / "texture.py"
BINARY = Recipe(1, 8, 1e-2, "pixels", "running", "sigmoid_cross_entropy")
STAINING = ("stains", "light", "blur", "cytoplasm", "stroma", "gaps", "borders", "halo")
pytestmark = pytest.mark.usefixtures("quick_compilation")


def patches(patients=8, per_class=4, size=32):
    """Noise, coarser in the second class, with each patient's own brightness."""
    rng = np.random.default_rng(0)
    examples = []
    for patient in range(patients):
        for kind in (0, 1):
            for number in range(per_class):
                grain = rng.integers(0, 256, (size >> kind, size >> kind, 3)) // (1 + patient % 3)
                image = np.kron(grain, np.ones((1 << kind, 1 << kind, 1))).astype(np.uint8)
                name = f"{patient}_{kind}_{number}"
                examples.append(
                    Example(image, ("fine", "grainy")[kind], None, None, f"patient {patient}", name)
                )
    return image_set(examples)


def test_kinds_of_tissue_differ_in_nuclei_and_not_in_stain():
    drawn = {
        kind: jax.vmap(lambda key, kind=kind: tissue.traits(key, kind))(
            jax.random.split(jax.random.key(3), 50)
        )
        for kind in tissue.KINDS
    }
    normal, tumour = drawn["normal"], drawn["tumour"]
    for name in STAINING:
        np.testing.assert_array_equal(getattr(normal, name), getattr(tumour, name))
        np.testing.assert_array_equal(getattr(normal, name), getattr(drawn["any"], name))
    for name in ("area", "spread", "coarseness", "nucleoli"):
        assert (getattr(tumour, name) > getattr(normal, name)).all(), name
    assert (tumour.pitch < normal.pitch).all()
    assert tumour.area.min() < normal.area.max()  # patients overlap


def test_rendered_patches_name_class_and_patient():
    source = tissue.patches(2, 1, 0, size=48)
    assert [*source.column("label")] == ["normal", "tumour"] * 2
    assert [*source.column("group")] == ["patient_000"] * 2 + ["patient_001"] * 2
    tumour = source[1]  # the other kind would be compiled anew
    assert (tumour.label, tumour.group, tumour.image.shape) == ("tumour", "patient_000", (48, 48, 3))


def test_a_step_is_adam_on_the_cross_entropy():
    """The loss by hand: -y log p - (1 - y) log(1 - p)."""
    source = patches(1)
    network = with_one_output(random_network(last="block_2"), 0)
    trunk = pruned_network(network, WHOLE)
    images = np.stack([source[i].image for i in range(8)])
    y = (source.column("label") == "grainy").astype(np.float32)
    state = initial_state(trunk, 1e-2, 0)
    regressor = Regressor(trunk.module, "tf", "sigmoid_cross_entropy")

    def entropy(params):
        variables = {"params": params["trunk"], "batch_stats": trunk.variables["batch_stats"]}
        x = jnp.asarray(images, jnp.float32) / 127.5 - 1
        pooled, _ = trunk.module.apply(variables, x, True, mutable=["batch_stats"])
        p = 1 / (1 + jnp.exp(-(pooled @ params["head"]["kernel"] + params["head"]["bias"])))
        return -jnp.mean(y * jnp.log(p) + (1 - y) * jnp.log(1 - p))

    @jax.jit
    def by_hand(params):
        optimizer, (loss, gradient) = optax.adam(1e-2), jax.value_and_grad(entropy)(params)
        updates, _ = optimizer.update(gradient, optimizer.init(params))
        return loss, optax.apply_updates(params, updates)

    expected, after = by_hand(state.params)
    units = Units(jnp.float32(0), jnp.float32(1))
    stepped, loss = _train_step(regressor, 1e-2, False, state, units, jnp.asarray(images), jnp.asarray(y))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(stepped.params["head"]["kernel"], after["head"]["kernel"], atol=1e-5)


def test_classes_other_than_0_and_1_are_refused(tmp_path):
    source = patches(1)
    network = random_network(last="block_2")
    for classes in (np.full(8, 2.0), np.zeros(8)):
        with pytest.raises(ValueError, match="expected 0 and 1, both in the training part"):
            fine_tune(
                network, source, classes, np.arange(8), np.arange(8), tmp_path, size=32, seed=0, recipe=BINARY
            )
    with pytest.raises(ValueError, match="a detector needs 'sigmoid_cross_entropy'"):
        fine_tune_detector(
            network, source, np.arange(8), np.arange(8), tmp_path, size=32, seed=0, recipe=Recipe()
        )


def test_the_head_is_new_and_the_trunk_is_kept():
    network = random_network(seed=1)
    whole = with_one_output(network, 0)
    assert whole.variables["params"][HEAD]["kernel"].shape == (32, 1)
    np.testing.assert_array_equal(
        whole.variables["params"]["block_2"]["kernel"], network.variables["params"]["block_2"]["kernel"]
    )
    cut = random_network(last="block_1")
    longer = with_one_output(cut, 0)
    assert longer.variables["params"]["block_2"]["kernel"].shape == (3, 3, 16, 32)
    with pytest.raises(ValueError, match="vgg16 cannot be fine-tuned as a detector"):
        with_one_output(cut._replace(architecture=checkpoints.get_architecture("vgg16")), 0)


def test_auc_is_scikit_learns_and_its_interval_is_over_patients():
    rng = np.random.default_rng(1)
    classes = np.tile([0, 1], 60)
    logits = np.round(rng.normal(size=120) + classes, 1)
    groups = tuple(str(i // 6) for i in range(120))
    found = detected(logits, classes, groups)
    assert found.auc == pytest.approx(roc_auc_score(classes, logits))
    assert found.accuracy == pytest.approx(((logits > 0) == classes).mean())
    assert found.auc_low < found.auc < found.auc_high
    pairs = np.repeat(logits.reshape(20, 6), 4, axis=1).ravel()  # copies within patients add nothing
    of_copies = detected(
        pairs, np.repeat(classes.reshape(20, 6), 4, axis=1).ravel(), tuple(np.repeat(groups, 4))
    )
    assert of_copies.auc_low == pytest.approx(found.auc_low)
    with pytest.raises(ValueError, match="expected both 0 and 1"):
        detected(logits, np.ones(120, int), groups)


def test_r2_in_sample_is_scikit_learns_and_one_where_features_are_many():
    rng = np.random.default_rng(2)
    features = {"narrow": rng.normal(size=(40, 7)), "wide": rng.normal(size=(40, 60))}
    targets = rng.normal(size=(2, 40, 3))
    found = in_sample_r2(features, targets)
    for r in range(2):
        for m in range(3):
            model = LinearRegression().fit(features["narrow"], targets[r, :, m])
            assert found[0, r, m] == pytest.approx(model.score(features["narrow"], targets[r, :, m]))
    np.testing.assert_allclose(found[1], 1, atol=1e-9)
    rows = score_texture(
        "random", features, {"c": targets[0, :, 0]}, [str(i // 4) for i in range(40)], splits=2, seed=0
    )
    inside, held = (rows.query("layer == 'wide' and part == @part") for part in ("in_sample", "held_out"))
    assert (inside["r2"] > 1 - 1e-9).all()
    assert {*inside["shuffled"]} == {True, False}
    assert held["r2"].max() < 0.5


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "some_weights"
    checkpoints.save(folder, random_network())
    return {
        "weights": str(folder), "layers": "stem,block_1,block_2", "layer": "block_1", "size": 32, "epochs": 2,
        "concepts": "glcm_contrast,glcm_asm", "splits": 3, "sizes": "12", "shown": 2, "batch_size": 8,
    }  # fmt: skip


def run(settings, workdir, **options):
    return runner.run("texture", settings, workdir, command=["texture.py"], **options)


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tissue, "patches", lambda *_, **__: patches())
        workdir = tmp_path_factory.mktemp("runs") / "run"
        return workdir, run(settings, workdir)


@pytest.fixture(scope="module")
def tables(finished):
    return runner.read(finished[0])[1]


def test_tables_are_reproduced(finished):
    assert_golden(finished[0], "texture", tables=["features/*"])


def value(page, *texts):
    """Of the only finding whose place and quantity hold all texts."""
    (chosen,) = (x for x in page.findings if all(text in f"{x.at}: {x.quantity}" for text in texts))
    return chosen.value


def test_the_saved_detector_gives_the_logits_that_were_judged(finished, settings, tables, monkeypatch):
    monkeypatch.setattr(tissue, "patches", lambda *_, **__: patches())
    network, asked = checkpoints.load(finished[0] / "fine_tuned"), parse(texture.Settings, settings)
    source, _, test = texture._patches(asked)
    held_out = source.take(test)
    logits = compute_features(network, held_out, (HEAD,), size=32).values[HEAD][:, 0]
    classes = (held_out.column("label") == "grainy").astype(int)
    judged = detected(logits, classes, tuple(held_out.column("group")), seed=asked.seed)
    reported = tables["detector"].iloc[0]
    np.testing.assert_allclose([*judged], [reported[name] for name in judged._fields], rtol=1e-6)


def test_findings_agree_with_the_tables(finished, tables):
    page, scores = runner.page(finished[0]), tables["scores"]
    assert [x.to_dict() for x in page.findings] == json.loads((finished[0] / "summary.json").read_text())[
        "findings"
    ]
    assert not {"nan", "inf"} & {*re.findall("[a-z]+", finished[1].lower())}
    detector = tables["detector"].iloc[0]
    assert detector[["architecture", "detects", "trained_on", "tested_on", "patients"]].tolist() == [
        "tiny", "grainy", 32, 32, 4,
    ]  # fmt: skip
    assert 0 <= detector["auc_low"] <= detector["auc"] == value(page, "AUC of the detector of grainy") <= 1
    assert value(page, "accuracy") == 100 * detector["accuracy"]
    ridge = scores.query("images == 32 and estimator == 'ridge' and not shuffled")
    r2 = ridge.set_index(["weights", "layer", "concept"])["r2"].sort_index()
    for weights, label in (("random", "random"), ("pretrained", "pretrained"), ("fine_tuned", "fine-tuned")):
        medians = [
            np.median(r2.loc[weights, layer, concept])
            for layer in ("stem", "block_1", "block_2")
            for concept in ("glcm_contrast", "glcm_asm")
        ]
        assert value(page, f"tiny, {label}: median held-out R² of texture") == pytest.approx(np.mean(medians))
    wide = scores.query("weights == 'random' and width >= images - 1")
    assert {*wide["layer"]} == {"block_1", "block_2"}
    exact = wide.query("part == 'in_sample' and shuffled")
    (caution,) = (x for x in page.findings if x.level == "caution")
    assert caution.value == pytest.approx(exact["r2"].mean())
    assert caution.value == pytest.approx(1)
    assert caution.note.startswith(f"R² = 1 in {len(exact)} of {len(exact)} ")
    held = wide.query("estimator == 'ridge' and shuffled")["r2"].median()
    assert value(page, "D / (n − 1)", "held-out R² of shuffled measures") == pytest.approx(held)
    br = tables["sensitivity"].set_index("concept")["br"]
    (strongest,) = (x for x in page.findings if x.level == "headline" and x.quantity.startswith("Br"))
    assert strongest.value == br[br.abs().idxmax()]
    assert value(page, "Br of glcm_asm") == br["glcm_asm"]


def test_page_is_rendered_from_the_folder(finished, tables):
    workdir, _ = finished
    sections = runner.page(workdir).sections
    names = ["rcv", "artefact", "relevance", "maps"]
    assert [image.name for section in sections for image in section.images] == names
    files = {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert {path.name for path in (workdir / "figures").iterdir()} == files
    table = sections[0].tables[0]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert [row[0] for row in table.rows[3:]] == [
        f"{concept}, {layer}" for layer in ("stem", "block_1", "block_2") for concept in ("contrast", "asm")
    ]
    row = dict(zip(table.columns, table.rows[6], strict=True))
    own = tables["scores"].query("layer == 'block_1' and concept == 'glcm_asm' and images == 32")
    low, middle, high = np.percentile(
        own.query("weights == 'pretrained' and estimator == 'ridge' and not shuffled")["r2"], (25, 50, 75)
    )
    assert row["pretrained, held out"] == f"{shown(middle)} ({shown(high - low)})"
    inside = own.query("weights == 'random' and part == 'in_sample' and not shuffled")["r2"].item()
    assert row["random, in sample"] == shown(inside, 3)
    (alt,) = (image.alt for image in sections[0].images)
    mean = tables["scores"].query(
        "layer == 'stem' and images == 32 and weights == 'random' and part == 'in_sample' and not shuffled"
    )
    assert f"in sample (least squares), random: {shown(mean['r2'].mean())} at stem" in alt


def test_published_values_stand_beside_those_of_inception(settings, tables):
    names = {"stem": "mixed0", "block_1": "mixed3", "block_2": "mixed6"}
    renamed = {**tables, "scores": tables["scores"].replace({"layer": names})}
    renamed["detector"] = tables["detector"].assign(architecture="inception_v3")
    page = texture.report(parse(texture.Settings, settings | {"layers": ""}), renamed)
    published = {x.at: x.published for x in page.findings if x.published is not None}
    # Contrast and ASM at mixed0 and mixed3.
    assert published == {
        "InceptionV3, random": round((0.987 + 0.996 + 0.947 + 0.987) / 4, 3),
        "InceptionV3, pretrained": round((0.992 + 0.997 + 0.931 + 0.992) / 4, 3),
        "InceptionV3, fine-tuned": round((0.991 + 0.998 + 0.970 + 0.997) / 4, 3),
    }
    table = page.sections[0].tables[0]
    row = next(
        dict(zip(table.columns, row, strict=True)) for row in table.rows if row[0] == "contrast, mixed3"
    )
    assert row["pretrained, published"] == "0.997"
    missing = next(x for x in page.findings if x.quantity == "layers that the weights have not")
    assert missing.note == "Left out: conv2d_3, conv2d_5, mixed7, mixed9."


def test_few_features_are_judged_where_they_are_most(settings, tables):
    narrow = tables["scores"].query("layer == 'stem'")
    page = texture.report(parse(texture.Settings, settings), {**tables, "scores": narrow})
    expected = narrow.query("weights == 'random' and images == 12 and part == 'in_sample' and shuffled")[
        "r2"
    ].mean()
    assert value(page, f"D / (n − 1) ≥ {8 / 11:.2f}", "shuffled measures in sample") == pytest.approx(
        expected
    )


def test_the_detector_can_be_explained(finished):
    tuned = checkpoints.load(finished[0] / "fine_tuned")
    assert tuned.card.class_names == ("grainy",)
    assert class_probability(tuned, "grainy").link is jax.nn.sigmoid


def test_resume_computes_nothing_twice_and_gives_the_same_bytes(finished, settings, tmp_path, monkeypatch):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    before = {path.name: path.read_bytes() for path in workdir.rglob("*.csv")}
    (workdir / "summary.json").unlink()
    kept = workdir / "features" / "pretrained_scores.csv"
    kept.rename(kept.with_suffix(".partial"))  # as a kill leaves it
    scored, real = [], maths.score_texture
    monkeypatch.setattr(
        maths, "score_texture", lambda name, *a, **k: scored.append(name) or real(name, *a, **k)
    )
    monkeypatch.setattr(texture, "compute_features", lambda *_, **__: pytest.fail("features are known"))
    monkeypatch.setattr(tissue, "patches", lambda *_, **__: patches())
    run(settings, workdir, resume=True)
    assert scored == ["pretrained", "pretrained"]  # of 12 images and of all
    assert {path.name: path.read_bytes() for path in workdir.rglob("*.csv")} == before


def test_patients_are_on_one_side(settings, monkeypatch):
    source = patches()
    monkeypatch.setattr(tissue, "patches", lambda *_, **__: source)
    plan = texture._plan(parse(texture.Settings, settings))
    train, test = ({*source.column("group")[part]} for part in (plan.train, plan.test))
    assert not train & test
    assert len(train) == len(test) == 4


def test_patients_of_a_table(settings, tmp_path):
    rng, lines = np.random.default_rng(0), ["image,patient"]
    for number in range(30):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
        lines.append(f"{number}.png,{number // 10}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    given = settings | {"images": f"{tmp_path}/images", "groups": f"csv:{tmp_path}/t.csv:patient"}
    text = texture.dry_run(parse(texture.Settings, given))
    assert re.findall(r"\d+", text)[:2] in (["10", "20"], ["20", "10"])  # of three patients with ten images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patients": 1, "held_out": 1.5}, "config.patients is 1; .*config.held_out is 1.5"),
        ({"learning_rate": 0.0}, "config.learning_rate is 0.0; expected more than 0"),
        ({"sizes": "5,12"}, "config.sizes is '5,12'; expected at least 10"),
        ({"groups": "t.csv"}, "groups is 't.csv'; expected csv:PATH:COLUMN"),
        ({"layers": "block_9"}, "did you mean block_2 or block_1"),
        ({"weights": "/nowhere", "concepts": "glcm_contrst"}, "/nowhere is no folder.*glcm_contrast"),
        (
            {"images": "nowhere", "layer": "block_9"},
            "did you mean block_2 or block_1.*nowhere: no such folder",
        ),
    ],
)
def test_bad_settings_are_refused_before_anything_is_computed(settings, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        run({**settings, **change}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_layers_that_the_weights_lack_are_named(settings, tmp_path):
    folder = tmp_path / "cut"
    checkpoints.save(folder, random_network(last="block_1"))
    text = texture.dry_run(parse(texture.Settings, settings | {"weights": str(folder)}))
    assert "read 2 concepts from stem, block_1; the weights have no block_2" in text


@pytest.mark.parametrize("which", ["embedded", "real"])
def test_configurations_can_be_used(which):
    spec = importlib.util.spec_from_file_location("texture_config", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    used = parse(texture.Settings, module.get_config(which).to_dict())
    assert used.size == {"embedded": 96, "real": 128}[which]
    assert used.sizes == (48, 96, 192)
