"""How every figure of the report looks, and how it becomes a file."""

import functools
import io
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_Draw = TypeVar("_Draw", bound=Callable[..., Any])

# Okabe-Ito colours; markers and dashes differ too, so that the curves can be told apart in grey.
BLUE, ORANGE, RED, GREEN, DARK = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#3c3c3c"
SHADE = "#f8e7d7"
_STYLE: dict[Any, Any] = {
    **{name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"},
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "scalecov_jax",
}
MOST_NAMES = 26  # of layers that can stand side by side
WIDTH = 5.0  # inches; with the fonts above, text keeps about 10 px when shown 400 px wide


def styled(draw: _Draw) -> _Draw:
    """Draw with matplotlib's own defaults, whatever the user's matplotlibrc says."""

    @functools.wraps(draw)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return wrapped  # pyright: ignore[reportReturnType]


def r2_axis(axes: Axes, top: float) -> None:
    """An ordinate of exp(R2 - 1), up to `top`, on which no far negative R2 hides the others; R2 itself stands on the right."""
    right, low = axes.twinx(), -0.02
    for side, name in ((axes, "exp(R² − 1)"), (right, "R²")):
        side.set_ylabel(name)
        side.set_ylim(low, top)
    axes.set_yticks(np.linspace(0, 1, 6))
    ticks = np.array([-2, -1, -0.5, 0, 0.25, 0.5, 0.75, 1])
    right.set_yticks(np.exp(ticks - 1), [f"{tick:g}".replace("-", "−") for tick in ticks])
    right.spines["right"].set_visible(True)
    axes.set_zorder(right.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.axhline(np.exp(-1), color="#707070", linewidth=1, label="R² = 0: no better than the mean")


def name_layers(axes: Axes, names: Sequence[str]) -> None:
    """Name the layers along the abscissa: all, or where they are too many every n-th, the last among them."""
    shown = range(len(names) - 1, -1, -len(names) // MOST_NAMES)[::-1]
    axes.set_xticks(shown, [names[at] for at in shown], rotation=90)


def render(figure: Figure, image_format: Literal["png", "svg"]) -> bytes:
    """The figure as bytes of a PNG (150 dpi) or SVG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    metadata = {"Software": None} if image_format == "png" else {"Date": None, "Creator": None}
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format=image_format, dpi=150, facecolor="white", metadata=metadata)
    return buffer.getvalue()
