"""Reading weight files: names and arrays, in the source's own layout, without running anything that a file holds."""

import io
import math
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import safetensors

from scalecov_jax.models.sources import Family

MAX_VALUES = 2**31  # the largest ViTs have 1.1e9
_HOW = "in Python, torch.save(model.state_dict(), 'weights.pth') writes a file that can be read"

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


def read_weights(source: Path | Mapping[str, Any]) -> WeightFile:
    """Read the tensors of a weight file, or of a state dict in memory.

    Formats: HDF5 of Keras 1, 2 (also inside a whole saved model) and 3 (`.weights.h5`, `.keras`), `.safetensors`, and torch's own
    through `torch.load(weights_only=True)`, which refuses to run code.

    Keras tensors are called layer/leaf, with automatic layer names numbered from 1; torch tensors keep their names, behind the
    keys of the dicts that they lie in: `model.conv1.weight`. An optimizer's state and whatever is no tensor is left out, and
    bfloat16 becomes float32.

    Args:
        source: The file; or a dict of arrays or of torch's tensors, which may lie in dicts themselves.

    Raises:
        ValueError: No such file, a truncated or damaged one, or one in another format; says which and what is wrong.
        ImportError: A file of torch, and torch is not installed.
    """
    if isinstance(source, Mapping):
        return _guard("The state dict", "state dict", lambda: WeightFile("torch", _arrays(source)))
    if not source.is_file():
        raise ValueError(
            f"{source} is {'a folder' if source.is_dir() else 'no file'}; expected a weight file."
        )
    with source.open("rb") as file:
        head = file.read(8)
    if not head:
        raise ValueError(f"{source.name} is empty.")
    if head == b"\x89HDF\r\n\x1a\n":
        return _guard(source.name, "HDF5 file", lambda: _read_hdf5(source))
    for suffixes, kind, read in (
        ((".keras",), "Keras file", _read_keras),
        ((".safetensors",), "safetensors file", _read_safetensors),
        ((".pth", ".pt", ".bin", ".ckpt"), "torch weight file", _read_torch),
    ):
        if source.suffix.lower() in suffixes:
            return _guard(source.name, kind, lambda read=read: read(source))
    raise ValueError(
        f"{source.name} is no weight file that can be read: it begins with {head!r}. Expected HDF5 (.h5), .keras, .safetensors "
        "or, with torch installed, .pth, .pt, .bin or .ckpt."
    )


def leaf_name(variable: str) -> str:
    """What a Keras variable is in its layer, by its own name; empty if that does not say."""
    found = _KERAS_LEAF.search(variable)
    return _RENAMED.get(found[1], found[1]) if found else ""


def _guard(name: str, kind: str, read: Callable[[], WeightFile]) -> WeightFile:
    """Name the file in whatever a reader runs into."""
    try:
        file = read()
    except ImportError:
        raise
    # h5py, safetensors and torch raise anything from OSError to RuntimeError on a damaged file.
    except Exception as error:
        problem = str(error).split("\n")[0] or type(error).__name__
        raise ValueError(f"{name} cannot be read as a {kind}: {problem}") from error
    if not file.tensors:
        raise ValueError(f"{name} holds no weights.")
    return file


def _read_hdf5(path: Path | io.BytesIO) -> WeightFile:
    """A network inside a network goes by the names of its own layers, behind that of the network and a slash."""
    with h5py.File(path, "r") as file:
        root: Any = file.get("model_weights", file)
        if isinstance(root.get("layers"), h5py.Group):
            return _read_keras_3(root["layers"])
        found = [(*name.partition("/")[::2], dataset[...]) for name, dataset in _datasets(root)]
    leaves = [leaf_name(rest.rpartition("/")[2]) or rest for _, rest, _ in found]
    counts = Counter((layer, leaf) for (layer, _, _), leaf in zip(found, leaves, strict=True))
    outer = {layer for (layer, _), count in counts.items() if count > 1}
    tensors: dict[str, np.ndarray] = {}
    for (layer, rest, values), leaf in zip(found, leaves, strict=True):
        name = f"{rest.split('/')[-2] if layer in outer and '/' in rest else layer}/{leaf}"
        if name in tensors:
            raise ValueError(f"it holds {name} more than once, as two networks in one do; save one alone")
        tensors[name] = values
    return WeightFile("keras", _number_from_one(tensors))


def _read_keras(path: Path) -> WeightFile:
    """The weights inside a `.keras` archive."""
    with zipfile.ZipFile(path) as archive:
        weights = archive.getinfo("model.weights.h5")
        if weights.file_size > 4 * MAX_VALUES:
            raise ValueError(f"it claims {weights.file_size:,} bytes")
        return _read_hdf5(io.BytesIO(archive.read(weights)))


def _read_keras_3(layers: Any) -> WeightFile:
    """Variables are numbered; a group is called by its class and, since Keras 3.8 or so, keeps the layer's name.

    A small stack of layers goes by its own name, as in the older formats, and a network inside a network by those inside it.
    """
    values: dict[str, dict[str, np.ndarray]] = {}
    for name, dataset in _datasets(layers):
        group, _, number = name.partition("/vars/")
        values.setdefault(group, {})[number] = dataset[...]
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
    _check_total(dataset.size or 0 for _, dataset in found)
    if elsewhere := [name for name, dataset in found if dataset.is_virtual or dataset.external]:
        raise ValueError(f"the values of {elsewhere[0]} lie in another file")
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


def _check_total(sizes: Iterable[int]) -> None:
    if (total := sum(sizes)) > MAX_VALUES:
        raise ValueError(f"it claims {total:,} values, more than the {MAX_VALUES:,} that are read")


def _read_safetensors(path: Path) -> WeightFile:
    with safetensors.safe_open(path, framework="numpy") as file:
        # One by one, so that no second copy of all exists.
        return WeightFile("torch", _arrays({name: _array(file.get_tensor(name)) for name in file.keys()}))  # noqa: SIM118


def _read_torch(path: Path) -> WeightFile:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"Reading {path.name} needs torch: install it (pip install 'scalecov-jax[torch]'), or save the weights as "
            ".safetensors."
        ) from error
    try:
        with warnings.catch_warnings(action="ignore"):
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own message suggests to switch the protection off
        raise ValueError(f"it is damaged or holds more than tensors, which could run code; {_HOW}") from error
    return WeightFile("torch", _arrays(state if isinstance(state, Mapping) else {}))


def _arrays(state: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    """The tensors of dicts in dicts by their joined keys."""

    def tensors(inside: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in inside.items():
            if isinstance(value, Mapping):
                yield from tensors({} if str(key).startswith("optimizer") else value, f"{prefix}{key}.")
            elif hasattr(value, "shape"):
                yield f"{prefix}{key}", value

    found = list(tensors(state, ""))
    if twice := [name for name, count in Counter(name for name, _ in found).items() if count > 1]:
        raise ValueError(f"it holds {twice[0]} twice, once inside a dict")
    if not found:
        raise ValueError(f"it is no dict of tensors by name; {_HOW}")
    _check_total(math.prod(value.shape) for _, value in found)
    return {name: _array(value) for name, value in found}


def _array(value: Any) -> np.ndarray:
    """NumPy's array of an array or of torch's tensor, what NumPy has no precision for as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.to_dense() if value.is_sparse else value
        value = (value.float() if value.is_floating_point() and value.element_size() < 4 else value).numpy()
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.name.startswith(("bfloat16", "float8")) else array
