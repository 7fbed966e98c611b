"""One pass over the images of a source: forward pass, sums of every fold and layer; features are never kept.

Images are read fold by fold, so that a batch lies in one fold and only this fold's sums are on the devices. Every `flush`
batches they are added on the host to the sums of the fold; all hosts have the same.
"""

import json
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from scalecov_jax.checkpoints import Network
from scalecov_jax.compilation import jit
from scalecov_jax.extraction import Pooling, check_request, local_to_global, sharded_forward
from scalecov_jax.hosts import gather_text, is_first
from scalecov_jax.imaging.batching import Reordered, batches
from scalecov_jax.imaging.image_set import Skipped, Source
from scalecov_jax.probes.permutation import Permuted
from scalecov_jax.probes.sums import ROWS, Products, Sums, add, empty, merge

FLUSH = 500  # batches


class Targets(NamedTuple):
    """What is regressed; columns are those of `values`, then those of every permutation."""

    values: Float[np.ndarray, "N M"]  # one row an image
    permuted: Permuted | None = None  # permutations of the measures, if any

    def rows(self, taken: Int[np.ndarray, " R"]) -> Float[np.ndarray, "R T"]:
        """The targets of some images."""
        if self.permuted is None:
            return self.values[taken]
        drawn = self.permuted.rows(taken).reshape(len(taken), -1)
        return np.concatenate([self.values[taken], drawn], axis=1)


class Unreadable(NamedTuple):
    """An image that could not be decoded: its row, and what is said of it (see `example.Skipped`)."""

    row: int
    name: str
    reason: str
    detail: str


class State(NamedTuple):
    """How far a pass is."""

    flushes: int = 0  # number of times that sums were added up
    # of each layer those of every fold; empty before the first time
    sums: dict[str, list[Sums]] = {}  # noqa: RUF012
    unreadable: tuple[Unreadable, ...] = ()  # images so far that could not be decoded


class _Stretch(NamedTuple):
    """Batches of one fold between two flushes."""

    fold: int
    first: int
    batches: int


