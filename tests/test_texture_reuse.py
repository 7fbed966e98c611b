"""Reuse of texture: two kinds of tissue, the binary loss, intervals over patients, R2 in sample, and the pipeline."""

import csv
import importlib.util
import json
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
from scalecov_jax.cutting import pruned_network
from scalecov_jax.explain.target import class_probability
from scalecov_jax.images import tissue
from scalecov_jax.images.classes import ClassImages, class_folders, open_classes, tissue_patches
from scalecov_jax.images.example import Example
from scalecov_jax.models.layers import WHOLE
from scalecov_jax.paper.texture import in_sample_r2, score_texture
from scalecov_jax.pipelines import texture
from scalecov_jax.transfer.classification import HEAD, detected, fine_tune_detector, with_one_output
from scalecov_jax.transfer.fine_tuning import Recipe, Regressor, Units, _train_step, fine_tune, initial_state

CONFIG = Path(__file__).parents[1] / "configs" / "texture.py"
BINARY = Recipe(1, 8, 1e-2, "pixels", "running", "sigmoid_cross_entropy")
STAINING = ("stains", "light", "blur", "cytoplasm", "stroma", "gaps", "borders", "halo")
pytestmark = pytest.mark.usefixtures("quick_compilation")


def patches(patients=8, per_class=4, size=32):
    """Noise, coarser in the second class, with each patient's own brightness."""
    rng = np.random.default_rng(0)
    examples, kinds = [], []
    for patient in range(patients):
        for kind in (0, 1):
            for number in range(per_class):
                grain = rng.integers(0, 256, (size >> kind, size >> kind, 3)) // (1 + patient % 3)
                image = np.kron(grain, np.ones((1 << kind, 1 << kind, 1))).astype(np.uint8)
                name = f"{patient}_{kind}_{number}"
                examples.append(Example(image, str(kind), None, None, f"patient {patient}", name))
                kinds.append(kind)
    groups = tuple(one.group for one in examples)
    return ClassImages(("fine", "coarse"), tuple(kinds), groups, examples.__getitem__)


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
    source = tissue_patches(2, 1, 0, size=48)
    assert [source.classes, source.groups[0], len(source)] == [(0, 1, 0, 1), "patient_000", 4]
    assert len({source.groups[0], source.groups[1]}) == 1 < len({*source.groups})
    tumour = source[1]  # the other kind would be compiled anew
    assert (tumour.label, tumour.group, tumour.image.shape) == ("tumour", "patient_000", (48, 48, 3))


def test_folders_of_classes_and_patients(tmp_path):
    for name in ("a/p1/x.png", "a/p1/y.png", "b/p2/z.png", "b/alone.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    source = class_folders(tmp_path)
    assert source.class_names == ("a", "b")
    assert source.classes == (0, 0, 1, 1)
    assert source.groups == ("p1", "p1", "b/alone.png", "p2")
    assert (source[0].label, source[2].label) == ("a", "b")
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match="classes a, b, c, no image in c; expected two"):
        class_folders(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        class_folders(tmp_path / "none")
    with pytest.raises(ValueError, match="no prepared dataset"):
        open_classes(f"tfds:{tmp_path}")


def test_a_step_is_adam_on_the_cross_entropy():
    """The loss by hand: -y log p - (1 - y) log(1 - p)."""
    source = patches(1)
    network = with_one_output(random_network(last="block_2"), 0)
    trunk = pruned_network(network, WHOLE)
    images = np.stack([source[i].image for i in range(8)])
    y = np.array(source.classes, np.float32)
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
    wide = [one for one in rows if one.layer == "wide"]
    assert all(one.r2 > 1 - 1e-9 for one in wide if one.part == "in_sample")
    assert {one.shuffled for one in wide if one.part == "in_sample"} == {True, False}
    assert max(one.r2 for one in wide if one.part == "held_out") < 0.5


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "some_weights"
    checkpoints.save(folder, random_network())
    spec = importlib.util.spec_from_file_location("texture_config", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    changes = {
        "weights": str(folder),
        "layers": "stem,block_1,block_2",
        "layer": "block_1",
        "size": 32,
        "epochs": 2,
    }
    small = {"concepts": "glcm_contrast,glcm_asm", "splits": 3, "sizes": "12", "shown": 2, "batch_size": 8}
    return {**module.get_config().to_dict(), **changes, **small}


def run(settings, workdir, **options):
    return texture.run(settings, str(workdir), command=["texture.py"], **options)


def test_pipeline_from_settings_to_a_checkpoint_that_can_be_explained(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(texture, "open_classes", lambda *_, **__: patches())
    table = run(settings, tmp_path / "run")
    with (tmp_path / "run/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["weights"] for row in rows} == {"random", "pretrained", "fine_tuned"}
    assert {row["images"] for row in rows} == {"12", "32"}
    assert not {"nan", "inf"} & {cell.lower() for row in rows for cell in row.values()}
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert 0 <= summary["detected"]["auc_low"] <= summary["detected"]["auc"] <= 1
    assert "in 6 of 6 regressions where D ≥ n − 1" in summary["artefact"]
    assert {one.stem for one in (tmp_path / "run/figures").iterdir()} == {
        "rcv",
        "artefact",
        "relevance",
        "maps",
    }
    assert_golden(tmp_path / "run", "texture", tables=["features/*"])
    tuned = checkpoints.load(tmp_path / "run/fine_tuned")
    assert tuned.card.class_names == ("coarse",)
    assert class_probability(tuned, "coarse").link is jax.nn.sigmoid
    monkeypatch.setattr(texture, "score_texture", None)  # what is done is not computed again
    assert run(settings, tmp_path / "run", resume=True).split("\n")[:6] == table.split("\n")[:6]


def test_patients_are_on_one_side(settings, monkeypatch):
    source = patches()
    monkeypatch.setattr(texture, "open_classes", lambda *_, **__: source)
    plan = texture._plan(settings)
    train, test = ({source.groups[i] for i in part} for part in (plan.train, plan.test))
    assert not train & test
    assert len(train) == len(test) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patients": 1, "held_out": 1.5}, "config.patients is 1; .*config.held_out is 1.5"),
        ({"sizes": "5,x"}, "config.sizes has 5, x"),
        ({"layers": "block_9"}, "did you mean block_2 or block_1"),
        ({"concepts": "glcm_contrst"}, "glcm_contrast"),
        ({"images": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_computed(settings, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        run({**settings, **change}, tmp_path / "run", dry_run=True)
    assert not (tmp_path / "run").exists()


def test_layers_that_the_weights_lack_are_named(settings, tmp_path):
    folder = tmp_path / "cut"
    checkpoints.save(folder, random_network(last="block_1"))
    told = run({**settings, "weights": str(folder)}, tmp_path / "run", dry_run=True)
    assert "the weights have no block_2" in told
