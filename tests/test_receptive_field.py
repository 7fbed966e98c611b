"""Receptive fields and clean regions: the published table, a mask carried through by hand, and the networks themselves."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from tiny_network import random_variables

from scalecov_jax.models import inception_v3, layers, receptive_field
from scalecov_jax.models.architecture import ARCHITECTURES, Architecture, get_architecture
from scalecov_jax.models.folding import folded
from scalecov_jax.models.receptive_field import (
    ReceptiveField,
    clean_region,
    clean_regions,
    minimum_size,
    smallest_clean_size,
    undefined_layers,
)

# Layer: receptive field, stride, offset, clean positions at 299 and 224 pixels, smallest size. Derived by hand and checked with
# a brute-force mask; "<= 75" of the source stands as None.
INCEPTION_V3 = {
    "conv2d_3": (11, 2, -2, (1, 145), (1, 107), None),
    "conv2d_5": (23, 4, -2, (1, 69), (1, 50), None),
    "mixed0": (63, 8, -18, (3, 31), (3, 22), None),
    "mixed1": (95, 8, -34, (5, 29), (5, 20), 101),
    "mixed2": (127, 8, -50, (7, 27), (7, 18), 133),
    "mixed3": (159, 16, -58, (4, 12), (4, 7), 165),
    "mixed4": (351, 16, -154, None, None, 357),
    "mixed5": (543, 16, -250, None, None, 549),
    "mixed6": (735, 16, -346, None, None, 741),
    "mixed7": (927, 16, -442, None, None, 933),
    "mixed8": (1055, 32, -490, None, None, 1077),
    "mixed9": (1183, 32, -554, None, None, 1205),
    "mixed10": (1311, 32, -618, None, None, 1333),
}
# Of ResNet50: receptive field, stride, then offset, clean positions at 224 and 299 pixels and smallest size without and with
# padding of the first pooling.
RESNET50 = {
    "conv1": (7, 2, (-3, (2, 110), (2, 147), None), (-3, (2, 110), (2, 147), None)),
    "max_pool": (11, 4, (-3, (1, 54), (1, 72), None), (-5, (2, 54), (2, 73), None)),
    "add_1": (19, 4, (-7, (2, 53), (2, 71), None), (-9, (3, 53), (3, 72), None)),
    "add_2": (27, 4, (-11, (3, 52), (3, 70), None), (-13, (4, 52), (4, 71), None)),
    "add_3": (35, 4, (-15, (4, 51), (4, 69), None), (-17, (5, 51), (5, 70), None)),
    "add_4": (51, 8, (-23, (3, 24), (3, 33), None), (-25, (4, 24), (4, 34), None)),
    "add_5": (67, 8, (-31, (4, 23), (4, 32), None), (-33, (5, 23), (5, 33), None)),
    "add_6": (83, 8, (-39, (5, 22), (5, 31), 84), (-41, (6, 22), (6, 32), 90)),
    "add_7": (99, 8, (-47, (6, 21), (6, 30), 100), (-49, (7, 21), (7, 31), 106)),
    "add_8": (131, 16, (-63, (4, 9), (4, 14), 132), (-65, (5, 9), (5, 14), 146)),
    "add_9": (163, 16, (-79, (5, 8), (5, 13), 164), (-81, (6, 8), (6, 13), 178)),
    "add_10": (195, 16, (-95, (6, 7), (6, 12), 196), (-97, (7, 7), (7, 12), 210)),
    "add_11": (227, 16, (-111, None, (7, 11), 228), (-113, None, (8, 11), 242)),
    "add_12": (259, 16, (-127, None, (8, 10), 260), (-129, None, (9, 10), 274)),
    "add_13": (291, 16, (-143, None, (9, 9), 292), (-145, None, None, 306)),
    "add_14": (355, 32, (-175, None, None, 372), (-177, None, None, 370)),
    "add_15": (419, 32, (-207, None, None, 436), (-209, None, None, 434)),
    "add_16": (483, 32, (-239, None, None, 500), (-241, None, None, 498)),
}
AXES = ("height", "width")


def test_inception_v3_as_published():
    for layer, (size, stride, offset, at_299, at_224, smallest) in INCEPTION_V3.items():
        for axis in AXES:
            options = {"axis": axis, "folded": True}
            found = receptive_field.receptive_field("inception_v3", layer, **options)
            assert found == ReceptiveField(size, stride, offset), layer
            assert clean_region("inception_v3", layer, 299, **options) == at_299, layer
            assert clean_region("inception_v3", layer, 224, **options) == at_224, layer
        found = smallest_clean_size("inception_v3", layer, folded=True)
        assert found == smallest if smallest else found <= 75, layer


@pytest.mark.parametrize("padding", [0, 1])
def test_resnet50_as_published(padding):
    options = {"max_pool_padding": padding, "folded": True}
    for layer, (size, stride, *variants) in RESNET50.items():
        offset, at_224, at_299, smallest = variants[padding]
        found = receptive_field.receptive_field("resnet50", layer, **options)
        assert found == ReceptiveField(size, stride, offset), layer
        assert clean_region("resnet50", layer, 224, **options) == at_224, layer
        assert clean_region("resnet50", layer, 299, **options) == at_299, layer
        found = smallest_clean_size("resnet50", layer, **options)
        assert found == smallest if smallest else found <= 75, layer


# A mask of what padding has reached, carried through both networks as they are described


def carry(touched, kernel, stride, padding):
    padded = np.pad(touched, padding, constant_values=True)
    return np.lib.stride_tricks.sliding_window_view(padded, kernel)[::stride].any(1)


def inception_mask(pixels):
    x = np.zeros(pixels, bool)
    for step in ((3, 2, 0), (3, 1, 0), (3, 1, 1)):
        x = carry(x, *step)
    masks = {"conv2d_3": x}
    x = masks["conv2d_5"] = carry(carry(x, 3, 2, 0), 3, 1, 0)
    x = carry(x, 3, 2, 0)
    blocks = {
        **{f"mixed{i}": [[(5, 1, 2)], [(3, 1, 1)] * 2] for i in (0, 1, 2)},
        "mixed3": [[(3, 2, 0)], [(3, 1, 1), (3, 2, 0)]],
        **{f"mixed{i}": [[(7, 1, 3)], [(7, 1, 3)] * 2, [(3, 1, 1)]] for i in (4, 5, 6, 7)},
        "mixed8": [[(3, 2, 0)], [(7, 1, 3), (3, 2, 0)]],
        **{f"mixed{i}": [[(3, 1, 1)], [(3, 1, 1)] * 2] for i in (9, 10)},
    }
    for name, branches in blocks.items():
        x = masks[name] = functools.reduce(
            np.logical_or, [functools.reduce(lambda y, s: carry(y, *s), steps, x) for steps in branches]
        )
    return masks


def resnet_mask(pixels, padding):
    masks = {"conv1": carry(np.zeros(pixels, bool), 7, 2, 3)}
    x = masks["max_pool"] = carry(masks["conv1"], 3, 2, padding)
    for number in range(1, 17):
        stride = 2 if number in (4, 8, 14) else 1
        x = masks[f"add_{number}"] = carry(x, 1, stride, 0) | carry(carry(x, 1, stride, 0), 3, 1, 1)
    return masks


@pytest.mark.parametrize(
    ("name", "options", "mask"),
    [
        ("inception_v3", {"folded": True}, inception_mask),
        ("resnet50", {"max_pool_padding": 0, "folded": True}, lambda n: resnet_mask(n, 0)),
        ("resnet50", {"max_pool_padding": 1, "folded": True}, lambda n: resnet_mask(n, 1)),
    ],
)
def test_every_size_from_75_to_500(name, options, mask):
    """The formula with the derived geometry at every size; what `clean_region` says at some of them."""
    known = list(mask(75))
    fields = {layer: receptive_field.receptive_field(name, layer, **options) for layer in known}
    asked = {75, 76, 500, *np.random.default_rng(3).integers(77, 500, 3).tolist()}
    for pixels in range(75, 501):
        for layer, touched in mask(pixels).items():
            size, stride, offset = fields[layer]
            first, last = -(offset // stride), (pixels - size - offset) // stride
            expected = (first, last) if first <= last else None
            clean = np.flatnonzero(~touched)
            assert expected == ((clean[0], clean[-1]) if len(clean) else None), (layer, pixels)
            if pixels in asked:
                assert clean_region(name, layer, pixels, **options) == expected, (layer, pixels)


# The networks themselves


@contextlib.contextmanager
def linear(monkeypatch):
    """Sums in place of maxima, so that with positive weights all that is seen shows; in float64, so that none is lost."""

    def summed(x, padding=0, size=3):
        pads = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, size, size, 1), (1, 2, 2, 1), pads)

    with monkeypatch.context() as patch, jax.enable_x64(True):
        patch.setattr(layers, "max_pool", summed)
        patch.setattr(inception_v3, "max_pool", summed)
        patch.setattr(nn, "relu6", nn.relu)
        yield


def positive_variables(module, seed):
    """Weights of which none is 0, their sums near 1."""
    rng = np.random.default_rng(seed)
    abstract = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 96, 96, 3), "float32"))
    return jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape) / max(np.prod(x.shape[:-1]), 1.0), abstract)


@functools.partial(jax.jit, static_argnames=("module", "names"))
def capture(module, variables, x, names):
    intermediates = module.apply(
        variables, x, capture_intermediates=lambda one, _: one.name in names, mutable=["intermediates"]
    )[1]["intermediates"]
    return {path[-2]: values[0] for path, values in flatten_dict(intermediates).items()}


@pytest.mark.parametrize(
    ("name", "options", "names", "size"),
    [
        ("inception_v3", {"last": "mixed4"}, "conv2d_8 mixed1 mixed3 conv2d_31 conv2d_36", (170, 271)),
        ("inception_v3", {"last": "mixed0", "count_padding": True}, "conv2d_3 conv2d_5 mixed0", (84, 77)),
        ("resnet50", {"last": "add_4", "max_pool_padding": 0}, "max_pool conv3_block1_2 add_4", (97, 120)),
        (
            "resnet50",
            {"last": "add_5", "stride_on_3x3": True},
            "conv1 conv3_block1_1 conv3_block1_2 add_5",
            (75, 90),
        ),
        ("tiny", {}, "stem pool block_1 block_2", (45, 38)),
        ("vgg16", {"last": "block3_conv1"}, "block1_pool block3_conv1", (37, 44)),
        (
            "mobilenet_v2",
            {"last": "block_1_project_BN", "symmetric_padding": True},
            "Conv1_relu block_1_project_BN",
            (50, 43),
        ),
        ("densenet121", {"last": "pool2_pool"}, "conv2_block2_concat pool2_pool", (97, 120)),
    ],
)
@pytest.mark.large
@pytest.mark.usefixtures("quick_compilation")
def test_the_networks_themselves(monkeypatch, name, options, names, size):
    """A position depends on the pixels of its window alone, and knows that the image ends if and only if it is not clean.

    The first by gradients. The second by the same image inside a larger one: clean positions keep their value there, and all
    others change.
    """
    names = tuple(names.split())
    module = folded(ARCHITECTURES[name].module(width=1.0 if name == "tiny" else 0.125, **options))
    rng = np.random.default_rng(sum(size))
    windows = {
        layer: [receptive_field._window(module, *size, layer, axis) for axis in AXES] for layer in names
    }
    regions = clean_regions(module, *size, names)
    assert any(regions.values())
    step = max(window.stride for pair in windows.values() for window in pair)
    shift = step * int(rng.integers(1, 3))
    canvas = rng.uniform(0.5, 1.5, (1, size[0] + 2 * shift + 3, size[1] + 2 * shift + 1, 3))
    image = canvas[:, shift : shift + size[0], shift : shift + size[1]]

    def inside(region, shape):
        mask = np.zeros(shape, bool)
        if region:
            mask[region[0][0] : region[0][1] + 1, region[1][0] : region[1][1] + 1] = True
        return mask

    def same(layer, alone, embedded, tolerance):
        values, start = np.asarray(alone[layer])[0], shift // windows[layer][0].stride
        rows, columns = values.shape[:2]
        others = np.asarray(embedded[layer])[0, start : start + rows, start : start + columns]
        return np.abs(values - others).max(-1) <= tolerance * np.abs(values).max()

    with linear(monkeypatch):
        variables = positive_variables(module, 0)
        alone, pull = jax.vjp(lambda x: capture(module, variables, x, names), image)
        embedded, pull = capture(module, variables, canvas, names), jax.jit(pull)

        def pixels(layer, *place):
            """The pixels that positions of a layer depend on."""
            cotangents = {one: np.zeros(values.shape) for one, values in alone.items()}
            cotangents[layer][(0, *place)] = 1
            return np.asarray(pull(cotangents)[0])[0].sum(-1) > 0

        for layer in names:
            shape = alone[layer].shape[1:3]
            clean = inside(regions[layer], shape)
            np.testing.assert_array_equal(same(layer, alone, embedded, 1e-12), clean, layer)
            used = pixels(layer, slice(None))  # strides without padding pass over the last ones
            drawn = rng.integers(0, shape, (2, 2))
            for place in [(0, 0), [n - 1 for n in shape], *drawn, *np.argwhere(clean)[:1]]:
                window = [
                    (max(0, start := one.stride * i + one.offset), start + one.size - 1)
                    for one, i in zip(windows[layer], place, strict=True)
                ]
                expected = inside(window, size)
                assert used[expected].all() or not clean[tuple(place)]
                np.testing.assert_array_equal(pixels(layer, *place), expected & used, f"{layer} {place}")
    if name == "tiny" or "max_pool_padding" in options:  # the network as it is, maxima and ReLU included
        variables = random_variables(module, get_architecture(name))
        alone, embedded = (capture(module, variables, np.float32(x - 1), names) for x in (image, canvas))
        for layer in names:
            unchanged = same(layer, alone, embedded, 1e-5)
            assert unchanged[inside(regions[layer], unchanged.shape)].all(), layer
            assert not unchanged.all(), layer


# Modules of a user


class Strange(nn.Module):
    """Dilation, SAME padding with a stride, a crop, and things that no rule is for."""

    last: str = "softmax"
    folded: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 5), strides=2, name="same")(x)
        x = nn.Conv(4, (3, 3), kernel_dilation=(2, 3), padding="VALID", name="dilated")(x)
        x = nn.gelu(nn.GroupNorm(num_groups=None, group_size=1, reduction_axes=(3,), name="norm")(x))
        y = nn.Conv(4, (4, 4), strides=2, name="even")(x)
        gate = nn.Dense(4, name="squeezed")(y.mean((1, 2), keepdims=True))
        scaled = Keep(name="scaled")(y * jax.nn.sigmoid(gate))
        Keep(name="cropped")(jnp.pad(y[:, 2:-1, :-2], ((0, 0), (1, 0), (0, 0), (0, 0))))
        Keep(name="mixed")(
            y[:, : x.shape[1] // 4, : x.shape[2] // 4] + x[:, 0 : x.shape[1] // 4, : x.shape[2] // 4]
        )
        turned = Keep(name="turned")(y[:, ::-1])
        nn.ConvTranspose(4, (3, 3), strides=(2, 2), name="transposed")(y)
        nn.Dense(3, name="flat")(turned.reshape(len(turned), -1))
        Keep(name="constant")(jnp.ones_like(y))
        return scaled


class Keep(nn.Module):
    """Gives a value a name."""

    @nn.compact
    def __call__(self, x):
        return x


STRANGE = Architecture("strange", Strange, ("same", "even", "pre_softmax", "softmax"), 1e-3, 64, "raw")


def test_strange_layers_by_hand():
    def field(layer, size, axis="height"):
        return receptive_field.receptive_field(STRANGE, layer, input_size=size, axis=axis)

    # A 3-wide kernel with stride 2 pads 1 row below alone where the size is even, and 1 on both sides where it is odd.
    assert field("same", 64) == (3, 2, 0)
    assert field("same", 63) == (3, 2, -1)
    assert field("same", 64, "width") == (5, 2, -1)
    assert clean_region(STRANGE, "same", 64) == (0, 30)
    assert clean_region(STRANGE, "same", 63) == (1, 30)
    assert field("dilated", 64) == (3 + 2 * 4, 2, 0)
    assert field("dilated", 64, "width") == (5 + 2 * 6, 2, -1)
    assert field("norm", 64) == field("dilated", 64)
    assert field("even", 64) == (11 + 2 * 3, 4, -2)
    assert clean_region(STRANGE, "even", 64) == (1, 12)
    # Two rows are cut off above and one is added: what it replaces would have seen the image, but it is padding.
    assert field("cropped", 64) == (17, 4, 2)
    assert clean_region(STRANGE, "cropped", 64) == (1, 11)
    assert clean_region(STRANGE, "even", 64, axis="width") == (1, 11)
    assert clean_region(STRANGE, "cropped", 64, axis="width") == (1, 10)


def test_smallest_size_where_the_geometry_depends_on_it():
    for layer in ("same", "dilated", "even", "cropped"):
        smallest = smallest_clean_size(STRANGE, layer)
        assert smallest == min(
            size
            for size in range(minimum_size(STRANGE, layer), 64)
            if all(clean_region(STRANGE, layer, size, axis=axis) for axis in AXES)
        )


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("turned", "What turned of Strange sees of the image cannot be derived: rev along an axis of the"),
        ("transposed", "cannot be derived: a transposed convolution"),
        ("mixed", "cannot be derived: maps of stride 4 and of stride 2 meet"),
        (
            "scaled",
            "scaled of strange sees the whole image: as after global pooling or squeeze-and-excitation",
        ),
        ("flat", "Every value of flat of strange sees the whole image: it is a vector"),
        ("squeezed", "Every value of squeezed of strange sees the whole image"),
        ("constant", "constant of Strange does not depend on the image"),
        ("sam", "Strange has no layer 'sam'; did you mean same"),
    ],
)
def test_layers_without_a_window(layer, message):
    with pytest.raises(ValueError, match=message):
        receptive_field.receptive_field(STRANGE, layer)


def test_an_unknown_primitive_is_named():
    class Sorted(nn.Module):
        last: str = "far"

        @nn.compact
        def __call__(self, x):
            x = nn.Conv(2, (3, 3), name="near")(x)
            return nn.Conv(2, (3, 3), name="far")(jax.lax.cummax(jax.lax.approx_max_k(x, 2)[0], axis=3))

    module = Sorted()
    assert clean_regions(module, 20, 30, ["near"]) == {"near": ((1, 18), (1, 28))}
    with pytest.raises(ValueError, match=r"far of Sorted .* no rule for the primitive approx_top_k"):
        clean_regions(module, 20, 30, ["near", "far"])


# Bad input


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("vgg", "mixed3"), {}, "No architecture is called 'vgg'"),
        (("inception_v3", "mixd3"), {}, "InceptionV3 has no layer 'mixd3'; did you mean mixed3"),
        (("inception_v3", "?"), {}, "has no layer '\\?'; There are conv2d_1, .*softmax, and those inside"),
        (("inception_v3", "norm"), {}, "94 modules called 'norm'; choose one by its path: conv2d_1/norm"),
        (("inception_v3", "pre_softmax"), {}, "pre_softmax of inception_v3 sees the whole image"),
        (("resnet50", "avg_pool"), {}, "avg_pool of resnet50 sees the whole image"),
        (("resnet50", "add_1"), {"pool": 1}, "resnet50 has no option pool; there are last, .*max_pool_pad"),
        (("resnet50", "add_1"), {"input_size": (224, 320)}, r"is \(224, 320\); expected one whole"),
        (("resnet50", "add_1"), {"input_size": 224.0}, r"input_size is 224\.0; expected one whole"),
        (("resnet50", "add_1"), {"input_size": True}, "input_size is True"),
        (("resnet50", "add_1"), {"input_size": 0}, "input_size is 0"),
        (
            ("inception_v3", "mixed10"),
            {"input_size": 74, "folded": True},
            "inception_v3 needs images of at least 75 x 75 pixels",
        ),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message) as error:
        receptive_field.receptive_field(*arguments, **options)
    assert "\n" not in str(error.value)


def test_paths_tell_modules_of_one_name_apart():
    by_path = receptive_field.receptive_field("inception_v3", "mixed2/conv2d_20/norm")
    assert by_path == receptive_field.receptive_field("inception_v3", "conv2d_20")


def test_minimum_size():
    assert minimum_size("resnet50", "add_16", max_pool_padding=0) == 5
    assert minimum_size("inception_v3", "softmax", folded=True) == 75
    module = ARCHITECTURES["inception_v3"].module(folded=True)
    smallest = minimum_size(module, "mixed2")
    cut = module.clone(last="mixed2")
    for size in (smallest - 1, smallest):
        images = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
        maps = jax.eval_shape(lambda x: cut.init_with_output(jax.random.key(0), x)[0], images)
        assert (0 in maps.shape) == (size < smallest)


def test_undefined_layers():
    module = ARCHITECTURES["resnet50"].module(folded=True)
    undefined = {"add_13": 306, "add_16": 498, "softmax": None}
    assert undefined_layers(module, 299, ("add_12", "add_13", "add_16", "softmax")) == undefined
    assert undefined_layers(module, (306, 299), ("add_13",)) == {"add_13": 306}
    assert undefined_layers(module, (306, 307), ("add_13",)) == {}
    assert smallest_clean_size("resnet50", "softmax") is None
    assert clean_region("resnet50", "softmax", 224) is None


def test_each_network_and_size_is_traced_once():
    before = receptive_field._trace.cache_info().misses
    for _ in range(2):
        for layer in ("add_1", "add_2", "conv2_block1_2"):
            clean_region("resnet50", layer, 203, width=0.5)
    assert receptive_field._trace.cache_info().misses == before + 1
