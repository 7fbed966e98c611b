"""Networks on disk: variables in orbax, and with them everything needed to use them rightly."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from flax import linen as nn
from jaxtyping import Array
from orbax.checkpoint import v1 as ocp

from scalecov_jax.compilation import jit
from scalecov_jax.models.architecture import Architecture, check_layer, get_architecture
from scalecov_jax.models.preprocessing import PREPROCESSINGS, Preprocessing
from scalecov_jax.models.pruning import abstract_variables, trace_variables

FORMAT = 1
NEUTRAL = {"bias": 0.0, "mean": 0.0, "scale": 1.0, "var": 1.0}


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
    """The same network with random weights as Keras draws them: Glorot uniform kernels, neutral biases and statistics.

    Variables of other names have the values with which their module begins.

    Source: Graziani et al. 2021, section 4.3 (the baseline of random weights).
    """
    glorot = jax.nn.initializers.glorot_uniform()
    leaves, tree = jax.tree.flatten_with_path(
        abstract_variables(like.module, like.architecture, like.card.input_size)
    )
    names: list[str] = [path[-1].key for path, _ in leaves]  # pyright: ignore[reportAttributeAccessIssue]
    others = _initial_values(like, seed, [name not in ("kernel", *NEUTRAL) for name in names])
    variables = []
    for number, (name, (_, leaf)) in enumerate(zip(names, leaves, strict=True)):
        if name == "kernel":
            variables.append(glorot(jax.random.fold_in(jax.random.key(seed), number), leaf.shape))
        else:
            variables.append(
                np.full(leaf.shape, NEUTRAL[name], np.float32) if name in NEUTRAL else next(others)
            )
    card = dataclasses.replace(like.card, origin=f"random, seed {seed}", sha256="")
    return Network(like.module, jax.device_get(jax.tree.unflatten(tree, variables)), like.architecture, card)


def _initial_values(like: Network, seed: int, wanted: list[bool]) -> Iterator[Array]:
    """The initial values of some variables; the compiler leaves out whatever they do not need."""

    @jit
    def initialise(key: Any) -> list[Any]:
        images = jnp.zeros((1, like.card.input_size, like.card.input_size, 3))
        leaves = jax.tree.leaves(like.module.init(key, images))
        return [leaf for leaf, one in zip(leaves, wanted, strict=True) if one]

    return iter(initialise(jax.random.key(seed)) if any(wanted) else [])


def fingerprints(network: Network, layers: Sequence[str]) -> dict[str, str]:
    """Identify a network up to each layer: the digest of its preprocessing and of the variables that the layer depends on.

    Those are the variables that exist when the layer has been computed, so that it is the same whole and cut after the layer.

    Raises:
        ValueError: The network has no such layer.
    """
    needed = _needed(network.module, network.card.input_size)
    for layer in layers:
        if layer not in needed:
            check_layer(network.architecture, layer, network.module.last)  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError(f"In this network no module is called {layer}.")
    leaves = {
        jax.tree_util.keystr(path): hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()
        for path, leaf in jax.tree.flatten_with_path(network.variables)[0]
    }
    family, found = network.architecture.name, {}
    for layer in layers:
        digest = hashlib.sha256(f"{family} {network.card.preprocessing} {layer}".encode())
        for path in needed[layer]:
            digest.update(f"\n{path} {leaves[path]}".encode())
        found[layer] = f"{family}-{digest.hexdigest()[:12]}"
    return found


@lru_cache(maxsize=16)
def _needed(module: nn.Module, size: int) -> dict[str, list[str]]:
    """Paths of the variables that exist when each module of a network has been called."""
    needed: dict[str, list[str]] = {}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        name = context.module.name
        if context.method_name == "__call__" and name not in needed:
            made = jax.tree.flatten_with_path(context.module.scope.root.variables())[0]
            needed[name] = sorted(jax.tree_util.keystr(path) for path, _ in made)
        return result

    with nn.intercept_methods(note):
        trace_variables(module, size)
    return needed


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
        check_files(folder)
        stored: Any = ocp.metadata(str(folder))
        metadata: dict[str, Any] = dict(stored.custom_metadata or {})
        if metadata.pop("format", None) != FORMAT:
            raise ValueError("it holds no card of this package")
        if metadata["preprocessing"] not in PREPROCESSINGS:
            raise ValueError(f"its preprocessing is {metadata['preprocessing']!r}")
        metadata["class_names"] = tuple(metadata["class_names"])
        card = Card(**metadata)
        architecture = get_architecture(card.architecture)
        if stored.metadata is None:
            raise ValueError("its _METADATA is missing or damaged")
        module: Any = architecture.module(**card.options)
        check_layer(architecture, module.last)
        abstract = abstract_variables(module, architecture, card.input_size)
        _check_shapes(stored.metadata, abstract)
        variables = ocp.load(
            str(folder), jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), abstract)
        )
    except Exception as error:
        raise ValueError(f"{folder} cannot be read as a network: {' '.join(str(error).split())}") from error
    return Network(module, jax.tree.map(np.asarray, variables), architecture, card)


def load_networks(
    paths: Iterable[str], architecture: str = "", check: Callable[[str, Network], None] | None = None
) -> dict[str, Network]:
    """The networks of checkpoint folders, by the names of the folders.

    Args:
        paths: The folders.
        architecture: What all of them must hold; anything when empty.
        check: Raises ValueError if a network, with the name of its folder, cannot be used.

    Raises:
        ValueError: Folders without a checkpoint, of another architecture, or of one name, and what `check` refuses; says all.
    """
    networks, problems = {}, []
    for path in map(Path, paths):
        try:
            network = load(path)
            if check:
                check(path.name, network)
        except ValueError as error:
            problems.append(str(error))
            continue
        if architecture and network.architecture.name != architecture:
            problems.append(
                f"{path} holds {network.architecture.name}, but config.architecture is {architecture}."
            )
        if path.name in networks:
            problems.append(f"Two weights are called {path.name}; rename one folder.")
        networks[path.name] = network
    if problems:
        raise ValueError(" ".join(problems))
    return networks


def check_files(folder: Path) -> None:
    """Read every stored value once: on damaged files orbax prints a trace for each value that it was about to read.

    Raises:
        ValueError: A value is missing or damaged.
    """
    if (folder / "state").is_dir():
        store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/state/"}).result()
        keys = store.list().result()
        missing = [key.decode() for key in keys if not store.read(key).result().value]
        if missing or not keys:
            raise ValueError(f"values are missing ({', '.join(missing[:4]) or 'all'})")


def _check_shapes(stored: Any, expected: Any) -> None:
    """Compare names and shapes of stored variables with those of the module (orbax itself restores any shape)."""
    there, wanted = (
        {"/".join(key.key for key in path): tuple(leaf.shape) for path, leaf in leaves}
        for leaves, _ in map(jax.tree_util.tree_flatten_with_path, (stored, expected))
    )
    problems = [
        f"{name} is {there.get(name, 'missing')}, expected {wanted.get(name, 'none')}"
        for name in sorted({*there, *wanted})
        if there.get(name) != wanted.get(name)
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(f"its variables are not those of its card: {'; '.join(problems[:4])}{more}")
