"""One self-contained HTML page with the answer, its evidence and its provenance."""

import base64
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from scalecov_jax.models.pruning import Pruning
from scalecov_jax.report import figures, style
from scalecov_jax.report.findings import Finding, table
from scalecov_jax.report.numbers import number, percent
from scalecov_jax.scores import Condition, Estimator, Score
from scalecov_jax.selection import Selected, interpolates

READING = {
    "R²": "says how well a linear probe on the pooled features of a layer predicts the concept on images it was not fitted to. "
    "1 is perfect, 0 is no better than always answering the mean, below 0 is worse than that: the probe over-fitted. A "
    "negative R² does not show that the network ignores the concept.",
    "Two estimators.": "Least squares is what was published. Where a layer has about as many features (D) as there are "
    "training images (n_train), least squares fits the training images exactly and fails on others, whatever the layer knows. "
    "Ridge, with its penalty chosen on the training images alone, does not have this dip; read it to compare layers.",
    "Controls.": "Random weights show what the architecture gives without learning. The shuffled measure shows what the probe "
    "finds where there is nothing to find: about 0 for ridge, far below 0 for least squares.",
    "± is one standard deviation over random splits": "of the same images: how much the score hangs on the split. As the "
    "splits share their images, it does not tell what other images would give, and more splits would not make new images. "
    "The 95 % intervals tell that, where the page gives them, such as 0.59 to 0.81.",
}
"""What explains the scores of probes."""


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


class LayerRow(NamedTuple):
    """Mean and sd of R2 over splits at one layer; None where nothing was measured."""

    layer: str
    width: int
    ratio: float
    ols: tuple[float, float] | None
    ridge: tuple[float, float] | None
    ridge_random_weights: tuple[float, float] | None
    ridge_shuffled_measure: tuple[float, float] | None
    alpha: float | None


