"""A published figure beside ours."""

from typing import NamedTuple


class Compared(NamedTuple):
    """One row of the tables of the paper's report, as texts for people.

    Attributes:
        section: Of the paper, such as 4.1.
        quantity: What was measured.
        published: The published value; a dash where there is none.
        ours: The value of this run.
        difference: Ours minus published; a dash where it means nothing.
        explanation: Why they differ or agree, in one line.
    """

    section: str
    quantity: str
    published: str
    ours: str
    difference: str
    explanation: str
