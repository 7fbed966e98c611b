"""How often 95 % intervals cover what they are about, and tests at 5 % cry wolf, in simulated images.

What an interval is about is the expectation of its estimate over samples of the same size: here the mean over all replicates.
Features are gaussian components whose variance falls as 1 / k, as it does in pooled features, mixed by a cosine transform so that
every feature holds all of them; a concept is a sum of components and noise, of which features could explain 80 % at best.

  python benchmarks/coverage.py [study ...]

does all studies, or those named. Each replicate goes to runs/coverage/replicates.csv when it is done, and is not repeated when
the command is given again; summary.csv and tables.md beside it are also printed. docs/statistics.md says what they mean.
"""

import csv
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.fft import dct
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from scalecov_jax.evidence import Evidence, weigh
from scalecov_jax.experiments.probe_tables import choice_table, layer_table
from scalecov_jax.probes import evaluate, statistics
from scalecov_jax.probes.permutation import permutation_test
from scalecov_jax.probes.splits import HELD_OUT, grouped_splits, k_folds, random_splits

FOLDER = Path("runs/coverage")
SPLITS = 25
WIDTHS = (64, 512, 2048)
EXPLAINED = 0.8
SHARED = 0.8  # of the variance, by the images of a patient
FOLDS, PARTITIONS = 5, 10  # of the nested cross-validation
HALVES, SPLITS_OF_HALVES = 10, 15  # of the conservative z
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


def concepts_of_one_layer(task: Task) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Features and concepts, gaussian and with heavy tails."""
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
    yield mix(hidden), concepts
    yield mix(heavy), {"heavy": concept(heavy[:, :10], variance[:10], noise[3])}


def single(task: Task) -> Iterator[Outcome]:
    """R2 of one layer, by the intervals of layers.csv and one that many use."""
    splits = random_splits(task.images, SPLITS, task.replicate)
    rng = np.random.default_rng((*task[1:], 1))
    for features, concepts in concepts_of_one_layer(task):
        evidence = weigh({"": features}, np.stack([*concepts.values()], 1), [*concepts], splits)
        yield from intervals(evidence)
        for index, (design, measure) in enumerate(concepts.items()):
            naive = resample(measure, evidence.cases.prediction[0, :, index], rng)
            yield Outcome(design, "r2", "left-out errors", evidence.r2_left_out[0, index], *naive)


def intervals(evidence: Evidence) -> Iterator[Outcome]:
    """Those of the first layer."""
    for row in layer_table(evidence, "", "").itertuples():
        yield Outcome(row.concept, "r2", "jackknife", row.r2, row.low, row.high)
        yield Outcome(row.concept, "r2", "bootstrap", row.r2, row.bootstrap_low, row.bootstrap_high)
        yield Outcome(row.concept, "r2", "resampled t", row.r2, row.resampled_low, row.resampled_high)


def resample(measure: np.ndarray, prediction: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What most people do: draw images with replacement, without fitting anything anew."""
    drawn = rng.integers(len(measure), size=(999, len(measure)))
    errors, spread = np.square(measure - prediction)[drawn].sum(1), measure[drawn].var(1) * len(measure)
    return np.percentile(1 - errors / spread, [2.5, 97.5])


def peers(task: Task) -> Iterator[Outcome]:
    """R2 of one layer, by two intervals that fit anew: nested cross-validation and the conservative z."""
    for features, concepts in concepts_of_one_layer(task):
        measures = np.stack([*concepts.values()], 1)
        for name, found in (
            ("nested cross-validation", nested_cross_validation(features, measures, task.replicate)),
            ("conservative z", conservative_z(features, measures, task.replicate)),
        ):
            for design, *interval in zip(concepts, *found, strict=True):
                yield Outcome(design, "r2", name, *interval)


