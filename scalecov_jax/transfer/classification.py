"""Fine-tuning a network as a detector of one of two classes, and how well it detects on patients it was not trained on."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from scalecov_jax import checkpoints
from scalecov_jax.checkpoints import Network
from scalecov_jax.cutting import pruned_network
from scalecov_jax.imaging.image_set import ImageSet
from scalecov_jax.models.layers import WHOLE
from scalecov_jax.probes.statistics import draw_groups, percentile_interval
from scalecov_jax.transfer.fine_tuning import Recipe, fine_tune

HEAD = "pre_softmax"
DRAWS = 1000


class Detected(NamedTuple):
    """Held-out patches: share whose class is right, area under the ROC curve, and 95 % intervals over patients."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    auc: float
    auc_low: float
    auc_high: float


def with_one_output(network: Network, seed: int) -> Network:
    """The network with a one-output head in place of its own; the head, and layers that the weights lack, are random.

    Raises:
        ValueError: The architecture has another kind of head.
    """
    fields = network.architecture.module.__dataclass_fields__
    if "classes" not in fields or HEAD not in network.architecture.head or len(network.architecture.head) > 2:
        raise ValueError(
            f"{network.architecture.name} cannot be fine-tuned as a detector: it has no head of one layer on pooled maps."
        )
    options = {**network.card.options, "last": HEAD, "classes": 1}
    card = dataclasses.replace(network.card, options=options, class_names=())
    start = checkpoints.random_network(checkpoints.network(None, card), seed)
    variables = {
        kind: {name: values if name == HEAD else network.variables[kind].get(name, values) for name, values in parts.items()}
        for kind, parts in start.variables.items()
    }  # fmt: skip
    return start._replace(variables=variables, card=card)


def fine_tune_detector(
    network: Network,
    source: ImageSet,
    train: Int[np.ndarray, " n"],
    test: Int[np.ndarray, " m"],
    folder: Path,
    *,
    size: int,
    seed: int,
    recipe: Recipe,
    progress: str | None = None,
) -> tuple[Network, Float[np.ndarray, " m"]]:
    """Fine-tune all weights for the second class: loss -y log p - (1 - y) log(1 - p) with p = sigmoid(logit).

    Start, folder and recipe (with the loss sigmoid_cross_entropy) are those of `fine_tuning.fine_tune`; see `with_one_output`.

    Returns:
        The network with its head, and the logit of each held-out patch.

    Source: Graziani et al. 2019 (IMVIP): one sigmoid output.
    """
    if recipe.loss != "sigmoid_cross_entropy":
        raise ValueError(f"recipe.loss is {recipe.loss!r}; a detector needs 'sigmoid_cross_entropy'.")
    whole, (first, second) = with_one_output(network, seed), sorted({*source.column("label")})
    options: Any = {"size": size, "seed": seed, "recipe": recipe, "progress": progress}
    classes = (source.column("label") == second).astype(float)
    fitted = fine_tune(pruned_network(whole, WHOLE), source, classes, train, test, folder, **options)
    head = {"kernel": fitted.params["head"]["kernel"][:, None], "bias": fitted.params["head"]["bias"][None]}
    variables: dict[str, Any] = {"params": {**fitted.params["trunk"], HEAD: head}}
    if fitted.batch_stats:
        variables["batch_stats"] = fitted.batch_stats
    card = dataclasses.replace(
        whole.card,
        input_size=size,
        origin=f"fine-tuned for {second} from {network.card.origin}",
        sha256="",
        class_names=(second,),
        notes={"classes": [first, second], "epochs": recipe.epochs},
    )
    return checkpoints.network(jax.tree.map(np.asarray, variables), card), fitted.predicted


def detected(
    logits: Float[np.ndarray, " N"], classes: Int[np.ndarray, " N"], groups: tuple[str, ...], *, seed: int = 0
) -> Detected:
    """Accuracy at p = 0.5 and AUC = P(logit of class 1 > logit of class 0), ties counting half.

    Intervals are percentiles over 1000 resamples of whole patients; a resample without both classes is left out.

    Raises:
        ValueError: One class is missing.

    Source: Hanley & McNeil 1982 (AUC as a probability).
    """
    classes = np.asarray(classes)
    if set(classes.tolist()) != {0, 1}:
        raise ValueError(f"Held-out classes are {sorted(set(classes.tolist()))}; expected both 0 and 1.")
    member = np.unique(np.asarray(groups), return_inverse=True)[1]
    drawn = draw_groups(int(member.max()) + 1, DRAWS, seed)
    weight = np.concatenate([np.ones((1, len(classes))), drawn[:, member]])
    right = (logits > 0) == (classes == 1)
    accuracy = weight @ right / weight.sum(1)
    of_one, of_zero = weight[:, classes == 1], weight[:, classes == 0]
    wins = (np.sign(logits[classes == 1][:, None] - logits[classes == 0][None]) + 1) / 2
    pairs = of_one.sum(1) * of_zero.sum(1)
    valid = pairs > 0
    auc = ((of_one @ wins) * of_zero).sum(1)[valid] / pairs[valid]
    of_accuracy, of_auc = percentile_interval(accuracy[1:]), percentile_interval(auc[1:])
    return Detected(float(accuracy[0]), *of_accuracy, float(auc[0]), *of_auc)
