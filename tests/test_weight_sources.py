"""Whatever a researcher brings: prefixes, nested dicts, precisions, heads, near relatives, preprocessings."""

import json
import re
from pathlib import Path

import h5py
import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file
from test_port import CLASSES, layout_of, same, tensors, write_keras

from scalecov_jax import checkpoints
from scalecov_jax.imaging.decoding import decode_image, resize_image
from scalecov_jax.models.architecture import ARCHITECTURES
from scalecov_jax.models.layers import convolve
from scalecov_jax.models.port import _check_preprocessing, checksum, port
from scalecov_jax.models.preprocessing import PREPROCESSINGS, TORCH_MEAN, TORCH_SD, Normalise, preprocess
from scalecov_jax.models.recognition import Match, _relative
from scalecov_jax.models.sources import possible_names
from scalecov_jax.models.weight_files import read_weights

NARROW = {"width": 0.0625}


@pytest.fixture(scope="module")
def state():
    return tensors("resnet50", "torch", **NARROW)


@pytest.fixture(scope="module")
def ported(state):
    return port(state, "resnet50", "torch")


def under(prefix, state):
    return {prefix + name: values for name, values in state.items()}


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.module.", "net.resnet.", "model.backbone.", "a.b.c.d.", "layer1.0."]
)
def test_a_common_prefix_is_found(prefix, state, ported):
    found = port(under(prefix, state), "resnet50", "torch")
    assert same(found, ported)
    assert found.card.notes["prefix"] == prefix
    assert ported.card.notes["prefix"] == ""


@pytest.mark.parametrize("key", ["model_state_dict", "net", "ema", "state_dict"])
def test_a_dict_is_found_under_any_key(key, state, ported):
    adam = {"state": {0: {"exp_avg": np.ones(3)}}}
    found = port({"epoch": 3, "arch": "x", key: {"model": state}, "optimizer": adam}, "resnet50", "torch")
    assert same(found, ported)
    assert found.card.notes["ignored"] == {}


def test_of_two_networks_the_one_that_is_no_average_is_taken_or_asked_for(state, ported):
    averaged = {name: values + 1 for name, values in state.items()}
    other = port(averaged, "resnet50", "torch")
    both = {"state_dict": state, "state_dict_ema": averaged}
    assert same(port(both, "resnet50", "torch"), ported)
    assert same(port({**state, "model_ema": averaged}, "resnet50", "torch"), ported)
    assert same(port(both, "resnet50", "torch", prefix="state_dict_ema"), other)
    two = {**under("encoder_q.", state), **under("encoder_k.", averaged), "queue": np.ones((8, 8))}
    with pytest.raises(ValueError, match=r"encoder_q\. and encoder_k\.; choose one") as caught:
        port(two, "resnet50", "torch")
    (advised,) = re.findall(r"--prefix=([\w.]+\w)", str(caught.value))
    chosen = port(two, "resnet50", "torch", prefix=advised)
    assert same(chosen, ported)
    assert chosen.card.notes["ignored"] == {"beside the network": len(state) + 1}
    with pytest.raises(ValueError, match="no resnet50 that is known under the prefix decoder"):
        port(two, "resnet50", "torch", prefix="decoder.")


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_precisions(dtype, state, tmp_path):
    cast = {name: values.astype(dtype) for name, values in state.items()}
    expected = port({name: values.astype(np.float32) for name, values in cast.items()}, "resnet50", "torch")
    save_file(cast, tmp_path / "a.safetensors")
    for source in (tmp_path / "a.safetensors", cast, jax.tree.map(jax.numpy.asarray, cast)):
        found = port(source, "resnet50", "torch")
        assert {leaf.dtype for leaf in jax.tree.leaves(found.variables)} == {np.dtype(np.float32)}
        for path, values in flatten_dict(found.variables).items():
            np.testing.assert_allclose(values, flatten_dict(expected.variables)[path], rtol=2e-7)
    with pytest.raises(ValueError, match="no floating-point numbers"):
        port({name: (99 * values).astype(np.int8) for name, values in state.items()}, "resnet50", "torch")


def heads(state):
    body = {name: values for name, values in state.items() if not name.startswith("fc.")}
    kernel, bias = state["fc.weight"], state["fc.bias"]
    return {
        "dropout": body | {"fc.1.weight": kernel, "fc.1.bias": bias},
        "two layers": body | {"fc.0.weight": kernel, "fc.3.weight": np.ones((2, 5), np.float32)},
        "classifier": body | {"classifier.weight": kernel},
        "none": body,
        "not finite": body | {"fc.weight": kernel * np.nan, "fc.bias": bias},
    }


