"""The receptive field of any layer, and which of its positions no padding reaches, derived from the module itself."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors
from flax import linen as nn
from flax.traverse_util import flatten_dict

from scalecov_jax.models.architecture import Architecture, get_architecture
from scalecov_jax.models.windows import Seen, Window, image, interpret

Axis = Literal["height", "width"]
Region = tuple[tuple[int, int], tuple[int, int]]

_AXES: dict[Axis, int] = {"height": 1, "width": 2}
_LARGEST = 1 << 13  # pixels: where every search for a size ends


class ReceptiveField(NamedTuple):
    """Position i of a layer sees the pixels stride * i + offset to stride * i + offset + size - 1 of the image."""

    size: int  # pixels along one axis of the image
    stride: int  # pixels from one position to the next
    offset: int  # first pixel that position 0 sees; negative where it lies in the padding


def receptive_field(
    architecture: Architecture | str,
    layer: str,
    *,
    axis: Axis = "height",
    input_size: Any = None,
    **options: Any,
) -> ReceptiveField:
    """What one position of a layer can see of the image, the padding around it included.

    Where branches meet, the window spans all of them. It depends on the size of the image only where a stride goes with SAME
    padding, which then differs between the two sides. A layer is a module at any depth, such as mixed8 or conv2d_31, or its path,
    such as mixed2/conv2d_20; `input_size` is the height and width of the image in pixels, by default the architecture's, and
    options are fields of the module, such as max_pool_padding=0.

    Raises:
        ValueError: No such architecture, option or layer, a layer that sees the whole image, an image that is too small or
            not square, or an operation whose window cannot be derived; says which.

    Source: the recursion is that of Araujo, Norris, Sim: Computing Receptive Fields of Convolutional Neural Networks, 2019.
    """
    family, module, size = _resolve(architecture, options, input_size)
    window = _window_at(family, module, size, layer, axis)
    if window is None:
        kinds = {2: "it is a vector", 3: "its tokens are mixed by attention"}
        why = kinds.get(
            len(_tap(module, size, size, layer).shape), "as after global pooling or squeeze-and-excitation"
        )
        raise ValueError(f"Every value of {layer} of {family.name} sees the whole image: {why}.")
    return _field(window)


def clean_region(
    architecture: Architecture | str, layer: str, input_size: Any, *, axis: Axis = "height", **options: Any
) -> tuple[int, int] | None:
    """First and last position of a layer that no padding reaches, along one axis; None ("undefined") where there is none.

    With receptive field RF, stride j and offset l these are ceil(-l / j) and floor((n - RF - l) / j) on an image of n pixels.
    Average pooling counts as padding like any other, although it divides by the pixels inside the map alone.

    Arguments and errors as of `receptive_field`.

    Source: Graziani et al. 2021, section 4.2 (the corrected global average pooling leaves out what padding reaches).
    """
    family, module, size = _resolve(architecture, options, input_size)
    window = _window_at(family, module, size, layer, axis)
    return (window.first, window.last) if window and window.first <= window.last else None


def smallest_clean_size(architecture: Architecture | str, layer: str, **options: Any) -> int | None:
    """Height and width in pixels of the smallest square image at which a layer has a clean position; None where it sees it all.

    It is j * ceil(-l / j) + RF + l, in the terms of `clean_region`; arguments and errors as of `receptive_field`.
    """
    _, module, size = _resolve(architecture, options, None)
    return _smallest_clean(module, layer, size)


def minimum_size(network: Architecture | nn.Module | str, layer: str, **options: Any) -> int:
    """Height and width in pixels of the smallest square image at which every map up to a layer has a pixel.

    The network is an architecture, its name, or a module.

    Raises:
        ValueError: No such layer, or no image is large enough.
    """
    module = network if isinstance(network, nn.Module) else _resolve(network, options, None)[1]
    return _smallest(lambda size: _fits(module, size, layer), layer)


def check_size(module: nn.Module, size: int, layers: Sequence[str], name: str) -> None:
    """Make sure that every map up to the given layers has a pixel on an image of `size` x `size` pixels.

    Raises:
        ValueError: One has none (says from which size on the network called `name` can be used), there is no such layer, or the
            image cannot be divided into patches.
    """
    if check := getattr(module, "check_size", None):
        check(size, size)
    if small := [layer for layer in layers if not _fits(module, size, layer)]:
        least = {layer: minimum_size(module, layer) for layer in small}
        layer = max(small, key=lambda one: least[one])
        raise ValueError(
            f"{name} needs images of at least {least[layer]} x {least[layer]} pixels up to {layer}; got {size} x {size}."
        )


def check_variables(module: nn.Module, params: Mapping[str, Any], size: int, name: str) -> None:
    """Make sure that parameters fit images of `size` x `size` pixels, as they may not where maps are flattened.

    Raises:
        ValueError: One has another shape than such images need; says which.
    """
    given: dict[Any, Any] = flatten_dict(dict(params))
    for path, shape in _trace(module, size, size).parameters.items():
        if path in given and given[path].shape != shape:
            raise ValueError(
                f"The weights of {name} were made for images of another size than {size} x {size} pixels: "
                f"{'/'.join(path)} is {list(given[path].shape)} and would have to be {list(shape)}. Take images of the size "
                f"they were made for, or layers before {path[0]}."
            )


# Of a module on images of so many pixels; ValueError: a layer that it has not, or an operation whose window cannot be derived.


def clean_regions(
    module: nn.Module, height: int, width: int, layers: Sequence[str]
) -> dict[str, Region | None]:
    """First and last clean row, first and last clean column of each layer; None where there is none."""
    windows = {layer: _windows(module, height, width, layer) for layer in layers}
    return {
        layer: tuple((one.first, one.last) for one in both)  # pyright: ignore[reportReturnType]
        if both and all(one.first <= one.last for one in both)
        else None
        for layer, both in windows.items()
    }


def layer_fields(
    module: nn.Module, height: int, width: int, layers: Sequence[str]
) -> dict[str, tuple[ReceptiveField, ...] | None]:
    """Receptive fields of the rows and of the columns of each layer; None where every value sees the whole image."""
    windows = {layer: _windows(module, height, width, layer) for layer in layers}
    return {layer: tuple(map(_field, both)) if both else None for layer, both in windows.items()}


def undefined_layers(
    module: nn.Module, size: int | tuple[int, int], layers: Sequence[str]
) -> dict[str, int | None]:
    """The layers without a clean position on images of this size, or height and width.

    For each the height and width of the smallest square image on which it has one, in pixels; None where every value sees the
    whole image.
    """
    height, width = (size, size) if isinstance(size, int) else size
    regions = clean_regions(module, height, width, layers)
    largest = max(height, width)
    return {layer: _smallest_clean(module, layer, largest) for layer in layers if regions[layer] is None}


def layer_ranks(module: nn.Module, height: int, width: int, layers: Sequence[str]) -> dict[str, int]:
    """Axes of the output of each layer: 4 of maps [N, H, W, D], 3 of tokens [N, T, D], 2 of vectors [N, D]."""
    return {layer: len(_tap(module, height, width, layer).shape) for layer in layers}


class _Tap(NamedTuple):
    """One captured output: its shape and what it sees."""

    shape: tuple[int, ...]
    seen: Seen


class _Trace(NamedTuple):
    """Every captured output of a module on images of one size, and the shape of each parameter, by path."""

    taps: dict[tuple[str, ...], _Tap]
    parameters: dict[tuple[str, ...], tuple[int, ...]]


@lru_cache(maxsize=512)
def _trace(module: nn.Module, height: int, width: int) -> _Trace:
    """Traced (as the module is initialised, in one pass), not computed."""
    paths: list[tuple[str, ...]] = []
    parameters: dict[tuple[str, ...], tuple[int, ...]] = {}

    def forward(x: Any) -> list[Any]:
        key = jax.random.key(0)
        created: Any = module.init_with_output(key, x, capture_intermediates=True, mutable=True)[1]
        leaves: dict[Any, Any] = flatten_dict(created.get("params", {}))
        parameters.update({path: leaf.shape for path, leaf in leaves.items()})
        captured: dict[Any, Any] = flatten_dict(created["intermediates"])
        outputs = {
            path[:-1]: values[0]
            for path, values in captured.items()
            if len(path) > 1 and path[-1] == "__call__" and isinstance(values[0], jax.Array)
        }
        paths[:] = outputs
        return list(outputs.values())

    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    jaxpr, shapes = jax.make_jaxpr(forward, return_shape=True)(images)
    seen = interpret(jaxpr, [image(images.shape)])
    rows = zip(paths, shapes, seen, strict=True)
    return _Trace({path: _Tap(shape.shape, one) for path, shape, one in rows}, parameters)


def _tap(module: nn.Module, height: int, width: int, layer: str) -> _Tap:
    taps = _trace(module, height, width).taps
    found = [path for path in taps if layer in (path[-1], "/".join(path))]
    if len(found) == 1:
        return taps[found[0]]
    network = type(module).__name__
    if found:
        paths = ["/".join(path) for path in found]
        raise ValueError(
            f"{network} has {len(found)} modules called {layer!r}; choose one by its path: {', '.join(paths[:3])}, ..."
        )
    names = list(dict.fromkeys(path[-1] for path in taps))
    close = get_close_matches(layer, names, n=3, cutoff=0.5)
    raise ValueError(
        f"{network} has no layer {layer!r}; "
        + (f"did you mean {' or '.join(close)}? " if close else "")
        + f"There are {', '.join(path[0] for path in taps if len(path) == 1)}, and those inside them."
    )


def _window(module: nn.Module, height: int, width: int, layer: str, axis: Axis) -> Window | None:
    """What a layer's rows or columns see; None where every value sees the whole image."""
    shape, seen = _tap(module, height, width, layer)
    if len(shape) != 4:
        return None
    if seen.unknown:
        raise ValueError(
            f"What {layer} of {type(module).__name__} sees of the image cannot be derived: {seen.unknown}."
        )
    if not (seen.whole or any(seen.axes)):
        raise ValueError(f"{layer} of {type(module).__name__} does not depend on the image.")
    window = seen.axes[_AXES[axis]]
    return None if window is None or seen.whole or window.source != _AXES[axis] else window


