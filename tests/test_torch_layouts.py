"""The tables of torchvision and timm: names, shapes and places of every tensor.

Once, files written by torchvision 0.29.1 and timm 1.0.31 (torch 2.14.1; random weights and statistics) were ported, and layers
and logits compared with torch's; see docs/architectures.md. The digests below are of those files and of the tables then.
"""

import hashlib

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from scalecov_jax.models.architecture import ARCHITECTURES
from scalecov_jax.models.port import port
from scalecov_jax.models.pruning import abstract_variables
from scalecov_jax.models.sources import source_name

WIDTH, CLASSES = 0.125, 5
# Architecture, title of the layout: digest of the names and shapes, and of the places in our tree.
CHECKED = {
    ("inception_v3", "torchvision or timm"): (
        "060d097e94d4c79dce586542ca8df0e852a03e18ac9b31442bf27ecae52a17a4",
        "e31fef7fe6c9b3b19125c74d80ac65a320f14326e81cddbaec7928f5f64a37f0",
    ),
    ("resnet50", "torchvision or timm"): (
        "584ee931ad382885ad353fa64c8bf7736b8cd3a2259cc79a8f1e68cb3de2b163",
        "6423599b449506ff9cfd525e2efdccbe7cc00899080b6cf77e7b6676fdb346ab",
    ),
    ("resnet101", "torchvision or timm"): (
        "a85edc6cd135a89dcee889579bacc5142231707846658ae8a3770606a2572f06",
        "be72d9d104cb445a195f64d168db8ebcc43493ea3e08ca50b728c7c998c0bc4a",
    ),
    ("resnet152", "torchvision or timm"): (
        "d9e4b3df983b271116d340aa468f2791b8e855e3b128f399d0a3d44a6a66ef4c",
        "ac85b6e8fdb938dedb02c4600a1cf06f4d6789abb90e06a8a43071197872a298",
    ),
    ("vgg16", "torchvision"): (
        "26a44a8d3cab16c67a2e446a90410ce627919f48ca28949d4a95f218ccda926f",
        "333e5a46fe3c6bda580b685c22a3ec3816e6045c009d64393335eaf3582351d3",
    ),
    ("vgg16", "timm"): (
        "442fc78813acceee6b2fe667727a0dcf6d2f9b828f131b6e623f62b939502dda",
        "8ca1ed53b060d8602fbd3bd5e9b98fbaf336f009cea0c78cd80dad3a956ed2a9",
    ),
    ("densenet121", "torchvision or timm"): (
        "c4a956e878d257a80aa164c2244c868af1e51756baa6f7b1b5679554c01a7c08",
        "3709e6c66437fc6d43d7c9126ef9670639e2a0af93aa1ef60072625f0a1aba64",
    ),
    ("mobilenet_v2", "torchvision"): (
        "07c1a8796c1aa659704bff922a9fd79773dd549def1a80747d38e220c211db05",
        "badc8941f6924e7357797a15597e260057e640b78f42afa924193e204a38ae3d",
    ),
    ("mobilenet_v2", "timm"): (
        "fb193ed441ef69d9f4e78ab316e4a1082177ed80e7d52099036b4ba917511288",
        "8839cbfe9a4c016caa0b7022724e4bea26537d36a291714882e365210e87c547",
    ),
    ("efficientnet_b0", "torchvision"): (
        "29f2e4b8ed94097f30a89eced93c3b97c89a41217ba85615e104ff044a01534c",
        "29869713934f017e1376eba94ff9d279d913de548bccccbbab6003d22a683bbc",
    ),
    ("efficientnet_b0", "timm"): (
        "62576637d3698c348af350264532a0e31a09a03dd42ce2887ff10651681e6e35",
        "2bb8f442c78ce57f8001fa9e9e91778b5dc897da2641379185105f677a64d3e1",
    ),
    ("convnext_tiny", "torchvision"): (
        "76e6adcc617daa3f25bbf3b1a82ef34bd943568f7c5ce47b26eb86d15e867807",
        "3ce316386eb9d7444d13a49fad5722851a8962ca146cff0ed7be2cb086ffe0a4",
    ),
    ("convnext_tiny", "timm"): (
        "6a2556c605ee9b4ff7b89385265a5fcffeb77d7681c307b127267bd5283adee1",
        "0cbd6dc7d9b78274907f6143d1a6d2cae8721eedba443a09ce3a1c06caf6460d",
    ),
}


def layout_of(name, title):
    (found,) = (one for one in ARCHITECTURES[name].sources.layouts if one.title == title)
    return found


