"""Where in an image a target looks: Grad-CAM and its relatives, from activations and gradients of a layer.

With A [h, w, K] the maps of the layer and g = dS/dA the gradient of the target, all are L = relu(sum_k w_k A^k) and differ in
the weights w_k of the maps. A map that nothing supports is zero, never NaN.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Maps = Float[Array, "N H W K"]
Map = Float[Array, "N H W"]

Method = Literal["grad_cam", "grad_cam_pp", "grad_cam_plus"]
METHODS: tuple[Method, ...] = get_args(Method)


def grad_cam(activations: Maps, gradients: Maps, *, signed: bool = False) -> Map:
    """Grad-CAM: w_k is the mean of g^k over the map; `signed` keeps what speaks against the target, as negative values.

    Source: Selvaraju et al. 2017, Grad-CAM, equations 1 and 2.
    """
    return _combine(activations, gradients.mean((1, 2)), signed)


def grad_cam_plus(activations: Maps, gradients: Maps, *, signed: bool = False) -> Map:
    """Grad-CAM+, the control of Grad-CAM++: w_k is the mean of relu(g^k). Arguments as for `grad_cam`.

    Source: Lerma and Lucas 2022, Grad-CAM++ is equivalent to Grad-CAM with positive gradients.
    """
    return _combine(activations, jax.nn.relu(gradients).mean((1, 2)), signed)


def grad_cam_pp(activations: Maps, gradients: Maps, *, signed: bool = False) -> Map:
    """Grad-CAM++: w_k = sum_ij alpha^k_ij relu(g^k_ij), alpha = g^2 / (2 g^2 + g^3 sum_ab A^k_ab). Arguments as for `grad_cam`.

    Where g is not positive its alpha counts nothing, so the fraction is 1 / (2 + g sum A), which has no zero to divide by as long
    as the sum has none: of maps before their ReLU, which the paper does not know, the positive part is summed. The factor exp(S)
    of the paper is the same for a whole image and would overflow; it is left out.

    Source: Chattopadhyay et al. 2018, Grad-CAM++, equations 5 and 19.
    """
    positive = jax.nn.relu(gradients)
    total = jax.nn.relu(activations).sum((1, 2), keepdims=True)
    return _combine(activations, (positive / (2 + positive * total)).sum((1, 2)), signed)


def cam(
    method: Method,
    activations: Maps,
    gradients: Maps,
    *,
    signed: bool = False,
) -> Map:
    """The map of a method by its name."""
    function = {"grad_cam": grad_cam, "grad_cam_pp": grad_cam_pp, "grad_cam_plus": grad_cam_plus}[method]
    return function(activations, gradients, signed=signed)


def scale_maps(maps: Map) -> Map:
    """Divide each map by its largest absolute value; a map of zeros stays."""
    largest = jnp.abs(maps).max((1, 2), keepdims=True)
    return jnp.where(largest > 0, maps / jnp.where(largest > 0, largest, 1), 0)


def upsample(maps: Map, height: int, width: int) -> Float[Array, "N height width"]:
    """Bring maps to the size of the image, bilinearly; a pixel of the map has its centre in that of its part of the image."""
    return jax.image.resize(maps, (len(maps), height, width), "bilinear")


def _combine(activations: Maps, weights: Float[Array, "N K"], signed: bool) -> Map:
    maps = jnp.einsum("nhwk,nk->nhw", activations, weights)
    return maps if signed else jax.nn.relu(maps)