def nested_cross_validation(features: np.ndarray, measures: np.ndarray, seed: int) -> np.ndarray:
    """R2, and the ends of its interval, of each measure.

    The loss of image i is its squared error less r times its squared distance d_i^2 from the mean, over mean d^2, where 1 - r is
    the R2: what R2, a ratio of two means, is to first order (delta method).

    Source: Bates, Hastie & Tibshirani 2024, Cross-Validation: What Does It Estimate and How Well Does It Do It?, algorithm 1 and
        sections 4.3 (bias) and 4.3.2 (limits of the error).
    """
    count = len(measures)
    outer_means, inner_means, within, losses = [], [], [], []
    square = np.square(measures - measures.mean(0))
    for partition in range(PARTITIONS):
        fold = k_folds(count, FOLDS, seed * PARTITIONS + partition).argmin(0)
        pairs = [(k, j) for k in range(FOLDS) for j in range(k, FOLDS)]
        parts = np.stack([(fold != k) & (fold != j) for k, j in pairs])
        weights, intercept, _ = evaluate.fit(features, measures, parts)
        errors = np.square(measures - np.einsum("nd,pdm->pnm", features, weights) - intercept[:, None])
        error = dict(zip(pairs, errors / square.mean(0), strict=True))
        outer = np.stack([error[k, k][fold == k].sum(0) for k in range(FOLDS)]).sum(0) / count
        relative = square / square.mean(0)
        for k in range(FOLDS):
            held = (error[k, k] - outer * relative)[fold == k]
            losses.append(held)
            outer_means.append(held.mean(0))
            within.append(held.var(0, ddof=1) / len(held))
            pairs_of_k = ((min(k, j), max(k, j), j) for j in range(FOLDS) if j != k)
            inner = [(error[i, j] - outer * relative)[fold == other] for i, j, other in pairs_of_k]
            inner_means.append(np.concatenate(inner).mean(0) + outer)
        outer_means[-FOLDS:] = [mean + outer for mean in outer_means[-FOLDS:]]
    outside, inside = np.array(outer_means), np.array(inner_means)
    naive = np.concatenate(losses).std(0, ddof=1) / count**0.5
    mean_squared = np.square(inside - outside).mean(0) - np.mean(within, 0)
    error = np.clip(np.sqrt(np.maximum(mean_squared, 0)), naive, naive * FOLDS**0.5)
    reach = stats.norm.ppf(0.975) * np.sqrt((FOLDS - 1) / FOLDS) * error
    bias = (1 + (FOLDS - 2) / FOLDS) * (inside.mean(0) - outside.mean(0))
    value = 1 - (inside.mean(0) - bias)
    return np.stack([value, value - reach, value + reach])


def conservative_z(features: np.ndarray, measures: np.ndarray, seed: int) -> np.ndarray:
    """As `nested_cross_validation`; held-out parts of the halves are as large as those of all images.

    Source: Nadeau & Bengio 2003, Inference for the Generalization Error, section 4 (conservative Z).
    """
    count = len(measures)
    value = evaluate.held_out({"": features}, measures, random_splits(count, SPLITS, seed)).r2[0].mean(0)
    squares = []
    for half in range(HALVES):
        order = np.random.default_rng((seed, half, 2)).permutation(count)
        size = count // 2
        splits = random_splits(size, SPLITS_OF_HALVES, seed, 2 * HELD_OUT)
        first, second = (
            evaluate.held_out({"": features[rows]}, measures[rows], splits).r2[0].mean(0)
            for rows in (order[:size], order[size : 2 * size])
        )
        squares.append(np.square(first - second) / 2)
    reach = stats.norm.ppf(0.975) * np.sqrt(np.mean(squares, 0))
    return np.stack([value, value - reach, value + reach])


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
    noisy = (hidden + own * components(rng, task.images, task.width) for own in level)
    layers = {f"{layer}": mix(features) for layer, features in enumerate(noisy)}
    splits = random_splits(task.images, SPLITS, task.replicate)
    evidence = weigh(layers, np.stack(targets, 1), [*LAYERS], splits)
    for index, (design, (_, best)) in enumerate(LAYERS.items()):
        values, deviations = evidence.r2.value[:, index], evidence.r2.deviation[:, index]
        value, deviation = values[2] - values[3], deviations[2] - deviations[3]
        interval = statistics.jackknife(value, deviation).interval
        yield Outcome(design, "difference", "jackknife", value, *interval)
        yield Outcome(design, "difference", "bootstrap", value, *statistics.bootstrap(value, deviation))
        every = layer_table(evidence, "", "")
        rows = every.loc[every["concept"] == design, "may_be_best"].tolist()
        yield Outcome(design, "peak set", "holds the best", np.mean([rows[layer] for layer in best]))
        yield Outcome(design, "peak set", "layers", sum(rows))
    for row in choice_table(evidence, "", "").itertuples():
        yield Outcome(row.concept, "nested", "jackknife", row.r2, row.low, row.high)


