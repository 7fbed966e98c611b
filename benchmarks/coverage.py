"""How often 95 % intervals hold what they are about, and tests at 5 % cry wolf, in simulated images.

What an interval is about is the expectation of its estimate over samples of the same size: here the mean over all replicates.
Features are gaussian components whose variance falls as 1 / k, as it does in pooled features, mixed by a cosine transform so that
every feature holds all of them; a concept is a sum of components and noise, of which features could explain 80 % at best.

  python benchmarks/coverage.py

takes about an hour on 2 cores. Each replicate goes to runs/coverage/replicates.csv when it is done, and is not repeated when the
command is given again; summary.csv and tables.md beside it are also printed. docs/statistics.md says what they mean.
"""

import csv
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.fft import dct
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from scalecov_jax.evidence import Evidence, weigh
from scalecov_jax.probes import statistics
from scalecov_jax.probes.permutation import permutation_test
from scalecov_jax.probes.splits import grouped_splits, random_splits

FOLDER = Path("runs/coverage")
REPLICATES, TEST_REPLICATES, SPLITS = 500, 2000, 25
WIDTHS = (64, 512, 2048)
EXPLAINED = 0.8
SHARED = 0.8  # of the variance, by the images of a patient
LAYERS = {  # noise on the components of each concept in five layers, and which of them read it best
    "equal": ((0.5, 0.5, 0.5, 0.5, 0.5), [0, 1, 2, 3, 4]),
    "close": ((0.3, 0.4, 0.5, 0.6, 0.7), [0]),
    "clear": ((0.8, 0.8, 0.2, 0.8, 0.8), [2]),
}


class Outcome(NamedTuple):
    """What one replicate says: an interval, or whether something came true (1 or 0) or how often."""

    design: str
    quantity: str
    method: str
    value: float
    low: float = np.nan
    high: float = np.nan


class Task(NamedTuple):
    """One replicate of a study; width 0 stands for several."""

    study: str
    images: int
    width: int
    replicate: int


class Cell(NamedTuple):
    """What the replicates of one cell say; `error` is the Monte Carlo error of the coverage, or of what is expected."""

    study: str
    design: str
    quantity: str
    images: str
    features: str
    method: str
    replicates: int
    expected: float
    error: float
    covers: float = np.nan
    above: float = np.nan
    below: float = np.nan
    width: float = np.nan


def components(rng: np.random.Generator, images: int, width: int) -> np.ndarray:
    """Gaussian, with variances 1 / k."""
    return rng.normal(size=(images, width)) / np.sqrt(np.arange(1, width + 1))


def mix(hidden: np.ndarray) -> np.ndarray:
    """Features that each hold all components."""
    return dct(hidden, norm="ortho")


def concept(hidden: np.ndarray, variance: np.ndarray | float, noise: np.ndarray) -> np.ndarray:
    """The sum of components, standardised, and noise."""
    return np.sqrt(EXPLAINED / np.sum(variance)) * hidden.sum(1) + np.sqrt(1 - EXPLAINED) * noise


def single(task: Task) -> Iterator[Outcome]:
    """R2 of one layer, by four intervals."""
    rng = np.random.default_rng(task[1:])
    variance = 1 / np.arange(1, task.width + 1)
    hidden = components(rng, task.images, task.width)
    heavy = components(rng, task.images, task.width) * np.sqrt(3 / rng.chisquare(5, (task.images, 1)))
    noise = rng.normal(size=(4, task.images))
    concepts = {
        "leading": concept(hidden[:, :10], variance[:10], noise[0]),
        "spread": concept(hidden, variance, noise[1]),
        "none": noise[2],
    }
    splits = random_splits(task.images, SPLITS, task.replicate)
    for values, targets in (
        (hidden, concepts),
        (heavy, {"heavy": concept(heavy[:, :10], variance[:10], noise[3])}),
    ):
        evidence = weigh({"": mix(values)}, np.stack([*targets.values()], 1), [*targets], splits)
        for index, design in enumerate(targets):
            value, deviation = evidence.r2.value[0, index], evidence.r2.deviation[0, index]
            yield from three_intervals(design, value, deviation, evidence, index)
            left_out = evidence.r2_left_out[0, index]
            naive = resample(targets[design], evidence.cases.prediction[0, :, index], rng)
            yield Outcome(design, "r2", "left-out errors", left_out, *naive)


def three_intervals(
    design: str, value: float, deviation: np.ndarray, evidence: Evidence, index: int
) -> Iterator[Outcome]:
    """Of the R2 of the first layer."""
    yield Outcome(design, "r2", "jackknife", value, *statistics.jackknife(value, deviation).interval)
    yield Outcome(design, "r2", "bootstrap", value, *statistics.bootstrap(value, deviation))
    resampled = statistics.corrected_resampled_t(
        evidence.splits[0, :, index], evidence.n_train, evidence.n_test
    )
    yield Outcome(design, "r2", "resampled t", value, *resampled.interval)