@pytest.mark.parametrize("head", ["dropout", "two layers", "classifier", "none", "not finite"])
def test_what_the_message_advises_for_a_foreign_head_works(head, state, ported):
    given = heads(state)[head]
    with pytest.raises(ValueError, match=r"complete up to add_16, and its head is another one") as caught:
        port(given, "resnet50", "torch")
    (advised,) = re.findall(r"--last=(\w+)", str(caught.value))
    found = port(given, "resnet50", "torch", advised)
    expected = flatten_dict(ported.variables)
    for path, values in flatten_dict(found.variables).items():
        np.testing.assert_array_equal(values, expected[path])
    assert sum(found.card.notes["beyond_last"].values()) == len(given) - len(heads(state)["none"])
    assert port(given, "resnet50", "torch", "avg_pool").card.options["last"] == "avg_pool"


def test_heads_of_other_sizes_and_without_a_bias(state, ported):
    one = state | {"fc.weight": state["fc.weight"][:1], "fc.bias": state["fc.bias"][:1]}
    assert port(one, "resnet50", "torch").card.options["classes"] == 1
    plain = port({name: one for name, one in state.items() if name != "fc.bias"}, "resnet50", "torch")
    found, expected = (x.variables["params"]["pre_softmax"] for x in (plain, ported))
    np.testing.assert_array_equal(found["kernel"], expected["kernel"])
    np.testing.assert_array_equal(found["bias"], np.zeros(CLASSES))


def test_what_is_unexpected_before_the_last_layer_is_refused(state):
    more = state | {"layer2.0.gate.weight": np.ones(3), "projection.weight": np.ones(3)}
    with pytest.raises(ValueError, match=r"1 tensor unexpected \(layer2\.0\.gate\.weight\)"):
        port(more, "resnet50", "torch", "add_16")
    assert port(more, "resnet50", "torch", "add_3").card.notes["beyond_last"]["another head"] == 2
    del more["layer2.0.gate.weight"]
    with pytest.raises(ValueError, match=r"1 tensor unexpected \(projection\.weight\).*--last=softmax"):
        port(more, "resnet50", "torch")
    assert port(more, "resnet50", "torch", "softmax").card.options["classes"] == CLASSES


def basic(blocks):
    shape = np.ones((4, 4, 3, 3))
    return {f"layer{s}.{b}.conv{c}.weight": shape for s in (1, 2) for b in range(blocks) for c in (1, 2)}


