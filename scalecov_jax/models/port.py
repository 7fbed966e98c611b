"""From the weights of another library, in a file or in memory, to a network of ours."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

from scalecov_jax.checkpoints import MAX_NUMBER, Card, Network, network
from scalecov_jax.models.architecture import Architecture, check_layer, get_architecture
from scalecov_jax.models.preprocessing import PREPROCESSINGS, Preprocessing, as_preprocessing, misfit
from scalecov_jax.models.pruning import abstract_variables
from scalecov_jax.models.recognition import Match, recognise, some
from scalecov_jax.models.sources import Layout, joined_parts, source_name
from scalecov_jax.models.weight_files import read_weights

# The largest misfit (see there) of a close fit, and the least beside one that is refused; the same of a poor fit. With the first
# convolutions of ImageNet's InceptionV3 and ResNet50 and the statistics of 142 photographs of ImageNet, rewritten for all five
# preprocessings, the right one has 0.06 to 0.13 and a wrong one 1.05 to 9e4, but for raw and caffe on ResNet50 (0.2 to 0.27),
# whose filters see no mean. With the statistics of histology, fluorescence and fundus photographs the right one has 0.16 to 5.3,
# and none is refused; on our own networks, trained on rendered scenes, it has 0.7 and 1.3.
CLOSE, WRONG = 0.3, 0.85
POOR, GROSS = 3.0, 100.0


def port(
    source: Path | Mapping[str, Any],
    architecture: str,
    preprocessing: Preprocessing | None = None,
    last: str | None = None,
    class_names: Sequence[str] = (),
    max_pool_padding: int = 1,
    *,
    prefix: str = "",
    sha256: str = "",
    pretrained_cfg: Mapping[str, Any] | None = None,
    force_preprocessing: bool = False,
    heads: int | None = None,
) -> Network:
    """Read a weight file or a state dict into a network.

    Both directions are checked: every variable of the network is filled, and every tensor of the file is used, is known to
    have no counterpart (torchvision's auxiliary head), or lies beyond `last`. Width and number of classes follow from the
    file. Differences between the libraries are absorbed exactly: layouts are transposed, missing biases are zeros, and
    another epsilon is added to the variances, var' = var + epsilon_source - epsilon.

    Args:
        source: Keras `.h5`, `.weights.h5` or `.keras`, torch `.pth`, `.pt`, `.bin`, `.ckpt` or `.safetensors`; or a state dict
            of torch's names, of arrays or tensors. Its tensors may have a common prefix, or lie in dicts.
        architecture: Name of the family.
        preprocessing: What the weights expect at the input. Keras: that of the architecture. torchvision and timm: torch, but
            tf for torchvision's ported InceptionV3, which it runs with `transform_input`, whose composition with the torch
            preprocessing is tf. By default that of `pretrained_cfg`. Refused where the source says another one, or where two
            photographs do not have the statistics of the first batch normalisation but would have with another one.
        last: Layer to stop after; the end of the network when absent. What the file holds beyond it does not matter.
        class_names: Names of the outputs of the head; none when unknown.
        max_pool_padding: Of ResNets; 0 reproduces Keras before 2.2.3.
        prefix: Of the names of the tensors to read, such as `model_ema.`; needed where a file holds several networks.
        sha256: What the file must have.
        pretrained_cfg: As timm's models have it: mean, std, input_size, interpolation, crop_pct, crop_mode; by default that in
            a `config.json` beside the file.
        force_preprocessing: Take `preprocessing` whatever the source and its statistics say.
        heads: Of each attention of a ViT; by default what the `config.json` says, or one for each 64 channels.

    Raises:
        ValueError: An unknown name, a file that cannot be read or belongs to another architecture, tensors that are
            missing, unexpected, of a wrong shape or not finite (all of them in one message), a preprocessing that does not go
            with the weights, or class names that do not fit the head.
        ImportError: A file of torch, and torch is not installed.
    """
    family = get_architecture(architecture)
    if family.sources.fit is None:
        check_layer(family, last or family.layers[-1])
        if heads is not None:
            raise ValueError(f"{architecture} has no heads of attention; leave out --heads.")
    path = None if isinstance(source, Mapping) else Path(source).expanduser()
    name = path.name if path else "The state dict"
    if sha256 and path is None:
        raise ValueError("A sha256 was given, and a state dict in memory has none; pass the file.")
    if path and sha256 and path.is_file():
        check_digest(path, sha256)
    config = _config(path) if pretrained_cfg is None else pretrained_cfg
    said = _configured_preprocessing(name, config)
    given = as_preprocessing(preprocessing) if preprocessing else said
    if given is None:
        raise ValueError(
            f"Say which preprocessing {name} expects: --preprocessing={family.preprocessing} if it is Keras's, torch as a rule "
            f"if it is torchvision's or timm's, or --mean and --std; there are {', '.join(PREPROCESSINGS)}."
        )
    # Nothing but `match` holds the tensors, so that each can go when it is converted.
    match = recognise(name, read_weights(path or source), family, prefix, str(config.get("architecture", "")))  # pyright: ignore[reportArgumentType]
    match, options = _options(name, match, last, max_pool_padding, config, heads)
    size = _configured_size(name, config, match.family, options)
    variables, beyond = _fill(name, match, options, last)
    classes = options.get("classes", family.module().classes)  # pyright: ignore[reportAttributeAccessIssue]
    if class_names and (len(class_names) != classes or "pre_softmax" not in variables["params"]):
        outputs = f"{classes} outputs" if "pre_softmax" in variables["params"] else "no head"
        raise ValueError(f"{len(class_names)} class names were given, and the network has {outputs}.")
    checked = _check_preprocessing(name, match, variables, said, given, force_preprocessing)
    card = Card(
        architecture=architecture,
        options=options,
        preprocessing=given,
        input_size=size,
        origin=path.name if path else "a state dict in memory",
        sha256=checksum(path) if path else "",
        class_names=tuple(class_names),
        notes={
            "layout": match.layout.title,
            "prefix": match.prefix,
            "ignored": {**Counter(match.ignored.values()), **match.beside},
            "beyond_last": beyond,
            "preprocessing": checked,
            "resize": {
                key: config[key] for key in ("interpolation", "crop_pct", "crop_mode") if key in config
            },
        },
    )
    return network(variables, card)


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def check_digest(path: Path, digest: str, given: object = None) -> None:
    """Compare a file with its MD5 or, with 64 digits, SHA-256.

    Raises:
        ValueError: It has another one; names `given`, by default the file.
    """
    algorithm = "sha256" if len(digest) == 64 else "md5"
    found = checksum(path, algorithm)
    if found != digest.lower():
        raise ValueError(
            f"{given or path} has the {algorithm.upper()} {found} and not the expected {digest}; it is damaged or another file."
        )


def _config(path: Path | None) -> Mapping[str, Any]:
    """What timm's or Hugging Face's files beside a weight file say, in timm's names; nothing if there are none."""
    found: dict[str, Any] = {}
    for name in ("config.json", "preprocessor_config.json"):
        if path is None or not (beside := path.with_name(name)).is_file():
            continue
        try:
            config = json.loads(beside.read_text("utf-8"))
            if name == "config.json":
                found |= {**config, **config.get("model_args", {}), **config.get("pretrained_cfg", {})}
            else:
                found |= _of_hugging_face(config)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{beside} cannot be read as timm's or Hugging Face's configuration: {error}."
            ) from error
    return found