def resample(measure: np.ndarray, prediction: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What most people do: draw images with replacement, without fitting anything anew."""
    drawn = rng.integers(len(measure), size=(999, len(measure)))
    errors, spread = np.square(measure - prediction)[drawn].sum(1), measure[drawn].var(1) * len(measure)
    return np.percentile(1 - errors / spread, [2.5, 97.5])


def choice(task: Task) -> Iterator[Outcome]:
    """Five layers that see the same components with more or less noise: differences, the nested R2, peak sets."""
    rng = np.random.default_rng(task[1:])
    hidden = components(rng, task.images, task.width)
    level = np.full((5, task.width), 0.5)
    targets = []
    for start, (noise, _) in enumerate(LAYERS.values()):
        level[:, start:30:3] = np.array(noise)[:, None]
        variance = 1 / np.arange(1 + start, 31, 3)
        targets.append(concept(hidden[:, start:30:3], variance, rng.normal(size=task.images)))
    layers = {
        f"{layer}": mix(hidden + own * components(rng, task.images, task.width))
        for layer, own in enumerate(level)
    }
    splits = random_splits(task.images, SPLITS, task.replicate)
    evidence = weigh(layers, np.stack(targets, 1), [*LAYERS], splits)
    for index, (design, (_, best)) in enumerate(LAYERS.items()):
        values, deviations = evidence.r2.value[:, index], evidence.r2.deviation[:, index]
        for quantity, value, deviation in (
            ("difference", values[2] - values[3], deviations[2] - deviations[3]),
            ("nested", evidence.nested.value[0, index], evidence.nested.deviation[0, index]),
        ):
            interval = statistics.jackknife(value, deviation).interval
            yield Outcome(design, quantity, "jackknife", value, *interval)
            yield Outcome(design, quantity, "bootstrap", value, *statistics.bootstrap(value, deviation))
        members = statistics.peak_set(values, deviations).members
        yield Outcome(design, "peak set", "holds the best", members[best].mean())
        yield Outcome(design, "peak set", "layers", members.sum())


def grouped(task: Task) -> Iterator[Outcome]:
    """Patients with five images each, alike in most that counts."""
    rng = np.random.default_rng(task[1:])
    patients = np.arange(task.images) // 5
    own, shared = np.sqrt([1 - SHARED, SHARED])
    hidden = own * components(rng, task.images, task.width)
    hidden += shared * components(rng, patients[-1] + 1, task.width)[patients]
    noise = own * rng.normal(size=task.images) + shared * rng.normal(size=patients[-1] + 1)[patients]
    measure = concept(hidden[:, :10], 1 / np.arange(1, 11), noise)[:, None]
    splits = grouped_splits(patients, SPLITS, task.replicate)
    evidence = weigh({"": mix(hidden)}, measure, [""], splits, groups=patients)
    value = evidence.r2.value[0, 0]
    yield from three_intervals("leading", value, evidence.r2.deviation[0, 0], evidence, 0)
    alone = weigh({"": mix(hidden)}, measure, [""], splits).r2.deviation[0, 0]
    interval = statistics.jackknife(value, alone).interval
    yield Outcome("leading", "r2", "jackknife over images", value, *interval)


def tests(task: Task) -> Iterator[Outcome]:
    """Three layers and a skewed measure that none of them knows of."""
    rng = np.random.default_rng(task[1:])
    layers = {f"{width}": mix(components(rng, task.images, width)) for width in WIDTHS}
    yield from rejections("none", layers, rng.exponential(size=(task.images, 1)), task, None)


def blocked_tests(task: Task) -> Iterator[Outcome]:
    """Features and a measure that depend on the patient and agree on nothing else."""
    rng = np.random.default_rng(task[1:])
    patients = np.arange(task.images) // 5
    shared = rng.exponential(size=patients[-1] + 1)[patients]
    layers = {}
    for width in WIDTHS:
        hidden = components(rng, task.images, width)
        hidden[:, 0] += shared
        layers[f"{width}"] = mix(hidden)
    measure = (shared + rng.exponential(size=task.images))[:, None]
    yield from rejections("inside patients", layers, measure, task, patients)
    yield from rejections("over all images", layers, measure, task, None)


def rejections(
    design: str,
    layers: dict[str, np.ndarray],
    measure: np.ndarray,
    task: Task,
    blocks: np.ndarray | None,
) -> Iterator[Outcome]:
    """Whether p is at most 5 %, of each layer and of all."""
    splits = random_splits(task.images, 2, task.replicate)
    found = permutation_test(layers, measure, splits, 199, task.replicate, blocks=blocks)
    for layer, p in zip(layers, found.p[:, 0], strict=True):
        yield Outcome(design, "p <= 5 %", f"D = {layer}", float(p <= 0.05))
    yield Outcome(design, "p <= 5 %", "any of the three", float(found.p.min() <= 0.05))
    yield Outcome(design, "p <= 5 %", "p_family", float(found.p_family.min() <= 0.05))


STUDIES = {"single": single, "five": choice, "grouped": grouped, "tests": tests, "blocked": blocked_tests}
COST = {
    "single": 1.6,
    "five": 4.8,
    "grouped": 1.2,
    "tests": 0.5,
    "blocked": 1.0,
}  # about 4 microseconds per pair of images


def plan() -> list[Task]:
    """Every replicate."""
    sizes = (50, 100, 200, 500)
    cells = [("single", images, width, REPLICATES) for images in sizes for width in WIDTHS]
    cells += [("five", images, 512, REPLICATES) for images in (50, 200)]
    cells += [("grouped", images, 512, REPLICATES) for images in (50, 100, 250, 500)]
    cells += [("tests", images, 0, TEST_REPLICATES) for images in (50, 100, 200)] + [("tests", 500, 0, 1000)]
    cells += [("blocked", images, 0, TEST_REPLICATES) for images in (50, 200)]
    return [Task(*cell, replicate) for *cell, count in cells for replicate in range(count)]


def run(tasks: Sequence[Task], path: Path) -> None:
    """Do what the file does not hold yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    done = {Task(study, int(n), int(d), int(r)) for study, n, d, r, *_ in read(path)}
    left = [task for task in tasks if task not in done]
    cost = [COST[task.study] * task.images**2 for task in left]
    with (
        path.open("a", newline="") as file,
        threadpool_limits(1),
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=sum(cost), bar_format="{l_bar}{bar}| {elapsed} done, {remaining} left{postfix}") as bar,
    ):
        every = pool.map(lambda task: [*STUDIES[task.study](task)], left)
        for task, work, outcomes in zip(left, cost, every, strict=True):
            csv.writer(file).writerows((*task, *outcome) for outcome in outcomes)
            file.flush()
            bar.set_postfix_str(f"{task.study}, N = {task.images}", refresh=False)
            bar.update(work)


