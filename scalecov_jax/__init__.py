"""Find where in a pretrained CNN a continuous concept lives, cut the network there, and measure whether that helps."""

from scalecov_jax.compilation import protect_process

protect_process()  # before JAX's backend starts
