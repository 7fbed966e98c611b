"""From a network of ours to tensors with the names, the shapes and the layout of torch: the way back of `port`."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from scalecov_jax.atomic import replacing
from scalecov_jax.checkpoints import Network
from scalecov_jax.models.sources import Layout, joined_parts, source_name


def export(network: Network, path: str | Path) -> pd.DataFrame:
    """Write a safetensors file that torch reads, and beside it a table of its tensors, `path` with the ending .csv.

    The tensors have the names of the torch library whose network computes the same: its `load_state_dict` takes those of a cut
    network with `strict=False`. Where there is none (ResNet50 with Keras's strides, a module of your own), the names are our
    paths with dots. Differences are absorbed as `port` does, in the other direction: mean' = mean - bias where torch's
    convolution has no bias, var' = var + epsilon - epsilon_torch.

    Returns:
        The table: tensor (its name in the file), shape (in the file), layer and path (ours).

    Raises:
        ValueError: A variance that torch's larger epsilon would make negative.
    """
    path = Path(path).expanduser()
    tensors, rows = {}, []
    variables: Any = flatten_dict(network.variables)
    layout = _layout(network)
    for place, leaf in variables.items():
        values = np.asarray(leaf)
        name = source_name(layout, place) if layout else ".".join(place)
        if name is None:
            continue  # a bias that is in the mean
        values = _torch(values, place, variables, layout, network.architecture.epsilon)
        names = joined_parts(name)
        for part, one in zip(names, np.split(values, len(names)), strict=True):
            one = one[..., None, None] if layout and re.search(layout.pixelwise, part) else one
            tensors[part] = np.ascontiguousarray(one)
            rows.append((part, "x".join(map(str, one.shape)), place[1], "/".join(place)))
    table = pd.DataFrame(rows, columns=["tensor", "shape", "layer", "path"])
    note = {
        "architecture": network.card.architecture,
        "last": network.module.last,  # pyright: ignore[reportAttributeAccessIssue]
        "names": layout.title if layout else "scalecov_jax",
        "preprocessing": json.dumps(network.card.preprocessing),
        "class_names": json.dumps(network.card.class_names),
    }
    with replacing(path) as partial:
        save_file(tensors, partial, note)
    with replacing(path.with_suffix(".csv")) as partial:
        table.to_csv(partial, index=False, lineterminator="\n")
    return table


def _layout(network: Network) -> Layout | None:
    """The layout that the network was read from, or the first of torch that computes the same and names all its variables."""
    layouts = [one for one in network.architecture.sources.layouts if one.family == "torch"]
    layouts.sort(key=lambda one: one.title != network.card.notes.get("layout"))
    default: Any = network.architecture.module()
    free = {option for one in layouts for option in one.options}
    for layout in layouts:
        expected = {option: layout.options.get(option, getattr(default, option)) for option in free}
        same = all(getattr(network.module, option) == value for option, value in expected.items())
        if same and all(_named(layout, path) for path in flatten_dict(network.variables)):
            return layout
    return None


def _named(layout: Layout, path: tuple[str, ...]) -> bool:
    try:
        return source_name(layout, path) is not None or path[-1] == "bias"
    except KeyError:
        return False


def _torch(
    values: np.ndarray, place: tuple[str, ...], variables: Any, layout: Layout | None, epsilon: float
) -> np.ndarray:
    """One array as torch has it."""
    if layout and place[-1] == "mean":
        module = place[1:-2] if place[-2] == "norm" else place[1:-1]
        bias = variables.get(("params", *module, "bias"))
        values = values if bias is None else values - np.asarray(bias)
    if layout and place[-1] == "var":
        values = (values.astype(np.float64) + (epsilon - layout.epsilon)).astype(values.dtype)
        if (values < 0).any():
            raise ValueError(
                f"{'/'.join(place)} has variances below {layout.epsilon - epsilon:.1e}, for which torch's epsilon of "
                f"{layout.epsilon:g} is too large."
            )
    if layout and values.ndim == 2 and (side := layout.flattened.get(place[-2])):
        values = values.reshape(side, side, -1, values.shape[1]).transpose(2, 0, 1, 3).reshape(values.shape)
    return values.transpose({2: (1, 0), 4: (3, 2, 0, 1)}.get(values.ndim, range(values.ndim)))
