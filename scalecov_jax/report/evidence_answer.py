"""What the evidence of one class of images says, in sentences with their numbers."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxtyping import Float
from numpy import ndarray

from scalecov_jax.concepts.measure import get_measure
from scalecov_jax.evidence import Evidence
from scalecov_jax.evidence_table import (
    ALL,
    ChoiceRow,
    ContrastRow,
    LayerRow,
    choice_rows,
    contrast_rows,
    layer_rows,
)
from scalecov_jax.probes.statistics import jackknife
from scalecov_jax.report import page

FEW_GROUPS = 20  # below, intervals by the jackknife are too narrow
OPTIMISM = 0.02  # of R2, worth a warning
_CONTROLS = {
    "random_weights": "the same layer with random weights",
    "pixels": "the pixels alone",
    "nuisances": "the nuisance measures alone",
}

READING = {
    "0.59 to 0.81": "and the like are 95 % intervals by the jackknife: what taking out each image in turn (or each patient, "
    "slide or source) does to the whole experiment tells how far R² would move with other images of the same kind. They say "
    "nothing of images of another kind. The resampled t interval beside them is a rule of thumb from the spread over splits.",
    "May be the best.": "Each layer is tested against all others at once and left out where another is shown to be better, and "
    "where the 95 % interval of its difference from the peak lies below 0 as well: with at least 95 % confidence the best layer "
    "is among those that remain. Some remain only because their interval is wide.",
    "Nested:": "each training part chooses the layer by leave-one-out inside it, and R² is measured on images that had no say. "
    "The best layer was chosen by the images that its R² is measured on, so that this R² is too high on average.",
    "p": "is how often permuted measures are read as well as the measures themselves. Beside the number of permutations stands "
    "what is permuted: images, or whole groups (patients, slides, sources) where images of a group belong together. The "
    "family-wise p compares with the "
    "best of all layers and measures: at most 0.05 shows that the layer reads something, however many were tried. With B "
    "permutations p cannot fall below 1 / (B + 1).",
    "Selectivity": "is R² minus that of a control: the same layer with random weights, features of the pixels alone, the "
    "nuisance measures alone, or the permuted measure. Above 0, the layer reads more than the control does.",
    "Partial R²": "is the share that the layer explains of what the nuisance measures leave unexplained.",
    "Leverage": "is how far an image pulls its own prediction in the fit to all images, from 0 to 1. The influence on the lead "
    "is how much higher R² of the peak minus that of the next best layer is with the image (or its group) than without it.",
}
"""Terms for `page.Report.reading`, beside `page.READING`."""


class Concept(NamedTuple):
    """What the evidence says of one concept, measure `m` of it; `title` and `heading` are for people."""

    title: str
    heading: str
    m: int
    evidence: Evidence
    rows: Sequence[LayerRow]
    contrasts: Sequence[ContrastRow]
    choice: ChoiceRow

    @property
    def peak(self) -> int:
        """The layer of the largest R2."""
        return int(self.evidence.r2.value[:, self.m].argmax())


def concept_title(name: str) -> str:
    """A concept measure's name for people; the name itself if no measure has it."""
    try:
        return get_measure(name).title or name
    except ValueError:
        return name


def by_concept(weights: str, name: str, image_class: str, evidence: Evidence) -> list[Concept]:
    """The rows of each concept; `name` is that of the network for people."""
    rows, contrasts = (
        layer_rows(weights, image_class, evidence),
        contrast_rows(weights, image_class, evidence),
    )
    choices = choice_rows(weights, image_class, evidence)
    where = f"{name}, {'all classes' if image_class == ALL else image_class}"
    return [
        Concept(
            concept_title(concept),
            f"{where}: {concept_title(concept)}",
            m,
            evidence,
            [row for row in rows if row.concept == concept],
            [row for row in contrasts if row.concept == concept],
            choices[m],
        )
        for m, concept in enumerate(evidence.concepts)
    ]


def warnings(evidence: Evidence) -> list[str]:
    """Sentences on what makes the evidence of one class weak."""
    messages = [_few_groups(evidence)] if evidence.groups < FEW_GROUPS else []
    for m, concept in enumerate(evidence.concepts):
        name, r2, tests = concept_title(concept), evidence.r2, evidence.permutation
        peak, nested = int(r2.value[:, m].argmax()), float(evidence.nested.value[0, m])
        at, best = evidence.layers[peak], float(r2.value[peak, m])
        if best - nested > OPTIMISM:
            messages.append(
                f"{name}: R² {page.number(best)} of the best layer, {at}, is optimistic, as the same images chose it; layers "
                f"chosen inside the training parts give {page.number(nested)}."
            )
        if tests is not None and tests.p_family[peak, m] > 0.05:
            messages.append(
                f"{name}: nothing is shown to be read at the best layer, {at} (family-wise p "
                f"{p_value(tests.p_family[peak, m])})."
            )
        reach = interval(best, r2.deviation[peak, m])
        if reach[0] <= 0 <= reach[1]:
            messages.append(f"{name}: R² of the best layer, {at}, may be 0 (95 % interval {span(*reach)}).")
    return messages


