"""What other libraries know an architecture by: the names of its variables, Keras's model, the official weight files.

A layout is a table from the paths of our modules to the names of the source's, and can be reviewed without the models. Each
family of networks has its own beside its module.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from scalecov_jax.models.preprocessing import Preprocessing

Family = Literal["keras", "keras_unnamed", "torch"]

KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
TRACKED = {"num_batches_tracked": r"\.num_batches_tracked$"}  # in torch; nothing depends on it


@dataclass(frozen=True)
class Layout:
    """How one source names the variables of one architecture.

    Attributes:
        title: For people.
        family: How the tensors of the file are named and laid out.
        modules: What the source calls each module that holds variables, by our path of it, from input to output.
        epsilon: What the source adds to the variances.
        options: Fields of our module that make it compute what the source computes.
        ignored: Tensors without a counterpart: what they are, and a regular expression.
        flattened: Dense layers whose inputs the source flattens channel by channel, and not pixel by pixel as we do, with the
            height and width of the map that they take.
        pixelwise: Tensors to which the source gives two more axes of length 1: a regular expression.
        zeros: Tensors that the file has in no block, and which stand for zeros, such as biases.
        declared: What a file says of the preprocessing, if it says so; raises ValueError if there is no such.
    """

    title: str
    family: Family
    modules: Mapping[str, str]
    epsilon: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    flattened: Mapping[str, int] = field(default_factory=dict)
    pixelwise: str = "$^"
    zeros: frozenset[str] = frozenset()
    declared: Callable[[Mapping[str, np.ndarray]], Preprocessing | None] = lambda tensors: None


class KerasModel(NamedTuple):
    """The same network in keras.applications.

    Attributes:
        builder: Name of the function that builds it.
        outputs: Our layers that Keras calls by another name.
        after: The layer after which ours begins, where preprocessing is part of the model.
    """

    builder: str
    outputs: Mapping[str, str]
    after: str = ""


class Official(NamedTuple):
    """One published weight file.

    Attributes:
        address: Where it is.
        digest: Published, hexadecimal: MD5 or, with 64 digits, SHA-256.
        top: Whether it has the 1000-class head.
        options: Fields of the module that it needs.
    """

    address: str
    digest: str
    top: bool
    options: Mapping[str, Any] = {}


class Sources(NamedTuple):
    """All of them for one architecture; the first layout is that of Keras's model, if there is one.

    With `fit`, the fields of the module follow from a file: from its layout, its tensors, its `config.json` and the number of
    heads that was given, to the fields and the layout without what this file has not.
    """

    layouts: tuple[Layout, ...] = ()
    keras: KerasModel | None = None
    official: tuple[Official, ...] = ()
    fit: (
        Callable[
            [Layout, Mapping[str, np.ndarray], Mapping[str, Any], int | None], tuple[dict[str, Any], Layout]
        ]
        | None
    ) = None


def official_pair(
    stem: str, top: str, without: str, options: Mapping[str, Any] | None = None
) -> tuple[Official, Official]:
    """The files with and without the head, by the address that they share and their digests."""
    return (
        Official(f"{stem}.h5", top, True, options or {}),
        Official(f"{stem}_notop.h5", without, False, options or {}),
    )


# Leaf of our tree -> what the source appends to the module's name. Keras 1 names are read as Keras 2's (see weight_files).
_KERAS_LEAVES = {
    "kernel": "/kernel",
    "bias": "/bias",
    "norm/scale": "/gamma",
    "norm/bias": "/beta",
    "norm/mean": "/moving_mean",
    "norm/var": "/moving_variance",
    "gamma": "/gamma",
}
_TORCH_LEAVES = {
    "kernel": ".weight",
    "bias": ".bias",
    "norm/scale": ".weight",
    "norm/bias": ".bias",
    "norm/mean": ".running_mean",
    "norm/var": ".running_var",
    "gamma": "",
}
LEAVES = {"keras": _KERAS_LEAVES, "keras_unnamed": _KERAS_LEAVES, "torch": _TORCH_LEAVES}


def source_name(layout: Layout, path: tuple[str, ...]) -> str | None:
    """What the source calls the variable at `path` of our tree (collection first); None where it has no such tensor.

    A name with braces stands for several tensors, which are joined along the outputs; see `joined_parts`.
    """
    if (whole := "/".join(path[1:])) in layout.modules:
        return layout.modules[whole]
    *modules, leaf = path[1:]
    module = "/".join(modules)
    if layout.family == "torch" and leaf == "bias" and f"{module}/norm" in layout.modules:
        return None  # in torch the convolutions before a batch normalisation have no bias
    normalises = module.endswith("norm")
    return layout.modules[module] + LEAVES[layout.family][f"norm/{leaf}" if normalises else leaf]


def possible_names(layout: Layout, module: str) -> set[str]:
    """Every tensor that a file of this layout could hold of a module, by the source's name of it."""
    return {part + suffix for part in joined_parts(module) for suffix in LEAVES[layout.family].values()}


def joined_parts(name: str) -> list[str]:
    """The tensors of a name: attention.{key,value}.bias means attention.key.bias and attention.value.bias."""
    before, brace, rest = name.partition("{")
    inside, _, behind = rest.partition("}")
    return [f"{before}{one}{behind}" for one in inside.split(",")] if brace else [name]


def blocks(names: Mapping[str, tuple[str, str]], head: str) -> dict[str, str]:
    """The table of a network of `ConvBlock`s: by path the names of convolution and normalisation, and that of the head."""
    modules = {}
    for path, (conv, norm) in names.items():
        modules |= {path: conv, f"{path}/norm": norm}
    return modules | {"pre_softmax": head}


def unnamed(kinds: Mapping[str, str]) -> dict[str, str]:
    """The table of a Keras file without layer names, where layers are called by their kind and counted.

    Args:
        kinds: Keras's kind of each module by our path, such as conv2d, in the order in which Keras lists them.
    """
    counted: Counter[str] = Counter()
    modules = {}
    for path, kind in kinds.items():
        counted[kind] += 1
        modules[path] = f"{kind}_{counted[kind]}"
    return modules
