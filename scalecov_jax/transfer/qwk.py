"""Quadratic weighted kappa: the agreement of ordered grades, as the loss that raises it."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

TINY = 1e-7  # of the observed disagreement: a batch that is graded perfectly has a finite loss


def qwk_loss(probabilities: Float[Array, "N C"], grades: Int[Array, " N"]) -> Float[Array, ""]:
    """The loss log(1 - kappa) of a batch on soft counts.

    With omega_ij = (i - j)^2 / (C - 1)^2, N_i images of grade i and probabilities p_kj: log N - log D, where
    N = sum_k sum_j omega_{t_k j} p_kj and D = sum_i (N_i / N) sum_j omega_ij sum_k p_kj.

    A grade that the batch lacks adds nothing to D and nothing is divided by its number. D is 0 only where all images have
    one grade and all predictions are certain of it; N is then 0 too. One rule covers all of it: 1e-7 an image is added to N and
    to D, so that the loss is 0 there and finite everywhere.

    Args:
        probabilities: Of each grade, rows summing to 1.
        grades: True ones, 0 to C - 1.

    Source: de la Torre, Valls, Puig 2020 (arXiv 1712.08107), the QWK loss.
    """
    count, classes = probabilities.shape
    index = jnp.arange(classes, dtype=probabilities.dtype)
    weights = (index[:, None] - index[None]) ** 2 / (classes - 1) ** 2
    observed = (weights[grades] * probabilities).sum()
    share = (grades[:, None] == jnp.arange(classes)[None]).mean(0, dtype=probabilities.dtype)
    expected = share @ weights @ probabilities.sum(0)
    return jnp.log(observed + TINY * count) - jnp.log(expected + TINY * count)
