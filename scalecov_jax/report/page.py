"""One self-contained HTML page with the answer, its evidence and its provenance."""

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from scalecov_jax.report.findings import Finding, table
from scalecov_jax.report.numbers import number, percent
from scalecov_jax.report.style import render


@dataclass(frozen=True)
class Image:
    """A picture embedded in the page; a figure becomes bytes when it is first shown."""

    drawing: bytes | Figure  # bytes of a PNG or JPEG file, or a figure
    alt: str  # what the picture says, for those who cannot see it
    caption: str = ""  # shown under the picture
    wide: bool = False  # takes the full width of the page
    name: str = ""  # of the files that the runner writes to figures/; none when empty

    @cached_property
    def content(self) -> bytes:
        """Bytes of an SVG, PNG or JPEG file."""
        return self.drawing if isinstance(self.drawing, bytes) else render(self.drawing, "svg")

    @cached_property
    def png(self) -> bytes:
        """A figure as a PNG file."""
        return self.drawing if isinstance(self.drawing, bytes) else render(self.drawing, "png")

    def _repr_html_(self) -> str:
        """For notebooks."""
        return f'<img src="{_data_uri(self.content)}" alt="{escape(self.alt)}" style="max-width: 100%">'


class Table(NamedTuple):
    """A table of ready texts; the first column names the rows, those in `strong` are emphasised."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: Collection[int] = ()

    @classmethod
    def of(cls, caption: str, frame: pd.DataFrame, strong: Collection[int] = ()) -> "Table":
        """The cells of a data frame of texts, without its index."""
        return cls(caption, [*map(str, frame)], [*frame.itertuples(index=False, name=None)], strong)

    @classmethod
    def by_layer(
        cls,
        caption: str,
        columns: Mapping[str, pd.Series],
        layers: Sequence[str],
        strong: Collection[str] = (),
    ) -> "Table":
        """A row per layer, a dash where a column has none; the layers `strong` are emphasised."""
        frame = pd.DataFrame(dict(columns), index=pd.Index(layers, name="layer")).astype(object).fillna("–")
        return cls.of(caption, frame.reset_index(), [at for at, x in enumerate(layers) if x in strong])


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
    """The data of one page."""

    title: str  # heading and browser title
    answer: str  # the result in one plain sentence; line breaks part those of several networks
    warnings: Sequence[str] = ()  # what a reader must know before trusting the numbers
    skipped: Mapping[str, Sequence[str]] = {}  # names of the images left out, by reason
    sections: Sequence[Section] = ()  # figures, tables and text
    # command, seed, versions, config, checksum, device, date, wall time; in this order
    provenance: Mapping[str, str] = {}
    # how to read the page, from a template
    reading: Markup = Markup()
    method: Method = GRAZIANI  # named below it
    lead: Image | None = None  # A figure under the answer


class Page(NamedTuple):
    """What the `report` of an experiment returns; `Page.report` makes the file of it."""

    title: str  # heading and browser title
    findings: Sequence[Finding]  # all numbers of the experiment that a reader should not have to look for
    sections: Sequence[Section]  # figures, tables and text
    reading: Markup = Markup()  # how to read the page, from a template
    skipped: Mapping[str, Sequence[str]] = {}  # names of the images left out, by reason
    lead: Image | None = None  # the figure under the headlines
    facts: Mapping[str, Any] = {}  # what other programs read from summary.json beside findings and settings
    method: Method = GRAZIANI  # the paper that it follows

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
    """One macro of a template in `report/templates`, as HTML in which the values are escaped."""
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