def of_patients(rng: np.random.Generator, images: int, sizes: str) -> np.ndarray:
    """The patient of each image: five images each, or one to nine."""
    if sizes == "equal":
        return np.arange(images) // 5
    sizes_of_all = np.random.default_rng(images)  # the same in all replicates, in any order
    ends = sizes_of_all.integers(1, 10, images).cumsum()
    each = np.diff([0, *ends[ends < images], images])
    return np.repeat(np.arange(len(each)), rng.permutation(each))


def patient_features(rng: np.random.Generator, patients: np.ndarray, width: int) -> np.ndarray:
    """Components, alike in images of one patient in most that counts."""
    own, shared = (components(rng, len(patients), width) for _ in range(2))
    return np.sqrt(1 - SHARED) * own + np.sqrt(SHARED) * shared[patients]


def grouped(task: Task) -> Iterator[Outcome]:
    """R2 of one layer where images come from patients, of one size or of several."""
    rng = np.random.default_rng(task[1:])
    own, shared = np.sqrt([1 - SHARED, SHARED])
    patients = of_patients(rng, task.images, "unequal" if task.study == "unequal" else "equal")
    hidden = patient_features(rng, patients, task.width)
    noise = own * rng.normal(size=task.images) + shared * rng.normal(size=task.images)[patients]
    measure = concept(hidden[:, :10], 1 / np.arange(1, 11), noise)[:, None]
    splits = grouped_splits(patients, SPLITS, task.replicate)
    yield from intervals(weigh({"": mix(hidden)}, measure, ["leading"], splits, groups=patients))
    row = layer_table(weigh({"": mix(hidden)}, measure, ["leading"], splits), "", "").iloc[0]
    yield Outcome("leading", "r2", "jackknife over images", row.r2, row.low, row.high)


def tests(task: Task) -> Iterator[Outcome]:
    """Three layers and a skewed measure that none of them knows of."""
    rng = np.random.default_rng(task[1:])
    layers = {f"{width}": mix(components(rng, task.images, width)) for width in WIDTHS}
    splits = random_splits(task.images, 2, task.replicate)
    yield from rejections("none", layers, rng.exponential(size=(task.images, 1)), splits, task)


def patient_tests(task: Task) -> Iterator[Outcome]:
    """The same where features and measure depend on the patient, each on its own.

    A measure of the patient, one that varies inside patients too, and one that varies inside them alone (its mean is taken off).
    """
    rng = np.random.default_rng(task[1:])
    for sizes in ("equal", "unequal"):
        patients = of_patients(rng, task.images, sizes)
        layers = {f"{width}": mix(patient_features(rng, patients, width)) for width in WIDTHS}
        splits = grouped_splits(patients, 2, task.replicate)
        shared, own = rng.exponential(size=task.images)[patients], rng.exponential(size=task.images)
        mean = (np.bincount(patients, own) / np.bincount(patients))[patients]
        for name, measure in (
            ("of the patient", shared),
            ("both", np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * own),
            ("inside patients", own - mean),
        ):
            yield from rejections(f"{sizes}, {name}", layers, measure[:, None], splits, task, patients)


