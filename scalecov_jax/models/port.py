"""From a weight file of another library to a network of ours."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

from scalecov_jax.checkpoints import Card, Network, network
from scalecov_jax.models.architecture import ARCHITECTURES, Architecture, check_layer, get_architecture
from scalecov_jax.models.preprocessing import PREPROCESSINGS, Preprocessing
from scalecov_jax.models.pruning import abstract_variables
from scalecov_jax.models.sources import Layout, possible_names, source_name
from scalecov_jax.models.weight_files import WeightFile, read_weights

SHOWN = 4


def port(
    path: Path,
    architecture: str,
    preprocessing: Preprocessing,
    last: str | None = None,
    class_names: Sequence[str] = (),
    max_pool_padding: int = 1,
) -> Network:
    """Read a weight file into a network.

    Both directions are checked: every variable of the network is filled, and every tensor of the file is used, is known to
    have no counterpart (torchvision's auxiliary head), or lies beyond `last`. Width and number of classes follow from the
    file. Differences between the libraries are absorbed exactly: layouts are transposed, missing biases are zeros, and
    another epsilon is added to the variances, var' = var + epsilon_source - epsilon.

    Args:
        path: Keras `.h5` or `.weights.h5`, or torchvision or timm `.safetensors` or `.pth`.
        architecture: Name of the family.
        preprocessing: What the weights expect at the input. Keras: that of the architecture. torchvision and timm: torch, but
            tf for torchvision's ported InceptionV3, which it runs with `transform_input`, whose composition with the torch
            preprocessing is tf. A file that says so itself (Keras's EfficientNet) is held to it.
        last: Layer to stop after; the end of the network when absent.
        class_names: Names of the outputs of the head; none when unknown.
        max_pool_padding: Of ResNets; 0 reproduces Keras before 2.2.3.

    Raises:
        ValueError: An unknown name, a file that cannot be read or belongs to another architecture, tensors that are
            missing, unexpected, of a wrong shape or not finite (all of them in one message), or class names that do not
            fit the head.
        ImportError: A `.pth` file, and torch is not installed.
    """
    family = get_architecture(architecture)
    if preprocessing not in PREPROCESSINGS:
        raise ValueError(
            f"No preprocessing is called {preprocessing!r}; there are {', '.join(PREPROCESSINGS)}."
        )
    check_layer(family, last or family.layers[-1])
    path = Path(path)
    file = read_weights(path)
    layout = _recognise(path.name, file, family)
    _check_preprocessing(path.name, file, layout, preprocessing)
    options = _options(file, layout, family, last, max_pool_padding)
    variables, beyond = _fill(path.name, file, layout, family, options, last)
    classes = options.get("classes", family.module().classes)  # pyright: ignore[reportAttributeAccessIssue]
    if class_names and (len(class_names) != classes or "pre_softmax" not in variables["params"]):
        outputs = f"{classes} outputs" if "pre_softmax" in variables["params"] else "no head"
        raise ValueError(f"{len(class_names)} class names were given, and the network has {outputs}.")
    card = Card(
        architecture=architecture,
        options=options,
        preprocessing=preprocessing,
        input_size=family.input_size,
        origin=path.name,
        sha256=checksum(path),
        class_names=tuple(class_names),
        notes={
            "layout": layout.title,
            "ignored": dict(Counter(_ignored(file, layout).values())),
            "beyond_last": beyond,
        },
    )
    return network(variables, card)


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _recognise(name: str, file: WeightFile, family: Architecture) -> Layout:
    """The layout that explains most of the file's tensors.

    Of equals one of which the file holds all from the input to somewhere (a ResNet50 lacks the middle of a ResNet101), and of
    these one of the wanted architecture.
    """
    candidates = [
        (one, layout)
        for one in ARCHITECTURES.values()
        for layout in one.sources.layouts
        if layout.family == file.family
    ]
    ours = [layout for one, layout in candidates if one is family]
    if not ours:
        titles = ", ".join(layout.title for layout in family.sources.layouts) or "none at all"
        raise ValueError(
            f"{name} cannot be read as {family.name}, of which these layouts are known: {titles}."
        )

    def present(layout: Layout) -> list[int]:
        modules = dict.fromkeys(layout.modules.values())  # one of Keras's may stand for several of ours
        return [len(possible_names(layout, module) & file.tensors.keys()) for module in modules]

    def rank(candidate: tuple[Architecture, Layout]) -> tuple[int, bool, bool]:
        counts = present(candidate[1])
        held = [count > 0 for count in counts]
        return sum(counts), held == sorted(held, reverse=True), candidate[0] is family

    found, best = max(candidates, key=rank)
    known = sum(present(best))
    if known <= (len(file.tensors) - len(_ignored(file, best))) / 2:
        examples = " or ".join(dict.fromkeys(next(iter(layout.modules.values())) for layout in ours))
        raise ValueError(
            f"{name} holds no {family.name} that is known: its {len(file.tensors)} tensors are {_some(list(file.tensors))}, and "
            f"the first convolution would be called {examples}."
        )
    if found is not family:
        raise ValueError(
            f"{name} holds {found.name} ({best.title}: {known} of its {len(file.tensors)} tensors are named so) "
            f"and not {family.name}; pass --architecture={found.name}."
        )
    return best


def _check_preprocessing(name: str, file: WeightFile, layout: Layout, given: Preprocessing) -> None:
    try:
        declared = layout.declared(file.tensors)
    except ValueError as error:
        raise ValueError(f"{name} cannot be used: {error}.") from error
    if declared not in (None, given):
        raise ValueError(f"{name} expects the preprocessing {declared} and not {given}; pass it.")


def _ignored(file: WeightFile, layout: Layout) -> dict[str, str]:
    """Tensors known to have no counterpart, and what they are."""
    found: dict[str, str] = {}
    for kind, rule in layout.ignored.items():
        found |= {name: kind for name in file.tensors if name not in found and re.search(rule, name)}
    return found


def _options(
    file: WeightFile, layout: Layout, family: Architecture, last: str | None, max_pool_padding: int
) -> dict[str, Any]:
    """The fields of the module that differ from their defaults."""
    default = family.module()
    options: dict[str, Any] = {"last": last or family.layers[-1], **layout.options}
    if hasattr(default, "width"):
        options["width"] = _infer_width(file, layout, family)
    if hasattr(default, "use_scale") and layout.family != "torch":
        options["use_scale"] = any(name.endswith("/gamma") for name in file.tensors)
    head = file.tensors.get(str(source_name(layout, ("params", "pre_softmax", "kernel"))))
    if head is not None and head.ndim in (2, 4) and options["last"] in ("pre_softmax", "softmax"):
        options["classes"] = head.shape[0 if layout.family == "torch" else -1]
    if hasattr(default, "max_pool_padding"):
        options["max_pool_padding"] = max_pool_padding
    elif max_pool_padding != 1:
        raise ValueError(f"{family.name} has no max_pool_padding; only ResNets come in both variants.")
    return {name: value for name, value in options.items() if value != getattr(default, name)}


def _infer_width(file: WeightFile, layout: Layout, family: Architecture) -> float:
    """The shortest decimal w with round(w f) filters wherever the full network has f; else the median ratio."""
    full: Any = flatten_dict(abstract_variables(family.module(), family)["params"])
    low, high, ratios = 0.0, np.inf, []
    for path, leaf in full.items():
        values = file.tensors.get(str(source_name(layout, ("params", *path))))
        if path[-1] == "kernel" and leaf.ndim == 4 and values is not None and values.ndim == 4:
            filters, found = leaf.shape[-1], values.shape[0 if layout.family == "torch" else -1]
            ratios.append(found / filters)
            low, high = max(low, (found - 0.5) / filters), min(high, (found + 0.5) / filters)
    if low > high:
        return float(np.median(ratios))
    decimals = (round((low + high) / 2, digits) for digits in range(7))
    return next((float(width) for width in decimals if low < width < high), 1.0)


def _fill(
    name: str,
    file: WeightFile,
    layout: Layout,
    family: Architecture,
    options: dict[str, Any],
    last: str | None,
) -> tuple[Any, dict[str, int]]:
    """Variables of the network, and how many tensors each layer beyond its last has in the file."""
    needed: Any = flatten_dict(abstract_variables(family.module(**options), family))
    sources = {path: source_name(layout, path) for path in needed}
    absent = {path: source for path, source in sources.items() if source and source not in file.tensors}
    used = {*sources.values(), *_ignored(file, layout)}
    left = [tensor for tensor in file.tensors if tensor not in used]
    beyond = _beyond(layout, family, options, left) if last else {}
    unexpected = [tensor for tensor in left if tensor not in beyond]
    filled, wrong, invalid = {}, [], []
    for path, source in sources.items():
        shape = needed[path].shape
        if source is None:
            filled[path] = np.zeros(shape, np.float32)
        elif source in file.tensors:
            values = _convert(file.tensors[source], path, shape, layout, family.epsilon)
            if values is None or not np.isfinite(values).all():
                invalid.append(source)
            elif values.shape != shape:
                wrong.append(f"{source} {list(values.shape)} instead of {list(shape)}")
            filled[path] = values
    problems = [
        f"{len(found)} tensor{'s' * (len(found) > 1)} {what} ({_some(found)})"
        for what, found in (
            (f"missing from {_some(_natural({path[1] for path in absent}))}", _natural(absent.values())),
            ("unexpected", unexpected),
            ("of the wrong shape", wrong),
            ("with NaN, infinity, negative variances or no floating-point numbers", invalid),
        )
        if found
    ]
    if problems:
        hint = _deepest(file, layout, family, options) if absent else ""
        to = f"up to {last}" if last else "as a whole"
        raise ValueError(f"{name} does not fit {family.name} {to}: {'; '.join(problems)}.{hint}")
    return unflatten_dict(filled), dict(Counter(beyond.values()))


def _convert(
    values: np.ndarray, path: tuple[str, ...], shape: tuple[int, ...], layout: Layout, epsilon: float
) -> Float[np.ndarray, "..."] | None:
    """One tensor in our layout and precision; None if it holds no floating-point numbers or a negative variance.

    Axes of length 1 may stand elsewhere, and a convolution over a whole map is a dense layer.
    """
    if values.dtype.kind != "f":
        return None
    if layout.family == "torch":
        values = values.transpose(2, 3, 1, 0) if values.ndim == 4 else values.T
    if values.ndim == 2 and (side := layout.flattened.get(path[-2])) and values.shape[0] % side**2 == 0:
        values = values.reshape(-1, side, side, values.shape[1]).transpose(1, 2, 0, 3)
    if values.ndim == 4 and len(shape) == 2:
        values = values.reshape(-1, values.shape[-1])
    if [n for n in values.shape if n > 1] == [n for n in shape if n > 1]:
        values = values.reshape(shape)
    if path[-1] == "var":
        if (values < 0).any():
            return None
        values = values.astype(np.float64) + (layout.epsilon - epsilon)
    return np.ascontiguousarray(values, np.float32)


def _beyond(layout: Layout, family: Architecture, options: dict[str, Any], left: list[str]) -> dict[str, str]:
    """The layer of each tensor that the whole network would use."""
    whole = family.module(**{**options, "last": family.layers[-1]})
    layers = {source_name(layout, path): path[1] for path in flatten_dict(abstract_variables(whole, family))}
    return {tensor: layers[tensor] for tensor in left if tensor in layers}


def _deepest(file: WeightFile, layout: Layout, family: Architecture, options: dict[str, Any]) -> str:
    """Which `last` the file would do for, as a sentence."""
    for layer in reversed(family.layers):
        needed = flatten_dict(abstract_variables(family.module(**{**options, "last": layer}), family))
        if all((source_name(layout, path) or next(iter(file.tensors))) in file.tensors for path in needed):
            return f" The file is complete up to {layer}: pass --last={layer}."
    return " It is not complete up to any layer; it may be damaged or belong to another network."


def _natural(names: Iterable[str]) -> list[str]:
    """Sorted, with the numbers in names as numbers."""
    return sorted(names, key=lambda name: [part.zfill(4) for part in re.split(r"(\d+)", name)])


def _some(found: list[str]) -> str:
    """The first few, and how many more."""
    more = len(found) - SHOWN
    return ", ".join(found[:SHOWN]) + (f" and {more} more" if more > 0 else "")
