"""Networks on disk: variables as safetensors, and with them everything needed to use them rightly."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from safetensors import numpy as safetensors
from safetensors import safe_open

from scalecov_jax import shipped
from scalecov_jax.atomic import replacing
from scalecov_jax.compilation import jit
from scalecov_jax.models.architecture import Architecture, check_layer, get_architecture
from scalecov_jax.models.preprocessing import Preprocessing, as_preprocessing
from scalecov_jax.models.pruning import abstract_variables, trace_variables

FORMAT = 2
FORMAT_OF_ORBAX = 1
_NOTE = "scalecov_jax"  # in the metadata of a safetensors file
MAX_CARD = 2**20  # characters
MAX_NUMBER = 100_000  # of a field: pixels, classes, a width
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

    def __repr__(self) -> str:
        return f"Network({self.card})"


def network(variables: Any, card: Card) -> Network:
    """Join variables and their card."""
    architecture = get_architecture(card.architecture).with_options(card.options)
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
    unseen = getattr(network.module, "unseen", "")
    for layer in layers:
        digest = hashlib.sha256(f"{family}{unseen} {network.card.preprocessing} {layer}".encode())
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


def save(folder: Path, saved: Network, *, overwrite: bool = False, largest: int | None = None) -> None:
    """Write a network to a new folder, or in place of an old one: `model.safetensors`, with the card in its metadata.

    The variables have their paths as names, `params/conv/kernel`, and keep dtype and bits.

    Args:
        folder: Appears when it is complete.
        saved: The network.
        overwrite: Replace the folder if it exists.
        largest: Bytes of the variables in a file, for places that take no large files: beyond that there are several,
            `model-00001-of-00002.safetensors` and so on, each with the card. One variable is never divided.

    Raises:
        ValueError: The folder exists and `overwrite` is not set.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and not overwrite:
        raise ValueError(f"{folder} exists; remove it first or choose another folder.")
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in _by_path(saved.variables).items()}
    card = json.loads(json.dumps(dataclasses.asdict(saved.card)))
    note = {"format": FORMAT, "sha256": _digest(card, arrays), "card": card}
    metadata = {_NOTE: json.dumps(note)}  # a single text, since safetensors keeps no order of several
    parts: list[dict[str, np.ndarray]] = [{}]
    for name, array in arrays.items():
        size = array.nbytes + sum(one.nbytes for one in parts[-1].values())
        if largest is not None and parts[-1] and size > largest:
            parts.append({})
        parts[-1][name] = array
    with replacing(folder) as partial:
        partial.mkdir()
        for number, part in enumerate(parts, 1):
            which = f"-{number:05}-of-{len(parts):05}" if len(parts) > 1 else ""
            (partial / f"model{which}.safetensors").write_bytes(safetensors.save(part, metadata))
        if folder.exists():
            shutil.rmtree(folder)


def load(path: Path) -> Network:
    """Read a network from what `save` wrote, or from a folder of orbax as earlier versions wrote it.

    Args:
        path: The folder, or its one `.safetensors` file; checkpoints/resnet50 and the like, which come with the package, are
            found from any folder.

    Raises:
        ValueError: There is no checkpoint of this package, or its variables do not fit its card or are damaged.
    """
    path = shipped.find(path).absolute()
    files = [path] if path.suffix == ".safetensors" and path.is_file() else sorted(path.glob("*.safetensors"))
    if not files and not path.is_dir():
        raise ValueError(
            f"{path} is no folder; expected a checkpoint made by scripts/port_weights.py, pretrain.py or prune.py."
        )
    try:
        facts, stored, read = _open_files(files) if files else _open_orbax(path)
        card = _card(facts)
        architecture = get_architecture(card.architecture).with_options(card.options)
        module: Any = architecture.module(**card.options)
        check_layer(architecture, module.last)
        abstract = abstract_variables(module, architecture, card.input_size)
        _check_shapes(stored, _by_path(abstract))
        variables = read(abstract)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a network: {' '.join(str(error).split())}") from error
    return Network(module, variables, architecture, card)


