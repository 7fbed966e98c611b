"""The concept measures by name, as configs and tables write them."""

import inspect
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

from scalecov_jax.concepts import colour, nuisance, scale, shape, texture
from scalecov_jax.concepts.csv_column import csv_column
from scalecov_jax.imaging.image_set import Example


class ConceptMeasure(NamedTuple):
    """One number an image."""

    name: str  # as in configs and tables, such as glcm_contrast
    # pure; a ValueError that begins with the example's name says what it lacks (box, mask ...)
    measure: Callable[[Example], float]
    unit: str = ""  # such as px; empty for a pure number
    title: str = ""  # for people, such as GLCM contrast
    # makes `measure` from parameters with defaults, which a name can then set: `name:distance=5:angle=45`
    configure: Callable[..., Callable[[Example], float]] | None = None
    # false if `measure` needs only name, box, height and width, so that images need not be decoded
    reads_pixels: bool = True


def _configured(
    name: str, configure: Callable[..., Callable[[Example], float]], unit: str, title: str
) -> ConceptMeasure:
    return ConceptMeasure(name, configure(), unit, title, configure)


_GLCM_UNITS = {"contrast": "levels^2", "dissimilarity": "levels"}
_SHAPE_UNITS = {"area": "px^2", "perimeter": "px", "major_axis": "px"}
_GLCM_TITLES = {name: f"GLCM {'ASM' if name == 'asm' else name}" for name in texture.PROPERTIES}

# To add a measure: MEASURES["mine"] = ConceptMeasure("mine", lambda example: ...).
MEASURES: dict[str, ConceptMeasure] = {
    one.name: one
    for one in (
        ConceptMeasure("scale", scale.measure, "", "object scale", reads_pixels=False),
        ConceptMeasure("sqrt_scale", scale.sqrt_scale, "", "square root of object scale", reads_pixels=False),
        ConceptMeasure("log_scale", scale.log_scale, "", "logarithm of object scale", reads_pixels=False),
        *(
            _configured(f"glcm_{name}", partial(texture.glcm, name), _GLCM_UNITS.get(name, ""), title)
            for name, title in _GLCM_TITLES.items()
        ),
        *(
            _configured(
                f"glcm_{name}_masked",
                partial(texture.masked_glcm, name),
                _GLCM_UNITS.get(name, ""),
                f"{title} of the foreground",
            )
            for name, title in _GLCM_TITLES.items()
        ),
        _configured("colourfulness", colour.colourfulness_measure, "levels", "colourfulness"),
        *(
            _configured(f"{name}_share", partial(colour.colour_share_measure, name), "", f"share of {name}")
            for name in colour.COLOURS
        ),
        *(
            _configured(
                name,
                partial(shape.mean_property, name, 0),
                _SHAPE_UNITS.get(name, ""),
                f"mean {name.replace('_', ' ')} of the instances",
            )
            for name in shape.PROPERTIES
        ),
        *(
            _configured(
                f"{name}_um{power if power > 1 else ''}",
                partial(shape.mean_property, name, power),
                _SHAPE_UNITS[name].replace("px", "um"),
                f"mean {name.replace('_', ' ')} of the instances in microns",
            )
            for name, power in (("area", 2), ("perimeter", 1), ("major_axis", 1))
        ),
        _configured("count", shape.count, "", "number of instances"),
        ConceptMeasure(
            "log2_mpp", scale.log2_mpp, "", "logarithm of microns per pixel, base 2", reads_pixels=False
        ),
        ConceptMeasure("image_width", nuisance.image_width, "px", "width of the image", reads_pixels=False),
        ConceptMeasure(
            "image_height", nuisance.image_height, "px", "height of the image", reads_pixels=False
        ),
        ConceptMeasure("image_area", nuisance.image_area, "px^2", "area of the image", reads_pixels=False),
        *(
            ConceptMeasure(f"mean_{name}", nuisance.mean_channel(index), "levels", f"mean {name}")
            for index, name in enumerate(("red", "green", "blue"))
        ),
        ConceptMeasure("mean_luminance", nuisance.mean_luminance, "levels", "mean luminance"),
        ConceptMeasure("luminance_sd", nuisance.luminance_sd, "levels", "standard deviation of luminance"),
        ConceptMeasure(
            "box_centre_x", nuisance.box_centre_x, "", "box centre, left to right", reads_pixels=False
        ),
        ConceptMeasure(
            "box_centre_y", nuisance.box_centre_y, "", "box centre, top to bottom", reads_pixels=False
        ),
        ConceptMeasure("file_size", nuisance.file_size, "bytes/px", "file size per pixel"),
    )
}


