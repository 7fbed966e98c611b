"""Which tensor of a weight file becomes which variable: one table for each architecture and source.

A table maps the path of a `ConvBlock` to what the source calls its convolution and its batch normalisation. The tables
below are all there is to a port, and can be reviewed without the models.

Source: keras.applications (inception_v3, resnet; resnet50 of keras-applications 1.0.0 for the names before 2019) and
torchvision.models (inception, resnet).
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Family = Literal["keras", "keras_unnamed", "torch"]


class Names(NamedTuple):
    """What a source calls the convolution and the batch normalisation of one block."""

    conv: str
    norm: str


@dataclass(frozen=True)
class Layout:
    """How one source names the variables of one architecture.

    Attributes:
        title: For people.
        architecture: Name of ours.
        family: How the tensors of the file are named and laid out.
        blocks: Names by the path of our `ConvBlock`.
        head: Name of the last dense layer.
        epsilon: What the source adds to the variances.
        options: Fields of our module that make it compute what the source computes.
        ignored: Tensors without a counterpart: what they are, and a regular expression.
        absent: Leaves of a block that the source does not have.
    """

    title: str
    architecture: str
    family: Family
    blocks: dict[str, Names]
    head: str
    epsilon: float
    options: dict[str, Any] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()


# Leaf of our tree -> (which of the two names, the source's leaf). Keras 1 names are read as Keras 2's (see weight_files).
_KERAS_LEAVES = {
    "kernel": ("conv", "/kernel"),
    "bias": ("conv", "/bias"),
    "norm/scale": ("norm", "/gamma"),
    "norm/bias": ("norm", "/beta"),
    "norm/mean": ("norm", "/moving_mean"),
    "norm/var": ("norm", "/moving_variance"),
}
# No bias: the convolutions before a batch normalisation have none in torch.
_TORCH_LEAVES = {
    "kernel": ("conv", ".weight"),
    "norm/scale": ("norm", ".weight"),
    "norm/bias": ("norm", ".bias"),
    "norm/mean": ("norm", ".running_mean"),
    "norm/var": ("norm", ".running_var"),
}
LEAVES = {"keras": _KERAS_LEAVES, "keras_unnamed": _KERAS_LEAVES, "torch": _TORCH_LEAVES}
HEAD_LEAVES = {
    "keras": {"kernel": "/kernel", "bias": "/bias"},
    "keras_unnamed": {"kernel": "/kernel", "bias": "/bias"},
    "torch": {"kernel": ".weight", "bias": ".bias"},
}


class _Kind(NamedTuple):
    """An inception block.

    Attributes:
        branches: torchvision's names of its convolutions, in the order in which Keras makes them.
        listed: The order in which Keras lists them in a file, by depth: the n-th is the convolution `listed[n]`.
    """

    branches: tuple[str, ...]
    listed: tuple[int, ...]


def _numbered(branch: str, count: int) -> tuple[str, ...]:
    return tuple(f"{branch}_{i}" for i in range(1, count + 1))


_A = _Kind(
    ("branch1x1", *_numbered("branch5x5", 2), *_numbered("branch3x3dbl", 3), "branch_pool"),
    (3, 1, 4, 0, 2, 5, 6),
)
_B = _Kind(("branch3x3", *_numbered("branch3x3dbl", 3)), (1, 2, 0, 3))
_C = _Kind(
    ("branch1x1", *_numbered("branch7x7", 3), *_numbered("branch7x7dbl", 5), "branch_pool"),
    (4, 5, 1, 6, 2, 7, 0, 3, 8, 9),
)
_D = _Kind((*_numbered("branch3x3", 2), *_numbered("branch7x7x3", 4)), (2, 3, 0, 4, 1, 5))
_E = _Kind(
    (
        "branch1x1",
        "branch3x3_1",
        "branch3x3_2a",
        "branch3x3_2b",
        "branch3x3dbl_1",
        "branch3x3dbl_2",
        "branch3x3dbl_3a",
        "branch3x3dbl_3b",
        "branch_pool",
    ),
    (4, 1, 5, 2, 3, 6, 7, 0, 8),
)
_INCEPTION_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_INCEPTION_BLOCKS = {
    "mixed0": ("Mixed_5b", _A),
    "mixed1": ("Mixed_5c", _A),
    "mixed2": ("Mixed_5d", _A),
    "mixed3": ("Mixed_6a", _B),
    "mixed4": ("Mixed_6b", _C),
    "mixed5": ("Mixed_6c", _C),
    "mixed6": ("Mixed_6d", _C),
    "mixed7": ("Mixed_6e", _C),
    "mixed8": ("Mixed_7a", _D),
    "mixed9": ("Mixed_7b", _E),
    "mixed10": ("Mixed_7c", _E),
}


def _inception_tables() -> tuple[dict[str, Names], dict[str, Names], dict[str, Names]]:
    """Names in Keras, in Keras files without names, and in torch."""
    keras, unnamed, torch = {}, {}, {}

    def add(path: str, number: int, listed: int, module: str) -> None:
        keras[path] = Names(f"conv2d_{number}", f"batch_normalization_{number}")
        unnamed[path] = Names(f"conv2d_{listed}", f"batch_normalization_{listed}")
        torch[path] = Names(f"{module}.conv", f"{module}.bn")

    for number, module in enumerate(_INCEPTION_STEM, start=1):
        add(f"conv2d_{number}", number, number, module)
    first = len(_INCEPTION_STEM) + 1
    for layer, (module, kind) in _INCEPTION_BLOCKS.items():
        for i, branch in enumerate(kind.branches):
            number = first + i
            add(f"{layer}/conv2d_{number}", number, first + kind.listed.index(i), f"{module}.{branch}")
        first += len(kind.branches)
    return keras, unnamed, torch


# Our last digit -> Keras before 2019, torch's convolution and normalisation. 0 is the shortcut.
_BRANCHES = {
    0: ("branch1", "downsample.0", "downsample.1"),
    1: ("branch2a", "conv1", "bn1"),
    2: ("branch2b", "conv2", "bn2"),
    3: ("branch2c", "conv3", "bn3"),
}
_RESNET_STAGES = {2: 3, 3: 4, 4: 6, 5: 3}


def _resnet_tables() -> tuple[dict[str, Names], dict[str, Names], dict[str, Names], dict[str, Names]]:
    """Names in Keras, in Keras before 2019, in Keras files without names, and in torch."""
    keras = {"conv1": Names("conv1_conv", "conv1_bn")}
    old = {"conv1": Names("conv1", "bn_conv1")}
    unnamed = {"conv1": Names("conv2d_1", "batch_normalization_1")}
    torch = {"conv1": Names("conv1", "bn1")}
    add = 0
    for stage, blocks in _RESNET_STAGES.items():
        for block in range(1, blocks + 1):
            add += 1
            # The order in which Keras lists them, by depth.
            for branch in (1, 2, 0, 3) if block == 1 else (1, 2, 3):
                name = f"conv{stage}_block{block}_{branch}"
                before_2019, conv, norm = _BRANCHES[branch]
                letters, module = (
                    f"{stage}{'abcdef'[block - 1]}_{before_2019}",
                    f"layer{stage - 1}.{block - 1}",
                )
                listed = len(unnamed) + 1
                path = f"add_{add}/{name}"
                keras[path] = Names(f"{name}_conv", f"{name}_bn")
                old[path] = Names(f"res{letters}", f"bn{letters}")
                unnamed[path] = Names(f"conv2d_{listed}", f"batch_normalization_{listed}")
                torch[path] = Names(f"{module}.{conv}", f"{module}.{norm}")
    return keras, old, unnamed, torch


_TORCH_IGNORED = {"num_batches_tracked": r"\.num_batches_tracked$"}
_iv3_keras, _iv3_unnamed, _iv3_torch = _inception_tables()
_r50_keras, _r50_old, _r50_unnamed, _r50_torch = _resnet_tables()

LAYOUTS = (
    Layout("Keras", "inception_v3", "keras", _iv3_keras, "predictions", 1e-3, absent=("bias",)),
    Layout(
        "Keras 3 without layer names",
        "inception_v3",
        "keras_unnamed",
        _iv3_unnamed,
        "dense",
        1e-3,
        absent=("bias",),
    ),
    Layout(
        "torchvision or timm",
        "inception_v3",
        "torch",
        _iv3_torch,
        "fc",
        1e-3,
        {"count_padding": True, "use_scale": True},
        {"AuxLogits": r"^AuxLogits\.", **_TORCH_IGNORED},
    ),
    Layout("Keras", "resnet50", "keras", _r50_keras, "predictions", 1.001e-5),
    # Its batch normalisations were left at Keras's default epsilon.
    Layout("Keras before 2019", "resnet50", "keras", _r50_old, "fc1000", 1e-3),
    Layout("Keras 3 without layer names", "resnet50", "keras_unnamed", _r50_unnamed, "dense", 1.001e-5),
    Layout(
        "torchvision or timm",
        "resnet50",
        "torch",
        _r50_torch,
        "fc",
        1e-5,
        {"stride_on_3x3": True},
        _TORCH_IGNORED,
    ),
)


def source_name(layout: Layout, path: tuple[str, ...]) -> str | None:
    """What the source calls the variable at `path` of our tree (collection first); None where it has no such tensor."""
    *modules, leaf = path[1:]
    if modules == ["pre_softmax"]:
        return layout.head + HEAD_LEAVES[layout.family][leaf]
    if modules[-1] == "norm":
        modules, leaf = modules[:-1], f"norm/{leaf}"
    if leaf not in LEAVES[layout.family]:
        return None
    part, suffix = LEAVES[layout.family][leaf]
    return getattr(layout.blocks["/".join(modules)], part) + suffix


def all_names(layout: Layout) -> set[str]:
    """Every tensor that a whole file of this layout may hold, without those to be ignored."""
    leaves = [names for leaf, names in LEAVES[layout.family].items() if leaf not in layout.absent]
    names = {getattr(block, part) + suffix for block in layout.blocks.values() for part, suffix in leaves}
    return names | {layout.head + suffix for suffix in HEAD_LEAVES[layout.family].values()}
