"""Networks on disk: variables in orbax, and with them everything needed to use them rightly."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from orbax.checkpoint import v1 as ocp

from scalecov_jax.models.architecture import Architecture, get_architecture
from scalecov_jax.models.preprocessing import PREPROCESSINGS, Preprocessing
from scalecov_jax.models.pruning import abstract_variables

FORMAT = 1


@dataclass(frozen=True)
class Card:
    """What travels with weights.

    Attributes:
        architecture: Name of the family.
        options: Fields of its module that differ from their defaults, such as last or width.
        preprocessing: What the weights expect at the input.
        input_size: Height and width of the images they were trained on, in pixels.
        origin: Where they come from: file, address or command.
        sha256: Of the file they were read from; empty for weights trained here.
        class_names: Names of the outputs of pre_softmax; empty when unknown.
        notes: Anything else worth keeping.
    """

    architecture: str
    options: dict[str, Any]
    preprocessing: Preprocessing
    input_size: int
    origin: str
    sha256: str = ""
    class_names: tuple[str, ...] = ()
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


class Network(NamedTuple):
    """A module, its variables (numpy), its family and its card."""

    module: nn.Module
    variables: Any
    architecture: Architecture
    card: Card


def network(variables: Any, card: Card) -> Network:
    """Join variables and their card."""
    architecture = get_architecture(card.architecture)
    return Network(architecture.module(**card.options), variables, architecture, card)


def random_network(like: Network, seed: int) -> Network:
    """The same network with freshly initialised variables (He normal), the baseline `random_weights`."""
    images = np.zeros((1, like.card.input_size, like.card.input_size, 3), np.float32)
    module = like.architecture.module(**like.card.options)
    variables = jax.device_get(jax.jit(module.init)(jax.random.key(seed), images))
    return Network(
        module,
        variables,
        like.architecture,
        dataclasses.replace(like.card, origin=f"random, seed {seed}", sha256=""),
    )


def save(folder: Path, saved: Network, *, overwrite: bool = False) -> None:
    """Write a network to a new folder, or in place of an old one.

    Raises:
        ValueError: The folder exists and `overwrite` is not set.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not overwrite:
        raise ValueError(f"{folder} exists; remove it first or choose another folder.")
    card = {"format": FORMAT, **dataclasses.asdict(saved.card), "class_names": list(saved.card.class_names)}
    variables = jax.tree.map(np.asarray, saved.variables)
    ocp.save(str(folder), variables, custom_metadata=card, overwrite=overwrite)


def load(folder: Path) -> Network:
    """Read a network.

    Raises:
        ValueError: The folder holds no checkpoint of this package, or variables that do not fit its card.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is no folder; expected a checkpoint made by scripts/port_weights.py, pretrain.py or prune.py."
        )
    try:
        stored: Any = ocp.metadata(str(folder)).custom_metadata
        metadata: dict[str, Any] = dict(stored or {})
        if metadata.pop("format", None) != FORMAT:
            raise ValueError("it holds no card of this package")
        metadata["class_names"] = tuple(metadata["class_names"])
        card = Card(**metadata)
        if card.preprocessing not in PREPROCESSINGS:
            raise ValueError(f"its preprocessing is {card.preprocessing!r}")
        architecture = get_architecture(card.architecture)
        module = architecture.module(**card.options)
        abstract = abstract_variables(module, architecture)
        variables = ocp.load(
            str(folder), jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), abstract)
        )
    except Exception as error:
        raise ValueError(f"{folder} cannot be read as a network: {error}") from error
    return Network(module, jax.tree.map(np.asarray, variables), architecture, card)
