"""Vision transformers against timm and Hugging Face: tokens, poolings, cuts, explanations, and what is refused."""

import json
import re
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from scalecov_jax import checkpoints
from scalecov_jax import extraction as features
from scalecov_jax.cutting import pruned_network
from scalecov_jax.explanation.gradients import layer_gradients
from scalecov_jax.explanation.score_propagation import propagate_scores, relative_error
from scalecov_jax.explanation.target import class_logit, head_unit
from scalecov_jax.models.architecture import available_layers, get_architecture
from scalecov_jax.models.layers import LayerScale
from scalecov_jax.models.parity import relative_error as difference
from scalecov_jax.models.port import port
from scalecov_jax.models.pruning import abstract_variables, count_parameters, cumulative_parameters
from scalecov_jax.models.receptive_field import receptive_field
from scalecov_jax.models.sources import source_name
from scalecov_jax.models.vit import ViT
from scalecov_jax.models.vit_sources import SOURCES
from scalecov_jax.transfer import fine_tuning

pytestmark = pytest.mark.usefixtures("quick_compilation")
ROOT = Path(__file__).parents[1]
TIMM = ("timm_vit", "timm_dinov2", "timm_dinov2_reg4", "timm_swiglu_reg8")
HUGGING_FACE = ("hf_vit", "hf_dinov2", "hf_dinov2_swiglu", "hf_dinov2_registers", "hf_dinov3")


@pytest.fixture(scope="module")
def reference(shared):
    return shared / "reference" / "vit"


@pytest.fixture(scope="module")
def timm(reference):
    """The tensors of timm's plain ViT, its network, and images."""
    file = reference / "timm_vit.safetensors"
    network = port(file, "vit", "torch", heads=3)
    return load_file(file), network, jnp.asarray(np.load(file.with_suffix(".npz"))["images_NHWC"])


def outputs(network, x):
    @jax.jit
    def run(variables):
        every = {"capture_intermediates": lambda module, _: module.name is not None}
        return network.module.apply(variables, jnp.asarray(x), mutable=["intermediates"], **every)[1][
            "intermediates"
        ]

    captured = {path[-2]: np.asarray(one[0]) for path, one in flatten_dict(run(network.variables)).items()}
    return captured | {"embedded": captured["embedding"], "output": captured.get("pre_softmax")}


@pytest.mark.parametrize("name", [*TIMM, *HUGGING_FACE])
def test_tokens_are_those_of_the_source(reference, tmp_path, name):
    facts = json.loads((reference / "index.json").read_text())[name]
    settings = facts["settings"]
    config = {"model_args": settings} if name in TIMM else settings
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = tmp_path / "model.safetensors"
    file.write_bytes((reference / f"{name}.safetensors").read_bytes())
    network = port(file, "vit", "torch")
    expected = dict(np.load(reference / f"{name}.npz"))
    x = expected.pop("images_NHWC")
    if not settings.get("num_classes"):
        expected.pop("output", None)  # timm's class token of the normalised tokens
    found = outputs(network, x)
    assert network.module.prefix_tokens == facts["prefix_tokens"]
    assert len([layer for layer in expected if layer.startswith("block_")]) == network.module.depth == 4
    for layer, values in expected.items():
        assert difference(found[layer], values) < 2e-5, layer


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision(timm, tmp_path, dtype):
    tensors, network, _ = timm
    save_file({name: one.astype(dtype) for name, one in tensors.items()}, tmp_path / "half.safetensors")
    half = port(tmp_path / "half.safetensors", "vit", "torch", heads=3)
    kernel = half.variables["params"]["block_1"]["attention_1"]["qkv"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, tensors["blocks.1.attn.qkv.weight"].T.astype(dtype))
    assert half.card.options == network.card.options


