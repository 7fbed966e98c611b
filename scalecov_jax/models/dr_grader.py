"""The 17-layer grader of diabetic retinopathy (de la Torre, Valls, Puig): convolutions, poolings, a linear score."""

from functools import partial
from itertools import product

import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from scalecov_jax.models.layers import ConvBlock, MaxPool, classify, run_to

EPSILON = 1e-3
INPUT_SIZE = 640
GRADES = 5
FILTERS = (16, 32, 64, 64, 64, 64, 64)  # of each block
_BLOCKS = product(range(1, len(FILTERS) + 1), ("conv1", "conv2", "pool"))
LAYERS = (*(f"block{block}_{layer}" for block, layer in _BLOCKS), "conv15", "pre_softmax", "softmax")


class DRGrader(nn.Module):
    """The grader, stopped after the layer `last`; images have at least 256 x 256 pixels if it goes as far as conv15.

    The published network is full width on 640 x 640 pixels. conv15 has 2x2 filters without padding, and avg_pool is its mean:
    the 64 features of an eye.

    Source: de la Torre, Valls, Puig 2020 (arXiv 1712.08107). It has 385,877 trained parameters; the
        paper says 391,325.
    """

    last: str = "softmax"  # the layer whose output is returned; one of `LAYERS`, or avg_pool
    width: float = 1.0  # multiplier of all filter counts
    classes: int = GRADES  # number of grades
    folded: bool = False  # whether batch normalisation is folded into the convolutions

    @nn.compact
    def __call__(self, x: Float[Array, "N H W 3"], train: bool = False) -> Array:
        """Return the output of `last` for preprocessed images: maps [N, h, w, D] or, from avg_pool on, vectors."""
        conv = partial(ConvBlock, epsilon=EPSILON, use_bias=True, use_scale=True, folded=self.folded)
        filters = [round(count * self.width) for count in FILTERS]
        steps = [
            MaxPool(size=2, name=name) if name.endswith("pool") else conv(count, (3, 3), name=name)
            for name, count in zip(LAYERS, np.repeat(filters, 3).tolist(), strict=False)
        ]
        steps.append(conv(filters[-1], (2, 2), padding="VALID", name="conv15"))
        x, reached = run_to(self.last, steps, x, train)
        return x if reached else classify(self.last, x, self.classes)