def bottleneck(groups=1, inner=4):
    kernels = {"1": (inner, 4, 1, 1), "2": (inner, inner // groups, 3, 3), "3": (16, inner, 1, 1)}
    return {f"layer1.0.conv{number}.weight": np.ones(shape) for number, shape in kernels.items()}


STEM = {"conv1.weight": np.ones((4, 3, 7, 7)), "bn1.weight": np.ones(4)}


@pytest.mark.parametrize(
    ("held", "relative"),
    [
        (STEM | basic(2), "ResNet18"),
        (STEM | basic(3), "ResNet34"),
        (STEM | bottleneck(groups=2), "ResNeXt"),
        (STEM | bottleneck(inner=8), "wide ResNet"),
        (STEM | bottleneck() | {"layer1.0.se.fc1.weight": np.ones(3)}, "SE-ResNet"),
        ({"features.0.weight": np.ones((4, 3, 3, 3)), "features.1.running_mean": np.ones(4)}, "vgg16_bn"),
        ({f"features.{n}.weight": np.ones((4, 4, 3, 3)) for n in (0, 2, 5, 34)}, "VGG19"),
        (
            {f"features.denseblock3.denselayer{n}.norm1.weight": np.ones(4) for n in (1, 2, 25)},
            "DenseNet169",
        ),
        ({"blocks.0.1.conv_dw.weight": np.ones((4, 1, 3, 3))}, "EfficientNetB1"),
        ({"stages.2.blocks.9.gamma": np.ones(4)}, "ConvNeXt-Small"),
    ],
)
def test_near_relatives_are_named(held, relative):
    for name in ("resnet50", "vgg16"):
        with pytest.raises(ValueError, match=rf"seems to hold .*{relative}.* not supported; .*{name}"):
            port(held, name, "torch")


def test_no_supported_network_is_taken_for_a_relative():
    names = {
        source
        for family in ARCHITECTURES.values()
        for layout in family.sources.layouts
        for module in layout.modules.values()
        for source in possible_names(layout, module)
    }
    assert [name for name in names if _relative("", {name: np.ones(1)})] == []


@pytest.mark.parametrize("twin", ["tf_efficientnet_b0", "resnetblur50"])
def test_what_only_its_name_tells_apart(twin, state, tmp_path):
    file = tmp_path / f"{twin}.safetensors"
    save_file(state, file)
    with pytest.raises(ValueError, match=f"timm's {twin}"):
        port(file, "resnet50", "torch")
    file = file.rename(tmp_path / "model.safetensors")
    port(file, "resnet50", "torch")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": twin}))
    with pytest.raises(ValueError, match=f"timm's {twin}"):
        port(file, "resnet50", "torch")


# Pixels from 0 to 255 that each preprocessing maps to 0, and their distance from those that it maps to 1.
ORIGIN = {"tf": 127.5, "torch": 255 * TORCH_MEAN, "unit": 0, "raw": 0, "caffe": (123.68, 116.779, 103.939)}
SCALE = {"tf": 127.5, "torch": 255 * TORCH_SD, "unit": 255, "raw": 1, "caffe": 1}


def rewritten(state, preprocessing):
    """Weights that compute from this preprocessing what InceptionV3's compute from tf."""
    kernel, mean = state["conv2d_1/kernel"], state["batch_normalization_1/moving_mean"]
    scale = np.broadcast_to(SCALE[preprocessing], 3) / SCALE["tf"]
    shift = (np.broadcast_to(ORIGIN[preprocessing], 3) - ORIGIN["tf"]) / SCALE["tf"]
    changed = kernel * scale[None, None, :, None]
    changed = changed[:, :, ::-1] if preprocessing == "caffe" else changed
    mean = mean - np.einsum("hwcd,c->d", kernel, shift)
    arrays = {"conv2d_1/kernel": changed, "batch_normalization_1/moving_mean": mean}
    return state | {name: values.astype(np.float32) for name, values in arrays.items()}


@pytest.fixture(scope="module")
def inception(shared):
    """Real weights with the statistics of real photographs in place of those that are folded into the weights."""
    state = read_weights(shared / "weights" / "inception_v3_imagenet2015_to_mixed8.h5").tensors
    files = sorted((shared / "data" / "imagenet_samples" / "images").iterdir())[:40]
    images = jax.numpy.asarray(np.stack([resize_image(decode_image(file), 224) for file in files]))
    y = convolve(preprocess(images, "tf"), jax.numpy.asarray(state["conv2d_1/kernel"]), 2, "VALID")
    norm = "batch_normalization_1/moving"
    statistics = {f"{norm}_mean": y.mean((0, 1, 2)), f"{norm}_variance": y.var((0, 1, 2))}
    return state | {name: np.asarray(values) for name, values in statistics.items()}


@pytest.mark.parametrize("right", PREPROCESSINGS)
def test_a_wrong_preprocessing_of_real_weights_is_refused(right, inception, tmp_path):
    file = write_keras(tmp_path / "real.h5", rewritten(inception, right))
    fit = port(file, "inception_v3", right, "conv2d_3").card.notes["preprocessing"]
    assert re.fullmatch(rf"misfit 0\.1\d?, of {right} 0\.1\d?", fit)
    for wrong in {*PREPROCESSINGS} - {right}:
        with pytest.raises(
            ValueError, match=rf"real\.h5 .* the preprocessing {wrong}: .*{right} fits"
        ) as caught:
            port(file, "inception_v3", wrong, "conv2d_3")
        assert f"--preprocessing={right}" in str(caught.value)
        forced = port(file, "inception_v3", wrong, "conv2d_3", force_preprocessing=True)
        assert forced.card.preprocessing == wrong


@pytest.mark.parametrize(("name", "kinds"), [("resnet50", (0.6, 0.8)), ("inception_v3", (1.1, 1.4))])
def test_statistics_of_our_own_networks(name, kinds):
    """Trained on rendered scenes: they fit less well than those of photographs, and only gross errors are seen."""
    network = checkpoints.load(Path(__file__).parents[1] / "checkpoints" / name)
    match = Match(network.architecture, network.architecture.sources.layouts[0], "")
    found = _check_preprocessing("x", match, network.variables, None, network.card.preprocessing, False)
    assert kinds[0] < float(found.split()[1].strip(",")) < kinds[1]
    for wrong in ("raw", "caffe"):
        with pytest.raises(ValueError, match=f"x does not go with the preprocessing {wrong}"):
            _check_preprocessing("x", match, network.variables, None, wrong, False)


def test_what_cannot_be_checked_is_said(shared, state):
    file = shared / "weights" / "resnet50_imagenet_int8pruned.h5"
    assert "folded" in port(file, "resnet50", "caffe").card.notes["preprocessing"]
    plain = tensors("vgg16", "torch", **NARROW)
    assert "no batch normalisation" in port(plain, "vgg16", "raw", "block1_pool").card.notes["preprocessing"]
    fresh = {
        name: np.full_like(values, float("var" in name)) if "running" in name else values
        for name, values in state.items()
    }
    assert "not trained" in port(fresh, "resnet50", "raw").card.notes["preprocessing"]


def test_own_mean_and_sd_by_the_configuration_of_timm(state, tmp_path):
    save_file(state, tmp_path / "model.safetensors")
    timm = {"mean": [0.7, 0.5, 0.6], "std": [0.1, 0.2, 0.3], "input_size": [3, 288, 288], "crop_pct": 0.95}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet50", "pretrained_cfg": timm}))
    found = port(tmp_path / "model.safetensors", "resnet50")
    assert found.card.preprocessing == Normalise((0.7, 0.5, 0.6), (0.1, 0.2, 0.3))
    assert (found.card.input_size, found.card.notes["resize"]) == (288, {"crop_pct": 0.95})
    with pytest.raises(ValueError, match=r"model\.safetensors expects .*Normalise.* not torch.*--force"):
        port(tmp_path / "model.safetensors", "resnet50", "torch")
    for given, name in (((0.5,) * 3, "tf"), (tuple(TORCH_MEAN.tolist()), "torch")):
        sd = (0.5,) * 3 if name == "tf" else TORCH_SD.tolist()
        assert port(state, "resnet50", pretrained_cfg={"mean": given, "std": sd}).card.preprocessing == name
    with pytest.raises(ValueError, match="Say which preprocessing The state dict expects"):
        port(state, "resnet50")
    with pytest.raises(ValueError, match="mean and sd of red"):
        port(state, "resnet50", pretrained_cfg={"mean": (124, 117, 104), "std": (1, 1, 1)})
    with pytest.raises(ValueError, match="input_size 1000000000"):
        port(state, "resnet50", "torch", pretrained_cfg={"input_size": (3, 10**9, 10**9)})
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        port(tmp_path / "model.safetensors", "resnet50", "torch")


@pytest.mark.parametrize(
    ("sizes", "expected", "share"),
    [
        ({"size": {"height": 224, "width": 224}}, 224, 1.0),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, 224, 0.875),
        ({"size": 288, "crop_size": 256, "do_center_crop": False}, 288, 1.0),
    ],
)
def test_own_mean_and_sd_by_the_image_processor_of_hugging_face(state, sizes, expected, share, tmp_path):
    save_file(state, tmp_path / "model.safetensors")
    processor = {"image_mean": [0.7, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3], "resample": 3, **sizes}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    card = port(tmp_path / "model.safetensors", "resnet50").card
    assert card.preprocessing == Normalise((0.7, 0.5, 0.6), (0.1, 0.2, 0.3))
    assert (card.input_size, card.notes["resize"]) == (
        expected,
        {"interpolation": "bicubic", "crop_pct": share},
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**processor, "rescale_factor": 1.0}))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json .* rescale_factor is 1\.0"):
        port(tmp_path / "model.safetensors", "resnet50")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**processor, "do_normalize": False}))
    with pytest.raises(ValueError, match="Say which preprocessing"):
        port(tmp_path / "model.safetensors", "resnet50")