def get_measure(name: str) -> ConceptMeasure:
    """The concept measure of a name.

    Args:
        name: A key of `MEASURES`; one with parameters, as `glcm_contrast:distance=1-5:angle=0-45-90-135` (several values are
            joined by -, flags are 0 or 1); or `csv:PATH:COLUMN`, see `csv_column.csv_column`.

    Raises:
        ValueError: No such measure (nearest names are given), or parameters that it has not or that are out of range.
    """
    name = name.strip()
    if name in MEASURES:
        return MEASURES[name]
    if name.startswith("csv:"):
        path, column = csv_parts(name)
        if not path:
            raise ValueError(f"{name}: expected csv:PATH:COLUMN, as in csv:ages.csv:age.")
        return ConceptMeasure(name, csv_column(path, column), "", column, reads_pixels=False)
    base, *given = name.split(":")
    if base not in MEASURES:
        near = " or ".join(get_close_matches(base, MEASURES, n=3))
        hint = f"Did you mean {near}?" if near else f"There are {', '.join(MEASURES)} and csv:PATH:COLUMN."
        raise ValueError(f"There is no concept measure {base!r}. {hint}")
    entry = MEASURES[base]
    values = _parameters(name, entry, given)
    try:
        measure = entry.measure if entry.configure is None else entry.configure(**values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return entry._replace(name=name, measure=measure, title=f"{entry.title} ({', '.join(given)})")


def csv_parts(text: str) -> tuple[str, str]:
    """File and column of csv:PATH:COLUMN; both empty where it is anything else."""
    path, _, column = text.strip().removeprefix("csv:").rpartition(":")
    return (path, column) if text.strip().startswith("csv:") and path and column else ("", "")


def get_measures(names: Sequence[str]) -> tuple[ConceptMeasure, ...]:
    """`get_measure` of every name.

    Raises:
        ValueError: The problems of all names at once, or a name that comes twice.
    """
    found: list[ConceptMeasure] = []
    problems = [f"{name} comes twice." for name in dict.fromkeys(names) if names.count(name) > 1]
    for name in names:
        try:
            found.append(get_measure(name))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(" ".join(problems))
    return tuple(found)


def _parameters(name: str, entry: ConceptMeasure, given: Sequence[str]) -> dict[str, Any]:
    signature = inspect.signature(entry.configure).parameters if entry.configure else {}
    defaults = {key: one.default for key, one in signature.items()}
    values, problems = {}, []
    for part in given:
        key, _, text = part.partition("=")
        if key not in defaults or key in values:
            problems.append(f"{key!r} {'comes twice' if key in values else 'is no parameter of it'}")
            continue
        try:
            values[key] = _value(text, defaults[key])
        except (ValueError, KeyError):
            problems.append(f"{key} is {text!r}")
    if problems:
        expected = ":".join(f"{key}={_text(default)}" for key, default in defaults.items())
        has = f"the parameters {expected}" if expected else "no parameters"
        raise ValueError(f"{name}: {'; '.join(problems)}; {entry.name} has {has}.")
    return values


def _value(text: str, default: Any) -> Any:
    if isinstance(default, bool):
        return {"0": False, "1": True}[text]
    if isinstance(default, tuple):
        return tuple(map(int, text.split("-")))
    return type(default)(text)


def _text(default: Any) -> str:
    return "-".join(map(str, default)) if isinstance(default, tuple) else str(default * 1)
