"""VGG16 (Simonyan and Zisserman 2015) with the layer names of keras.applications."""

from functools import partial

from flax import linen as nn
from jaxtyping import Array, Float

from scalecov_jax.models.layers import (
    WHOLE,
    ConvBlock,
    GlobalAveragePool,
    MaxPool,
    Softmax,
    he_normal,
    run_to,
)
from scalecov_jax.models.sources import KERAS, KerasModel, Layout, Sources, keras_layouts, official_pair

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # filters and convolutions of each
CONVOLUTIONS = {
    f"block{stage}_conv{number}": features
    for stage, (features, count) in enumerate(STAGES, start=1)
    for number in range(1, count + 1)
}
DENSE = ("fc1", "fc2")
HEAD = (*DENSE, "pre_softmax", "softmax")
LAYERS = (
    *(
        f"block{stage}_{layer}"
        for stage, (_, count) in enumerate(STAGES, start=1)
        for layer in (*(f"conv{number}" for number in range(1, count + 1)), "pool")
    ),
    *HEAD,
)


class FullyConnected(nn.Module):
    """A dense layer and ReLU on all values of a map, so that its kernel fits maps of one size alone."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N F"]:
        """Apply the layer.

        Raises:
            ValueError: The kernel was made for maps of another size.
        """
        kernel = self.get_variable("params", "kernel")
        if kernel is not None and kernel.shape[0] != x.shape[1]:
            raise ValueError(
                f"{self.name} takes maps of {kernel.shape[0]} values and got {x.shape[1]}: its weights were made for images of "
                "another size. Take images of that size (224 x 224 pixels for published weights), or layers before it."
            )
        kernel = self.param("kernel", he_normal, (x.shape[1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return nn.relu(x @ kernel.astype(x.dtype) + bias.astype(x.dtype).reshape(1, -1))


class VGG16(nn.Module):
    """VGG16, stopped after the layer `last`; dropout is left out."""

    # the layer whose output is returned; one of `LAYERS`, or avg_pool, the mean of the maps of block5_pool
    last: str = "softmax"
    width: float = 1.0  # multiplier of all filter counts
    classes: int = 1000  # number of classes of the head

    @nn.compact
    def __call__(self, x: Float[Array, "N H W 3"], train: bool = False) -> Array:
        """Return the output of `last` for preprocessed images: maps [N, h, w, D] or, from fc1 on, vectors."""
        conv = partial(ConvBlock, kernel_size=(3, 3), use_bias=True, normalise=False)
        steps = (
            conv(round(CONVOLUTIONS[layer] * self.width), name=layer)
            if layer in CONVOLUTIONS
            else MaxPool(size=2, name=layer)
            for layer in LAYERS[: -len(HEAD)]
        )
        x, reached = run_to(self.last, steps, x, train)
        if reached:
            return x
        pooled = GlobalAveragePool(name=WHOLE)(x)  # not what fc1 sees, but the whole network pooled
        if self.last == WHOLE:
            return pooled
        x = x.reshape(len(x), -1)
        for layer in DENSE:
            x = FullyConnected(round(4096 * self.width), name=layer)(x)
            if self.last == layer:
                return x
        x = nn.Dense(self.classes, name="pre_softmax")(x)
        return x if self.last == "pre_softmax" else Softmax(name="softmax")(x)


def _modules(convolutions: list[str], dense: list[str]) -> dict[str, str]:
    return dict(zip((*CONVOLUTIONS, *DENSE, "pre_softmax"), (*convolutions, *dense), strict=True))


# torch's convolutions are numbered among ReLUs and poolings. Its fc1 takes maps of 7 x 7 pixels, flattened channel by channel.
_TORCH = [f"features.{at}" for at in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]

# Source: keras.applications (vgg16) 3.15; torchvision.models (vgg); timm.models (vgg), whose dense layers are convolutions.
SOURCES = Sources(
    (
        *keras_layouts(_modules([*CONVOLUTIONS], [*DENSE, "predictions"])),
        Layout(
            "torchvision",
            "torch",
            _modules(_TORCH, ["classifier.0", "classifier.3", "classifier.6"]),
            flattened={"fc1": 7},
        ),
        Layout("timm", "torch", _modules(_TORCH, ["pre_logits.fc1", "pre_logits.fc2", "head.fc"])),
    ),
    KerasModel("VGG16", {"pre_softmax": "predictions"}),
    official_pair(
        f"{KERAS}/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels",
        "64373286793e3c8b2b4e3219cbf3544b",
        "6d6bbae143d832006294945121d1f1fc",
    ),
)
