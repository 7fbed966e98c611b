"""Maps, concept sensitivities and optimised images of a network, as tables; what an earlier run kept is read."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import linen as nn
from jaxtyping import Array, Float
from tqdm import tqdm

from scalecov_jax.experiments.explain_inputs import Subject
from scalecov_jax.explanation import faithfulness, feature_visualization, grad_cam, sensitivity
from scalecov_jax.explanation.feature_visualization import RECIPES, Stage, load_state, save_state
from scalecov_jax.explanation.gradients import LayerGradients, check_gradients, layer_gradients
from scalecov_jax.extraction import Features, cached_features
from scalecov_jax.imaging.decoding import resize_image
from scalecov_jax.imaging.image_set import Box, Skipped
from scalecov_jax.vectors import STRIP

_CHUNK = 32  # steps between two states
Use = Callable[[nn.Module, Any, Float[Array, "N H W 3"], LayerGradients], dict[str, Array]]


class Mapped(NamedTuple):
    """Maps of a network."""

    # A row an image: weights, image, score (the target), largest (absolute value of the map before it is scaled; 0 where
    # nothing supports the target), box_share (of the image), hit and centre_hit (whether the largest value and the centre lie
    # in the box; these three missing where there is none), insertion and deletion (areas under the curves)
    table: pd.DataFrame
    # A row a stratum of the pointing game: weights, stratum, the columns of `faithfulness.Pointing`, and of all images
    # other_maps (hits of maps of the others, expected) and p_other (see `faithfulness.exchange_test`)
    pointing: pd.DataFrame
    # name, pixels and map (between 0 and 1, or -1 and 1) of the images that are drawn, 224 pixels wide
    shown: list[tuple[str, np.ndarray, np.ndarray]]
    skipped: tuple[Skipped, ...]  # images that cannot be decoded


def map_images(subject: Subject, folder: Path | None) -> Mapped:
    """Maps of all images by Grad-CAM or a relative, and their tests.

    maps/ in the folder keeps the maps.

    Raises:
        ValueError: No image can be decoded.
        FloatingPointError: See `gradients.check_gradients`.
    """
    settings, source, size = subject.settings, subject.source, subject.size
    (target,), method = subject.targets, cast(grad_cam.Method, settings.method)

    def use(module: Any, variables: Any, inputs: Any, computed: LayerGradients) -> dict[str, Any]:
        maps = grad_cam.cam(method, computed.activations, computed.gradients, signed=settings.signed)
        if not settings.faithfulness:
            return {"maps": maps}
        large, baseline = grad_cam.upsample(maps, size, size), faithfulness.blurred(inputs)
        curves = faithfulness.insertion_deletion(module, variables, inputs, large, baseline, target)
        areas = map(faithfulness.area_under, curves)
        return {"maps": maps, **dict(zip(("insertion", "deletion"), areas, strict=True))}

    found = _kept_gradients(subject, folder and folder / "maps", use)
    arrays = found.values
    large = np.asarray(grad_cam.upsample(grad_cam.scale_maps(jnp.asarray(arrays["maps"])), size, size))
    names, boxes, shares, shown = [], [], [], []
    for row, index in enumerate(found.indices):
        example = source[int(index)]
        height, width = example.image.shape[:2]
        names.append(example.name)
        boxes.append(_scaled(example.box, height, width, size, settings.tolerance))
        shares.append(_share(example.box, height, width))
        if row < settings.shown:
            small = np.asarray(jax.image.resize(large[row], (224, 224), "linear"))
            shown.append((example.name, resize_image(example.image, 224), small))
    known, boxed = np.array([box is not None for box in boxes]), [box for box in boxes if box]
    hit, centre = (pd.array([pd.NA] * len(boxes), dtype="boolean") for _ in range(2))
    if boxed:
        hit[known] = faithfulness.hits(large[known], boxed)
        centre[known] = faithfulness.centre_hits(size, size, boxed)
    table = pd.DataFrame(
        {
            "weights": subject.name,
            "image": names,
            "score": arrays["scores"].astype(float),
            "largest": np.abs(arrays["maps"]).max((1, 2)).astype(float),
            "box_share": np.array(shares, float),
            "hit": hit,
            "centre_hit": centre,
            **{name: arrays.get(name, np.full(len(boxes), np.nan)) for name in ("insertion", "deletion")},
        }
    )
    return Mapped(table, _pointing(table, large[known], boxed, settings.seed), shown, found.skipped)


def _pointing(table: pd.DataFrame, maps: np.ndarray, boxes: Sequence[Box], seed: int) -> pd.DataFrame:
    known = table.dropna(subset="hit")
    hit, centre = (known[name].to_numpy(bool) for name in ("hit", "centre_hit"))
    games = faithfulness.pointing_strata(hit, centre, known["box_share"].to_numpy())
    columns = ["weights", "stratum", *faithfulness.Pointing._fields, "other_maps", "p_other"]
    rows = [(table["weights"].iloc[0], stratum, *game, np.nan, np.nan) for stratum, game in games.items()]
    pointing = pd.DataFrame(rows, columns=columns).astype({"weights": "str", "stratum": "str"})
    if len(boxes) > 1:
        pointing.loc[0, ["other_maps", "p_other"]] = faithfulness.exchange_test(maps, boxes, seed=seed)[1:]
    return pointing


def weigh_concepts(subject: Subject, folder: Path | None) -> tuple[pd.DataFrame, tuple[Skipped, ...]]:
    """How a target changes along concepts; see `explanation.sensitivity` for the columns.

    gradients/ in the folder keeps the gradients.

    Returns:
        A row a concept (br and its interval missing where the sensitivity is the same for all images), and images that cannot be
        decoded.

    Raises:
        ValueError, FloatingPointError: See `map_images`.
    """
    settings, rcvs = subject.settings, subject.rcvs

    def use(module: Any, variables: Any, inputs: Any, computed: LayerGradients) -> dict[str, Any]:
        return {"gradients": sensitivity.pooled_gradients(computed.gradients)}

    found = _kept_gradients(subject, folder and folder / "gradients", use)
    groups = [subject.source[int(index)].group for index in found.indices]
    g, v = jnp.asarray(found.values["gradients"]), jnp.asarray(sensitivity.directions(rcvs, settings.vector))
    s = np.asarray(sensitivity.sensitivities(g, v)).astype(np.float64)
    drawn: Any = {"seed": settings.seed, "groups": groups}
    sign, smooth = (sensitivity.tcav_test(g, v, **drawn, smooth=one) for one in (False, True))
    r2 = np.array([rcv.r2 for rcv in rcvs])
    br, varying = np.full((3, len(rcvs)), np.nan), ~sensitivity.constant(s)
    if varying.any():
        s_varying, r2_varying = s[:, varying], r2[varying]
        br[0, varying] = sensitivity.bidirectional_relevance(s_varying, r2_varying)
        br[1:, varying] = sensitivity.relevance_intervals(s_varying, r2_varying, **drawn)
    table = pd.DataFrame(
        {
            "weights": subject.name,
            "layer": [rcv.layer for rcv in rcvs],
            "concept": [rcv.measure for rcv in rcvs],
            "r2": r2,
            "mean": s.mean(0),
            "sd": s.std(0),
            "dimension_free": np.asarray(sensitivity.dimension_free(g, v)).mean(0).astype(float),
            "tcav": sign.score,
            "random_low": sign.low,
            "random_high": sign.high,
            "p": sign.p,
            "tcav_images": sign.over_images,
            "tcav_directions": sign.over_directions,
            "smooth": smooth.score,
            "smooth_low": smooth.interval[0],
            "smooth_high": smooth.interval[1],
            "smooth_p": smooth.p,
            "smooth_images": smooth.over_images,
            "smooth_directions": smooth.over_directions,
            **dict(zip(("br", "br_low", "br_high"), br, strict=True)),
        }
    )
    return table, found.skipped


def visualise(subject: Subject, folder: Path | None) -> tuple[pd.DataFrame, np.ndarray]:
    """Images optimised for parts of a network, chunk by chunk; a broken run goes on where it was.

    states/ in the folder keeps the state.

    Returns:
        A row an image: weights, layer, objective, part (a channel, a number, or a place on the strip of a concept), steps and
        value; and the images in uint8 [M, size, size, 3].

    Raises:
        ValueError: An earlier state is of other objectives.
        FloatingPointError: A channel is dead.
    """
    settings, objectives = subject.settings, subject.objectives
    path = folder and folder / "states" / f"{subject.name}.npz"
    recipe = RECIPES[settings.recipe]
    if settings.steps and settings.recipe == "lucid":
        recipe = (Stage(settings.steps),)
    module, variables = subject.folded()
    state = load_state(path, objectives, size=subject.size) if path else None
    total, done = sum(stage.steps for stage in recipe), state.step if state else 0
    with tqdm(total=total, initial=done, desc=subject.name, unit="step") as bar:

        def keep(state: Any) -> None:
            if path:
                save_state(path, state)
            bar.update(state.step - bar.n)

        options: Any = {"recipe": recipe, "size": subject.size, "seed": settings.seed, "state": state}
        options |= {"chunk": _CHUNK, "each_chunk": keep}
        preprocessing = subject.network.card.preprocessing
        state = feature_visualization.visualise(module, variables, preprocessing, objectives, **options)
    parts = [(settings.objective, str(part)) for part in settings.channels or (0,)]
    if settings.objective == "rcv":
        parts = [(f"rcv:{rcv.measure}", part) for rcv in subject.rcvs for part in STRIP]
    table = pd.DataFrame(parts, columns=["objective", "part"])
    table = table.assign(steps=state.step, value=np.asarray(state.values).astype(float))
    table = table.assign(weights=subject.name, layer=settings.layer[0])[["weights", "layer", *table]]
    return table, feature_visualization.pictures(state)[:, 0]


def _kept_gradients(subject: Subject, folder: Path | None, use: Use) -> Features:
    """What `use` makes of the gradients of each batch, for all images that can be decoded; `folder` keeps it."""

    def compute() -> Features:
        settings, skipped = subject.settings, []
        module, variables = subject.folded()
        (layer, *_), (target,), parts = settings.layer, subject.targets, []
        for inputs, valid, indices in subject.batches(subject.source, skipped):
            computed = layer_gradients(module, variables, inputs, layer, target)
            kept = LayerGradients(*(values[np.flatnonzero(valid)] for values in computed))
            check_gradients(kept, layer, [subject.source[int(index)].name for index in indices[valid]])
            made = {**use(module, variables, inputs, computed), "scores": computed.scores}
            arrays = {name: np.asarray(values)[valid] for name, values in made.items()}
            parts.append(arrays | {"indices": indices[valid]})
        if not sum(len(part["indices"]) for part in parts):
            raise ValueError(f"None of the {len(subject.source)} images in {settings.images} can be decoded.")
        values: dict[str, Any] = joined(parts)
        return Features(values, values.pop("indices"), tuple(skipped))

    return cached_features(folder and folder / f"{subject.name}.npz", compute)


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays of several batches, by name."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _scaled(box: Box | None, height: int, width: int, size: int, tolerance: int) -> Box | None:
    """A box, wider by `tolerance` pixels of its image on every side, in pixels of the image resized to a square."""
    if box is None:
        return None
    across, down = size / width, size / height
    left, top = (box.x_min - tolerance - 1) * across + 1, (box.y_min - tolerance - 1) * down + 1
    return Box(left, top, (box.x_max + tolerance) * across, (box.y_max + tolerance) * down)


def _share(box: Box | None, height: int, width: int) -> float:
    """Area of a box as a share of its image."""
    if box is None:
        return np.nan
    return (box.x_max - box.x_min + 1) * (box.y_max - box.y_min + 1) / (height * width)
