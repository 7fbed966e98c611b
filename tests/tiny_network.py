"""Networks small enough to compile in a test, and an architecture that a user added."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scalecov_jax.checkpoints import Card, Network, network
from scalecov_jax.imaging import scenes
from scalecov_jax.models.architecture import ARCHITECTURES, Architecture, get_architecture
from scalecov_jax.models.layers import WHOLE, ConvBlock, GlobalAveragePool, MaxPool, Softmax
from scalecov_jax.models.pruning import abstract_variables

LAYERS = ("stem", "block_1", "block_2", "pre_softmax", "softmax")


class Tiny(nn.Module):
    """Three convolutions and a head, in the manner of the real networks."""

    last: str = "softmax"
    width: float = 1.0
    classes: int = 5
    folded: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        widths = [round(self.width * features) for features in (8, 16, 32)]
        for name, features in zip(LAYERS, widths, strict=False):
            x = ConvBlock(features, (3, 3), 2, 1, folded=self.folded, name=name)(x, train)
            if self.last == name:
                return x
            if name == "stem":
                x = MaxPool(1, name="pool")(x)
        x = GlobalAveragePool(name=WHOLE)(x)
        if self.last == WHOLE:
            return x
        x = nn.Dense(self.classes, name="pre_softmax")(x)
        return x if self.last == "pre_softmax" else Softmax(name="softmax")(x)


ARCHITECTURES["tiny"] = Architecture("tiny", Tiny, LAYERS, 1e-3, 32, "tf")


def random_variables(module, architecture, seed=0):
    """Random values for every variable, none of them at its default, without compiling the initialisation."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in {"var", "scale"}:
            return rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if name == "kernel" else 25
        return (rng.normal(size=leaf.shape) * np.sqrt(2 / fan_in)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_variables(module, architecture))


def random_network(architecture="tiny", *, seed=0, input_size=32, **options) -> Network:
    """A network with random weights, batch statistics among them."""
    family = get_architecture(architecture)
    card = Card(architecture, options, "tf", input_size, "tests")
    return network(random_variables(family.module(**options), family, seed), card)


def draw_noise(key, count, size=128, smallest=scenes.SMALLEST):
    """Noise in place of `scenes.draw`, whose rendering takes long to compile; classes and ratios are spread as there."""
    classes, ratios, pixels = jax.random.split(key, 3)
    log_ratio = jax.random.uniform(ratios, (count,), minval=jnp.log(smallest), maxval=jnp.log(scenes.LARGEST))
    return (
        jax.random.bits(pixels, (count, size, size, 3), jnp.uint8),
        jax.random.randint(classes, (count,), 0, len(scenes.CLASSES)),
        jnp.exp(log_ratio),
    )