def _windows(module: nn.Module, height: int, width: int, layer: str) -> tuple[Window, ...]:
    """Of the rows and of the columns; empty where every value sees the whole image along one of them."""
    both = [_window(module, height, width, layer, axis) for axis in _AXES]
    return tuple(window for window in both if window) if all(both) else ()


def _field(window: Window) -> ReceptiveField:
    return ReceptiveField(window.size, window.stride, window.offset)


def _window_at(family: Architecture, module: nn.Module, size: int, layer: str, axis: Axis) -> Window | None:
    check_size(module, size, [layer], family.name)
    return _window(module, size, size, layer, axis)


def _resolve(
    architecture: Architecture | str, options: dict[str, Any], input_size: Any
) -> tuple[Architecture, nn.Module, int]:
    """The family, its module with the given fields, and the size of the image."""
    family = get_architecture(architecture) if isinstance(architecture, str) else architecture
    known = [name for name in family.module.__dataclass_fields__ if name not in ("parent", "name")]
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"{family.name} has no option {', '.join(unknown)}; there are {', '.join(known)}.")
    size = family.input_size if input_size is None else input_size
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(
            f"input_size is {input_size!r}; expected one whole number of pixels, the height and width of a square image."
        )
    return family, family.module(**options), int(size)


def _fits(module: nn.Module, size: int, layer: str) -> bool:
    """Whether every map up to a layer has a pixel."""
    try:
        _trace(module, size, size)
    except (TypeError, ValueError, ZeroDivisionError, errors.FlaxError):
        if size >= _LARGEST:  # it is not for want of pixels
            raise
        return False
    return not _tap(module, size, size, layer).seen.empty