def test_names_of_dinov2_and_swiglu_in_two_matrices(reference):
    """The same tensors under other names, joined or divided, a norm of the pooled tokens, and biases that are absent."""
    tensors = load_file(reference / "timm_swiglu_reg8.safetensors")
    plain = port(tensors, "vit", "torch", heads=3)
    meta = {
        name.replace("reg_token", "register_tokens").replace("fc1", "w12").replace("fc2", "w3"): one
        for name, one in tensors.items()
    }
    two = {name: one for name, one in tensors.items() if ".fc1." not in name}
    for name in tensors.keys() - two.keys():
        gate, value = np.split(tensors[name], 2)
        two |= {name.replace("fc1", "fc1_g"): gate, name.replace("fc1", "fc1_x"): value}
    for other in (meta | {"mask_token": np.zeros((1, 96), np.float32)}, two):
        same = port(other, "vit", "torch", heads=3)
        assert same.card.options == plain.card.options
        jax.tree.map(np.testing.assert_array_equal, same.variables, plain.variables)
    renamed = {
        name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: one
        for name, one in tensors.items()
    }
    pooled = port(renamed | {"head.weight": np.ones((5, 96), np.float32)}, "vit", "torch", heads=3)
    x = np.random.default_rng(0).normal(size=(1, 56, 56, 3)).astype(np.float32)
    tokens = outputs(plain, x)["block_3"][:, 9:].mean(1)
    norm = plain.variables["params"]["norm"]
    normal = (tokens - tokens.mean()) / np.sqrt(tokens.var() + 1e-6) * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(outputs(pooled, x)["pre_softmax"][0], np.full(5, normal.sum()), rtol=1e-4)
    without = {name: one for name, one in tensors.items() if not name.endswith("qkv.bias")}
    attention = port(without, "vit", "torch", heads=3).variables["params"]["block_2"]["attention_2"]
    assert not attention["qkv"]["bias"].any()
    assert attention["proj"]["bias"].any()


