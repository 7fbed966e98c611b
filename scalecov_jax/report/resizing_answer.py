"""What the curves of section 4.1 say: the answer, the published claims beside ours, and warnings, all from the numbers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from scalecov_jax.models.architecture import plain_name
from scalecov_jax.paper.compared import Compared
from scalecov_jax.paper.resizing import FILLED
from scalecov_jax.paper.resizing_curves import (
    ALL,
    REFERENCE,
    STRIDE,
    Difference,
    GridLoss,
    Plateau,
    Point,
    counted,
    kind_of,
)
from scalecov_jax.report.page import number

# Graziani et al. 2021, section 4.1 and Figure 6: the mean probability of the true class is flat between these sizes, top-5 from
# above the other. The networks of the paper were trained at 224 (ResNet50) and 299 px (InceptionV3).
FLAT = (175, 300)
TOP5 = 200
INPUTS = (224, 299)

SECTION = "4.1"
FEW = 30  # images, under which an interval is too wide to tell much


class Evidence(NamedTuple):
    """What a run measured.

    Attributes:
        points: All curves.
        plateaus: Of all curves.
        differences: Of the filters.
        grid: Losses of sizes off the training's grid.
        networks: Architecture and input size (pixels) of each weights.
    """

    points: Sequence[Point]
    plateaus: Sequence[Plateau]
    differences: Sequence[Difference]
    grid: Sequence[GridLoss]
    networks: Mapping[str, tuple[str, int]]

    @property
    def filter(self) -> str:
        """The published filter if it was used, else the first."""
        used = list(dict.fromkeys(point.filter for point in self.points))
        return REFERENCE if REFERENCE in used else used[0]

    def curve(self, weights: str, group: str = ALL, name: str = "") -> list[Point]:
        """The points of one curve, by default with `filter`."""
        wanted = (weights, group, name or self.filter)
        return [point for point in self.points if (point.weights, point.group, point.filter) == wanted]

    def counted(self, points: Sequence[Point]) -> list[Point]:
        """Those points of a curve among which plateaus were sought."""
        sizes = counted([point.size for point in points], self.networks[points[0].weights][1])
        return [point for point in points if point.size in sizes]

    def groups(self, weights: str) -> list[str]:
        """The groups of images, all images first."""
        return list(dict.fromkeys(point.group for point in self.points if point.weights == weights))

    def plateau(self, weights: str, group: str, measure: str) -> Plateau:
        """The plateau of one curve with `filter`."""
        wanted = (weights, group, self.filter, measure)
        return next(
            one for one in self.plateaus if (one.weights, one.group, one.filter, one.measure) == wanted
        )

    def at_training_size(self, weights: str, group: str = ALL) -> Point:
        """The point nearest to the size that the network was trained at."""
        return min(self.curve(weights, group), key=lambda point: abs(point.size - self.networks[weights][1]))

    def title(self, weights: str) -> str:
        """Architecture, and the weights where several share it."""
        name = plain_name(self.networks[weights][0])
        same = sum(architecture == self.networks[weights][0] for architecture, _ in self.networks.values())
        return f"{name} ({weights})" if same > 1 else name


def published(input_size: int) -> tuple[int, int, int]:
    """The published ends of the plateau and start of top-5's in pixels, in proportion for networks trained at other sizes."""
    scale = 1.0 if input_size in INPUTS else input_size / INPUTS[0]
    return round(FLAT[0] * scale), round(FLAT[1] * scale), round(TOP5 * scale)


def compare(evidence: Evidence) -> list[Compared]:
    """The claims of section 4.1 beside ours, for all images and for the filled ones of each network.

    Source: Graziani et al. 2021, section 4.1, Figure 6.
    """
    rows = []
    for weights in evidence.networks:
        for group in evidence.groups(weights):
            if group == ALL or kind_of(group) == FILLED:
                rows += _rows(evidence, weights, group)
    return rows