def _of_hugging_face(processor: Mapping[str, Any]) -> dict[str, Any]:
    """What an image processor does, in timm's names: mean, std, input_size, interpolation, crop_pct."""
    found: dict[str, Any] = {}
    if processor.get("do_normalize", True) and "image_mean" in processor:
        if not math.isclose(scale := processor.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-3):
            raise ValueError(
                f"rescale_factor is {scale}, expected 1 / 255; pass the mean and sd of pixels from 0 to 1"
            )
        found |= {"mean": processor["image_mean"], "std": processor["image_std"]}
    size, crop = _side(processor.get("size")), _side(processor.get("crop_size"))
    crop = crop if crop and processor.get("do_center_crop", True) else size
    if crop and size:
        found |= {"input_size": [3, crop, crop], "crop_pct": round(crop / size, 4)}
    names = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
    return found | ({"interpolation": names[processor["resample"]]} if "resample" in processor else {})


def _side(size: Any) -> int:
    """Height in pixels of a size as Hugging Face writes it: a number, or by name; 0 where there is none."""
    return int(size.get("height", size.get("shortest_edge", 0)) if isinstance(size, Mapping) else size or 0)


def _configured_preprocessing(name: str, config: Mapping[str, Any]) -> Preprocessing | None:
    """The preprocessing that a configuration names, if it does."""
    try:
        return as_preprocessing((config["mean"], config["std"])) if {"mean", "std"} <= config.keys() else None
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"The configuration of {name} cannot be used: {error}") from error


def _configured_size(
    name: str, config: Mapping[str, Any], family: Architecture, options: Mapping[str, Any]
) -> int:
    """Height and width of the images in pixels, by the configuration or else the family."""
    try:
        size = int(config.get("input_size", [family.input_size])[-1])
        if not 8 <= size <= MAX_NUMBER:
            raise ValueError(f"input_size {size}, expected at least 8 pixels")
        module: Any = family.module(**options)
        if hasattr(module, "check_size"):
            module.check_size(size, size)
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"The configuration of {name} cannot be used: {error}") from error
    return size


