"""Sums of features on all devices: each adds up its own rows of every batch, and their shares are summed at the end."""

from collections import deque
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from scalecov_jax.compilation import jit
from scalecov_jax.features import local_to_global
from scalecov_jax.probes.sums import Products, Sums, add, empty


class DeviceSums:
    """Sums on the devices and the batches that wait to be added to them.

    Args:
        shift_y: First guess of the mean of each target; that of the features is the mean of the first images.
        together: Batches added at once; what is left at the end of a stretch is added by eighths of that, then one by one.
        products: See `probes.sums.add`.
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
