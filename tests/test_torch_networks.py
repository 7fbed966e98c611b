"""State dicts as researchers have them: what torch computes, under other prefixes, with other heads, in half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from torch_references import FILE, HOOKS, images, state_dict, torch_features

from scalecov_jax.extraction import pooled_features
from scalecov_jax.models.architecture import ARCHITECTURES
from scalecov_jax.models.port import port

LAYOUTS = [
    (name, layout.title)
    for name in HOOKS
    for layout in ARCHITECTURES[name].sources.layouts
    if layout.family == "torch" and "before" not in layout.title
]


@pytest.mark.parametrize(("name", "title"), LAYOUTS)
@pytest.mark.usefixtures("quick_compilation")
def test_features_are_those_of_torch(name, title, tmp_path):
    family, state = ARCHITECTURES[name], state_dict(name, title)
    head = {"fc.1.weight": np.ones((2, 3), np.float16)}  # as of nn.Sequential(Dropout, Linear)
    body = {key: one for key, one in state.items() if not key.startswith(("fc.", "classifier.", "head."))}
    if title == "timm":
        source = tmp_path / "model.safetensors"
        save_file({f"model.backbone.{key}": one for key, one in (body | head).items()}, source)
    else:
        moments = {"state": {0: {"exp_avg": np.ones(3)}}}
        source = {"epoch": 3, "state_dict": {f"module.{key}": one for key, one in (body | head).items()}}
        source |= {"optimizer": moments, "criterion": {"weight": np.ones(5)}}
    ported = port(source, name, "torch", family.trunk)
    reference = np.load(FILE)
    x = jnp.asarray(images(name))
    layers = tuple(HOOKS[name])
    found = jax.jit(lambda v: pooled_features(ported.module, v, x, layers, "torch"))(ported.variables)
    for layer in layers:
        expected = reference[f"{name}/{layer}"]
        np.testing.assert_allclose(found[layer], expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert ported.card.notes["prefix"] == {"timm": "model.backbone."}.get(title, "state_dict.module.")


@pytest.mark.parametrize("name", list(HOOKS))
@pytest.mark.parametrize("number", [0, 1])
def test_references_are_what_torch_computes(name, number):
    for module in ("torch", "torchvision", "timm"):
        pytest.importorskip(module)
    reference = np.load(FILE)
    for layer, found in torch_features(name, number).items():
        expected = reference[f"{name}/{layer}"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
