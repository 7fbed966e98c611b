"""Networks of torchvision and timm with weights that NumPy draws, and what torch computes with them.

`python tests/torch_references.py` writes torch_features.npz; it needs torch, torchvision and timm.
"""

import zlib
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from scalecov_jax.models.architecture import ARCHITECTURES
from scalecov_jax.models.preprocessing import TORCH_MEAN, TORCH_SD
from scalecov_jax.models.pruning import abstract_variables
from scalecov_jax.models.sources import source_name

FILE = Path(__file__).with_name("torch_features.npz")
RESNETS = {"resnet50": (3, 7, 13, 16), "resnet101": (3, 7, 30, 33)}  # the last block of each stage
# Our layers, and the modules of torchvision and timm that return them.
HOOKS = {
    "inception_v3": {
        layer: (f"Mixed_{theirs}",) * 2
        for layer, theirs in {"mixed0": "5b", "mixed3": "6a", "mixed8": "7a", "mixed10": "7c"}.items()
    },
    **{
        name: {
            f"add_{add}": (f"layer{stage}.{add - before - 1}.relu", f"layer{stage}.{add - before - 1}.act3")
            for stage, (before, add) in enumerate(zip((0, *ends), ends, strict=False), start=1)
        }
        for name, ends in RESNETS.items()
    },
    "vgg16": {f"block{n + 1}_pool": (f"features.{at}",) * 2 for n, at in enumerate((4, 9, 16, 23, 30))},
    "densenet121": {
        "pool1": ("features.pool0",) * 2,
        "conv2_block6_concat": ("features.denseblock1",) * 2,
        "conv4_block24_concat": ("features.denseblock3",) * 2,
        "relu": ("features.norm5",) * 2,
    },
    "mobilenet_v2": {
        "Conv1_relu": ("features.0", "bn1"),
        "block_2_add": ("features.3", "blocks.1.1"),
        "block_12_add": ("features.13", "blocks.4.2"),
        "out_relu": ("features.18", "bn2"),
    },
    "efficientnet_b0": {
        "stem_activation": ("features.0", "bn1"),
        "block2b_add": ("features.2", "blocks.1"),
        "block5c_add": ("features.5", "blocks.4"),
        "top_activation": ("features.8", "bn2"),
    },
    "convnext_tiny": {
        "stem": ("features.0", "stem"),
        "stage_0_block_2": ("features.1", "stages.0"),
        "stage_2_block_8": ("features.5", "stages.2"),
        "stage_3_block_2": ("features.7", "stages.3"),
    },
}


def state_dict(name, title):
    """A state dict in half precision; the same network under the names of every source."""
    family = ARCHITECTURES[name]
    (layout,) = (one for one in family.sources.layouts if one.title == title)
    options = layout.options | ({"last": family.trunk} if name == "vgg16" else {})
    state = {}
    for path, leaf in flatten_dict(abstract_variables(family.module(**options), family)).items():
        if source := source_name(layout, path):
            rng = np.random.default_rng(zlib.crc32("/".join(path).encode()))
            draw = rng.standard_normal(leaf.shape, np.float32)
            if path[-1] == "kernel":
                values = draw * np.sqrt(2 / np.prod(leaf.shape[:-1]))
            elif path[-1] in ("scale", "var"):
                values = 1 + 0.2 * np.tanh(draw)
            else:
                values = 0.1 * draw
            values = values.transpose(3, 2, 0, 1) if values.ndim == 4 else values.T
            state[source] = np.ascontiguousarray(values, np.float16)
    return state


def images(name):
    """Two images, red in some places and bright in others."""
    side = 96 if name == "inception_v3" else 64
    noise = np.random.default_rng(1).integers(0, 128, (2, side, side, 3))
    ramp = np.linspace(0, 127, side)[None, :, None, None] * np.array([[[[1, 0.5, 0.2]]]])
    return (noise + ramp).astype(np.uint8)


def torch_features(name, number):
    """Means over the maps of the hooked modules of torchvision (0) or timm (1)."""
    import timm
    import torch
    import torchvision

    torch.manual_seed(0)
    theirs = {"mobilenet_v2": "mobilenetv2_100"}.get(name, name)
    if number:
        model = timm.create_model(theirs)
    else:
        quick = {"init_weights": False} if name == "inception_v3" else {}
        model = getattr(torchvision.models, name)(weights=None, **quick)
    titles = [one.title for one in ARCHITECTURES[name].sources.layouts if one.family == "torch"]
    title = next(one for one in titles if ("torchvision", "timm")[number] in one)
    state = {key: torch.from_numpy(one.astype(np.float32)) for key, one in state_dict(name, title).items()}
    shapes = model.state_dict()
    state = {key: one.reshape(shapes[key].shape) for key, one in state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    head = ("fc.", "classifier.", "head.", "pre_logits.") if name == "vgg16" else ()
    rest = [one for one in missing if not one.endswith("num_batches_tracked") and "AuxLogits" not in one]
    assert not unexpected
    assert all(one.startswith(head) for one in rest), rest
    x = (torch.from_numpy(images(name)).float() / 255 - torch.from_numpy(TORCH_MEAN)) / torch.from_numpy(
        TORCH_SD
    )
    found = {}

    def keep(layer, values):
        values = values.relu() if layer == "relu" else values
        found[layer] = values.mean((2, 3)).numpy().copy()

    modules = dict(model.named_modules())
    for layer, hooked in HOOKS[name].items():
        module = modules[hooked[number]]
        if layer.startswith("add_"):  # before the last ReLU of the block
            module.register_forward_pre_hook(lambda _, given, layer=layer: keep(layer, given[0]))
        else:
            module.register_forward_hook(lambda _, given, out, layer=layer: keep(layer, out))
    model.eval()
    body = model.features if name == "vgg16" else model
    with torch.no_grad():
        body(x.permute(0, 3, 1, 2))
    return found


def main():
    """Write the features of torchvision, once timm's are the same."""
    arrays = {}
    for name, hooks in HOOKS.items():
        ours, other = (torch_features(name, number) for number in (0, 1))
        for layer in hooks:
            difference = np.abs(ours[layer] - other[layer]).max() / np.abs(ours[layer]).max()
            print(
                f"{name:16} {layer:20} {ours[layer].shape} {np.abs(ours[layer]).max():.3g} timm {difference:.1e}"
            )
            assert difference < 2e-5
            arrays[f"{name}/{layer}"] = ours[layer]
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