class ArchitectureResult(NamedTuple):
    """Everything measured on one architecture."""

    name: str
    subtitle: str
    selected: Sequence[Selected]
    rows: Sequence[LayerRow]
    pruning: Pruning | None = None
    images: Sequence[Image] = ()


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
        results: One entry an architecture.
        warnings: What a reader must know before trusting the numbers.
        skipped: Names of the images left out, by reason.
        sections: Extra parts after the results.
        provenance: Command, seed, versions, config, checksum, device, date, wall time; in this order.
        reading: How to read the page, term by term, or as text from a template.
        method: Named below it.
    """

    title: str
    answer: str
    results: Sequence[ArchitectureResult]
    warnings: Sequence[str] = ()
    skipped: Mapping[str, Sequence[str]] = {}
    sections: Sequence[Section] = ()
    provenance: Mapping[str, str] = {}
    reading: Mapping[str, str] | Markup = READING
    method: Method = GRAZIANI


class Page(NamedTuple):
    """What the `report` of an experiment returns; `Page.report` makes the file of it.

    Attributes:
        title: Heading and browser title.
        findings: All numbers of the experiment that a reader should not have to look for.
        sections: Figures, tables and text.
        reading: How to read the page, from a template.
        method: The paper that the page follows.
    """

    title: str
    findings: Sequence[Finding]
    sections: Sequence[Section]
    reading: Markup = Markup()
    method: Method = GRAZIANI

    def sentences(self, level: str) -> list[str]:
        """The findings of one level in words."""
        return [finding.sentence for finding in self.findings if finding.level == level]

    def report(self, provenance: Mapping[str, str]) -> Report:
        """The data of the file: headlines, cautions, all other findings in a table, and the sections."""
        return Report(
            self.title,
            "\n".join(self.sentences("headline")),
            results=(),
            warnings=self.sentences("caution"),
            sections=[
                Section("Findings", "", tables=[Table("Intervals in brackets.", *table(self.findings))]),
                *self.sections,
            ],
            provenance=provenance,
            reading=self.reading,
            method=self.method,
        )


def layer_rows(
    scores: Iterable[Score],
    architecture: str,
    widths: Mapping[str, int],
    n_train: int,
    image_class: str | None = None,
    *,
    ranks: Mapping[str, int] | None = None,
) -> list[LayerRow]:
    """Summarise the scores of each layer of `widths`, given in depth order; `ranks` counts independent features."""
    scores = list(scores)

    def summary(condition: Condition, estimator: Estimator) -> dict[str, tuple[float, float]]:
        values = figures.layer_values(scores, architecture, condition, estimator, image_class)
        return {layer: figures.mean_and_sd(r2) for layer, r2 in values.items()}

    ols, ridge = summary("trained", "ols"), summary("trained", "ridge")
    random_weights, shuffled = summary("random_weights", "ridge"), summary("shuffled_measure", "ridge")
    alphas: dict[str, list[float]] = {}
    for score in scores:
        wanted = (score.architecture, score.condition, score.estimator) == (architecture, "trained", "ridge")
        if wanted and score.alpha is not None and image_class in (None, score.image_class):
            alphas.setdefault(score.layer, []).append(score.alpha)
    return [
        LayerRow(
            layer=layer,
            width=width,
            ratio=(ranks or widths)[layer] / n_train,
            ols=ols.get(layer),
            ridge=ridge.get(layer),
            ridge_random_weights=random_weights.get(layer),
            ridge_shuffled_measure=shuffled.get(layer),
            alpha=float(np.median(alphas[layer])) if layer in alphas else None,
        )
        for layer, width in widths.items()
    ]


def embed(figure: Figure, alt: str, caption: str = "", *, wide: bool = False) -> Image:
    """A figure as an SVG image of the page."""
    return Image(style.render(figure, "svg"), alt, caption, wide)


def score_images(
    scores: Iterable[Score],
    architecture: str,
    widths: Mapping[str, int],
    n_train: int,
    selected: Sequence[Selected],
    image_class: str | None = None,
) -> list[Image]:
    """The curves of each selected estimator and the dip of least squares, with alt texts and captions."""
    scores, images = list(scores), []
    for estimator, layer, r2_mean, r2_sd in selected:
        figure = figures.score_curves(
            scores,
            architecture,
            estimator,
            list(widths),
            widths=widths,
            n_train=n_train,
            image_class=image_class,
            peak=layer,
        )
        name = {"ols": "Least squares", "ridge": "Ridge regression"}[estimator]
        images.append(
            embed(
                figure,
                f"{name}: R² by layer of {architecture} for trained weights, random weights "
                "and the shuffled measure (where measured). "
                f"The selected layer is {layer}, R² {number(r2_mean)} ± {number(r2_sd)}.",
                f"{name}. Bands are ±1 sd over splits. The ordinate exp(R² − 1) is the published one; R² stands on the right.",
            )
        )
    images.append(
        embed(
            figures.ols_against_width(scores, architecture, widths, n_train, image_class=image_class),
            f"Mean R² of ridge and least squares at each layer of {architecture} against D / n_train.",
            "Least squares collapses where a layer has about as many features (D) as training images, on "
            "pure noise as well (line): that dip says nothing about the layer.",
        )
    )
    return images


def answer_sentence(
    concept: str,
    selected: Selected,
    splits: int,
    images: str,
    pruning: Pruning | None = None,
    interval: tuple[float, float] | None = None,
    others: Sequence[str] = (),
) -> str:
    """The result in words.

    Args:
        concept: What is read.
        selected: The layer.
        splits: Number of splits.
        images: Counts and names them, such as "334 car images".
        pruning: The cut there.
        interval: Of 95 %; the sd over splits is told when absent.
        others: Layers that may be the best as well.
    """
    name = {"ols": "least squares", "ridge": "ridge"}[selected.estimator]
    spread = f" ± {number(selected.r2_sd)}"
    if interval is not None:
        spread = f", 95 % interval {number(interval[0])} to {number(interval[1])}"
    score = f"{name} R² {number(selected.r2_mean)}{spread}, {splits} splits, {images}"
    sentence = f"{concept} is best readable at {selected.layer} ({score})"
    if others:
        sentence += (
            f"; {' and '.join([', '.join(others[:-1]), others[-1]] if others[1:] else others)} may be as good"
        )
    if pruning:
        kept = pruning.parameters_after / pruning.parameters_before
        sentence += f"; cutting there keeps {100 * kept:.0f} % of the parameters"
    return f"{sentence}."


def _small(value: float) -> str:
    return f"{value:.1e}".replace("-", "−") if math.isfinite(value) and value else number(value, 0)


def _penalty(value: float | None) -> str:
    return f"{value:.3g}" if value is not None and value < 100 else number(value)


def _pair(value: tuple[float, float] | None) -> str:
    return "–" if value is None else f"{number(value[0])} ± {number(value[1])}"


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
    return (
        _environment()
        .get_template("page.html")
        .render(report=report, estimators={"ols": "least squares", "ridge": "ridge"})
    )


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
        "small": _small,
        "penalty": _penalty,
        "pair": _pair,
        "data_uri": _data_uri,
    }
    environment.tests["interpolates"] = interpolates
    return environment


def write_report(path: Path, report: Report) -> None:
    """Write the page as UTF-8."""
    path.write_text(render_report(report), encoding="utf-8")