def _smallest(enough: Callable[[int], bool], layer: str) -> int:
    """The smallest size that is enough, if every larger one is too."""
    low, high = 0, 64
    while not enough(high):
        low, high = high, 2 * high
        if low >= _LARGEST:
            raise ValueError(f"No image of up to {_LARGEST} x {_LARGEST} pixels is large enough for {layer}.")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _smallest_clean(module: nn.Module, layer: str, size: int) -> int | None:
    """See `smallest_clean_size`; `size` is one that the network can take."""

    def clean(size: int) -> bool:
        return _fits(module, size, layer) and clean_regions(module, size, size, [layer])[layer] is not None

    if not (here := _windows(module, size, size, layer)):
        return None
    stride = max(window.stride for window in here)
    # A pixel more in a map of stride 2^k changes its parity, and with it the padding of SAME under stride 2.
    sizes = [size, *(size + (1 << k) for k in range(stride.bit_length()))]
    every = [(one, _windows(module, one, one, layer)) for one in sizes]
    if all(
        [window[:4] for window in both] == [first[:4] for first in here]
        and all(_is_plain(window, one) for window in both)
        for one, both in every
    ):
        return max(one.stride * _first_inside(one) + one.size + one.offset for one in here)
    found = _smallest(clean, layer)
    return min(one for one in range(max(1, found - stride), found + 1) if clean(one))


def _first_inside(window: Window) -> int:
    return max(0, -(window.offset // window.stride))


def _is_plain(window: Window, pixels: int) -> bool:
    """Whether the clean positions are those whose window lies inside the image, as where maps are padded but not cropped."""
    first, last = _first_inside(window), (pixels - window.size - window.offset) // window.stride
    none = first > last and window.first > window.last
    return none or (window.first, window.last) == (first, last)
