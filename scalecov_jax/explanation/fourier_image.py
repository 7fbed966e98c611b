"""Images as spectra with decorrelated colours, and the small random changes that a visualisation must survive."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Key

INITIAL_SD = 0.01
# Square root of the covariance of colours in ImageNet, as published by Lucid.
_COLOURS = np.array([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]], np.float32)


@dataclass(frozen=True)
class Transforms:
    """Random changes of an image, drawn again at every step."""

    pad: int = 12  # grey pixels added on every side, so that what is moved in is not black
    jitter: int = 8  # range of the shift before the others, in whole pixels
    scales: tuple[float, ...] = tuple(1 + (i - 5) / 50 for i in range(11))  # factors to choose from
    degrees: tuple[float, ...] = (*map(float, range(-10, 11)), *5 * (0.0,))  # angles to choose from
    last_jitter: int = 4  # range of the shift after the others, in whole pixels


STANDARD = Transforms()
LIGHT = Transforms(pad=0, scales=(1.0,), last_jitter=2)


def random_spectra(key: Key[Array, ""], count: int, size: int) -> Float[Array, "count F size 3 2"]:
    """Spectra of images near grey: real and imaginary parts from N(0, 0.01) before they are scaled by frequency."""
    return INITIAL_SD * jax.random.normal(key, (count, size // 2 + 1, size, 3, 2))


def to_images(spectra: Float[Array, "K F size 3 2"]) -> Float[Array, "K size size 3"]:
    """Images in 0-1: inverse Fourier transform of amplitudes scaled by 1 / frequency, then correlated colours and a sigmoid.

    Source: Olah, Mordvintsev and Schubert 2017, Feature Visualization (preconditioning); constants of Lucid.
    """
    size = spectra.shape[2]
    across, along = np.fft.rfftfreq(size)[:, None], np.fft.fftfreq(size)[None]
    scale = size / np.maximum(np.hypot(across, along), 1 / size)
    # The transform is along both axes; the halved one stands first here, which only turns the image about its diagonal.
    spectrum = jax.lax.complex(spectra[..., 0], spectra[..., 1]) * scale.astype(np.float32)[None, ..., None]
    images = jnp.fft.irfft2(spectrum, (size, size), (2, 1)) / 4
    mixing = _COLOURS / np.linalg.norm(_COLOURS, axis=0).max()
    return jax.nn.sigmoid(images @ mixing.T)


def transform(
    key: Key[Array, ""], image: Float[Array, "size size 3"], by: Transforms
) -> Float[Array, "size size 3"]:
    """Shift, scale, rotate and shift an image at random, in one bilinear sampling; outside of it is grey.

    Scaling about the centre and rotating are one affine map, so pixels are interpolated once.
    """
    size = image.shape[0]
    keys = jax.random.split(key, 4)
    first = jax.random.randint(keys[0], (2,), 0, by.jitter + 1) - by.jitter / 2
    scale = jax.random.choice(keys[1], jnp.array(by.scales, jnp.float32))
    angle = jnp.deg2rad(jax.random.choice(keys[2], jnp.array(by.degrees, jnp.float32)))
    last = jax.random.randint(keys[3], (2,), 0, by.last_jitter + 1) - by.last_jitter / 2
    centre = (size - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(size) - centre, jnp.arange(size) - centre, indexing="ij")
    y, x = y + last[0], x + last[1]
    cosine, sine = jnp.cos(angle) / scale, jnp.sin(angle) / scale
    rows = cosine * y - sine * x + centre + first[0] + by.pad
    columns = sine * y + cosine * x + centre + first[1] + by.pad
    padded = jnp.pad(image, ((by.pad,) * 2, (by.pad,) * 2, (0, 0)), constant_values=0.5)
    # Bilinear; beyond the border its pixels are repeated.
    sample = partial(map_coordinates, coordinates=[rows, columns], order=1, mode="nearest")
    return jax.vmap(sample, -1, -1)(padded)


def total_variation(images: Float[Array, "K H W 3"]) -> Float[Array, " K"]:
    """Sum of the absolute differences of neighbouring pixels, of images in 0-1."""
    down, right = jnp.abs(jnp.diff(images, axis=1)), jnp.abs(jnp.diff(images, axis=2))
    return down.sum((1, 2, 3)) + right.sum((1, 2, 3))
