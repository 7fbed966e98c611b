"""Which input pixels every value of a computation sees: abstract interpretation of a jaxpr, axis by axis."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from operator import index
from typing import Any, NamedTuple, SupportsIndex

from jax.extend.core import ClosedJaxpr, Literal  # pyright: ignore[reportPrivateImportUsage]


class Window(NamedTuple):
    """What the positions along one axis of a value see of one axis of the input.

    Position i sees the input pixels stride * i + offset to stride * i + offset + size - 1, of which those outside the image
    are padding. (Where branches meet, the window spans them all.)
    """

    source: int  # axis of the input
    size: int  # pixels of the input
    stride: int  # pixels of the input from one position to the next
    offset: int  # first pixel that position 0 sees; negative where it sees padding
    first: int  # first position that no padding reaches, the network's own inside included
    last: int  # last such position; below `first` if there is none


class Seen(NamedTuple):
    """What a value depends on; nothing by default."""

    axes: tuple[Window | None, ...] = ()  # the window of each axis that follows one of the input's
    whole: frozenset[int] = frozenset()  # axes of the input over which every entry sees everything
    empty: bool = False  # whether it was computed from a map without pixels
    unknown: str = ""  # why its windows cannot be derived; empty if they can


class _UnknownWindowError(Exception):
    """A step whose windows are not affine, or that no rule is for."""


def image(shape: tuple[int, ...], tracked: Iterable[int] = (1, 2)) -> Seen:
    """The input itself: each position of the tracked axes sees one pixel."""
    windows = {axis: Window(axis, 1, 1, 0, 0, shape[axis] - 1) for axis in tracked}
    return Seen(tuple(windows.get(axis) for axis in range(len(shape))))


def interpret(closed: ClosedJaxpr, inputs: Sequence[Seen]) -> list[Seen]:
    """What each output of a jaxpr sees, from what its inputs see; nothing is computed.

    A step for which there is no rule makes everything that depends on it unknown, and nothing else.
    """
    jaxpr = closed.jaxpr
    seen: dict[Any, Seen] = {var: _nothing(var) for var in jaxpr.constvars}
    seen |= zip(jaxpr.invars, inputs, strict=True)
    for step in jaxpr.eqns:
        operands = [_nothing(one) if isinstance(one, Literal) else seen[one] for one in step.invars]
        seen |= zip(step.outvars, _apply(step, operands), strict=True)
    return [_nothing(one) if isinstance(one, Literal) else seen[one] for one in jaxpr.outvars]


def _nothing(var: Any) -> Seen:
    return Seen((None,) * len(var.aval.shape))


def _apply(step: Any, operands: list[Seen]) -> list[Seen]:
    name = step.primitive.name
    whole = frozenset[int]().union(*(one.whole for one in operands))
    empty = any(one.empty for one in operands)
    unknown = next((one.unknown for one in operands if one.unknown), "")
    results = [_nothing(var) for var in step.outvars]
    tracked = [one for one in operands if any(one.axes)]
    if tracked and not unknown:
        try:
            if name in _CALLS:
                return interpret(_inner(step.params), operands)
            if name not in _RULES:
                raise _UnknownWindowError(f"no rule for the primitive {name}")
            results = _RULES[name](step, operands)
            for one in results:
                sources = [axis.source for axis in one.axes if axis]
                if len(sources) > len({*sources}):
                    raise _UnknownWindowError(f"{name} of one axis of the image with itself")
        except _UnknownWindowError as problem:
            unknown = str(problem)
    depends = bool(tracked or whole or unknown)
    seen = []
    for var, one in zip(step.outvars, results, strict=True):
        axes = (None,) * len(var.aval.shape) if unknown else one.axes
        seen.append(Seen(axes, one.whole | whole, empty or (depends and 0 in var.aval.shape), unknown))
    return seen


def _inner(params: Mapping[str, Any]) -> Any:
    inner = next(params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in params)
    return inner if hasattr(inner, "jaxpr") else ClosedJaxpr(inner, ())


def _slide(
    window: Window | None,
    positions: int,
    size: SupportsIndex = 1,
    stride: SupportsIndex = 1,
    low: SupportsIndex = 0,
    dilation: SupportsIndex = 1,
) -> Window | None:
    """The window after a kernel that reads the positions stride * i - low + dilation * (0 .. size - 1)."""
    if window is None:
        return None
    stride, low = index(stride), index(low)  # jaxprs hold numpy integers too
    reach = index(dilation) * (index(size) - 1)
    return window._replace(
        size=window.size + window.stride * reach,
        stride=window.stride * stride,
        offset=window.offset - window.stride * low,
        first=max(0, -((-window.first - low) // stride)),
        last=min(positions - 1, (window.last + low - reach) // stride),
    )


def _join(one: Window | None, other: Window | None) -> Window | None:
    """What is seen through either of two values at the same position."""
    if one is None or other is None:
        return one or other
    if one.source != other.source:
        raise _UnknownWindowError("an axis that follows both axes of the image")
    if one.stride != other.stride:
        raise _UnknownWindowError(f"maps of stride {one.stride} and of stride {other.stride} meet")
    offset = min(one.offset, other.offset)
    end = max(one.offset + one.size, other.offset + other.size)
    return one._replace(
        size=end - offset, offset=offset, first=max(one.first, other.first), last=min(one.last, other.last)
    )


def _sources(windows: Iterable[Window | None]) -> frozenset[int]:
    return frozenset(window.source for window in windows if window)


def _untracked(operand: Seen, axes: Iterable[int], name: str) -> None:
    if any(operand.axes[axis] for axis in axes):
        raise _UnknownWindowError(f"{name} along an axis of the map")


# One rule a kind of primitive: from the step and what its operands see to what its results see.


def _elementwise(step: Any, operands: list[Seen]) -> list[Seen]:
    rank = len(step.outvars[0].aval.shape)
    full = [one.axes for one in operands if len(one.axes) == rank]  # the others are scalars
    return [Seen(tuple(reduce(_join, windows) for windows in zip(*full, strict=True)))] * len(step.outvars)


def _each(step: Any, operands: list[Seen]) -> list[Seen]:
    del step
    return operands


def _convolution(step: Any, operands: list[Seen]) -> list[Seen]:
    (maps, kernel), params = operands, step.params
    numbers = params["dimension_numbers"]
    if any(kernel.axes) or kernel.whole:
        raise _UnknownWindowError("a convolution whose kernel depends on the image")
    shape = step.outvars[0].aval.shape
    axes: list[Window | None] = [None] * len(shape)
    axes[numbers.out_spec[0]] = maps.axes[numbers.lhs_spec[0]]
    for k, (source, target) in enumerate(zip(numbers.lhs_spec[2:], numbers.out_spec[2:], strict=True)):
        if maps.axes[source] and params["lhs_dilation"][k] != 1:
            raise _UnknownWindowError("a transposed convolution")
        axes[target] = _slide(
            maps.axes[source],
            shape[target],
            step.invars[1].aval.shape[numbers.rhs_spec[2 + k]],
            params["window_strides"][k],
            params["padding"][k][0],
            params["rhs_dilation"][k],
        )
    return [Seen(tuple(axes), _sources([maps.axes[numbers.lhs_spec[1]]]))]


def _reduce_window(step: Any, operands: list[Seen]) -> list[Seen]:
    params = step.params
    _untracked(operands[0], [k for k, d in enumerate(params["base_dilation"]) if d != 1], "dilation")
    names = ("window_dimensions", "window_strides", "padding", "window_dilation")
    sizes, strides, pads, dilations = (params[name] for name in names)
    lows, shape = (low for low, _ in pads), step.outvars[0].aval.shape
    return [Seen(tuple(map(_slide, operands[0].axes, shape, sizes, strides, lows, dilations)))]


def _slice(step: Any, operands: list[Seen]) -> list[Seen]:
    starts = step.params["start_indices"]
    strides = step.params["strides"] or (1,) * len(starts)
    shape = step.outvars[0].aval.shape
    rows = zip(operands[0].axes, shape, strides, starts, strict=True)
    return [Seen(tuple(_slide(axis, count, 1, stride, -start) for axis, count, stride, start in rows))]


def _split(step: Any, operands: list[Seen]) -> list[Seen]:
    axis, start, results = step.params["axis"], 0, []
    for size in step.params["sizes"]:
        axes = list(operands[0].axes)
        axes[axis] = _slide(axes[axis], size, low=-start)
        results.append(Seen(tuple(axes)))
        start += size
    return results


def _pad(step: Any, operands: list[Seen]) -> list[Seen]:
    config = step.params["padding_config"]
    _untracked(operands[0], [k for k, one in enumerate(config) if one[2]], "padding between the pixels")
    rows = zip(operands[0].axes, step.outvars[0].aval.shape, config, strict=True)
    return [Seen(tuple(_slide(axis, count, low=low) for axis, count, (low, _, _) in rows))]


def _dot(step: Any, operands: list[Seen]) -> list[Seen]:
    (left, right), (contracted, batch) = operands, step.params["dimension_numbers"]
    axes = [_join(left.axes[i], right.axes[j]) for i, j in zip(*batch, strict=True)]
    for one, summed, shared in zip((left, right), contracted, batch, strict=True):
        axes += [axis for k, axis in enumerate(one.axes) if k not in (*summed, *shared)]
    lost = [one.axes[k] for one, summed in zip((left, right), contracted, strict=True) for k in summed]
    return [Seen(tuple(axes), _sources(lost))]


def _reduce(step: Any, operands: list[Seen]) -> list[Seen]:
    gone, axes = step.params["axes"], operands[0].axes
    left = tuple(axis for k, axis in enumerate(axes) if k not in gone)
    return [Seen(left, _sources(axes[k] for k in gone))] * len(step.outvars)


def _along(step: Any, operands: list[Seen]) -> list[Seen]:
    """Steps along one axis that treat every other position alike."""
    params = step.params
    axis = next(params[name] for name in ("axis", "dimension", "dimensions") if name in params)
    for one in operands:
        _untracked(one, axis if isinstance(axis, tuple) else (axis,), step.primitive.name)
    return _elementwise(step, operands)


def _broadcast(step: Any, operands: list[Seen]) -> list[Seen]:
    shape, old = step.params["shape"], step.invars[0].aval.shape
    axes: list[Window | None] = [None] * len(shape)
    for k, target in enumerate(step.params["broadcast_dimensions"]):
        if old[k] != shape[target]:
            _untracked(operands[0], [k], "broadcasting")
        axes[target] = operands[0].axes[k]
    return [Seen(tuple(axes))]


def _transpose(step: Any, operands: list[Seen]) -> list[Seen]:
    return [Seen(tuple(operands[0].axes[k] for k in step.params["permutation"]))]


def _squeeze(step: Any, operands: list[Seen]) -> list[Seen]:
    gone = step.params["dimensions"]
    _untracked(operands[0], gone, "removal of a position")
    return [Seen(tuple(axis for k, axis in enumerate(operands[0].axes) if k not in gone))]


def _reshape(step: Any, operands: list[Seen]) -> list[Seen]:
    """An axis is kept where it has the same length and as many entries before it."""
    old, new = step.invars[0].aval.shape, step.outvars[0].aval.shape
    axes: list[Window | None] = [None] * len(new)
    for k, window in enumerate(operands[0].axes):
        if window is None:
            continue
        found = [m for m in range(len(new)) if new[m] == old[k] and math.prod(new[:m]) == math.prod(old[:k])]
        if k not in found and len(found) != 1:
            raise _UnknownWindowError(f"a reshape of {old} to {new}")
        axes[k if k in found else found[0]] = window
    return [Seen(tuple(axes))]


# fmt: off
_CALLS = frozenset((
    "jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call",
    "custom_vjp_call_jaxpr",
))
_Rule = Callable[[Any, list[Seen]], list[Seen]]
_NAMES: dict[_Rule, tuple[str, ...]] = {
    _convolution: ("conv_general_dilated",),
    _reduce_window: ("reduce_window_max", "reduce_window_min", "reduce_window_sum"),
    _slice: ("slice",),
    _split: ("split",),
    _pad: ("pad",),
    _dot: ("dot_general",),
    _broadcast: ("broadcast_in_dim",),
    _transpose: ("transpose",),
    _squeeze: ("squeeze",),
    _reshape: ("reshape",),
    _each: ("optimization_barrier",),
    _reduce: ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"),
    _along: ("concatenate", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "rev"),
    _elementwise: (
        "abs", "add", "add_any", "and", "atan2", "cbrt", "ceil", "clamp", "convert_element_type", "copy", "cos", "cosh", "div",
        "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log",
        "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or", "pow", "reduce_precision", "rem",
        "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor",
    ),
}
# fmt: on
_RULES = {name: rule for rule, names in _NAMES.items() for name in names}
