"""Settings of explanations, and what they name: networks, targets, concept vectors (RCVs) and images."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from scalecov_jax.checkpoints import Network, fingerprints, load_networks, random_network
from scalecov_jax.explanation import grad_cam
from scalecov_jax.explanation.capture import capture
from scalecov_jax.explanation.feature_visualization import Objective, channel, direction, neuron, whole_layer
from scalecov_jax.explanation.gradients import layer_gradients
from scalecov_jax.explanation.target import (
    LOGITS,
    Target,
    class_count,
    class_logit,
    class_probability,
    contrast,
    cumulative,
    group_logit,
    predicted_logit,
    rcv_projection,
    severity,
    step,
)
from scalecov_jax.imaging import fundus
from scalecov_jax.imaging.batching import batches
from scalecov_jax.imaging.folder import read_folder
from scalecov_jax.imaging.image_set import ImageError, ImageSet, Skipped, Source
from scalecov_jax.imaging.sources import RETINA, SCENES, has_classes, open_images, regroup
from scalecov_jax.models.architecture import available_layers, check_layer
from scalecov_jax.models.folding import fold
from scalecov_jax.models.preprocessing import preprocess
from scalecov_jax.settings import Base, setting, together
from scalecov_jax.vectors import Rcv, Vector, load_rcvs, strip

Method = Literal[grad_cam.Method, "sensitivity", "feature_visualization", "score_propagation"]
METHODS: tuple[Method, ...] = get_args(Method)
MOST_CLASSES = 10  # that "all" may mean
_NAMED: dict[str, Callable[[Network], Target]] = {
    "predicted": predicted_logit,
    "contrast": contrast,
    "step": step,
    "severity": severity,
    "cumulative": cumulative,
}


@dataclass(frozen=True)
class Settings(Base):
    """What determines the results."""

    title: str = setting("What does the network look at?", help="Heading of the report.")
    method: Method = setting("grad_cam", help="What to compute; the flag --method of scripts/explain.py.")
    architecture: str = setting("", help="What all weights must be; any when empty.")
    weights: tuple[str, ...] = setting(("checkpoints/resnet50",), least=1, help="Folders of checkpoints.")
    random_weights: bool = setting(True, help="Whether to explain each network with random weights too.")
    images: str = setting(
        SCENES,
        least=1,
        help="scenes, retina, tfds:FOLDER, annotated:FOLDER, or a folder of images, with boxes if it is in VOC layout.",
    )
    trim: bool = setting(
        False,
        help="Whether a folder's photographs of the fundus and their masks are trimmed to the disc that the camera sees.",
    )
    image_class: str = setting("striped_disc", help="Class of scenes and of folders with boxes.")
    scenes: int = setting(24, low=1, help="How many scenes or retinas are rendered.")
    groups: str = setting(
        "",
        help="Patients or slides, csv:PATH:COLUMN, for the tests of sensitivity; those of the images when empty.",
    )
    limit: int = setting(0, low=0, help="Images, evenly spread over the list; all when 0.")
    layer: tuple[str, ...] = setting(("add_16",), least=1, help="Of maps; several for localisation alone.")
    target: str = setting(
        "predicted",
        help="predicted; logit:CLASS or probability:CLASS (index or name); logit:CLASS,CLASS (their largest); contrast or "
        "contrast:CLASS (the predicted or this class against the others); of classes that are grades severity (sum_k (k - mean "
        "k) logit_k), cumulative (P(grade >= k) over all k) and step (the predicted grade against that below); or "
        "rcv:CONCEPT@LAYER (the projection on an RCV of rcvs).",
    )
    classes: tuple[str, ...] = setting(
        (),
        help="For score_propagation, in place of one target: classes and predicted, contrast, step, severity or cumulative; or "
        "all (classes, of at most 10).",
    )
    prior: Literal["true", "published", "quoted"] = setting(
        "true",
        help="How the constants of layers are laid on the image: by their receptive fields with a quarter of them as sigma and "
        "nothing lost, by a half with what lies outside lost, or so with the fields that the source quotes for dr_grader.",
    )
    deviations: float = setting(
        2.0, low=0, help="Standard deviations above the mean of a score map from which on pixels are marked."
    )
    kept: int = setting(0, low=0, help="Images whose arrays scores.npz holds; all when 0.")
    localisation: bool = setting(
        False,
        help="For score_propagation: whether its maps find what the masks of the images mark (retina, annotated:FOLDER, "
        "index.csv), beside gradients, FullGrad and Grad-CAM at the layers of layer.",
    )
    smoothing: tuple[float, ...] = setting(
        (0.0,), low=0, least=1, help="Of the maps before that: sd of a Gaussian in pixels."
    )
    signed: bool = setting(False, help="Whether maps keep what speaks against the target.")
    faithfulness: bool = setting(True, help="Whether to measure insertion and deletion beside pointing.")
    randomisation: bool = setting(
        False,
        help="Whether to draw maps as layers become random from the output down: one more pass over all images a layer.",
    )
    tolerance: int = setting(0, low=0, help="Of the pointing game, in pixels of the image (15 as published).")
    shown: int = setting(6, low=1, help="Images drawn.")
    rcvs: str = setting(
        "",
        help="For sensitivity, the objective rcv and rcv targets: rcvs.npz of a run of scripts/probe.py with these weights.",
    )
    rcv_class: str = setting("", help="Whose RCVs, if the file has several classes; image_class when empty.")
    vector: Vector = setting("filter", help="Of an RCV: what reads the concept, or how features follow it.")
    concepts: tuple[str, ...] = setting((), help="Of that file; all when empty.")
    objective: Literal["channel", "neuron", "layer", "rcv"] = setting(
        "channel", help="For feature_visualization; rcv goes from -v to +v."
    )
    channels: tuple[int, ...] = setting(
        tuple(range(8)), low=0, help="Channels to visualise; of the objective layer, how many images."
    )
    recipe: Literal["lucid", "imvip"] = setting("lucid", help="512 steps, or three stages of 2048 in all.")
    steps: int = setting(0, low=0, help="Steps of lucid in place of 512 when above 0.")
    size: int = setting(0, low=0, help="Pixels; when 0 the network's own, and 128 for feature_visualization.")
    batch_size: int = setting(16, low=1, help="Images per pass.")
    seed: int = setting(2026, low=0, help="Of rendered images, random weights, optimised images and tests.")

    @property
    def locates(self) -> bool:
        """Whether maps are held against masks."""
        return self.localisation and self.method == "score_propagation"

    def problems(self) -> list[str]:
        """A target of no known form, several layers where maps are of a single layer, and no file of RCVs where it is needed."""
        problems = []
        kind, colon, given = self.target.partition(":")
        if not (
            (kind in _NAMED and not colon)
            or (kind in ("logit", "probability", "contrast") and given)
            or all(self.rcv_target)
        ):
            problems.append(
                f"target is {self.target!r}; expected {', '.join(_NAMED)}, logit:CLASS, logit:CLASS,CLASS, probability:CLASS, "
                "contrast:CLASS or rcv:CONCEPT@LAYER"
            )
        if len(self.layer) > 1 and not self.locates:
            problems.append(
                f"layer is {','.join(self.layer)!r}; expected a single layer, since localisation alone compares several"
            )
        if self.reads_rcvs and not self.rcvs:
            problems.append(
                "rcvs is empty; expected rcvs.npz of a scripts/probe.py run with these weights, as in "
                "--config.rcvs=runs/NAME/rcvs.npz"
            )
        return problems

    @property
    def rcv_target(self) -> tuple[str, str]:
        """Concept and layer of a target rcv:CONCEPT@LAYER; empty where the target has another form."""
        concept, _, layer = self.target.removeprefix("rcv:").rpartition("@")
        return (concept, layer) if self.target.startswith("rcv:") else ("", "")

    @property
    def reads_rcvs(self) -> bool:
        """Whether RCVs are needed."""
        if self.method == "feature_visualization":
            return self.objective == "rcv"
        return self.method == "sensitivity" or self.target.startswith("rcv:")


@dataclass(frozen=True)
class Subject:
    """A network and what is asked of it."""

    name: str  # of the network; those with random weights are called NAME-random
    network: Network
    settings: Settings  # of the explanation
    targets: Sequence[Target] = ()  # what is explained; for score propagation possibly several
    asked: Sequence[str] = ()  # names of the targets as they were asked for
    source: Source = ()  # images; none for feature visualisation
    masked: Source = ()  # for localisation, the images whose mask holds something
    rcvs: Sequence[Rcv] = ()  # those whose directions are weighed or visualised
    aim: Rcv | None = None  # that on which the target projects
    objectives: Sequence[Objective] = ()  # of feature visualisation; they are summed
    random: bool = False  # whether its weights are random

    @property
    def size(self) -> int:
        """Height and width of images in pixels."""
        own = 128 if self.settings.method == "feature_visualization" else self.network.card.input_size
        return self.settings.size or own

    def folded(self) -> tuple[Any, Any]:
        """Module and variables, on the device, with batch normalisation folded."""
        network = self.network
        module, variables = fold(network.module, network.variables, network.architecture.epsilon)
        return module, jax.device_put(variables)

    def batches(self, source: Source, skipped: list[Skipped]) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
        """Preprocessed images, which of them count, and their places in the source; `skipped` gets what cannot be decoded."""
        most = min(self.settings.batch_size, len(source))
        with tqdm(total=len(source), desc=self.name, unit="img") as bar:
            for batch in batches(source, self.size, most, skipped):
                inputs = preprocess(jnp.asarray(batch.images), self.network.card.preprocessing)
                yield inputs, batch.valid, batch.indices
                bar.update(int((batch.indices >= 0).sum()))

    def traced(self, compute: Callable[[Any, Any], Any]) -> Any:
        """Shapes of what is computed from variables and an image; nothing is computed."""
        image = jax.ShapeDtypeStruct((1, self.size, self.size, 3), jnp.float32)
        return jax.eval_shape(compute, jax.tree.map(np.asarray, self.network.variables), image)


def open_inputs(settings: Settings) -> tuple[list[Subject], tuple[Skipped, ...]]:
    """Read networks, RCVs and images, and trace every gradient once, so that all is refused before anything is computed.

    Returns:
        The networks, and images that are left out at once.

    Raises:
        ValueError: Weights, targets, layers, RCVs or images that cannot be used; says what was given and what to do.
    """
    networks = load_networks(settings.weights, settings.architecture)
    subjects = [Subject(name, network, settings) for name, network in networks.items()]
    if settings.random_weights and not settings.reads_rcvs:  # RCVs are of the trained weights alone
        subjects += [
            Subject(f"{name}-random", random_network(network, settings.seed), settings, random=True)
            for name, network in networks.items()
        ]
    if settings.method == "feature_visualization":
        return together(*(partial(_with_objective, subject) for subject in subjects)), ()
    subjects = together(*(partial(_with_targets, subject) for subject in subjects))
    source = _open_images(subjects)
    masked = with_masks(source, settings.images) if settings.locates else ()
    return [
        dataclasses.replace(subject, source=source, masked=masked) for subject in subjects
    ], source.skipped


def _with_objective(subject: Subject) -> Subject:
    """Refuses layers and channels that the network has not."""
    settings, rcvs = subject.settings, []
    (layer, *_), channels = settings.layer, settings.channels
    if settings.objective == "layer":
        made = whole_layer(layer, max(1, len(channels)))
    elif settings.objective == "rcv":
        rcvs = chosen_rcvs(subject, layer, settings.concepts)
        made = direction(
            layer, np.concatenate([strip(rcv.vector(settings.vector), rcv.mean) for rcv in rcvs])
        )
    else:
        module = subject.network.module
        outputs = subject.traced(lambda variables, images: capture(module, variables, images, (layer,)))
        make = {"channel": channel, "neuron": neuron}[settings.objective]
        made = make(layer, channels, outputs[layer].shape[-1])
    return dataclasses.replace(subject, objectives=[made], rcvs=rcvs)


def _with_targets(subject: Subject) -> Subject:
    """Refuses classes and RCVs that are not there, and layers that the targets do not read through."""
    settings, network, aim, rcvs = subject.settings, subject.network, None, []
    concept, at = settings.rcv_target
    if concept:
        check_layer(network.architecture, at, _last(network))
        (aim,) = chosen_rcvs(subject, at, [concept])
        target = rcv_projection(network, aim, settings.vector)
    else:
        target = _class_target(network, settings.target)
    if settings.method == "sensitivity":
        rcvs = chosen_rcvs(subject, settings.layer[0], settings.concepts)
    asked, targets = (settings.target,), [target]
    if settings.method == "score_propagation" and settings.classes:
        asked = settings.classes
        if asked == ("all",):
            if (count := class_count(network)) > MOST_CLASSES:
                raise ValueError(
                    f"config.classes is all, but the network has {count} classes; expected at most {MOST_CLASSES}: name some."
                )
            asked = tuple(map(str, range(count)))
        targets = [_NAMED[name](network) if name in _NAMED else class_logit(network, name) for name in asked]
    for layer in settings.layer if settings.locates or settings.method != "score_propagation" else ():
        seen = partial(layer_gradients, network.module, layer=layer, target=targets[0])
        traced = subject.traced(seen)
        if settings.method != "sensitivity" and len(traced.activations.shape) != 4:
            raise ValueError(
                f"{layer} has no maps ({list(traced.activations.shape)}); a map can be drawn of layers before the pooling, such "
                f"as {network.architecture.trunk}."
            )
    return dataclasses.replace(subject, targets=targets, asked=asked, rcvs=rcvs, aim=aim)


def chosen_rcvs(subject: Subject, layer: str, concepts: Sequence[str]) -> list[Rcv]:
    """The RCVs of a layer, one for each concept; of all concepts in the file when none is named.

    Raises:
        ValueError: The file has none that were fitted on the network's layer, several classes and none chosen, or lacks a
            concept (names those that are there), or they are not of means over positions.
    """
    settings, every = subject.settings, load_rcvs(subject.settings.rcvs)
    here = fingerprints(subject.network, [layer])[layer]
    own = [rcv for rcv in every if rcv.network == here]
    classes = list(dict.fromkeys(rcv.image_class for rcv in own))
    wanted = settings.rcv_class or settings.image_class
    if wanted in classes:
        own = [rcv for rcv in own if rcv.image_class == wanted]
    elif len(classes) > 1 or (classes and settings.rcv_class):
        raise ValueError(
            f"{settings.rcvs} has RCVs of the classes {', '.join(classes)}, none of them {wanted!r}; choose one by "
            "config.rcv_class."
        )
    by_concept = {rcv.measure: rcv for rcv in own}
    missing = [concept for concept in concepts if concept not in by_concept]
    if missing or not by_concept:
        there = sorted({f"{rcv.measure} at {rcv.layer}" for rcv in own or every})
        raise ValueError(
            f"{settings.rcvs} has no RCV of {', '.join(missing) or 'any concept'} fitted at {layer} of the weights "
            f"{subject.name}; it has {'; '.join(there[:20])}. Run scripts/probe.py with these weights, layers and concepts."
        )
    chosen = [by_concept[concept] for concept in concepts or by_concept]
    if other := sorted({rcv.pooling for rcv in chosen} & {"cls", "cls_mean"}):
        raise ValueError(
            f"The RCVs of {settings.rcvs} were fitted on features pooled by {', '.join(other)}; explanations read the mean over "
            "positions: fit them with --config.pooling=gap."
        )
    return chosen


def with_masks(source: ImageSet, images: str) -> ImageSet:
    """The images of a source whose mask holds something; those that cannot be decoded are left to others to name.

    Raises:
        ValueError: There is none.
    """

    def holds(index: int) -> bool:
        try:
            mask = source[index].mask
        except ImageError:
            return False
        return mask is not None and bool(np.any(mask))

    if not (indices := [index for index in range(len(source)) if holds(index)]):
        raise ValueError(
            f"config.localisation needs masks, but none of the {len(source)} images of {images} has one with anything in it; "
            "expected config.images=retina, annotated:FOLDER, or a folder with an index.csv that has a column mask."
        )
    return source.take(indices)


def _class_target(network: Network, text: str) -> Target:
    last = _last(network)
    if LOGITS not in available_layers(network.architecture, network.module):
        raise ValueError(
            f"config.target is {text}, but this {network.architecture.name} has no classes: it stops at {last}, before its head. "
            f"Take config.target=rcv:CONCEPT@LAYER, such as rcv:scale@{last}, or weights with the head."
        )
    kind, _, given = text.partition(":")
    if text in _NAMED:
        return _NAMED[text](network)
    if kind == "contrast":
        return contrast(network, given)
    if kind == "probability":
        return class_probability(network, given)
    if "," in given and given not in network.card.class_names:
        return group_logit(network, [part.strip() for part in given.split(",") if part.strip()])
    return class_logit(network, given)


def _last(network: Network) -> str:
    return network.module.last  # pyright: ignore[reportAttributeAccessIssue]


def _open_images(subjects: Sequence[Subject]) -> ImageSet:
    settings = subjects[0].settings
    images, size = settings.images, max(subject.size for subject in subjects)
    if images in (SCENES, RETINA):
        size = size if images == RETINA else 128  # small lesions are lost in a small picture
        found = _rendered(images, settings.image_class, settings.scenes, settings.seed, size)
    elif has_classes(images) or images.startswith(("annotated:", "slides:")):
        found = open_images(images, settings.image_class)
    else:
        found = read_folder(images)
        if settings.trim:
            found = found.map(partial(fundus.trim_example, size=size))
    return regroup(found, settings.groups).spread(settings.limit)


@lru_cache(maxsize=1)  # of a run, whose settings are checked before
def _rendered(images: str, image_class: str, count: int, seed: int, size: int) -> ImageSet:
    return open_images(images, image_class, count=count, seed=seed, size=size)