def untold_tests(task: Task) -> Iterator[Outcome]:
    """A measure of the patient where patients are not told, so that they lie in both parts of a split and images are permuted."""
    rng = np.random.default_rng(task[1:])
    patients = of_patients(rng, task.images, "equal")
    layers = {f"{width}": mix(patient_features(rng, patients, width)) for width in WIDTHS}
    splits = random_splits(task.images, 2, task.replicate)
    measure = rng.exponential(size=task.images)[patients, None]
    yield from rejections("patients not told", layers, measure, splits, task)


def rejections(
    design: str,
    layers: dict[str, np.ndarray],
    measure: np.ndarray,
    splits: np.ndarray,
    task: Task,
    groups: np.ndarray | None = None,
) -> Iterator[Outcome]:
    """Whether p is at most 5 %, of each layer and of all."""
    found = permutation_test(layers, measure, splits, 199, task.replicate, groups=groups)
    for layer, p in zip(layers, found.p[:, 0], strict=True):
        yield Outcome(design, "p <= 5 %", f"D = {layer}", float(p <= 0.05))
    yield Outcome(design, "p <= 5 %", "any of the three", float(found.p.min() <= 0.05))
    yield Outcome(design, "p <= 5 %", "p_family", float(found.p_family.min() <= 0.05))


class Study(NamedTuple):
    """What one replicate does, how many there are at (images, width), and seconds of one with 100 images, about."""

    function: Callable[[Task], Iterator[Outcome]]
    replicates: dict[tuple[int, int], int]
    cost: float


def cells(sizes: dict[int, int], *widths: int) -> dict[tuple[int, int], int]:
    """Replicates at every number of images and width."""
    return {(images, width): count for images, count in sizes.items() for width in widths}


STUDIES = {
    "single": Study(single, cells({50: 400, 100: 400, 200: 400, 500: 240}, *WIDTHS), 0.05),
    "five": Study(choice, cells({50: 300, 200: 300}, 512), 0.1),
    "grouped": Study(grouped, cells({50: 300, 100: 300, 250: 300, 500: 200}, 512), 0.1),
    "unequal": Study(grouped, cells({50: 200}, 512), 4),
    "tests": Study(tests, cells({50: 2000, 100: 2000, 200: 2000, 500: 480}, 0), 0.02),
    "patients": Study(patient_tests, cells({50: 1000, 200: 300}, 0), 0.1),
    "untold": Study(untold_tests, cells({50: 400, 200: 200}, 0), 0.05),
    "peers": Study(peers, cells({50: 300, 100: 300, 200: 200}, 512), 0.4),
}


def plan(studies: Sequence[str]) -> list[Task]:
    """Every replicate."""
    return [
        Task(study, *cell, replicate)
        for study in studies
        for cell, count in STUDIES[study].replicates.items()
        for replicate in range(count)
    ]


def run(tasks: Sequence[Task], path: Path) -> None:
    """Do what the file does not hold yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    done = {Task(study, int(n), int(d), int(r)) for study, n, d, r, *_ in read(path)}
    left = [task for task in tasks if task not in done]
    cost = [STUDIES[task.study].cost * (task.images / 100) ** 2 for task in left]
    with (
        path.open("a", newline="") as file,
        threadpool_limits(1),
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=sum(cost), bar_format="{l_bar}{bar}| {elapsed} done, {remaining} left{postfix}") as bar,
    ):
        every = pool.map(lambda task: [*STUDIES[task.study].function(task)], left)
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
        key = study, design, quantity, images, width, method
        cells.setdefault(key, []).append([float(x) for x in numbers])
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
        found.append(
            Cell(*key, len(value), expected, error, covers, above, below, float(np.median(high - low)))
        )
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
    run(plan(sys.argv[1:] or [*STUDIES]), path)
    cells = summarise(read(path))
    with (FOLDER / "summary.csv").open("w", newline="") as file:
        csv.writer(file).writerows([Cell._fields, *cells])
    (FOLDER / "tables.md").write_text(tables(cells) + "\n")
    print(tables(cells))


if __name__ == "__main__":
    main()
