"""Networks written for torch: the names, shapes and values of the file that they were read from."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file
from test_port import CLASSES, WIDTH, layout_of, same, tensors

from scalecov_jax import checkpoints
from scalecov_jax.cutting import cut_checkpoint, pruned_network
from scalecov_jax.models.architecture import ARCHITECTURES
from scalecov_jax.models.export import export
from scalecov_jax.models.port import port

FAMILIES = [
    name
    for name, one in ARCHITECTURES.items()
    if any(layout.family == "torch" for layout in one.sources.layouts) and name != "vit"
]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_is_what_it_was_read_from(name, tmp_path):
    values = tensors(name, "torch")
    one = layout_of(name, "torch").pixelwise
    values = {key: value[..., None, None] if re.search(one, key) else value for key, value in values.items()}
    save_file(values, tmp_path / "given.safetensors")
    network = port(tmp_path / "given.safetensors", name, "torch", force_preprocessing=True)
    table = export(network, tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == values.keys() == {*table["tensor"]}
    for key, value in values.items():
        np.testing.assert_allclose(written[key], value, rtol=1e-6 if key.endswith("_var") else 0)
    assert same(port(tmp_path / "out.safetensors", name, "torch", force_preprocessing=True), network)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out.csv", dtype="str"), table.astype("str"))


def test_a_cut_network_keeps_what_lies_before_the_cut(tmp_path):
    values = tensors("resnet50", "torch")
    save_file(values, tmp_path / "given.safetensors")
    whole = port(tmp_path / "given.safetensors", "resnet50", "torch", force_preprocessing=True)
    cut = pruned_network(whole, "add_7")
    checkpoints.save(tmp_path / "whole", whole)
    cut_checkpoint(
        str(tmp_path / "whole"), str(tmp_path / "cut"), "add_7", None, torch=str(tmp_path / "cut.safetensors")
    )
    written = load_file(tmp_path / "cut.safetensors")
    assert {name.split(".")[0] for name in written} == {"conv1", "bn1", "layer1", "layer2"}
    again = port(tmp_path / "cut.safetensors", "resnet50", "torch", "add_7", force_preprocessing=True)
    assert same(again, cut)


def test_strides_that_torch_has_not_keep_our_names(tmp_path):
    """Keras's ResNet50 has its strides in the first convolution of a block: torchvision's would compute something else."""
    card = checkpoints.Card("resnet50", {"width": WIDTH, "classes": CLASSES}, "caffe", 224, "random")
    family = ARCHITECTURES["resnet50"]
    like = checkpoints.Network(family.module(**card.options), None, family, card)
    network = checkpoints.random_network(like, 0)
    table = export(network, tmp_path / "ours.safetensors")
    assert {name.split(".")[0] for name in table["tensor"]} == {"params", "batch_stats"}
    kernel = np.asarray(network.variables["params"]["pre_softmax"]["kernel"])
    np.testing.assert_array_equal(
        load_file(tmp_path / "ours.safetensors")["params.pre_softmax.kernel"], kernel.T
    )


def test_a_vision_transformer(shared, tmp_path):
    folder = shared / "reference" / "vit"
    for name, facts in json.loads((folder / "index.json").read_text()).items():
        (tmp_path / "config.json").write_text(json.dumps(facts["settings"]))
        (tmp_path / "model.safetensors").write_bytes((folder / f"{name}.safetensors").read_bytes())
        network = port(
            tmp_path / "model.safetensors", "vit", "torch", heads=facts["settings"].get("num_heads")
        )
        export(network, tmp_path / "out.safetensors")
        given, written = (load_file(tmp_path / f"{one}.safetensors") for one in ("model", "out"))
        for key, value in written.items():
            np.testing.assert_array_equal(value, given.get(key, np.zeros_like(value)), err_msg=key)
        lacking = {
            key for key in given.keys() - written.keys() if "mask_token" not in key and "pooler" not in key
        }
        assert not lacking, name