def findings(one: Concept) -> str:
    """Paragraphs: where the concept is read, whether it is, beyond what, and from how many images."""
    return "\n\n".join(text for text in (_where(one), _whether(one), _beyond(one), _sample(one)) if text)


def _where(one: Concept) -> str:
    peak, layers = one.rows[one.peak], len(one.rows)
    text = (
        f"The layer that reads {one.title} best is {peak.layer}: R² {page.number(peak.r2)}, 95 % interval "
        f"{span(peak.low, peak.high)}."
    )
    if layers == 1:
        return text
    others = [row.layer for row in one.rows if row.may_be_best and row is not peak]
    if not others:
        text += " Every other layer is shown to be worse (95 %)."
    elif len(others) == layers - 1:
        text += f" No layer is shown to be worse than another: any of the {layers} may be the best."
    else:
        text += (
            f" {listed(others)} cannot be told from it: with 95 % confidence the best layer is one of these "
            f"{len(others) + 1} of {layers}."
        )
    return (
        f"{text} Choosing the layer inside each training part gives R² {page.number(one.choice.r2)} "
        f"({span(one.choice.low, one.choice.high)}); the {page.number(one.choice.best_r2)} of the best layer was chosen by the "
        "images that it is measured on."
    )


def _whether(one: Concept) -> str:
    tests, peak = one.evidence.permutation, one.rows[one.peak]
    if tests is None or peak.p is None or peak.p_family is None:
        return "Measures were not permuted, so that no test says whether anything is read."
    count = tests.null.shape[-1]
    run = f"{count:,} permutations of {tests.permuted}, smallest possible p {p_value(1 / (count + 1))}"
    silent = [row.layer for row in one.rows if row.p_family is not None and row.p_family > 0.05]
    if peak.p_family <= 0.05:
        text = (
            f"{peak.layer} reads more than it would of permuted measures: p {p_value(peak.p)}, family-wise over all layers and "
            f"measures {p_value(peak.p_family)} ({run})."
        )
    else:
        text = (
            "This is no more than the best of permuted measures gives: family-wise p over all layers and measures "
            f"{p_value(peak.p_family)}, alone {p_value(peak.p)} ({run})."
        )
    if not silent:
        return text
    where = "any layer" if len(silent) == len(one.rows) > 1 else listed(silent)
    return f"{text} Nothing is shown to be read at {where}."


def _beyond(one: Concept) -> str:
    peak, evidence = one.rows[one.peak].layer, one.evidence
    at = {row.against: row for row in one.contrasts if row.layer == peak}
    compared = {text: at[name] for name, text in _CONTROLS.items() if name in at}
    sentences = []
    if compared:
        parts = [f"{difference(row)} above {text}" for text, row in compared.items()]
        sentences.append(f"At {peak} R² is {listed(parts)}.")
    if unclear := [text for text, row in compared.items() if row.low <= 0]:
        sentences.append(f"It is not shown to be above {listed(unclear, 'or')}: the interval is not above 0.")
    if "nuisances" in evidence.controls and "beyond_nuisances" in at:
        alone = evidence.controls["nuisances"]
        value, deviation = alone.value[0, one.m], alone.deviation[0, one.m]
        sentences.append(
            f"The nuisance measures alone predict {one.title} with R² {page.number(float(value))} "
            f"({span(*interval(value, deviation))}); of what they leave, {peak} explains {difference(at['beyond_nuisances'])} "
            "(partial R²)."
        )
    return " ".join(sentences)


def _sample(one: Concept) -> str:
    evidence = one.evidence
    text = (
        f"{evidence.images:,} images; {evidence.splits.shape[1]} splits with {page.number(evidence.n_train, 0)} images to train "
        f"and {page.number(evidence.n_test, 0)} held out"
        + (", means over classes" if evidence.cases is None else "")
        + "."
    )
    if evidence.groups < evidence.images:
        text += f" Intervals are over {evidence.groups:,} groups (patients, slides or sources)."
    return f"{text} {_few_groups(evidence)}" if evidence.groups < FEW_GROUPS else text


def _few_groups(evidence: Evidence) -> str:
    what = "images" if evidence.groups == evidence.images else "groups of images"
    return f"Only {evidence.groups} {what}: with fewer than {FEW_GROUPS}, 95 % intervals are too narrow."


def interval(value: float, deviation: Float[ndarray, " G"]) -> tuple[float, float]:
    """The 95 % interval of an R2 of `evidence.Known`."""
    return jackknife(float(value), deviation, most=1.0).interval


def span(low: float | None, high: float | None) -> str:
    """An interval as text; a dash if there is none."""
    return "–" if low is None else f"{page.number(low)} to {page.number(high)}"


def difference(row: ContrastRow) -> str:
    """A difference with its interval as text."""
    return f"{page.number(row.difference)} ({span(row.low, row.high)})"


def p_value(value: float | None) -> str:
    """A p value as text, with three decimals unless it is very small."""
    return page.number(value, 3) if value is None or value >= 5e-4 else f"{value:.1g}"


def listed(words: Iterable[str], last: str = "and") -> str:
    """Words parted by commas, the last two by `last`."""
    *first, final = words
    return f"{', '.join(first)} {last} {final}" if first else final
