"""Is the texture that ImageNet taught reused after fine-tuning? A detector is fine-tuned; texture is read from all its layers.

The published R2 is of least squares on the images of the fit (IMVIP 2019). Beside it stands R2 of ridge on other patients, and
both with the measures shuffled.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from scalecov_jax import checkpoints
from scalecov_jax.checkpoints import Network, load_networks
from scalecov_jax.concepts.compute import check_measures, measure_all
from scalecov_jax.concepts.measure import get_measures
from scalecov_jax.experiments import explain_inputs as explain
from scalecov_jax.experiments import explain_maps
from scalecov_jax.experiments import texture_maths as maths
from scalecov_jax.experiments.explain_inputs import Subject
from scalecov_jax.explanation.target import class_logit, head_unit
from scalecov_jax.extraction import cached_features, check_request, compute_features
from scalecov_jax.imaging import tissue
from scalecov_jax.imaging.copies import with_copies_together
from scalecov_jax.imaging.folder import class_folders, read_folder
from scalecov_jax.imaging.image_set import MIN_IMAGES, ImageSet
from scalecov_jax.imaging.prepared import camelyon_patches
from scalecov_jax.imaging.sources import regroup
from scalecov_jax.models.architecture import available_layers, check_layer, plain_name
from scalecov_jax.probes.evaluate import fit
from scalecov_jax.probes.splits import grouped_splits
from scalecov_jax.report import plots
from scalecov_jax.report.findings import Finding
from scalecov_jax.report.numbers import number
from scalecov_jax.report.page import Image, Page, Section, Table, render_text
from scalecov_jax.report.pictures import POSITIVE, Album, overlay, picture_figures
from scalecov_jax.settings import Base, setting
from scalecov_jax.tables import kept_table, rows_of
from scalecov_jax.transfer.classification import detected, fine_tune_detector, with_one_output
from scalecov_jax.transfer.fine_tuning import Recipe
from scalecov_jax.vectors import fit_rcvs

LAYERS = {
    "inception_v3": ("conv2d_3", "conv2d_5", "mixed0", "mixed3", "mixed6", "mixed7", "mixed9"),
    "resnet50": ("add_1", "add_3", "add_7", "add_13", "add_16"),
}
"""Of InceptionV3 as published; of ResNet50 the ends of its stages, and one more in the longest two."""
WEIGHTS = {"random": "random", "pretrained": "pretrained", "fine_tuned": "fine-tuned"}
GLCM = tuple(
    f"glcm_{name}" for name in ("asm", "energy", "contrast", "correlation", "dissimilarity", "homogeneity")
)


@dataclass(frozen=True)
class Settings(Base):
    """What determines the results."""

    title: str = setting("Is the texture of pretrained features reused?", help="Heading of the report.")
    weights: str = setting("checkpoints/inception_v3", least=1, help="Folder of the pretrained checkpoint.")
    images: str = setting(
        "tissue",
        least=1,
        help="Rendered tissue, tfds:DIR of patch_camelyon, or a folder CLASS/PATIENT/IMAGE.",
    )
    groups: str = setting(
        "", help="Patients of the images of a folder, csv:PATH:COLUMN; those of its subfolders when empty."
    )
    patients: int = setting(80, low=4, help="Patients of rendered tissue.")
    per_class: int = setting(4, low=1, help="Patches of each type of rendered tissue and patient.")
    size: int = setting(96, low=1, help="Pixels a side, of rendering and of the input of the networks.")
    limit: int = setting(0, low=0, help="Images, evenly spread over the list; all when 0.")
    held_out: float = setting(0.5, help="Share of patients not fine-tuned on; all else is measured on them.")
    epochs: int = setting(8, low=1, help="Of fine-tuning.")
    batch_size: int = setting(16, low=1, help="Images per step of fine-tuning and per forward pass.")
    learning_rate: float = setting(1e-3, help="Of Adam.")
    layers: tuple[str, ...] = setting((), help="Layers to read from; as published when empty.")
    concepts: tuple[str, ...] = setting(GLCM, least=1, help="Concept measures to read.")
    splits: int = setting(10, low=2, help="Splits by patient of the held-out images, and shuffled measures.")
    sizes: tuple[int, ...] = setting(
        (48, 96, 192), low=MIN_IMAGES, help="Numbers of images to show how R² in sample depends on them, besides all."
    )  # fmt: skip
    layer: str = setting("mixed7", least=1, help="Layer of the sensitivities and the maps.")
    shown: int = setting(4, low=2, help="Images whose maps are shown, half of each class.")
    seed: int = setting(2026, low=0, help="Of tissue, splits, shuffling, the head and random weights.")

    def problems(self) -> list[str]:
        """Shares and rates that must lie inside open intervals."""
        allowed = {
            "held_out": (0 < self.held_out < 1, "a share between 0 and 1"),
            "learning_rate": (self.learning_rate > 0, "more than 0"),
        }
        wrong = {name: text for name, (fits, text) in allowed.items() if not fits}
        return [f"{name} is {getattr(self, name)}; expected {text}" for name, text in wrong.items()]


class _Plan(NamedTuple):
    """What the settings ask for; `train` and `test` are indices of the source, `missing` layers that the weights have not."""

    name: str
    network: Network
    source: ImageSet
    train: np.ndarray
    test: np.ndarray
    layers: tuple[str, ...]
    missing: tuple[str, ...]


def check(settings: Settings) -> dict[str, Network]:
    """The pretrained network, by the name of its folder.

    Raises:
        ValueError: Weights, layers, concepts or images that cannot be used; says all.
    """
    plan = _plan(settings)
    return {plan.name: plan.network}


def dry_run(settings: Settings) -> str:
    """What `run` would compute, in words. Raises as `check`."""
    plan = _plan(settings)
    left_out = f"; the weights have no {', '.join(plan.missing)}" * bool(plan.missing)
    return (
        f"Would fine-tune on {len(plan.train)} patches, test on {len(plan.test)} of other patients, and read "
        f"{len(settings.concepts)} concepts from {', '.join(plan.layers)}{left_out}. Nothing was computed."
    )


def run(settings: Settings, folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """Fine-tune a detector, and read texture from the random, the pretrained and the fine-tuned network.

    The folder keeps the training (tuning/), the detector (fine_tuned/), measures, features and R2 of each network (features/),
    gradients, maps, and what is drawn (pictures/).

    Returns:
        scores (see `maths.score_texture`), sensitivity (of the logit to each concept, at one layer), detector (one row: what it
        was trained and tested on, accuracy and AUC with 95 % intervals over patients) and pictures (files of maps).

    Raises:
        ValueError: See `check`.
        FloatingPointError: A loss or gradients that are not finite.
    """
    if folder is None:
        with TemporaryDirectory() as temporary:
            return run(settings, Path(temporary))
    plan, size, seed = _plan(settings), settings.size, settings.seed
    recipe = Recipe(
        settings.epochs, settings.batch_size, settings.learning_rate, "pixels", "recomputed", "sigmoid_cross_entropy"
    )  # fmt: skip
    tuned, logits = fine_tune_detector(
        plan.network, plan.source, plan.train, plan.test, folder / "tuning", size=size, seed=seed, recipe=recipe,
        progress="fine-tuning",
    )  # fmt: skip
    checkpoints.save(folder / "fine_tuned", tuned, overwrite=True)
    randomised = checkpoints.random_network(plan.network, seed)
    networks = {"random": randomised, "pretrained": plan.network, "fine_tuned": tuned}
    held_out = plan.source.take(plan.test)  # fine-tuning has read all of them, or refused
    cache = folder / "measures.csv"
    measured = measure_all(get_measures(settings.concepts), held_out, cache=cache, progress="measures")
    for values in measured.values.T:
        check_measures(values, measured.names)
    measures = dict(zip(settings.concepts, measured.values.T, strict=True))
    of_class = held_out.column("label")
    detects = max(of_class)
    classes, groups = (of_class == detects).astype(int), measured.groups
    scores, targets, features = [], {}, {}
    for name, network in networks.items():
        path = folder / "features" / f"{name}.npz"
        compute = partial(compute_features, size=size, batch_size=settings.batch_size, progress=name)
        features = cached_features(path, partial(compute, network, held_out, plan.layers)).values
        probe = partial(maths.score_sizes, name, features, measures, groups, settings.sizes)
        path = path.with_name(f"{name}_scores.csv")
        scores.append(kept_table(path, partial(probe, splits=settings.splits, seed=seed)))
        targets[name] = class_logit(network, 0)
        if name != "fine_tuned":  # which alone was trained on the classes: the others get a linear head
            labels = classes[:, None].astype(np.float64)
            head = fit(features[settings.layer], labels).weights[0, :, 0]
            targets[name] = head_unit(network, settings.layer, head.astype(np.float32))

    asked = explain.Settings(
        method="grad_cam", images=settings.images, layer=(settings.layer,), size=size, batch_size=settings.batch_size,
        seed=seed, shown=settings.shown, signed=False, faithfulness=False, tolerance=0, vector="filter",
    )  # fmt: skip
    subject = {name: Subject(name, networks[name], asked, [targets[name]]) for name in networks}
    splits = grouped_splits(groups, settings.splits, seed)
    rcvs = fit_rcvs(tuned, settings.layer, features[settings.layer], measures, splits)
    weighed = dataclasses.replace(subject["fine_tuned"], source=held_out, rcvs=rcvs)
    sensitivity, _ = explain_maps.weigh_concepts(weighed, folder)
    ones, zeros = (np.flatnonzero(classes == kind).tolist() for kind in (1, 0))
    few = held_out.take(ones[: settings.shown - settings.shown // 2] + zeros[-(settings.shown // 2) :])
    drawn = {
        WEIGHTS[name]: explain_maps.map_images(dataclasses.replace(one, source=few), folder).shown
        for name, one in subject.items()
    }
    album = Album(folder)
    for views in zip(*drawn.values(), strict=True):
        image, pixels, _ = views[0]
        album.add("maps", image, "image", pixels)
        for label, (_, _, of_network) in zip(drawn, views, strict=True):
            album.add("maps", image, label, overlay(pixels, of_network, POSITIVE))
    detector = {
        "architecture": plan.network.architecture.name,
        "detects": detects,
        "trained_on": len(plan.train),
        "tested_on": len(plan.test),
        "patients": len({*groups}),
        **detected(logits, classes, groups, seed=seed)._asdict(),
    }
    return {
        "scores": pd.concat(scores, ignore_index=True),
        "sensitivity": sensitivity,
        "detector": pd.DataFrame([detector]),
        "pictures": album.table(),
    }


def _plan(settings: Settings) -> _Plan:
    problems: list[str] = []

    def tried(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except ValueError as error:
            problems.append(str(error))

    networks = tried(load_networks, (settings.weights,)) or {}
    for network in networks.values():
        tried(with_one_output, network, settings.seed)
        for layer in settings.layers:
            tried(check_layer, network.architecture, layer)
        tried(check_layer, network.architecture, settings.layer, network.module.last)
    tried(get_measures, settings.concepts)
    patches = tried(_patches, settings)
    if problems:
        raise ValueError(" ".join(problems))
    ((name, network),) = networks.items()
    known = available_layers(network.architecture, network.module)
    asked = settings.layers or LAYERS.get(network.architecture.name, known)
    missing = tuple(layer for layer in asked if layer not in known)
    layers = tuple(sorted({*asked, settings.layer} - {*missing}, key=known.index))
    check_request(network, layers, settings.size, "gap")
    source, train, test = patches
    return _Plan(name, network, source, train, test, layers, missing)


def _patches(settings: Settings) -> tuple[ImageSet, np.ndarray, np.ndarray]:
    """The patches, and the indices of those to train and to test on."""
    kind, _, folder = settings.images.rpartition(":")
    if settings.images == "tissue":
        source = tissue.patches(settings.patients, settings.per_class, settings.seed, size=settings.size)
    else:
        source = camelyon_patches(folder) if kind == "tfds" else class_folders(read_folder(folder))
    source = with_copies_together(regroup(source, settings.groups))
    groups, classes, used = source.column("group"), source.column("label"), np.arange(len(source))
    train = grouped_splits(groups, 1, settings.seed, settings.held_out, classes=classes)[0]
    if 0 < settings.limit < len(source):
        used = np.unique(np.linspace(0, len(source) - 1, settings.limit).round().astype(int))
    return source, used[train[used]], used[~train[used]]


# Report

LOWEST = -0.25  # of ordinates: least squares falls without bound
ALMOST_1 = 1 - 1e-6
OVER_PATIENTS = "95 % over patients"


def report(settings: Settings, tables: Mapping[str, pd.DataFrame], folder: Path | None = None) -> Page:
    """Findings, cautions, figures and tables; with the maps where `folder` is given, which holds them."""
    detector, concepts = tables["detector"].iloc[0], tables["sensitivity"]
    name, detects = plain_name(detector["architecture"]), str(detector["detects"])
    cells = maths.summarise(tables["scores"], detector["architecture"])
    own = rows_of(tables["scores"], weights="random")
    findings = [
        *_of_detector(name, detector),
        *_of_texture(name, cells),
        *_of_interpolation(name, own),
        *_of_concepts(name, detects, concepts),
    ]
    asked = settings.layers or LAYERS.get(detector["architecture"], ())
    if missing := [layer for layer in asked if layer not in cells.index.unique("layer")]:
        quantity, note = "layers that the weights have not", f"Left out: {', '.join(missing)}."
        findings.append(Finding(quantity, name, float(len(missing)), note=note, level="caution", digits=0))
    relevance = plots.bars(
        concepts.rename(columns={"concept": "label", "br": "value", "br_low": "low", "br_high": "high"}),
        x="bidirectional relevance Br",
        name="relevance",
        caption=f"At {settings.layer}; 95 % intervals over patients. Above 0: more of it speaks for {detects}.",
    )
    text = partial(render_text, "texture.html", settings=settings, detector=detector)
    sections = [
        Section("Texture by layer", "", [_by_layer(cells)], [_by_concept(cells)], text("layers")),
        Section("As many features as images", "", [_by_ratio(own)], html=text("ratio")),
        Section("What concepts do to the decision", "", [relevance], [_sensitivity(concepts)]),
    ]
    if folder:
        caption, label = f"Grad-CAM at {settings.layer}.", "share of the largest value of the image's map"
        figures = picture_figures(tables["pictures"], folder, {"maps": caption}, scale=POSITIVE, label=label)
        sections.append(Section("Where the networks look", "", [*figures]))
    return Page(settings.title, findings, sections, render_text("texture.html", "reading"))


def _of_detector(name: str, detector: pd.Series) -> Iterator[Finding]:
    at = f"{name}, {detector['tested_on']} patches of {detector['patients']} patients"
    auc, accuracy = (
        detector[[what, f"{what}_low", f"{what}_high"]].astype(float) for what in ("auc", "accuracy")
    )
    quantity = f"AUC of the detector of {detector['detects']}, fine-tuned on {detector['trained_on']} patches of others"
    yield Finding(quantity, at, *auc, interval=OVER_PATIENTS, level="headline")
    yield Finding("accuracy of the detector", at, *100 * accuracy, interval=OVER_PATIENTS, unit="%")


def _of_texture(name: str, cells: pd.DataFrame) -> Iterator[Finding]:
    """R2 of the three networks, held out and, where it was published, in sample."""
    concepts, layers = (len(cells.index.unique(level)) for level in ("concept", "layer"))
    held = f"median held-out R² of texture (ridge), mean of {concepts} concepts and {layers} layers"
    inside = "R² of texture in sample (least squares), mean of what was published"
    common = cells.dropna(subset="published")[["inside", "published"]]
    for weights, label in WEIGHTS.items():
        at = f"{name}, {label}"
        yield Finding(held, at, cells["held"].xs(weights, level="weights").mean(), level="headline")
        if len(common):
            ours, published = np.mean(common.xs(weights, level="weights").to_numpy(), axis=0).tolist()
            source = "IMVIP 2019, the same mean"
            yield Finding(inside, at, ours, published=round(published, 3), source=source)


def _of_interpolation(name: str, own: pd.DataFrame) -> Iterator[Finding]:
    """R2 of the random network where there are as many features as images, or nearly as many."""
    ratio = own["width"] / (own["images"] - 1)
    least = min(1.0, ratio.max())
    at = f"{name}, random, D / (n − 1) ≥ {number(least)}"
    for control, what in ((False, "texture"), (True, "shuffled measures")):
        wide = rows_of(own[ratio >= least], shuffled=control)
        inside, held = rows_of(wide, part="in_sample")["r2"], rows_of(wide, estimator="ridge")["r2"]
        note = f"R² = 1 in {(inside >= ALMOST_1).sum()} of {len(inside)} regressions."
        note += " Such an R² says nothing of what a layer knows." * control
        quantity, level = f"mean R² of {what} in sample (least squares)", "caution" if control else "result"
        yield Finding(quantity, at, inside.mean(), note=note, level=level)
        yield Finding(f"median held-out R² of {what} (ridge)", at, held.median())


def _of_concepts(name: str, detects: str, concepts: pd.DataFrame) -> Iterator[Finding]:
    strongest = concepts["br"].abs().max()
    for row in concepts.dropna(subset="br").to_dict("records"):
        quantity, at = f"Br of {row['concept']} for {detects}", f"{name}, fine-tuned, {row['layer']}"
        values, note = (
            (row["br"], row["br_low"], row["br_high"]),
            f"Against random directions p = {row['p']:.2g}.",
        )
        level = "headline" if abs(row["br"]) == strongest else "result"
        yield Finding(quantity, at, *values, OVER_PATIENTS, note=note, level=level)


def _by_layer(cells: pd.DataFrame) -> Image:
    panels = {"held out (ridge)": cells["held"], "in sample (least squares)": cells["inside"]}
    groups = pd.concat(panels, names=["panel"]).groupby(["panel", "weights", "layer"], sort=False)
    frame = groups.agg(value="mean", low="min", high="max").reset_index()
    return plots.curves(
        frame.assign(x=frame["layer"], series=frame["weights"].map(WEIGHTS)),
        x="layer, from input to output",
        y="R²",
        name="rcv",
        caption="Means over the concepts, held out of medians over splits; bands from the worst to the best read concept.",
        order=[*cells.index.unique("layer")],
        limits=(LOWEST, 1.0),
    )


def _by_ratio(own: pd.DataFrame) -> Image:
    """R2 of the random network against D / n."""
    own = own.assign(x=own["width"] / own["n_fit"], chance=(own["width"] / (own["n_fit"] - 1)).clip(upper=1))
    inside, held = rows_of(own, part="in_sample"), rows_of(own, part="held_out", shuffled=False)
    series = {
        "least squares, in sample": rows_of(inside, shuffled=False),
        "the same, shuffled measures": rows_of(inside, shuffled=True),
        "chance in sample, D / (n − 1)": inside.assign(r2=inside["chance"]),
        "ridge, held out": rows_of(held, estimator="ridge"),
        "least squares, held out": rows_of(held, estimator="ols"),
    }
    medians = {label: rows.groupby("x")["r2"].median() for label, rows in series.items()}
    return plots.curves(
        pd.concat(medians, names=["series"]).rename("value").reset_index(),
        x="features D / images of the fit n",
        y="R² of the random network",
        name="artefact",
        caption="Medians over concepts, layers and splits of the same D / n.",
        log="x",
        limits=(LOWEST, 1.0),
    )


def _by_concept(cells: pd.DataFrame) -> Table:
    """R2 of every concept at every layer; the means over the concepts on top."""
    means = cells.drop(columns="published").groupby(["layer", "weights"], sort=False).mean()
    every = pd.concat([pd.concat({"mean": means}, names=["concept"]), cells])
    thousandths = every[["inside", "published"]].map(partial(number, digits=3))
    texts = thousandths.assign(
        held=every["held"].map(number) + " (" + every["spread"].map(number) + ")",
        control=every["control"].map(number),
    )
    parts = {"held": "held out", "control": "shuffled", "inside": "in sample", "published": "published"}
    columns = {
        f"{label}, {part}": texts[column].xs(weights, level="weights")
        for column, part in parts.items()
        for weights, label in WEIGHTS.items()
        if every[column].notna().any()
    }
    frame = pd.DataFrame(columns)
    rows = [
        (f"{concept.removeprefix('glcm_')}, {layer}", *row) for (concept, layer), *row in frame.itertuples()
    ]
    caption = (
        "R² held out by patient (ridge; medians over splits, in brackets the range between quartiles), of measures shuffled, in "
        "sample (least squares), and in sample as published (Camelyon17)."
    )
    return Table(caption, ("concept, layer", *columns), rows, range(cells.index.unique("layer").size))


def _sensitivity(concepts: pd.DataFrame) -> Table:
    names = {
        "concept": "concept", "r2": "R² held out", "mean": "mean S", "dimension_free": "mean z", "tcav": "TCAV",
        "random_low": "TCAV of random directions, from", "random_high": "to", "p": "p",
    }  # fmt: skip
    texts = concepts[[*names]].map(
        lambda cell: cell if isinstance(cell, str) else f"{cell:.3g}".replace("-", "−")
    )
    caption = "What concepts do to the logit of the fine-tuned network."
    return Table.of(caption, texts.rename(columns=names))