def _rows(evidence: Evidence, weights: str, group: str) -> Iterator[Compared]:
    size = evidence.networks[weights][1]
    first, last, top5_first = published(size)
    points = evidence.counted(evidence.curve(weights, group))
    sizes = [point.size for point in points]
    count = points[0].images
    name = f"{evidence.title(weights)}, {kind_of(group)} images"
    in_proportion = size not in INPUTS
    scaled = f" ({first} to {last} in proportion to {size} px)" if in_proportion else ""

    flat = evidence.plateau(weights, group, "probability")
    yield Compared(
        SECTION,
        f"{name}: mean probability flat",
        f"{FLAT[0]} to {FLAT[1]} px{scaled}",
        _span(flat),
        f"{_signed(flat.first - first)}, {_signed(flat.last - last)} px",
        f"{_ends(flat, first, last, sizes)}; read off a figure, by intervals that overlap with the best one's, it would be "
        f"{_overlap(points)}. {_off_grid(evidence, weights)}{count} other images than published.",
    )
    inside = [point for point in points if first <= point.size <= last]
    if inside:
        best = max(points, key=lambda point: point.probability)
        worst = min(inside, key=lambda point: point.probability)
        loss = best.probability - worst.probability
        ends = ", ".join(
            f"{number(best.probability - end.probability)} at {end.size} px"
            for end in (points[0], points[-1])
        )
        yield Compared(
            SECTION,
            f"{name}: largest loss of mean probability inside that range",
            "none visible",
            f"{number(loss)} at {worst.size} px, against {best.size} px",
            _signed(loss),
            f"At the ends of the sizes measured the loss is {ends}.",
        )
    top5 = evidence.plateau(weights, group, "top5")
    yield Compared(
        SECTION,
        f"{name}: top-5 flat",
        f"above {TOP5} px" + (f" ({top5_first} in proportion)" if in_proportion else ""),
        _span(top5),
        f"{_signed(top5.first - top5_first)} px",
        _beyond(top5, points),
    )
    at = evidence.at_training_size(weights, group)
    top1 = evidence.plateau(weights, group, "top1")
    yield Compared(
        SECTION,
        f"{name}: top-1 (true class first)",
        "–",
        f"{_percent(at.top1)} ({_percent(at.top1_low)} to {_percent(at.top1_high)}) at {at.size} px, flat at {_span(top1)}",
        "–",
        f"The paper calls the mean probability top-1 accuracy; here that is {number(at.probability)} "
        f"({number(at.probability_low)} to {number(at.probability_high)}).{_less_sure(points, flat, top1)}",
    )


def answer(evidence: Evidence) -> str:
    """One sentence a network, parted by line breaks."""
    lines = []
    for weights, (_, size) in evidence.networks.items():
        flat = evidence.plateau(weights, ALL, "probability")
        at = evidence.at_training_size(weights)
        first, last, _ = published(size)
        scaled = (
            "" if size in INPUTS else f", {first} to {last} in proportion to the {size} px of its training"
        )
        top1 = evidence.plateau(weights, ALL, "top1")
        lines.append(
            f"{evidence.title(weights)}, {at.images} images: the mean probability of the true class is flat at {_span(flat)} "
            f"(published: {FLAT[0]} to {FLAT[1]}{scaled}), top-1 at {_span(top1)}; at {at.size} px the mean probability is "
            f"{number(at.probability)}, top-1 {_percent(at.top1)} and top-5 {_percent(at.top5)}."
        )
    return "\n".join(lines)


def remarks(evidence: Evidence, weights: str) -> list[str]:
    """Paragraphs on the filters and on the groups of one network."""
    paragraphs = []
    differences = [one for one in evidence.differences if one.weights == weights]
    if differences:
        smallest = min(one.size for one in differences)
        texts = [
            f"{one.filter} {_signed(one.difference, 3)} ({_signed(one.low, 3)} to {_signed(one.high, 3)})"
            for one in differences
            if one.size == smallest
        ]
        largest = max(differences, key=lambda one: abs(one.difference))
        shown = [one for one in differences if one.low > 0 or one.high < 0]
        paragraphs.append(
            f"Filters, against {REFERENCE} in mean probability with paired 95 % intervals, at {smallest} px: "
            f"{', '.join(texts)}. The largest difference is {_signed(largest.difference, 3)} ({largest.filter} at "
            f"{largest.size} px); {len(shown)} of {len(differences)} differences are shown to be other than 0."
        )
    losses = [one for one in evidence.grid if one.weights == weights]
    if losses:
        mean = float(np.mean([one.loss for one in losses]))
        side = "lower" if mean > 0 else "higher"
        below = sum(one.low > 0 for one in losses)
        worst = max(losses, key=lambda one: one.loss)
        paragraphs.append(
            f"The grid. Sizes that differ from the {evidence.networks[weights][1]} px of the training by a multiple of the "
            f"stride, {STRIDE} px, meet the borders of every map as in training (filled markers). Against the line between them "
            f"the mean probability at the {len(losses)} other sizes is {number(abs(mean), 3)} {side} on average, shown to be "
            f"lower at {below} of them; most at {worst.size} px, {number(worst.loss, 3)} ({number(worst.low, 3)} to "
            f"{number(worst.high, 3)})."
        )
    groups = [group for group in evidence.groups(weights) if group != ALL]
    if groups:
        texts = []
        for group in groups:
            flat = evidence.plateau(weights, group, "probability")
            texts.append(f"{group.capitalize()}: {_span(flat)}, best {number(flat.value)} at {flat.best} px")
        paragraphs.append(f"Sizes at which the mean probability is flat, by group. {'. '.join(texts)}.")
    return paragraphs