def _check_preprocessing(
    name: str,
    match: Match,
    variables: Any,
    configured: Preprocessing | None,
    given: Preprocessing,
    force: bool,
) -> str:
    """What configuration, file and first batch normalisation (see `misfit`) say of the preprocessing that was given."""
    try:
        said = match.layout.declared(match.tensors) or configured
    except ValueError as error:
        raise ValueError(f"{name} cannot be used: {error}.") from error
    if said not in (None, given) and not force:
        raise ValueError(
            f"{name} expects the preprocessing {said} and not {given}; pass {said}, or --force_preprocessing to use {given}."
        )
    leaves: Any = flatten_dict(variables)
    module = tuple(next(iter(match.layout.modules)).split("/"))
    kernel, bias = (leaves.get(("params", *module, leaf)) for leaf in ("kernel", "bias"))
    mean, var = (leaves.get(("batch_stats", *module, "norm", leaf)) for leaf in ("mean", "var"))
    if kernel is None or mean is None:
        return "not checked: no batch normalisation follows the first convolution"
    if np.ptp(mean) == 0 and np.ptp(var) == 0:
        return "not checked: the batch normalisation has no statistics (folded, or not trained)"
    bias = np.zeros_like(mean) if bias is None else bias
    fits = {one: misfit(kernel, bias, mean, var, one) for one in (*PREPROCESSINGS, given)}
    best = min(fits, key=lambda one: fits[one])
    if fits[best] > POOR:
        return f"not checked: the statistics fit none that is known ({best} best, misfit {fits[best]:.2g})"
    if fits[given] > (WRONG if fits[best] <= CLOSE else GROSS) and not force:
        raise ValueError(
            f"{name} does not go with the preprocessing {given}: to its first batch normalisation {best} fits (misfit "
            f"{fits[best]:.2g}), not {given} ({fits[given]:.2g}). Pass --preprocessing={best}, or --force_preprocessing to use "
            f"{given} all the same."
        )
    return f"misfit {fits[given]:.2g}, of {best} {fits[best]:.2g}"


def _options(
    name: str,
    match: Match,
    last: str | None,
    max_pool_padding: int,
    config: Mapping[str, Any],
    heads: int | None,
) -> tuple[Match, dict[str, Any]]:
    """The family and the layout as the file has them, and the fields of the module that differ from their defaults."""
    family, layout = match.family, match.layout
    default = family.module()
    if family.sources.fit:
        try:
            options, layout = family.sources.fit(layout, match.tensors, config, heads)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} cannot be read as {family.name}: {error}.") from error
        match = match._replace(family=family.with_options(options), layout=layout)
        options["last"] = check_layer(match.family, last or options["last"])
    else:
        options = {"last": last or family.layers[-1], **layout.options}
    if hasattr(default, "width"):
        options["width"] = _infer_width(match)
    if hasattr(default, "use_scale") and layout.family != "torch":
        options["use_scale"] = any(name.endswith("/gamma") for name in match.tensors)
    head = match.tensors.get(str(source_name(layout, ("params", "pre_softmax", "kernel"))))
    if head is not None and head.ndim in (2, 4) and options["last"] in ("pre_softmax", "softmax"):
        options["classes"] = head.shape[0 if layout.family == "torch" else -1]
    if hasattr(default, "max_pool_padding"):
        options["max_pool_padding"] = max_pool_padding
    elif max_pool_padding != 1:
        raise ValueError(f"{family.name} has no max_pool_padding; only ResNets come in both variants.")
    return match, {key: value for key, value in options.items() if value != getattr(default, key)}


def _infer_width(match: Match) -> float:
    """The shortest decimal w with round(w f) filters wherever the full network has f; else the median ratio."""
    low, high, ratios = 0.0, np.inf, []
    for path, leaf in _needed(match.family, {}).items():
        values = match.tensors.get(str(source_name(match.layout, path)))
        if path[-1] == "kernel" and leaf.ndim == 4 and values is not None and values.ndim == 4:
            filters, found = leaf.shape[-1], values.shape[0 if match.layout.family == "torch" else -1]
            ratios.append(found / filters)
            low, high = max(low, (found - 0.5) / filters), min(high, (found + 0.5) / filters)
    if low > high:
        return float(np.median(ratios))
    decimals = (round((low + high) / 2, digits) for digits in range(7))
    return next((float(width) for width in decimals if low < width < high), 1.0)


