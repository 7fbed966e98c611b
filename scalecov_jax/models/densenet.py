"""DenseNet121 (Huang et al. 2017) with the layer names of keras.applications."""

import re

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from scalecov_jax.models import sources
from scalecov_jax.models.layers import ConvBlock, MaxPool, NormBlock, classify, halve, run_to

STAGES = {2: 6, 3: 12, 4: 24, 5: 16}  # dense layers of each, by Keras's number
GROWTH = 32  # channels that each of them adds
EPSILON = 1.001e-5


def _layers() -> tuple[str, ...]:
    names = ["pool1"]
    for stage, count in STAGES.items():
        names += [f"conv{stage}_block{number}_concat" for number in range(1, count + 1)]
        names.append("relu" if stage == 5 else f"pool{stage}_pool")
    return (*names, "pre_softmax", "softmax")


LAYERS = _layers()


class DenseLayer(nn.Module):
    """Normalises what came before, adds channels computed from it, and returns both."""

    prefix: str  # Keras's name of it, such as conv2_block1
    growth: int  # channels that it adds
    folded: bool = False  # see `layers.NormBlock`

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], train: bool = False) -> Float[Array, "N H W D"]:
        """Return x and the new channels."""
        y = NormBlock(EPSILON, self.folded, name=f"{self.prefix}_0")(x, train)
        y = ConvBlock(
            4 * self.growth, epsilon=EPSILON, use_scale=True, folded=self.folded, name=f"{self.prefix}_1"
        )(y, train)
        last = ConvBlock(self.growth, (3, 3), activation=None, normalise=False, name=f"{self.prefix}_2")
        return jnp.concatenate([x, last(y)], axis=-1)


class Transition(nn.Module):
    """Half as many channels, of half the height and width."""

    prefix: str  # Keras's name of it, such as pool2
    folded: bool = False  # see `layers.NormBlock`

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], train: bool = False) -> Float[Array, "N H2 W2 D"]:
        """Apply the transition."""
        y = NormBlock(EPSILON, self.folded, name=f"{self.prefix}_bn")(x, train)
        conv = ConvBlock(x.shape[-1] // 2, activation=None, normalise=False, name=f"{self.prefix}_conv")
        return halve(conv(y))


class DenseNet121(nn.Module):
    """DenseNet121, stopped after the layer `last`."""

    # the layer whose output is returned; one of `LAYERS`, or avg_pool. A `*_concat` layer is what the next one sees
    # before it normalises it, so that the channels of each return in all later ones of its stage.
    last: str = "softmax"
    width: float = 1.0  # multiplier of all filter counts
    classes: int = 1000  # number of classes of the head
    folded: bool = False  # whether batch normalisation is folded into convolutions and scales

    @nn.compact
    def __call__(self, x: Float[Array, "N H W 3"], train: bool = False) -> Array:
        """Return the output of `last` for preprocessed images: maps [N, h, w, D] or, from pre_softmax on, [N, classes]."""
        first, growth = round(64 * self.width), round(GROWTH * self.width)
        steps: list[nn.Module] = [
            ConvBlock(first, (7, 7), 2, 3, EPSILON, use_scale=True, folded=self.folded, name="conv1")
        ]
        for layer in LAYERS[:-2]:
            if layer == "pool1":
                steps.append(MaxPool(1, name=layer))
            elif layer.endswith("_concat"):
                steps.append(DenseLayer(layer.removesuffix("_concat"), growth, self.folded, name=layer))
            elif layer.endswith("_pool"):
                steps.append(Transition(layer.removesuffix("_pool"), self.folded, name=layer))
            else:
                steps.append(NormBlock(EPSILON, self.folded, name=layer))
        x, reached = run_to(self.last, steps, x, train)
        return x if reached else classify(self.last, x, self.classes)


def _layouts() -> tuple[sources.Layout, ...]:
    """By path Keras's and torch's names of every convolution and normalisation; pre-activation, so not in pairs."""
    keras = {"conv1": "conv1_conv", "conv1/norm": "conv1_bn"}
    torch = {"conv1": "features.conv0", "conv1/norm": "features.norm0"}
    for stage, count in STAGES.items():
        for number in range(1, count + 1):
            prefix = f"conv{stage}_block{number}"
            inner = f"features.denseblock{stage - 1}.denselayer{number}"
            for path, ours, theirs in (
                (f"{prefix}_0/norm", f"{prefix}_0_bn", f"{inner}.norm1"),
                (f"{prefix}_1", f"{prefix}_1_conv", f"{inner}.conv1"),
                (f"{prefix}_1/norm", f"{prefix}_1_bn", f"{inner}.norm2"),
                (f"{prefix}_2", f"{prefix}_2_conv", f"{inner}.conv2"),
            ):
                keras[f"{prefix}_concat/{path}"], torch[f"{prefix}_concat/{path}"] = ours, theirs
        if stage < 5:
            path, inner = f"pool{stage}_pool/pool{stage}", f"features.transition{stage - 1}"
            keras |= {f"{path}_bn/norm": f"pool{stage}_bn", f"{path}_conv": f"pool{stage}_conv"}
            torch |= {f"{path}_bn/norm": f"{inner}.norm", f"{path}_conv": f"{inner}.conv"}
    keras |= {"relu/norm": "bn", "pre_softmax": "predictions"}
    torch |= {"relu/norm": "features.norm5", "pre_softmax": "classifier"}
    # The published file still has the names of before torchvision 0.3: norm.1 for norm1.
    old = {path: re.sub(r"(norm|conv)([12])$", r"\1.\2", name) for path, name in torch.items()}
    return (
        *sources.keras_layouts(keras, EPSILON),
        sources.Layout("torchvision or timm", "torch", torch, 1e-5, ignored=sources.TRACKED),
        sources.Layout("torchvision before 0.3", "torch", old, 1e-5, ignored=sources.TRACKED),
    )


# Source: keras.applications (densenet) 3.15; torchvision.models (densenet).
SOURCES = sources.Sources(
    _layouts(),
    sources.KerasModel("DenseNet121", {"pre_softmax": "predictions"}),
    sources.official_pair(
        f"{sources.KERAS}/densenet/densenet121_weights_tf_dim_ordering_tf_kernels",
        "9d60b8095a5708f2dcce2bca79d332c7",
        "30ee3e1110167f948a6b9946edeeb738",
    ),
)