def torch_shape(path, shape, title):
    """The shape of a tensor in torch: channels first, and some dense layers written as convolutions."""
    if path[-1] == "gamma":
        return [*shape, 1, 1] if title == "torchvision" else [*shape]
    if path[-1] != "kernel":
        return [*shape]
    if len(shape) == 4:
        return [shape[3], shape[2], *shape[:2]]
    if title == "timm" and path[-2] == "fc1":
        return [shape[1], shape[0] // 49, 7, 7]
    convolution = "_se_" in path[-2] or (title == "timm" and path[-2] == "fc2")
    return [shape[1], shape[0], *([1, 1] if convolution else [])]


def shapes_of(name, title, **options):
    """Shape and place of every tensor by the source's name."""
    family, layout = ARCHITECTURES[name], layout_of(name, title)
    abstract = flatten_dict(abstract_variables(family.module(**layout.options, **options), family))
    found = {}
    for path, leaf in abstract.items():
        if source := source_name(layout, path):
            found[source] = (torch_shape(path, leaf.shape, title), path)
    return found


def digest(lines):
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


@pytest.mark.parametrize(("name", "title"), CHECKED)
def test_names_shapes_and_places_are_those_checked_against_torch(name, title):
    shapes = shapes_of(name, title)
    found = (
        digest(f"{source} {shape}" for source, (shape, _) in shapes.items()),
        digest(f"{source} {'/'.join(path)}" for source, (_, path) in shapes.items()),
    )
    assert found == CHECKED[name, title]


def expected_values(path, values, title):
    """A tensor in our layout."""
    if path[-1] == "gamma":
        return values.reshape(-1)
    if path[-1] != "kernel":
        return values
    if title == "torchvision" and path[-2] == "fc1":  # 7 x 7 maps flattened channel by channel
        return values.reshape(len(values), -1, 7, 7).transpose(2, 3, 1, 0).reshape(-1, len(values))
    if title == "timm" and path[-2] in ("fc1", "fc2"):
        return values.transpose(2, 3, 1, 0).reshape(-1, len(values))
    if "_se_" in path[-2]:
        return values[:, :, 0, 0].T
    return values.transpose(2, 3, 1, 0) if values.ndim == 4 else values.T


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("resnet101", "torchvision or timm"),
        ("vgg16", "torchvision"),
        ("vgg16", "timm"),
        ("mobilenet_v2", "timm"),
        ("densenet121", "torchvision before 0.3"),
        ("efficientnet_b0", "torchvision"),
        ("convnext_tiny", "torchvision"),
    ],
)
def test_every_tensor_of_a_file_finds_its_place(name, title, tmp_path):
    rng = np.random.default_rng(3)
    values = {
        source: (rng.uniform(0.1, 1, shape).astype(np.float32), path)
        for source, (shape, path) in shapes_of(name, title, width=WIDTH, classes=CLASSES).items()
    }
    save_file({source: one for source, (one, _) in values.items()}, tmp_path / "a.safetensors")
    ported = port(tmp_path / "a.safetensors", name, "torch")
    layout = layout_of(name, title)
    assert ported.card.notes["layout"] == title
    assert ported.card.options == {"width": WIDTH, "classes": CLASSES, **layout.options}
    found = flatten_dict(ported.variables)
    for one, path in values.values():
        ours, theirs = found.pop(path), expected_values(path, one, title)
        if path[-1] == "var":  # the sum with the epsilon is what matters
            ours, theirs = ours + ported.architecture.epsilon, theirs + layout.epsilon
            np.testing.assert_allclose(ours, theirs, rtol=2e-7)
        else:
            np.testing.assert_array_equal(ours, theirs, str(path))
    assert all(
        path[-1] == "bias" and not one.any() for path, one in found.items()
    )  # torch has no such tensor


def test_a_smaller_network_is_not_taken_for_a_part_of_a_larger_one(tmp_path):
    def write(name, **options):
        shapes = shapes_of(name, "torchvision or timm", width=0.0625, **options)
        file = tmp_path / f"{name}.safetensors"
        save_file({source: np.ones(shape, np.float32) for source, (shape, _) in shapes.items()}, file)
        return file

    for name, other in (("resnet50", "resnet152"), ("resnet101", "resnet50"), ("resnet101", "resnet152")):
        with pytest.raises(ValueError, match=f"holds {name} .* and not {other}; pass --architecture={name}"):
            port(write(name), other, "torch")
    beginning = write("resnet101", last="add_5")  # as in all of them
    for name in ("resnet50", "resnet101", "resnet152"):
        assert port(beginning, name, "torch", "add_5").card.architecture == name
