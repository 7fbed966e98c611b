"""What an experiment found, number by number, in one form for the page, summary.json, the terminal and the paper's tables."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from scalecov_jax.report.numbers import interval, number, signed


@dataclasses.dataclass(frozen=True)
class Finding:
    """One number, and what is needed to judge it."""

    quantity: str  # what was measured and how, such as "median R² of the width under GAP, ridge"
    at: str  # where, such as "InceptionV3 mixed0, 75 to 500 px"
    value: float
    low: float | None = None  # lower end of its interval; None where there is none
    high: float | None = None  # upper end of its interval
    interval: str = ""  # what the interval is, such as "quartiles of 25 splits"
    unit: str = ""  # of all three, such as "px" or "%"
    # the published value: a number, or words where only words are printed; None if nothing was published
    published: float | str | None = None
    source: str = ""  # where it was published
    note: str = ""  # A sentence on how to read the number
    # headline (stands on top of the page), result, or caution (what to know before trusting the others)
    level: Literal["headline", "result", "caution"] = "result"
    digits: int | None = None  # decimals of value and interval; by default none of %, two of all else

    @property
    def shown(self) -> str:
        """Value, interval and unit."""
        digits = (0 if self.unit == "%" else 2) if self.digits is None else self.digits
        return interval(self.value, self.low, self.high, digits) + (f" {self.unit}" if self.unit else "")

    @property
    def reported(self) -> str:
        """The published value, or a dash."""
        if isinstance(self.published, str):
            return self.published
        return number(self.published, 2 if self.digits is None else self.digits)

    @property
    def difference(self) -> str:
        """Ours minus published; a dash where nothing, or no number, was published."""
        return (
            "–"
            if self.published is None or isinstance(self.published, str)
            else signed(self.value - self.published, 2 if self.digits is None else self.digits)
        )

    @property
    def sentence(self) -> str:
        """All in one sentence, and the note."""
        shown = self.shown.replace("(", f"({self.interval} ".replace("( ", "("), 1)
        text = f"{self.at}: {self.quantity} is {shown}"
        if self.published is not None:
            text += f"; published: {self.reported}" + (f" ({self.source})" if self.source else "")
        return f"{text}. {self.note}".strip()

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the sentence."""
        return {**dataclasses.asdict(self), "sentence": self.sentence}


def table(findings: Iterable[Finding]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of all findings but cautions; published and difference where anything was published."""
    shown = [finding for finding in findings if finding.level != "caution"]
    if all(finding.published is None for finding in shown):
        return ("quantity", "at", "value"), [
            (finding.quantity, finding.at, finding.shown) for finding in shown
        ]
    rows = [(x.quantity, x.at, x.shown, x.reported, x.difference) for x in shown]
    return ("quantity", "at", "value", "published", "difference"), rows


def text_table(findings: Sequence[Finding]) -> str:
    """The same table for the terminal, and the cautions below."""
    columns, rows = table(findings)
    lines = aligned([columns, *rows])
    cautions = (f"Caution: {finding.sentence}" for finding in findings if finding.level == "caution")
    return "\n".join([lines, *cautions])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lines of text whose columns stand one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