def cubic(size, grid):
    """Weights [size, grid] of the cubic of Keys (a = -1/2), as wide as the step where that is above 1."""
    step = max(grid / size, 1.0)
    at = np.abs(((np.arange(size)[:, None] + 0.5) * grid / size - 0.5 - np.arange(grid)[None]) / step)
    near, far = (1.5 * at - 2.5) * at**2 + 1, ((-0.5 * at + 2.5) * at - 4) * at + 2
    weights = np.where(at < 1, near, np.where(at < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [(48, 48), (96, 128), (16, 160)])
def test_positions_are_interpolated(timm, size):
    _, network, _ = timm
    rows, columns = (side // 16 for side in size)
    embedding = network.variables["params"]["embedding"]
    plain = {**embedding, "positions": np.zeros_like(embedding["positions"])}
    variables = {"params": {**network.variables["params"], "embedding": plain}}
    x = np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)
    found = outputs(network, x)["embedding"] - outputs(network._replace(variables=variables), x)["embedding"]
    positions = embedding["positions"].astype(np.float64)
    grid = positions[0, 1:].reshape(4, 4, -1)
    expected = np.einsum("ra,cb,abd->rcd", cubic(rows, 4), cubic(columns, 4), grid)
    np.testing.assert_allclose(found[0, 1:], expected.reshape(rows * columns, -1), atol=2e-6)
    np.testing.assert_allclose(found[0, 0], positions[0, 0], atol=2e-6)


def test_poolings(timm):
    _, network, _ = timm
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    layers = ("attention_1", "block_2", "avg_pool", "patches")
    x = features.preprocess(jnp.asarray(images), "torch")
    tokens = outputs(network, x)

    def pooled(pooling, layers=layers[:3]):
        run = partial(
            features.pooled_features, network.module, layers=layers, preprocessing="torch", pooling=pooling
        )
        return jax.jit(lambda variables: run(variables, jnp.asarray(images)))(network.variables)

    for pooling in ("cls", "mean_patch", "gap", "max", "cls_mean"):
        found = pooled(pooling)
        for layer in layers[:2]:
            cls, patches = tokens[layer][:, 0], tokens[layer][:, 1:]
            mean = patches.mean(1)
            expected = {"cls": cls, "max": patches.max(1), "cls_mean": np.concatenate([cls, mean], 1)}
            np.testing.assert_allclose(found[layer], expected.get(pooling, mean), rtol=0, atol=1e-5)
        np.testing.assert_allclose(found["avg_pool"], tokens["norm"][:, 0], atol=1e-5)
    assert pooled("gap", layers)["patches"].shape == (2, 96)
    for pooling, kind in (("cls", "maps"), ("corrected_gap", "tokens")):
        with pytest.raises(ValueError, match=f"give {kind}, .* choose"):
            features._check_ranks(
                {"some": {"maps": 4, "tokens": 3}[kind]}, network.module, features.POOLINGS[pooling]
            )


class Unread:
    """Images that nobody may look at."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise AssertionError("an image was read before the request was refused")


@pytest.mark.parametrize(
    ("layers", "size", "pooling", "message"),
    [
        (("block_0", "patches"), 64, "cls", "patches of ViT give maps"),
        (("block_0", "norm"), 64, "corrected_gap", "undefined .* block_0 .* norm"),
        (("block_0",), 60, "cls", "60 x 60 pixels cannot be divided into patches of 16 x 16; .* such as 64"),
        (("block_4",), 64, "cls", "no layer 'block_4'; did you mean"),
    ],
)
def test_requests_that_are_refused_before_the_forward_pass(timm, layers, size, pooling, message):
    with pytest.raises(ValueError, match=message):
        features.compute_features(timm[1], Unread(), layers, size=size, pooling=pooling)


def test_tokens_of_a_network_that_does_not_say_which_are_patches():
    class Tokens(LayerScale):
        initial: float = 1.0

    with pytest.raises(ValueError, match="expected a property prefix_tokens"):
        features._check_ranks({"some": 3}, Tokens(), features.POOLINGS["gap"])


@pytest.mark.parametrize("layer", ["attention_0", "mlp_1", "block_1", "norm"])
def test_a_cut_returns_the_layer_and_keeps_what_it_needs(timm, layer, tmp_path):
    _, whole, x = timm
    cut = pruned_network(whole, layer)
    checkpoints.save(tmp_path / "cut", cut)
    loaded = checkpoints.load(tmp_path / "cut")
    np.testing.assert_allclose(
        jax.jit(loaded.module.apply)(loaded.variables, x), outputs(whole, x)[layer], atol=1e-5
    )
    d, hidden, patches, tokens = 96, 384, 3 * 16 * 16, 17
    embedding, norm = d * patches + d + d + tokens * d, 2 * d
    attention, mlp = norm + 4 * d * d + 4 * d, norm + 2 * d * hidden + hidden + d
    expected = (
        embedding
        + {
            "attention_0": attention,
            "mlp_1": 2 * (attention + mlp),
            "block_1": 2 * (attention + mlp),
            "norm": 4 * (attention + mlp) + norm,
        }[layer]
    )
    assert count_parameters(loaded.variables) == expected
    assert cumulative_parameters(whole.module, whole.architecture)[layer] == expected
    assert available_layers(loaded.architecture, loaded.module)[-1] == layer
    fingerprints = [checkpoints.fingerprints(one, [layer]) for one in (whole, loaded)]
    assert fingerprints[0] == fingerprints[1]
    other = loaded._replace(module=loaded.module.clone(heads=6))  # which no variable shows
    assert checkpoints.fingerprints(other, [layer]) != fingerprints[0]


def test_random_weights(reference):
    like = port(reference / "timm_dinov2_reg4.safetensors", "vit", "torch", heads=3)
    leaves, other = (
        flatten_dict(checkpoints.random_network(like, seed).variables["params"]) for seed in (0, 1)
    )
    tokens = 0
    for path, values in leaves.items():
        if path[-1] in ("class_token", "registers", "positions"):
            assert 0.01 < values.std() < 0.025
            tokens += 1
        if path[-1] in ("gamma", "scale"):
            assert (values == 1).all()
        assert np.array_equal(values, other[path]) == (path[-1] in ("bias", "gamma", "scale"))
    assert tokens == 3


def test_layers_follow_from_the_depth():
    family = get_architecture("vit").with_options({"depth": 3, "patch": 14, "image_size": 56})
    assert family.trunk_layers == ("block_0", "block_1", "block_2", "norm")
    assert family.input_size == 56
    assert get_architecture("resnet50").with_options({}) is get_architecture("resnet50")


def refused(tensors, message, **options):
    with pytest.raises(ValueError, match=message) as error:
        port(tensors, "vit", "torch", **options)
    assert "\n" not in str(error.value)


def test_files_that_are_refused(timm, tmp_path):
    tensors, _, _ = timm
    refused(tensors, "no tensor tells the heads of a width of 96; pass --heads")
    refused(tensors, "7 heads do not divide its width of 96; expected one of 1, 2, 3, 4, 6", heads=7)
    inside = {"blocks.2.attn.q_norm.weight": np.ones(32, np.float32)}
    refused(tensors | inside, r"1 tensor unexpected \(blocks.2.attn.q_norm.weight\)", heads=3)
    one = {name: values for name, values in tensors.items() if name != "blocks.2.attn.qkv.bias"}
    refused(one, r"1 tensor missing from block_2 \(blocks.2.attn.qkv.bias\)", heads=3)
    refused(
        tensors | {"pos_embed": np.zeros((1, 19, 96), np.float32)},
        "its 19 positions are no square grid",
        heads=3,
    )
    grey = {"patch_embed.proj.weight": np.zeros((96, 1, 16, 16), np.float32)}
    refused(tensors | grey, r"expected patches \[D, 3, p, p\] .* found \[96, 1, 16, 16\]", heads=3)
    foreign = {f"stage{number}.mixer.weight": np.zeros(3, np.float32) for number in range(14)}
    some = {name: tensors[name] for name in ("cls_token", "pos_embed")}
    listed = ", ".join(f"stage{number}.mixer.weight" for number in range(10))
    refused(foreign | some, f"nearest is vit .*timm.* names of 2; not known are {listed} and 4 more")
    with pytest.raises(ValueError, match="resnet50 has no heads"):
        port(tensors, "resnet50", "torch", heads=3)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 3, "hidden_act": "quick_gelu"}))
    with pytest.raises(ValueError, match="its activation is quick_gelu; only gelu and SwiGLU are known"):
        port(tmp_path / "model.safetensors", "vit", "torch")


def test_a_width_that_is_published_with_several_numbers_of_heads():
    names = {
        "cls_token": (1, 1, 1280), "pos_embed": (1, 197, 1280), "patch_embed.proj.weight": (1280, 3, 16, 16),
        "norm.weight": (1280,), "blocks.0.norm1.weight": (1280,), "blocks.0.mlp.fc1.weight": (8, 1280),
        "blocks.0.mlp.fc2.weight": (1280, 8),
    }  # fmt: skip
    refused(
        {name: np.zeros(shape, np.float32) for name, shape in names.items()},
        "no tensor tells the heads of a width of 1280",
    )


def test_gradients_of_patches_are_those_of_their_positions(timm):
    """Positions are added to the patches, so that the two have the same gradient."""
    _, network, x = timm
    target = class_logit(network, 2)

    def score(positions):
        embedding = {**network.variables["params"]["embedding"], "positions": positions}
        variables = {"params": {**network.variables["params"], "embedding": embedding}}
        return network.module.clone(last="pre_softmax").apply(variables, x[:1])[0, 2]

    network = network._replace(variables=jax.tree.map(jnp.asarray, network.variables))

    positions = network.variables["params"]["embedding"]["positions"]
    expected = jax.jit(jax.grad(score))(positions)[0, 1:].reshape(4, 4, -1)
    found = layer_gradients(network.module, network.variables, x[:1], "embedding", target)
    assert found.activations.shape == (1, 4, 4, 96)
    np.testing.assert_allclose(found.gradients[0], expected, atol=1e-5 * np.abs(expected).max())
    late = layer_gradients(network.module, network.variables, x, "block_2", target)
    np.testing.assert_allclose(
        late.activations, outputs(network, x)["block_2"][:, 1:].reshape(2, 4, 4, 96), atol=1e-5
    )


@pytest.mark.parametrize("layer", ["pre_softmax", "block_1"])
def test_score_propagation_is_exact_for_attention(timm, layer):
    _, network, x = timm
    target = (
        class_logit(network, 1)
        if layer == "pre_softmax"
        else head_unit(network, layer, jnp.asarray(np.random.default_rng(0).normal(size=96), jnp.float32))
    )
    parts = propagate_scores(network.module, network.variables, x, [target])
    assert relative_error(parts).max() < 2e-5
    assert np.abs(parts.inputs).max() > 0


def test_receptive_fields():
    assert receptive_field("vit", "patches", input_size=64, depth=1)[:2] == (16, 16)
    with pytest.raises(
        ValueError, match="block_0 of vit sees the whole image: its tokens are mixed by attention"
    ):
        receptive_field("vit", "block_0", input_size=64, depth=1)


def test_fine_tuning_reads_the_mean_patch(timm):
    _, network, _ = timm
    cut = pruned_network(network, "block_1")
    state = fine_tuning.initial_state(cut, 1e-3, 0)
    head = {
        "kernel": jnp.asarray(np.random.default_rng(0).normal(size=96), jnp.float32),
        "bias": jnp.float32(2),
    }
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    x = features.preprocess(jnp.asarray(images), "torch")
    expected = outputs(network, x)["block_1"][:, 1:].mean(1) @ np.asarray(head["kernel"]) + 2
    regressor, units = (
        fine_tuning.Regressor(cut.module, "torch"),
        fine_tuning.Units(jnp.zeros(()), jnp.ones(())),
    )
    params = {**state.params, "head": head}
    found = fine_tuning._predict_batch(regressor, params, state.batch_stats, units, jnp.asarray(images))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    before = state.params["trunk"]["embedding"]["class_token"].copy()
    areas = jnp.asarray([3.0, 5.0])
    losses = []
    for _ in range(3):
        state, loss = fine_tuning._train_step(
            regressor, 1e-4, False, state, units, jnp.asarray(images), areas
        )
        losses.append(float(loss))
    assert losses[2] < losses[1] < losses[0]
    assert not np.array_equal(state.params["trunk"]["embedding"]["class_token"], before)


@pytest.mark.parametrize(("dtype", "most"), [(np.float32, 1.5), (ml_dtypes.bfloat16, 2.5)])
def test_no_second_copy_of_the_weights_is_held(tmp_path, dtype, most):
    layout = SOURCES.layouts[0]
    card = checkpoints.Card("vit", {"features": 192, "depth": 8, "last": "norm"}, "torch", 224, "")
    like = checkpoints.network(None, card)
    tensors = {}
    for path, leaf in flatten_dict(abstract_variables(like.module, like.architecture)).items():
        order = {2: (1, 0), 4: (3, 2, 0, 1)}.get(len(leaf.shape), range(len(leaf.shape)))
        tensors[source_name(layout, path)] = np.ones([leaf.shape[axis] for axis in order], dtype)
    file = tmp_path / "model.safetensors"
    save_file(tensors, file)
    del tensors
    tracemalloc.start()
    network = port(file, "vit", "torch")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert network.module.depth == 8
    assert peak < most * file.stat().st_size


def test_the_script(reference, tmp_path):
    def script(*flags):
        source = f"--source={reference / 'timm_vit.safetensors'}"
        command = [sys.executable, ROOT / "scripts" / "port_weights.py", "--architecture=vit", source, *flags]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, check=False)

    output = tmp_path / "vit"
    done = script("--preprocessing=torch", "--heads=3", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"parameters +523,783\n", done.stdout)
    loaded = checkpoints.load(output)
    assert (loaded.module.heads, loaded.module.last, loaded.card.input_size) == (3, "softmax", 64)
    assert isinstance(loaded.module, ViT)
