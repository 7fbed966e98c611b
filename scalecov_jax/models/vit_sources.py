"""How timm, DINOv2 and Hugging Face name the tensors of a vision transformer, and what its settings are by these tensors."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from scalecov_jax.models.sources import Layout, Sources, joined_parts
from scalecov_jax.models.vit import ViT

HEAD_SIZE = 64  # channels of a head in all published networks, but for those of these widths, of which no rule is known
UNRULY = (1152, 1280, 1408, 1664, 4096)
DEEPEST = 64  # blocks that a file is searched for

# Of each layout the beginning of a block's names, and the name of each part; those in braces are joined, queries or gates first.
_TITLES = ("timm", "Hugging Face ViT", "Hugging Face Dinov2", "Hugging Face DINOv3")
_QKV = "attention.attention.{query,key,value}"
# fmt: off
_BLOCKS = ("blocks.#.", "encoder.layer.#.", "encoder.layer.#.", "layer.#.")
_PARTS = {
    "attention_norm": ("norm1", "layernorm_before", "norm1", "norm1"),
    "attention_#/qkv": ("attn.qkv", _QKV, _QKV, "attention.{q_proj,k_proj,v_proj}"),
    "attention_#/proj": ("attn.proj", "attention.output.dense", "attention.output.dense", "attention.o_proj"),
    "attention_scale": ("ls1.gamma", "", "layer_scale1.lambda1", "layer_scale1.lambda1"),
    "mlp_norm": ("norm2", "layernorm_after", "norm2", "norm2"),
    "mlp_#/fc1": ("mlp.fc1", "intermediate.dense", "mlp.fc1", "mlp.up_proj"),
    "mlp_#/fc2": ("mlp.fc2", "output.dense", "mlp.fc2", "mlp.down_proj"),
    "mlp_scale": ("ls2.gamma", "", "layer_scale2.lambda1", "layer_scale2.lambda1"),
}
_HF = "embeddings.patch_embeddings"
_OTHERS = {
    "embedding/patches": ("patch_embed.proj", f"{_HF}.projection", f"{_HF}.projection", _HF),
    "embedding/class_token": ("cls_token", *["embeddings.cls_token"] * 3),
    "embedding/registers": ("reg_token", *["embeddings.register_tokens"] * 3),
    "embedding/positions": ("pos_embed", *["embeddings.position_embeddings"] * 2, ""),
    "norm": ("norm", "layernorm", "layernorm", "norm"),
    "pre_softmax": ("head", *["classifier"] * 3),
}
# fmt: on
_IGNORED = {
    "mask token": r"^(embeddings\.)?mask_token$",
    "pooler": r"^pooler\.",
    "decoder of the pretraining": r"^decoder[_.]",
}


def _layout(column: int, title: str = "", changed: Mapping[str, str] | None = None, **options: Any) -> Layout:
    """The table of a column, with other names for some parts."""
    changed = changed or {}
    names = {part: changed.get(part, row[column]) for part, row in (_OTHERS | _PARTS).items()}
    modules = {part: name for part, name in names.items() if name and part in _OTHERS}
    for number in map(str, range(DEEPEST)):
        for part in _PARTS:
            if names[part]:
                path = f"block_{number}/{part.replace('#', number)}"
                modules[path] = _BLOCKS[column].replace("#", number) + names[part]
    return Layout(_TITLES[column] + title, "torch", modules, options=options, ignored=_IGNORED)


_GATED = " with SwiGLU"
_META = {"embedding/registers": "register_tokens"}
_LAYOUTS = (
    _layout(0),
    _layout(0, _GATED, {"mlp_#/fc1": "mlp.{fc1_g,fc1_x}"}),
    _layout(0, ", names of DINOv2", _META),
    _layout(0, f", names of DINOv2{_GATED}", _META | {"mlp_#/fc1": "mlp.w12", "mlp_#/fc2": "mlp.w3"}),
    _layout(1, epsilon=1e-12),
    _layout(2),
    _layout(2, _GATED, {"mlp_#/fc1": "mlp.weights_in", "mlp_#/fc2": "mlp.weights_out"}),
    _layout(3, epsilon=1e-5, rope=100.0),
    _layout(3, _GATED, {"mlp_#/fc1": "mlp.{gate_proj,up_proj}"}, epsilon=1e-5, rope=100.0),
)


def fit(
    layout: Layout, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], heads: int | None
) -> tuple[dict[str, Any], Layout]:
    """Fields of `ViT` that make it compute what a file holds, and the layout as the file has it.

    Args:
        layout: Of the file.
        tensors: Of the file.
        config: What `config.json` beside it says; empty if there is none.
        heads: Of each attention; from `config`, or one for each 64 channels, when absent.

    Raises:
        ValueError: Tensors that cannot be those of a ViT, heads that do not divide the width or that no rule tells, or another
            activation; says all.
    """
    modules = dict(layout.modules)

    def shape(path: str, leaf: str = "") -> tuple[int, ...]:
        found = tensors.get(joined_parts(modules.get(path, "") + leaf)[0])
        return () if found is None else found.shape

    shapes = [
        shape(path, ".weight") for path in ("embedding/patches", "block_0/mlp_0/fc1", "block_0/mlp_0/fc2")
    ]
    (patches, fc1, fc2), problems = shapes, []
    if [*map(len, shapes)] != [4, 2, 2] or patches[1] != 3 or patches[2] != patches[3]:
        found = " and ".join(str(list(one)) for one in shapes)
        raise ValueError(f"expected patches [D, 3, p, p] and, in its first MLP, two matrices, found {found}")
    width = patches[0]
    depth = next((i for i in range(DEEPEST) if not shape(f"block_{i}/attention_norm", ".weight")), DEEPEST)
    registers = shape("embedding/registers")[1] if shape("embedding/registers") else 0
    heads = heads or config.get("num_attention_heads") or config.get("num_heads")
    if heads is None and (width in UNRULY or width % HEAD_SIZE):
        problems.append(
            f"no tensor tells the heads of a width of {width}; pass --heads, or put its config.json beside it"
        )
    heads = int(heads or max(1, width // HEAD_SIZE))
    if heads < 1 or width % heads:
        near = [n for n in range(1, width + 1) if width % n == 0 and 16 <= width // n <= 128]
        problems.append(
            f"{heads} heads do not divide its width of {width}; expected one of {', '.join(map(str, near))}"
        )
    gated = "{" in modules["block_0/mlp_0/fc1"] or fc1[0] == 2 * fc2[1]
    activation = str(config.get("hidden_act", config.get("act_layer", ""))).lower()
    if not gated and activation not in ("", "gelu"):
        problems.append(f"its activation is {activation}; only gelu and SwiGLU are known")
    options = {
        "features": width,
        "depth": depth,
        "heads": heads,
        "patch": patches[2],
        "hidden": fc2[1],
        "gated": gated,
    }
    options |= {
        "registers": registers,
        "layer_scale": bool(shape("block_0/attention_scale")),
        **layout.options,
    }
    options |= {"epsilon": float(config["layer_norm_eps"])} if "layer_norm_eps" in config else {}
    if "rope" in options:
        options["image_size"] = int(config.get("image_size", ViT.image_size))
        options["rope"] = float(config.get("rope_theta", options["rope"]))
        if width // heads % 4:
            problems.append(f"rotary positions need heads of a multiple of 4 channels, got {width // heads}")
    elif positions := shape("embedding/positions"):
        tokens = positions[-2]
        counts = [
            n for n in (1, 0, 1 + registers) if tokens > n and math.isqrt(tokens - n) ** 2 == tokens - n
        ]
        if not counts:
            problems.append(
                f"its {tokens} positions are no square grid, with or without class token and {registers} registers"
            )
        else:
            options |= {"positioned": counts[0], "image_size": patches[2] * math.isqrt(tokens - counts[0])}
    if problems:
        raise ValueError("; ".join(problems))
    if not shape("norm", ".weight") and "fc_norm.weight" in tensors:
        modules["norm"], options["pool"] = "fc_norm", "mean_before_norm"
    elif config.get("global_pool") == "avg":
        options["pool"] = "mean"
    head = shape("pre_softmax", ".weight")
    fits = len(head) == 2 and head[1] == width
    options |= {"classes": head[0]} if fits else {}
    ignored = dict(layout.ignored) | ({} if fits else {"another head": rf"^{modules['pre_softmax']}\."})
    kinds = {re.sub(r"\.\d+\.", ".#.", name) for name in tensors}
    blocks = [name for path, name in modules.items() if path.startswith("block_")]
    biases = {part for name in blocks for part in joined_parts(f"{name}.bias")}
    zeros = frozenset(name for name in biases if re.sub(r"\.\d+\.", ".#.", name) not in kinds)
    options["last"] = "softmax" if fits else "norm"
    return options, dataclasses.replace(layout, modules=modules, ignored=ignored, zeros=zeros)


SOURCES = Sources(_LAYOUTS, fit=fit)