def warnings(evidence: Evidence, sides: Sequence[int], square: str) -> list[str]:
    """What a reader must know before trusting the figures.

    Args:
        evidence: What was measured.
        sides: Shorter side of every image in pixels.
        square: crop or stretch.
    """
    messages = []
    weights = next(iter(evidence.networks))
    counts = {group: evidence.curve(weights, group)[0].images for group in evidence.groups(weights)}
    if few := [f"{group}: {count}" for group, count in counts.items() if count < FEW]:
        messages.append(
            f"Groups of fewer than {FEW} images have wide intervals and long plateaus: {', '.join(few)}."
        )
    sizes = sorted({point.size for point in evidence.points})
    enlarged = int((np.array(sides) < sizes[-1]).sum())
    if enlarged:
        messages.append(
            f"{enlarged} of {len(sides)} images are smaller than {sizes[-1]} px (shorter sides {min(sides)} to {max(sides)}, "
            f"median {np.median(sides):.0f}): beyond their own size resizing adds pixels and no detail."
        )
    if square == "stretch":
        messages.append("Images were stretched to a square, which distorts all that were not square.")
    return messages


def _span(one: Plateau) -> str:
    low = f"{one.first}{' or less' if one.first == one.smallest else ''}"
    high = f"{one.last} px{' or more' if one.last == one.largest else ''}"
    return f"{low} to {high}" if one.first < one.last else f"{high} only"


def _overlap(points: Sequence[Point]) -> str:
    """The run of sizes around the best whose intervals of the mean probability overlap with the best one's."""
    best = max(range(len(points)), key=lambda index: points[index].probability)
    apart = [i for i, point in enumerate(points) if point.probability_high < points[best].probability_low]
    first = max((index for index in apart if index < best), default=-1) + 1
    last = min((index for index in apart if index > best), default=len(points)) - 1
    return f"{points[first].size} to {points[last].size} px"


def _ends(one: Plateau, first: int, last: int, sizes: Sequence[int]) -> str:
    """How the ends of a plateau lie to the published ones, to one step of the sizes measured."""
    texts = []
    for what, ours, theirs, limit in (
        ("begins", one.first, first, one.smallest),
        ("ends", one.last, last, one.largest),
    ):
        near = int(np.abs(np.array(sizes) - theirs).argmin())
        steps = sizes.index(ours) - near
        if not sizes[0] <= theirs <= sizes[-1]:
            texts.append(f"{what} at {ours} px, and the published one was not measured")
        elif abs(steps) <= 1:
            texts.append(f"{what} as published (to one step of the sizes)")
        else:
            texts.append(f"{what} {'lower' if steps < 0 else 'higher'}" + " or beyond" * (ours == limit))
    return f"It {' and '.join(texts)}"


def _less_sure(points: Sequence[Point], flat: Plateau, top1: Plateau) -> str:
    """Where top-1 holds though the mean probability does not."""
    held = [p for p in points if top1.first <= p.size <= top1.last and not flat.first <= p.size <= flat.last]
    if not held:
        return ""
    worst = min(held, key=lambda point: point.probability)
    return (
        f" At {worst.size} px the mean probability is {number(flat.value - worst.probability)} below its best, and top-1 is not "
        "shown to be worse: the network is less sure there, not less right."
    )


def _off_grid(evidence: Evidence, weights: str) -> str:
    losses = [one for one in evidence.grid if one.weights == weights and one.low > 0]
    if not losses:
        return ""
    worst = max(losses, key=lambda one: one.loss)
    return (
        f"Sizes off the training's grid of {STRIDE} px are worse than their neighbours on it, {worst.size} px by "
        f"{number(worst.loss)}. "
    )


def _beyond(one: Plateau, points: Sequence[Point]) -> str:
    if one.last == one.largest:
        return f"No loss shown up to {one.largest} px, the largest counted; best {_percent(one.value)} at {one.best} px."
    best, end = f"best {_percent(one.value)} at {one.best} px", points[-1]
    return f"It falls again above {one.last} px, to {_percent(end.top5)} at {end.size} px; {best}."


def _signed(value: int | float, digits: int = 2) -> str:
    text = f"{value:+d}" if isinstance(value, int) else f"{round(value, digits) + 0.0:+.{digits}f}"
    return text.replace("-", "−")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
