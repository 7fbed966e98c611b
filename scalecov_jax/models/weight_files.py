"""Reading weight files: names and arrays, in the source's own layout, without running anything that a file holds."""

import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import safetensors

from scalecov_jax.models.sources import Family

MAX_VALUES = 2**29

_KERAS_LEAF = re.compile(
    r"(?:^|_)(depthwise_kernel|kernel|bias|gamma|beta|moving_mean|moving_variance|running_mean|running_std|mean|variance|count|W|b"
    r"|[Vv]ariable)(?:_\d+)?(?::\d+)?$"
)
# Keras 1 said running_std, yet it held the variance. A variable without a name is the scale of ConvNeXt's layers.
_RENAMED = {
    "W": "kernel",
    "b": "bias",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",
    "depthwise_kernel": "kernel",
    "Variable": "gamma",
    "variable": "gamma",
}
_AUTOMATIC = re.compile(
    r"(conv2d|depthwise_conv2d|batch_normalization|layer_normalization|normalization|layer_scale|sequential|dense)(?:_(\d+))?"
)


class WeightFile(NamedTuple):
    """What a file holds: how it is laid out, and its tensors by name."""

    family: Family
    tensors: dict[str, np.ndarray]


def read_weights(path: Path) -> WeightFile:
    """Read the tensors of a weight file.

    Formats: HDF5 of Keras 1, 2 (also inside a whole saved model) and 3 (`.weights.h5`), `.safetensors`, and `.pth` through
    `torch.load(weights_only=True)`, which refuses to run code.

    Keras tensors are called layer/leaf, with automatic layer names numbered from 1; torch tensors keep their names, less
    the `module.` of DataParallel.

    Raises:
        ValueError: No such file, a truncated or damaged one, or one in another format; says which and what is wrong.
        ImportError: A `.pth` file, and torch is not installed.
    """
    if not path.is_file():
        raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'no file'}; expected a weight file.")
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        raise ValueError(f"{path.name} is empty.")
    if head == b"\x89HDF\r\n\x1a\n":
        file = _guard(path, "HDF5", _read_hdf5)
    elif path.suffix == ".safetensors":
        file = _guard(path, "safetensors", _read_safetensors)
    elif path.suffix in (".pth", ".pt", ".bin"):
        file = _guard(path, "torch weight", _read_torch)
    else:
        raise ValueError(
            f"{path.name} is no weight file that can be read: it begins with {head!r}. Expected HDF5 (.h5), .safetensors or, "
            "with torch installed, .pth."
        )
    if not file.tensors:
        raise ValueError(f"{path.name} holds no weights.")
    return file


def leaf_name(variable: str) -> str:
    """What a Keras variable is in its layer, by its own name; empty if that does not say."""
    found = _KERAS_LEAF.search(variable)
    return _RENAMED.get(found[1], found[1]) if found else ""


def _guard(path: Path, kind: str, read: Callable[[Path], WeightFile]) -> WeightFile:
    """Name the file in whatever a reader runs into."""
    try:
        return read(path)
    except ImportError:
        raise
    # h5py, safetensors and torch raise anything from OSError to RuntimeError on a damaged file.
    except Exception as error:
        problem = str(error).split("\n")[0] or type(error).__name__
        raise ValueError(f"{path.name} cannot be read as a {kind} file: {problem}") from error


def _read_hdf5(path: Path) -> WeightFile:
    with h5py.File(path, "r") as file:
        root: Any = file.get("model_weights", file)
        if isinstance(root.get("layers"), h5py.Group):
            return _read_keras_3(root["layers"])
        tensors: dict[str, np.ndarray] = {}
        for name, dataset in _datasets(root):
            layer, _, rest = name.partition("/")
            leaf = leaf_name(rest.rpartition("/")[2]) or rest
            if f"{layer}/{leaf}" in tensors:
                raise ValueError(
                    f"{layer} holds more than one {leaf}, as a network inside a network does; save that one alone"
                )
            tensors[f"{layer}/{leaf}"] = dataset[()]
    return WeightFile("keras", _number_from_one(tensors))