def _needed(family: Architecture, options: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Shapes of the variables of a network by path."""
    return flatten_dict(abstract_variables(family.module(**options), family))  # pyright: ignore[reportReturnType]


def _fill(name: str, match: Match, options: dict[str, Any], last: str | None) -> tuple[Any, dict[str, int]]:
    """Variables of the network, and how many tensors each layer beyond its last has in the file.

    Tensors leave `match` as they are converted, so that no second copy of the network is held.
    """
    family, layout = match.family, match.layout
    tensors: Any = match.tensors
    needed = _needed(family, options)
    sources = {path: source_name(layout, path) for path in needed}
    head = ("params", "pre_softmax", "bias")
    if sources.get(head) not in tensors and sources.get((*head[:2], "kernel")) in tensors:
        sources[head] = None  # a dense layer without a bias
    used = {part for source in sources.values() if source for part in joined_parts(source)} | {*match.ignored}
    beyond, unexpected = _beyond(match, options, used, [tensor for tensor in tensors if tensor not in used])
    if last is None:
        unexpected, beyond = [*unexpected, *beyond], {}
    filled, absent, wrong, invalid = {}, {}, {}, {}
    for path, source in sources.items():
        shape = needed[path].shape
        parts = {part: tensors.pop(part, None) for part in joined_parts(source)} if source else {}
        if {*parts} <= layout.zeros:
            filled[path] = np.zeros(shape, np.float32)
        elif lacking := [part for part, one in parts.items() if one is None and part not in layout.zeros]:
            absent[path] = lacking[0]
        else:
            given = next(one for one in parts.values() if one is not None)
            joined = [np.zeros_like(given) if one is None else one for one in parts.values()]
            one = joined[0] if len(joined) == 1 else np.concatenate(joined)
            values = _convert(one, path, shape, layout, family.epsilon)
            if values is None or not np.isfinite(values).all():
                invalid[path] = source
            elif values.shape != shape:
                wrong[path] = f"{source} {list(values.shape)} instead of {list(shape)}"
            filled[path] = values
    problems = [
        f"{len(found)} tensor{'s' * (len(found) > 1)} {what} ({some(found)})"
        for what, found in (
            (f"missing from {some(_natural({path[1] for path in absent}))}", _natural(absent.values())),
            ("unexpected", unexpected),
            ("of the wrong shape", [*wrong.values()]),
            ("with NaN, infinity, negative variances or no floating-point numbers", [*invalid.values()]),
        )
        if found
    ]
    if problems:
        hint = _advice(family, options, {*absent, *wrong, *invalid}, last)
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
        order = {2: (1, 0), 4: (2, 3, 1, 0)}.get(values.ndim)
        values = values.transpose(order) if order else values
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


def _beyond(
    match: Match, options: dict[str, Any], used: set[str], left: Iterable[str]
) -> tuple[dict[str, str], list[str]]:
    """The layer of each tensor that lies beyond the last one, and those that lie before.

    A tensor that the whole network would not use lies before the last layer if its name has more in common with one that is used
    than with one beyond: layer1.0.se.weight does, fc.1.weight and projection.weight do not.
    """
    whole = _needed(match.family, {**options, "last": match.family.layers[-1]})
    layers = {part: path[1] for path in whole for part in joined_parts(str(source_name(match.layout, path)))}

    def parts(name: str) -> list[str]:
        return re.findall(r"[A-Za-z]+|\d+", name)

    def nearness(name: str, others: Iterable[list[str]]) -> int:
        equal = ([a == b for a, b in zip(parts(name), other, strict=False)] for other in others)
        return max((len([*takewhile(bool, one)]) for one in equal), default=0)

    inside = [parts(name) for name in used if name]
    outside = [parts(name) for name in layers if name not in used]
    beyond, unexpected = {}, []
    for tensor in left:
        if tensor in layers or nearness(tensor, inside) <= nearness(tensor, outside):
            beyond[tensor] = layers.get(tensor, "another head")
        else:
            unexpected.append(tensor)
    return beyond, unexpected


def _advice(
    family: Architecture, options: dict[str, Any], bad: set[tuple[str, ...]], last: str | None
) -> str:
    """Which `last` the file would do for, as a sentence."""
    if not bad:
        return (
            "" if last else f" To leave out what is unexpected at the end, pass --last={family.layers[-1]}."
        )
    for layer in reversed(family.layers):
        if not bad & _needed(family, {**options, "last": layer}).keys():
            head = ", and its head is another one or absent" if layer == family.trunk else ""
            return f" The file is complete up to {layer}{head}: pass --last={layer}."
    return " It is not complete up to any layer; it may be damaged or belong to another network."


def _natural(names: Iterable[str]) -> list[str]:
    """Sorted, with the numbers in names as numbers."""
    return sorted(names, key=lambda name: [part.zfill(4) for part in re.split(r"(\d+)", name)])