def read(path: Path) -> list[list[str]]:
    """Rows of a CSV file."""
    with path.open(newline="") as file:
        return [*csv.reader(file)]


def summarise(rows: Sequence[Sequence[str]]) -> list[Cell]:
    """Coverage of intervals, and means of what has none."""
    cells: dict[tuple[str, ...], list[list[float]]] = {}
    for study, images, width, _, design, quantity, method, *numbers in rows:
        cells.setdefault((study, design, quantity, images, width, method), []).append(
            [float(x) for x in numbers]
        )
    found = []
    for key, values in cells.items():
        value, low, high = np.array(values).T
        expected = value.mean()
        if np.isnan(low).any():
            error = value.std() / len(value) ** 0.5
            found.append(Cell(*key, len(value), expected, error))
            continue
        above, below = (low > expected).mean(), (high < expected).mean()
        covers = 1 - above - below
        error = (covers * (1 - covers) / len(value)) ** 0.5
        width = float(np.median(high - low))
        found.append(Cell(*key, len(value), expected, error, covers, above, below, width))
    return found


def tables(cells: Sequence[Cell]) -> str:
    """Markdown, one table a study and quantity: coverage in %, (misses above/below), median width; else the mean."""
    lines = []
    for study, quantity in dict.fromkeys((cell.study, cell.quantity) for cell in cells):
        own = [cell for cell in cells if (cell.study, cell.quantity) == (study, quantity)]
        methods = [*dict.fromkeys(cell.method for cell in own)]
        designs = [*dict.fromkeys(cell.design for cell in own)]
        rows: dict[tuple[str, ...], dict[str, Cell]] = {}
        for cell in sorted(own, key=lambda cell: designs.index(cell.design)):
            rows.setdefault((cell.design, cell.images, cell.features), {})[cell.method] = cell
        lines += ["", f"{study}: {quantity}", "", f"| design | N | D | expected | {' | '.join(methods)} |"]
        lines += ["|---" * (4 + len(methods)) + "|"]
        for row, by in rows.items():
            shown = (f"{by[methods[0]].expected:.3f}", *(show(by[method]) for method in methods))
            lines.append(f"| {' | '.join((*row, *shown))} |")
    return "\n".join(lines[1:])


def show(cell: Cell) -> str:
    """Coverage, misses and width of an interval, else mean and its Monte Carlo error."""
    if np.isnan(cell.covers):
        return f"{cell.expected:.3f} ± {cell.error:.3f}"
    return f"{100 * cell.covers:.1f} ({100 * cell.above:.1f}/{100 * cell.below:.1f}) {cell.width:.2f}"


def main() -> None:
    """Simulate, summarise, print."""
    path = FOLDER / "replicates.csv"
    run(plan(), path)
    cells = summarise(read(path))
    with (FOLDER / "summary.csv").open("w", newline="") as file:
        csv.writer(file).writerows([Cell._fields, *cells])
    (FOLDER / "tables.md").write_text(tables(cells) + "\n")
    print(tables(cells))


if __name__ == "__main__":
    main()
