"""One self-contained HTML page with the answer, its evidence and its provenance."""

import base64
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from scalecov_jax.report.findings import Finding, table
from scalecov_jax.report.numbers import number, percent


class Image(NamedTuple):
    """A picture embedded in the page.

    Attributes:
        content: Bytes of an SVG, PNG or JPEG file.
        alt: What the picture says, for those who cannot see it.
        caption: Shown under the picture.
        wide: Takes the full width of the page.
        name: Of the files that the runner writes to figures/; none when empty.
        png: The same picture as a PNG file, for these files.
    """

    content: bytes
    alt: str
    caption: str = ""
    wide: bool = False
    name: str = ""
    png: bytes = b""


class Table(NamedTuple):
    """A table of ready texts; the first column names the rows, those in `strong` are emphasised."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: Collection[int] = ()


class Section(NamedTuple):
    """An extra part of the page; blank lines separate the paragraphs of `text`, which `html` from a template may follow."""

    heading: str
    text: str
    images: Sequence[Image] = ()
    tables: Sequence[Table] = ()
    html: Markup = Markup()


class Method(NamedTuple):
    """The paper that the page follows."""

    authors: str
    title: str
    where: str
    doi: str


GRAZIANI = Method(
    "Graziani et al.",
    "On the Scale Invariance in State of the Art CNNs Trained on ImageNet",
    "Machine Learning and Knowledge Extraction 2021, 3, 374–391",
    "10.3390/make3020019",
)
DE_LA_TORRE = Method(
    "de la Torre, Valls, Puig",
    "A Deep Learning Interpretable Classifier for Diabetic Retinopathy Disease Grading",
    "Neurocomputing 2020, 396, 465–476",
    "10.1016/j.neucom.2018.07.102",
)


class Report(NamedTuple):
    """The data of one page.

    Attributes:
        title: Heading and browser title.
        answer: The result in one plain sentence; line breaks part those of several networks.
        warnings: What a reader must know before trusting the numbers.
        skipped: Names of the images left out, by reason.
        sections: Figures, tables and text.
        provenance: Command, seed, versions, config, checksum, device, date, wall time; in this order.
        reading: How to read the page, term by term, or as text from a template.
        method: Named below it.
        lead: A figure under the answer.
    """

    title: str
    answer: str
    warnings: Sequence[str] = ()
    skipped: Mapping[str, Sequence[str]] = {}
    sections: Sequence[Section] = ()
    provenance: Mapping[str, str] = {}
    reading: Mapping[str, str] | Markup = Markup()
    method: Method = GRAZIANI
    lead: Image | None = None


class Page(NamedTuple):
    """What the `report` of an experiment returns; `Page.report` makes the file of it.

    Attributes:
        title: Heading and browser title.
        findings: All numbers of the experiment that a reader should not have to look for.
        sections: Figures, tables and text.
        reading: How to read the page, from a template.
        skipped: Names of the images left out, by reason.
        lead: The figure under the headlines.
        facts: What other programs read from summary.json beside findings and settings.
        method: The paper that it follows.
    """

    title: str
    findings: Sequence[Finding]
    sections: Sequence[Section]
    reading: Markup = Markup()
    skipped: Mapping[str, Sequence[str]] = {}
    lead: Image | None = None
    facts: Mapping[str, Any] = {}
    method: Method = GRAZIANI

    @property
    def images(self) -> list[Image]:
        """All pictures, the leading one first."""
        lead = [self.lead] if self.lead else []
        return [*lead, *(image for section in self.sections for image in section.images)]

    def sentences(self, level: str) -> list[str]:
        """The findings of one level in words."""
        return [finding.sentence for finding in self.findings if finding.level == level]

    def report(self, provenance: Mapping[str, str]) -> Report:
        """The data of the file: headlines, cautions, all other findings in a table, and the sections."""
        return Report(
            self.title,
            "\n".join(self.sentences("headline")),
            warnings=self.sentences("caution"),
            skipped=self.skipped,
            lead=self.lead,
            sections=[
                Section("Findings", "", tables=[Table("Intervals in brackets.", *table(self.findings))]),
                *self.sections,
            ],
            provenance=provenance,
            reading=self.reading,
            method=self.method,
        )


def _data_uri(content: bytes) -> str:
    kinds = {b"\x89PNG": "image/png", b"\xff\xd8": "image/jpeg"}
    kind = next((kind for magic, kind in kinds.items() if content.startswith(magic)), None)
    if kind is None and b"<svg" in content[:2000]:
        kind = "image/svg+xml"
    if kind is None:
        raise ValueError(
            f"An image of the report must be SVG, PNG or JPEG; got bytes that begin {content[:16]!r}."
        )
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def render_report(report: Report) -> str:
    """The page as HTML with every style and picture inside, and no script."""
    return _environment().get_template("page.html").render(report=report)


def render_text(template: str, part: str, **values: Any) -> Markup:
    """One macro of a template in `report/templates`, as HTML in which the values are escaped.

    Args:
        template: Name of the file.
        part: Name of the macro.
        values: Its arguments.
    """
    return Markup(getattr(_environment().get_template(f"templates/{template}").module, part)(**values))


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "percent": percent,
        "data_uri": _data_uri,
    }
    return environment


def write_report(path: Path, report: Report) -> None:
    """Write the page as UTF-8."""
    path.write_text(render_report(report), encoding="utf-8")
