"""ConvNeXt-Tiny (Liu et al. 2022) with the layer names of keras.applications, less their prefix convnext_tiny_."""

from flax import linen as nn
from jaxtyping import Array, Float

from scalecov_jax.models.layers import WHOLE, ConvBlock, GlobalAveragePool, LayerScale, Softmax, layer_norm
from scalecov_jax.models.sources import KERAS, KerasModel, Layout, Sources, official_pair, unnamed

STAGES = ((96, 3), (192, 3), (384, 9), (768, 3))  # channels and blocks of each
EPSILON = 1e-6  # of layer normalisation
LAYER_SCALE = 1e-6  # initial


def _layers() -> tuple[str, ...]:
    names = []
    for stage, (_, count) in enumerate(STAGES):
        names.append(f"downsampling_block_{stage - 1}" if stage else "stem")
        names += [f"stage_{stage}_block_{number}" for number in range(count)]
    return (*names, "pre_softmax", "softmax")


LAYERS = _layers()


class Downsampling(nn.Module):
    """A convolution whose windows do not overlap, after layer normalisation or, in the stem, before it.

    Attributes:
        features: Number of filters.
        size: Their height and width, and the step, in pixels.
    """

    features: int
    size: int

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H2 W2 D"]:
        """Apply both."""
        conv = ConvBlock(
            self.features,
            (self.size, self.size),
            self.size,
            "VALID",
            use_bias=True,
            activation=None,
            normalise=False,
            name="conv",
        )
        norm = layer_norm(x.dtype, "norm", EPSILON)
        return norm(conv(x)) if self.size == 4 else conv(norm(x))


class Block(nn.Module):
    """Depthwise 7x7 convolution, layer normalisation, two dense layers on each pixel, layer scale, and a shortcut."""

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Apply the block."""
        channels = x.shape[-1]
        y = ConvBlock(
            channels,
            (7, 7),
            use_bias=True,
            activation=None,
            depthwise=True,
            normalise=False,
            name="depthwise_conv",
        )(x)
        y = layer_norm(x.dtype, "norm", EPSILON)(y)
        y = nn.gelu(nn.Dense(4 * channels, name="pointwise_conv_1")(y), approximate=False)
        y = nn.Dense(channels, name="pointwise_conv_2")(y)
        return x + LayerScale(LAYER_SCALE, name="layer_scale")(y)


class ConvNeXtTiny(nn.Module):
    """ConvNeXt-Tiny, stopped after the layer `last`; stochastic depth is left out, and training is as inference.

    Its input is normalised (see `preprocessing.preprocess`): Keras's layer for that is not part of it.

    Attributes:
        last: The layer whose output is returned; one of `LAYERS`, or avg_pool, the mean before the normalisation of the head.
        width: Multiplier of all filter counts.
        classes: Number of classes of the head.
    """

    last: str = "softmax"
    width: float = 1.0
    classes: int = 1000

    @nn.compact
    def __call__(self, x: Float[Array, "N H W 3"], train: bool = False) -> Array:
        """Return the output of `last` for preprocessed images: maps [N, h, w, D] or, from pre_softmax on, [N, classes]."""
        stage = 0
        for layer in LAYERS[:-2]:
            if "_block_" in layer and not layer.startswith("downsampling"):
                x = Block(name=layer)(x)
            else:
                x = Downsampling(round(STAGES[stage][0] * self.width), 2 if stage else 4, name=layer)(x)
                stage += 1
            if self.last == layer:
                return x
        x = GlobalAveragePool(name=WHOLE)(x)
        if self.last == WHOLE:
            return x
        x = layer_norm(x.dtype, "head_norm", EPSILON)(x)
        x = nn.Dense(self.classes, name="pre_softmax")(x)
        return x if self.last == "pre_softmax" else Softmax(name="softmax")(x)


# A part of a block by our name: Keras's name and kind, torchvision's and timm's name.
_PARTS = {
    "depthwise_conv": ("depthwise_conv", "conv2d", "block.0", "conv_dw"),
    "norm": ("layernorm", "layer_normalization", "block.2", "norm"),
    "pointwise_conv_1": ("pointwise_conv_1", "dense", "block.3", "mlp.fc1"),
    "pointwise_conv_2": ("pointwise_conv_2", "dense", "block.5", "mlp.fc2"),
    "layer_scale": ("layer_scale", "layer_scale", "layer_scale", "gamma"),
}


def _layouts() -> tuple[Layout, ...]:
    keras, kinds, torchvision, timm = {}, {}, {}, {}
    stage = number = -1
    for layer in LAYERS[:-2]:
        name = f"convnext_tiny_{layer}"
        if layer.startswith("stage_"):
            number += 1
            for part, (ours, kind, theirs, brief) in _PARTS.items():
                path = f"{layer}/{part}"
                keras[path], kinds[f"{name}_{ours}"] = f"{name}_{ours}", kind
                torchvision[path] = f"features.{2 * stage + 1}.{number}.{theirs}"
                timm[path] = f"stages.{stage}.blocks.{number}.{brief}"
        else:
            stage, number = stage + 1, -1
            kinds[name] = "sequential"  # of a normalisation and a convolution
            for at, part in enumerate(("norm", "conv") if stage else ("conv", "norm")):
                keras[f"{layer}/{part}"] = name
                torchvision[f"{layer}/{part}"] = f"features.{2 * stage}.{at}"
                timm[f"{layer}/{part}"] = f"stages.{stage}.downsample.{at}" if stage else f"stem.{at}"
    keras |= {"head_norm": "convnext_tiny_head_layernorm", "pre_softmax": "convnext_tiny_head_dense"}
    kinds |= {keras["head_norm"]: "layer_normalization", keras["pre_softmax"]: "dense"}
    torchvision |= {"head_norm": "classifier.0", "pre_softmax": "classifier.2"}
    timm |= {"head_norm": "head.norm", "pre_softmax": "head.fc"}
    numbered = unnamed(kinds)
    return (
        # A file without the head has the head's normalisation all the same, under another name.
        Layout("Keras", "keras", keras, ignored={"normalisation of the end": r"^layer_normalization_1/"}),
        Layout(
            "Keras 3 without layer names",
            "keras_unnamed",
            {path: numbered[name] for path, name in keras.items()},
        ),
        Layout("torchvision", "torch", torchvision, pixelwise=r"\.layer_scale$"),
        Layout("timm", "torch", timm),
    )


_BLOCKS = [layer for layer in LAYERS if layer.startswith("stage_")]

# Source: keras.applications (convnext) 3.15; torchvision.models (convnext); timm.models (convnext_tiny).
SOURCES = Sources(
    _layouts(),
    KerasModel(
        "ConvNeXtTiny",
        {
            **{layer: f"convnext_tiny_{layer}" for layer in LAYERS if layer not in _BLOCKS},
            **{layer: f"add_{number}" for number, layer in enumerate(_BLOCKS, start=1)},
            "pre_softmax": "convnext_tiny_head_dense",
        },
        after="convnext_tiny_prestem_normalization",
    ),
    official_pair(
        f"{KERAS}/convnext/convnext_tiny",
        "8ae6e78ce2933352b1ef4008e6dd2f17bc40771563877d156bc6426c7cf503ff",
        "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
    ),
)