def test_the_digest_that_was_given_is_checked(state, tmp_path):
    file = tmp_path / "a.safetensors"
    save_file(state, file)
    port(file, "resnet50", "torch", sha256=checksum(file).upper())
    with pytest.raises(ValueError, match=rf"a\.safetensors has the SHA256 {checksum(file)}"):
        port(file, "resnet50", "torch", sha256="0" * 64)
    with pytest.raises(ValueError, match="sha256 was given"):
        port(state, "resnet50", "torch", sha256="0" * 64)


def test_values_that_no_memory_holds_are_refused(state):
    bomb = np.lib.stride_tricks.as_strided(np.ones(1, np.float32), (2**20, 2**20), (0, 0))
    with pytest.raises(ValueError, match="claims 1,09"):
        port(state | {"big": bomb}, "resnet50", "torch")


def test_a_network_inside_a_keras_model(tmp_path):
    values = tensors("inception_v3", "keras", last="mixed0", **NARROW)
    inner = {f"inception_v3/{name}": one for name, one in values.items()}
    with h5py.File(tmp_path / "nested.h5", "w") as file:
        for name, one in (inner | {"dense_7/dense_7/kernel": np.ones((4, 2), np.float32)}).items():
            file[f"model_weights/{name}:0"] = one
    expected = port(write_keras(tmp_path / "plain.h5", values), "inception_v3", "tf", "mixed0")
    found = port(tmp_path / "nested.h5", "inception_v3", "tf", "mixed0")
    assert same(found, expected)
    assert found.card.notes["beyond_last"] == {"another head": 1}
    assert layout_of("inception_v3", "keras").title == found.card.notes["layout"]