def stream_sums(
    network: Network,
    source: Source,
    indices: Int[np.ndarray, " N"],
    folds: Int[np.ndarray, " N"],
    targets: Targets,
    layers: Sequence[str],
    *,
    size: int | None = None,
    batch_size: int = 32,
    dtype: Any = jnp.float32,
    pooling: Pooling = "gap",
    products: Products = "float64",
    flush: int = FLUSH,
    state: State | None = None,
    keep: Callable[[State], None] | None = None,
    workers: int = 0,
    progress: str | None = None,
) -> State:
    """Sums of every fold and layer, data-parallel over all devices of all hosts.

    The bits depend on `batch_size`, `flush` and the devices, not on `workers`, nor on where a pass was broken and went on.

    Examples of `indices` are read once each, by one host; those that cannot be decoded are left out and named. Folds count from 0
    (see `probes.sums.fold_of`). `batch_size` are images a step over all hosts, rounded up to a multiple of the number of devices.
    After every `flush` batches sums are added up, and `keep` is called with the new state on every host; `state` is where an
    earlier pass over the same images was broken off. See also `extraction.compute_features`, `probes.sums.add` and
    `batching.batches`.

    Raises:
        ValueError: See `check_request`; most images of a stretch cannot be read, as when a disk or a shard vanishes.
    """
    size = check_request(network, layers, size, pooling)
    forward, batch_size = sharded_forward(network, tuple(layers), batch_size, dtype, pooling, jax.devices())
    together = max(1, ROWS // batch_size)
    order, stretches = _plan(folds, batch_size, -(-flush // together) * together)
    state = state or State()
    if state.flushes == len(stretches):
        return state
    mine = np.split(order, jax.process_count(), axis=1)[jax.process_index()]
    begun = stretches[state.flushes].first
    skipped: list[Skipped] = []
    rows_left = mine[begun:].reshape(-1)
    ordered = Reordered(source, np.where(rows_left < 0, -1, indices[rows_left]))
    loaded = batches(ordered, size, mine.shape[1], skipped, workers=workers)
    counts = (order >= 0).sum(1)
    adder = DeviceSums(targets.rows(np.arange(min(len(indices), 1000))).mean(0), together, products)
    with tqdm(
        total=len(indices),
        initial=int(counts[:begun].sum()),
        desc=progress,
        unit="img",
        disable=progress is None or not is_first(),
    ) as bar:
        for stretch in stretches[state.flushes :]:
            numbers = range(stretch.first, stretch.first + stretch.batches)
            unreadable: list[Unreadable] = []
            for number, batch in zip(numbers, loaded, strict=False):
                rows = mine[number]
                failed = rows[~batch.valid].tolist()
                said = skipped[len(skipped) - len(failed) :]
                unreadable += [Unreadable(row, *why) for row, why in zip(failed, said, strict=True)]
                weight = (batch.valid & (rows >= 0)).astype(np.float64)
                adder.add(forward(batch.images), targets.rows(rows), weight)
                bar.update(int(counts[number]))
            lost = _shared(unreadable)
            _check_read(lost, int(counts[numbers.start : numbers.stop].sum()))
            total = adder.total()
            added = {layer: total[layer] for layer in layers}  # the compiler has its own order
            state = _flushed(state, stretch.fold, int(folds.max()) + 1, added, lost)
            if keep is not None:
                keep(state)
    return state


def _plan(
    folds: Int[np.ndarray, " N"], batch_size: int, flush: int
) -> tuple[Int[np.ndarray, "B b"], list[_Stretch]]:
    """Rows of every batch, fold by fold, -1 where the last of a fold is padded; and where sums are added up."""
    parts, stretches, first = [], [], 0
    for fold in range(int(folds.max()) + 1):
        members = np.flatnonzero(folds == fold)
        count = -(-len(members) // batch_size)
        padded = np.full(count * batch_size, -1)
        padded[: len(members)] = members
        parts.append(padded.reshape(count, batch_size))
        stretches += [
            _Stretch(fold, first + begin, min(flush, count - begin)) for begin in range(0, count, flush)
        ]
        first += count
    return np.concatenate(parts), stretches


def _shared(unreadable: Sequence[Unreadable]) -> tuple[Unreadable, ...]:
    """Those of all hosts, in the order of their rows."""
    return tuple(
        sorted(Unreadable(*one) for text in gather_text(json.dumps(unreadable)) for one in json.loads(text))
    )


def _check_read(unreadable: Sequence[Unreadable], count: int) -> None:
    if len(unreadable) > max(10, count // 2):
        raise ValueError(
            f"{len(unreadable)} of {count} images in a row cannot be read ({unreadable[0].name}: {unreadable[0].detail}); did a "
            "disk or a part of the data vanish? What was summed before is kept: make the images readable and pass --resume."
        )


def _flushed(
    state: State, fold: int, folds: int, added: dict[str, Sums], unreadable: tuple[Unreadable, ...]
) -> State:
    sums = state.sums
    if not sums:
        blank = {name: empty(0 * one.x, 0 * one.y) for name, one in added.items()}
        sums = {name: [one] * folds for name, one in blank.items()}
    after = {}
    for name, every in sums.items():
        one = merge(every[fold], added[name]) if every[fold].count else added[name]
        after[name] = [*every[:fold], one, *every[fold + 1 :]]
    return State(state.flushes + 1, after, state.unreadable + unreadable)


class DeviceSums:
    """Sums on the devices and the batches that wait to be added to them.

    That of the features is the mean of the first images, that of the targets given. `together` batches are added at once; what is
    left at the end of a stretch is added by eighths of that, then one by one.
    """

    def __init__(self, shift_y: Float[np.ndarray, " M"], together: int, products: Products):
        self.mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        self.shift_y, self.together, self.products = shift_y, together, products
        self.shares: dict[str, Sums] | None = None
        self.pending: list[Any] = []
        self.running: deque[Array] = deque()

    def add(self, pooled: dict[str, Array], targets: np.ndarray, weight: np.ndarray) -> None:
        """Add the features of a batch, at once or with the next ones."""
        with jax.enable_x64(True):
            self.pending.append((pooled, *(local_to_global(self.mesh, one) for one in (targets, weight))))
        if len(self.pending) == self.together:
            self._work(self.together)

    def total(self) -> dict[str, Sums]:
        """The sums of all shares, on the host; the next stretch begins at 0."""
        for some in (max(1, self.together // 8), 1):
            while len(self.pending) >= some:
                self._work(some)
        with jax.enable_x64(True):
            found = jax.tree.map(np.asarray, _sum_of_shares(self.mesh)(self.shares))
        self.shares = None
        self.running.clear()
        return found

    def _work(self, some: int) -> None:
        chunk, self.pending = self.pending[:some], self.pending[some:]
        with jax.enable_x64(True):
            if self.shares is None:
                means = jax.tree.map(np.asarray, _means(self.mesh)(chunk))
                self.shares = _begin(self.mesh)(
                    {name: empty(mean, self.shift_y) for name, mean in means.items()}
                )
            self.shares, token = _update(self.mesh, self.products)(self.shares, chunk)
        self.running.append(token)
        if len(self.running) > 1:  # one at work, one waiting
            self.running.popleft().block_until_ready()


@cache
def _means(mesh: Mesh) -> Any:
    """Mean of each feature over the images that wait, the same on every device."""

    def means(chunk: list[Any]) -> dict[str, Array]:
        weight = jnp.concatenate([one[2] for one in chunk])
        pooled = {name: jnp.concatenate([one[0][name] for one in chunk]) for name in chunk[0][0]}
        return {name: weight @ x / jnp.maximum(weight.sum(), 1) for name, x in pooled.items()}

    return jit(means, out_shardings=NamedSharding(mesh, PartitionSpec()))


@cache
def _begin(mesh: Mesh) -> Any:
    """A share for each device."""

    def begin(sums: dict[str, Sums]) -> dict[str, Sums]:
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (mesh.size, *leaf.shape)), sums)

    return jit(begin, out_shardings=NamedSharding(mesh, PartitionSpec("data")))


@cache
def _update(mesh: Mesh, products: Products) -> Any:
    """Every device adds its rows of the chunk to its share; the token tells when that is done."""

    def update(shares: dict[str, Sums], chunk: list[Any]) -> tuple[dict[str, Sums], Array]:
        targets, weight = (jnp.concatenate([one[part] for one in chunk]) for part in (1, 2))
        found = {}
        for name, share in shares.items():
            features = jnp.concatenate([one[0][name] for one in chunk])
            one = add(jax.tree.map(lambda leaf: leaf[0], share), features, targets, weight, products)
            found[name] = jax.tree.map(lambda leaf: leaf[None], one)
        return found, next(iter(found.values())).count + 0

    split = PartitionSpec("data")
    return jit(
        jax.shard_map(update, mesh=mesh, in_specs=(split, split), out_specs=(split, split)), donate_argnums=0
    )


@cache
def _sum_of_shares(mesh: Mesh) -> Any:
    def total(shares: dict[str, Sums]) -> dict[str, Sums]:
        return {
            name: jax.tree.map(lambda leaf: leaf.sum(0), share)._replace(
                shift_x=share.shift_x[0], shift_y=share.shift_y[0]
            )
            for name, share in shares.items()
        }

    return jit(total, out_shardings=NamedSharding(mesh, PartitionSpec()))
