"""Numbers for people: the forms in which every table and sentence gives them."""

import math


def number(value: float | None, digits: int = 2) -> str:
    """A number: real minus sign, thousands grouped, a dash for what is missing or not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    rounded = round(value, digits) + 0.0  # + 0.0 turns -0.0 into 0.0
    text = f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:.{digits}f}"
    return text.replace("-", "−")


def interval(value: float | None, low: float | None, high: float | None, digits: int = 2) -> str:
    """A number with the interval around it, such as 0.42 (0.21 to 0.55); the number alone where there is no interval."""
    text = number(value, digits)
    return (
        text if low is None or high is None else f"{text} ({number(low, digits)} to {number(high, digits)})"
    )


def span(low: float, high: float, digits: int = 2) -> str:
    """The ends of an interval alone; a dash where there is none."""
    return "–" if math.isnan(low) else f"{number(low, digits)} to {number(high, digits)}"


def percent(share: float | None) -> str:
    """A share in per cent."""
    text = number(None if share is None else 100 * share, 0)
    return text if text == "–" else f"{text} %"


def signed(value: float, digits: int = 2) -> str:
    """A difference, with its sign."""
    text = number(value, digits)
    return text if value < 0 or text == "–" else f"+{text}"