def _card(facts: Mapping[str, Any]) -> Card:
    """The card of its fields, whose numbers are bounded, since a module is made of them."""
    preprocessing = as_preprocessing(facts["preprocessing"])
    card = Card(**{**facts, "preprocessing": preprocessing, "class_names": tuple(facts["class_names"])})
    numbers = {"input_size": card.input_size, **card.options}
    for name, value in numbers.items():
        if not isinstance(value, str) and not 0 <= value <= MAX_NUMBER:
            raise ValueError(f"its {name} is {value}, expected 0 to {MAX_NUMBER:,}")
    return card


_Read = Callable[[Any], Any]  # from the variables of the module, without values, to those on disk


def _open_files(files: Sequence[Path]) -> tuple[dict[str, Any], Mapping[str, Any], _Read]:
    """The facts of the card, the variables by path, and what reads them, of safetensors files of one network."""
    arrays, notes = {}, []
    for file in files:
        with safe_open(file, "np") as opened:
            notes.append((opened.metadata() or {}).get(_NOTE))
            if notes[-1] is None:
                raise ValueError(
                    f"{file.name} holds no card of this package; scripts/port_weights.py makes checkpoints"
                )
            arrays |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    if any(note != notes[0] for note in notes):
        raise ValueError("its files are of different networks")
    if len(notes[0]) > MAX_CARD:
        raise ValueError(f"its card has {len(notes[0]):,} characters, expected {MAX_CARD:,} at most")
    note = json.loads(notes[0])
    if note["format"] != FORMAT:
        raise ValueError(f"its format is {note['format']}, expected {FORMAT}")

    def read(abstract: Any) -> Any:
        if _digest(note["card"], arrays) != note["sha256"] or json.dumps(note) != notes[0]:
            raise ValueError("its card and values are not those that were written")
        return jax.tree.map_with_path(lambda path, _: arrays[_name(path)], abstract)

    return note["card"], arrays, read


def _open_orbax(folder: Path) -> tuple[dict[str, Any], Mapping[str, Any], _Read]:
    """The same of a folder of orbax."""
    check_files(folder)
    try:
        stored: Any = ocp.metadata(str(folder))
    except Exception as error:
        raise ValueError(f"it holds no .safetensors file, and to orbax: {error}") from error
    facts: dict[str, Any] = dict(stored.custom_metadata or {})
    if facts.pop("format", None) != FORMAT_OF_ORBAX:
        raise ValueError("it holds no card of this package")
    if stored.metadata is None:
        raise ValueError("its _METADATA is missing or damaged")

    def read(abstract: Any) -> Any:
        blank = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), abstract)
        return jax.tree.map(np.asarray, ocp.load(str(folder), blank))

    return facts, _by_path(stored.metadata), read


def _name(path: Any) -> str:
    return "/".join(key.key for key in path)


def _by_path(tree: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree.flatten_with_path(tree)[0]}


def _digest(card: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the card, and of names, dtypes, shapes and values."""
    digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def load_networks(
    paths: Iterable[str], architecture: str = "", check: Callable[[str, Network], None] | None = None
) -> dict[str, Network]:
    """The networks of checkpoints, by the names of their folders.

    Args:
        paths: See `load`. The name of a file is its own, and for `model.safetensors` that of its folder.
        architecture: What all of them must hold; anything when empty.
        check: Raises ValueError if a network, with its name, cannot be used.

    Raises:
        ValueError: Paths without a checkpoint, of another architecture, or of one name, and what `check` refuses; says all.
    """
    networks, problems = {}, []
    for path in map(Path, paths):
        name = path.stem if path.suffix == ".safetensors" else path.name
        name = path.absolute().parent.name if path.name == "model.safetensors" else name
        try:
            network = load(path)
            if check:
                check(name, network)
        except ValueError as error:
            problems.append(str(error))
            continue
        if architecture and network.architecture.name != architecture:
            problems.append(
                f"{path} holds {network.architecture.name}, but config.architecture is {architecture}."
            )
        if name in networks:
            problems.append(f"Two weights are called {name}; rename one folder.")
        networks[name] = network
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


def _check_shapes(stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compare names and shapes of stored variables with those of the module (orbax itself restores any shape)."""
    there, wanted = (
        {name: tuple(leaf.shape) for name, leaf in leaves.items()} for leaves in (stored, expected)
    )
    problems = [
        f"{name} is {there.get(name, 'missing')}, expected {wanted.get(name, 'none')}"
        for name in sorted({*there, *wanted})
        if there.get(name) != wanted.get(name)
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(f"its variables are not those of its card: {'; '.join(problems[:4])}{more}")
