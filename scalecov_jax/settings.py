"""Settings of experiments: frozen dataclasses whose fields carry bounds, choices and a sentence of help.

Example:
    @dataclass(frozen=True)
    class Settings(settings.Base):
        sizes: tuple[int, ...] = setting((64, 128), low=1, least=2, help="widths of the images in pixels")
        scaling: Literal["common", "each"] = setting("common", help="of features")

    Settings(sizes=(32, 64))
    parse(Settings, {"sizes": "32,64"})  # the same, from text as flags give it
"""

import dataclasses
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

_Settings = TypeVar("_Settings", bound="Base")


class SettingsError(ValueError):
    """Settings that cannot be used; `problems` names every one of them, beginning with the field."""

    def __init__(self, problems: Sequence[str], prefix: str = ""):
        self.problems = tuple(problems)
        super().__init__("; ".join(prefix + problem for problem in problems) + ".")


def setting(
    default: Any,
    *,
    help: str,
    low: int | float | None = None,
    high: int | float | None = None,
    least: int = 0,
    distinct: bool = False,
) -> Any:
    """A field of settings.

    Bounds `low` and `high` are for each number in a tuple; `least` is how many values a tuple, or characters a text, must have,
    `distinct` whether the values of a tuple must differ. `help` is one sentence for `describe`, without the default.
    """
    allowed = {"low": low, "high": high, "least": least, "distinct": distinct}
    return dataclasses.field(default=default, metadata={"help": help, **allowed})


@dataclasses.dataclass(frozen=True)
class Base:
    """Settings that have been checked: none can exist with a value that its field does not allow.

    Fields are annotated str, int, float, bool, Literal of texts, tuple[T, ...] or tuple[int, int].

    Raises:
        SettingsError: Values of another type, out of bounds or unknown, and what `problems` finds; all at once.
    """

    def __post_init__(self) -> None:
        values, unread, wrong = _read_all(type(self), vars(self))
        for name, value in values.items():
            object.__setattr__(self, name, value)  # the way of frozen dataclasses
        if not unread:  # else the fields could not be reckoned with
            wrong += self.problems()
        if unread or wrong:
            raise SettingsError([*unread, *wrong])

    def problems(self) -> list[str]:
        """What is wrong with several fields together, each problem beginning with the name of a field; none by default."""
        return []


def parse(kind: type[_Settings], given: Mapping[str, Any], prefix: str = "") -> _Settings:
    """Settings from a mapping, such as a ConfigDict or JSON; fields that are absent keep their defaults.

    Tuples may be lists or text ("24,32"; pairs "75-150,150-300"), numbers may be text. The prefix stands before the name of each
    field in errors, such as "config.".

    Raises:
        SettingsError: Names that are no fields, with the nearest ones, and what the constructor refuses; all at once.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    problems = []
    for name in given:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            problems.append(
                f"{name} is no setting; "
                + (f"did you mean {near[0]}?" if near else f"expected {', '.join(names)}")
            )
    values, unread, wrong = _read_all(kind, {name: value for name, value in given.items() if name in names})
    if not unread:
        try:
            settings = kind(**values)
            if not problems:
                return settings
        except SettingsError as error:
            wrong = error.problems
    raise SettingsError([*problems, *unread, *wrong], prefix)


def with_home(text: str) -> str:
    """A setting or an argument in which ~ at the beginning of a path is the home folder, as in csv:~/ages.csv:age.

    Raises:
        ValueError: No home folder is known; the message follows the name of what is given.
    """
    try:
        return re.sub(r"(?:(?<=[:=,])|^)~(?=/|$)", lambda _: str(Path.home()), text)
    except RuntimeError:
        raise ValueError(f"is {text!r}; expected a whole path, since no home folder is known") from None


def together(*steps: Callable[[], Any]) -> list[Any]:
    """What each step returns; where some refuse, all are tried and one ValueError has their messages."""
    done, problems = [], []
    for step in steps:
        try:
            done.append(step())
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(" ".join(dict.fromkeys(problems)))
    return done


def flag_values(settings: Base) -> dict[str, Any]:
    """All values by field as a ConfigDict takes them: tuples as text, so that flags can replace them."""
    values = dataclasses.asdict(settings)
    return {name: _text(value) if isinstance(value, tuple) else value for name, value in values.items()}


def describe(kind: type[Base], flag: str = "--config.") -> str:
    """Name, default and sentence of every field, for --help."""
    lines = ["Settings and their defaults; the values of a list are separated by commas:"]
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        choices = _choices(hints[field.name])
        sentence = field.metadata["help"] + (f" ({' or '.join(choices)})" if choices else "")
        lines.append(f"  {flag}{field.name}={_text(field.default)}")
        lines += textwrap.wrap(sentence, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _read_all(kind: type[Base], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Values as the annotations have them, what cannot be read so, and what is not allowed."""
    hints, values, unread, wrong = get_type_hints(kind), {}, [], []
    for field in dataclasses.fields(kind):
        if field.name in given:
            try:
                values[field.name] = _read(given[field.name], hints[field.name])
            except ValueError as error:
                unread.append(f"{field.name} {error}")
                continue
            if problem := _problem(values[field.name], field.metadata):
                wrong.append(f"{field.name} {problem}")
    return values, unread, wrong