def _read_keras_3(layers: Any) -> WeightFile:
    """Variables are numbered; a group is called by its class and, since Keras 3.8 or so, keeps the layer's name.

    A small stack of layers goes by its own name, as in the older formats, and a network inside a network by those inside it.
    """
    values: dict[str, dict[str, np.ndarray]] = {}
    for name, dataset in _datasets(layers):
        group, _, number = name.partition("/vars/")
        values.setdefault(group, {})[number] = dataset[()]
    leaves = {
        group: dict(zip(_keras_3_leaves(variables), variables.values(), strict=True))
        for group, variables in values.items()
    }
    inside: dict[str, list[str]] = {}
    for group, found in leaves.items():
        inside.setdefault(group.partition("/")[0], []).extend(found)
    stacks = {outer for outer, found in inside.items() if len({*found}) == len(found)}
    owners = {group: outer if (outer := group.partition("/")[0]) in stacks else group for group in leaves}
    names = {
        owner: layers[owner]["vars"].attrs.get("name") if "vars" in layers[owner] else None
        for owner in owners.values()
    }
    named = all(name is not None for name in names.values())
    tensors = {
        f"{names[owner] if named else owner}/{leaf}": values
        for group, owner in owners.items()
        for leaf, values in leaves[group].items()
    }
    return WeightFile("keras" if named else "keras_unnamed", _number_from_one(tensors))


def _keras_3_leaves(variables: dict[str, np.ndarray]) -> tuple[str, ...]:
    """What the numbered variables of a layer are, from their count and the rank of the first."""
    norm = ("gamma", "beta", "moving_mean", "moving_variance")
    count, ranks = len(variables), [values.ndim for values in variables.values()]
    if ranks[0] > 1:
        leaves = ("kernel", "bias")[:count]
    elif ranks == [1, 1, 0]:
        leaves = ("mean", "variance", "count")
    else:
        leaves = norm[:count] if count < 3 else norm[-count:]
    return leaves if len(leaves) == count else tuple(variables)


def _datasets(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """All datasets under a group by path; links out of the file are not followed."""
    found: list[tuple[str, h5py.Dataset]] = []
    group.visititems(
        lambda name, item: found.append((name, item)) if isinstance(item, h5py.Dataset) else None
    )
    total = sum(dataset.size or 0 for _, dataset in found)
    if total > MAX_VALUES:
        raise ValueError(f"it claims {total:,} values, more than the {MAX_VALUES:,} that are read")
    return iter(found)


def _number_from_one(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renumber automatic names: Keras counts them from the last model made in the same session."""
    matches = {name: _AUTOMATIC.fullmatch(name.partition("/")[0]) for name in tensors}
    first: dict[str, int] = {}
    for match in filter(None, matches.values()):
        first[match[1]] = min(first.get(match[1], 10**9), int(match[2] or 0))
    renamed = {}
    for name, values in tensors.items():
        match, leaf = matches[name], name.partition("/")[2]
        if match:
            name = f"{match[1]}_{int(match[2] or 0) - first[match[1]] + 1}/{leaf}"
        renamed[name] = values
    return renamed


def _read_safetensors(path: Path) -> WeightFile:
    with safetensors.safe_open(path, framework="numpy") as file:
        return WeightFile("torch", _without_wrapper({name: file.get_tensor(name) for name in file.keys()}))  # noqa: SIM118


def _read_torch(path: Path) -> WeightFile:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"Reading {path.name} needs torch: install it (pip install 'scalecov-jax[torch]'), or save the weights as "
            ".safetensors."
        ) from error
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message suggests to switch the protection off.
        raise ValueError("it is damaged or holds more than tensors, which could run code") from error
    for key in ("state_dict", "model"):
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError("expected a dict of tensors, as state_dict() returns")
    return WeightFile("torch", _without_wrapper({name: value.numpy() for name, value in state.items()}))


def _without_wrapper(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix("module."): values for name, values in tensors.items()}
