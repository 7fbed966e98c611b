"""Keras models whose weights are given anyway: without the random numbers, which take most of the time to make one."""

import contextlib

import numpy as np
import pytest

from scalecov_jax.models import parity


def _zeros(shape, *args, dtype=None, **kwargs):
    del args, dtype, kwargs
    return np.zeros(shape, np.float32)


@contextlib.contextmanager
def quick_keras():
    """Every initial weight is 0 (kernels) or what it is without chance."""
    parity._import_keras()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("uniform", "normal", "truncated_normal"):
            patch.setattr(f"keras.src.backend.jax.random.{name}", _zeros)
        yield