def _choices(hint: Any) -> tuple[str, ...]:
    return get_args(hint) if get_origin(hint) is Literal else ()


def _read(value: Any, hint: Any) -> Any:
    """A value as its annotation has it.

    Raises:
        ValueError: It cannot be read so; the message follows the name of the field.
    """
    if get_origin(hint) is tuple:
        kind, *rest = get_args(hint)
        endless = rest == [Ellipsis]
        if isinstance(value, str):
            value = [part.strip() for part in value.split("," if endless else "-") if part.strip()]
        if not isinstance(value, list | tuple):
            raise ValueError(f"is {value!r}; expected several values")
        if endless:
            return tuple(_read(element, kind) for element in value)
        if len(value) != 2:
            raise ValueError(f"has {'-'.join(map(str, value))!r}; expected two integers such as 150-300")
        return tuple(_read(element, int) for element in value)
    if choices := _choices(hint):
        if value in choices:
            return value
        near = get_close_matches(str(value), choices, n=1)
        nearest = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"is {value!r}; expected one of {', '.join(choices)}{nearest}")
    value = with_home(value) if isinstance(value, str) else value
    names = {int: "an integer", float: "a number", bool: "True or False", str: "text"}
    if isinstance(value, bool) == (hint is bool):
        try:
            read = hint(value) if hint in (int, float) else value
            if (
                isinstance(read, hint)
                and (isinstance(value, str) or read == value)
                and math.isfinite(read if hint is float else 0)
            ):
                return read
        except (ValueError, TypeError):
            pass
    raise ValueError(f"is {value!r}; expected {names[hint]}")


def _problem(value: Any, allowed: Mapping[str, Any]) -> str:
    """What is not allowed in a value, to follow the name of its field; empty if nothing is."""
    values, given = (value, _text(value)) if isinstance(value, tuple) else ((value,), value)
    low, high, least = (allowed[name] for name in ("low", "high", "least"))
    if least and len(value) < least:
        return f"is {given!r}; expected at least {least} value{'s' if least > 1 else ''}"
    if allowed["distinct"] and len({*values}) < len(values):
        return f"is {given!r}; expected different values"
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    wrong = [
        element for element in values if not isinstance(element, str | tuple) and not low <= element <= high
    ]
    expected = f"at least {low}" if high == math.inf else f"{low} to {high}"
    return f"is {given!r}; expected {expected}" if wrong else ""


def _text(value: Any) -> str:
    """A value as a flag gives it."""
    if not isinstance(value, tuple):
        return str(value)
    return ",".join(
        "-".join(map(str, element)) if isinstance(element, tuple) else str(element) for element in value
    )
