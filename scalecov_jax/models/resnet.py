"""ResNet50, 101 and 152 (He et al. 2016) in the layout and with the layer names of keras.applications."""

from functools import partial

from flax import linen as nn
from jaxtyping import Array, Float

from scalecov_jax.models.layers import ConvBlock, MaxPool, classify
from scalecov_jax.models.sources import (
    KERAS,
    TRACKED,
    KerasModel,
    Layout,
    Official,
    Sources,
    blocks,
    keras_layouts,
    official_pair,
)

FEATURES = (64, 128, 256, 512)
EPSILON = 1.001e-5


class Residual(nn.Module):
    """A bottleneck block that returns the sum BEFORE its ReLU, as Keras's `Add` layers do."""

    prefix: str  # Keras's name of the block, such as conv2_block1
    features: int  # filters of the two inner convolutions; the block has four times as many outputs
    stride: int  # step in pixels of the block
    project: bool  # whether the shortcut is a 1x1 convolution
    # whether the 3x3 convolution takes the step (torchvision) or the first 1x1 (Keras)
    stride_on_3x3: bool = False
    folded: bool = False  # see `layers.ConvBlock`

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], train: bool = False) -> Float[Array, "N H2 W2 D"]:
        """Return shortcut + residual."""
        conv = partial(ConvBlock, epsilon=EPSILON, use_bias=True, use_scale=True, folded=self.folded)
        first, second = (1, self.stride) if self.stride_on_3x3 else (self.stride, 1)
        shortcut = x
        if self.project:
            project = conv(4 * self.features, stride=self.stride, activation=None, name=f"{self.prefix}_0")
            shortcut = project(x, train)
        x = conv(self.features, stride=first, name=f"{self.prefix}_1")(x, train)
        x = conv(self.features, (3, 3), second, 1, name=f"{self.prefix}_2")(x, train)
        x = conv(4 * self.features, activation=None, name=f"{self.prefix}_3")(x, train)
        return shortcut + x


class ResNet50(nn.Module):
    """ResNet50, stopped after the layer `last`."""

    stages = (3, 4, 6, 3)  # blocks of each

    # the layer whose output is returned; one of `layer_names(ResNet50)`, or avg_pool. An `add_*` layer is the sum before
    # its ReLU.
    last: str = "softmax"
    width: float = 1.0  # multiplier of all filter counts
    classes: int = 1000  # number of classes of the head
    # zeros around the input of the first pooling: 1 in Keras since 2.2.3 (and in torchvision), 0 before
    max_pool_padding: int = 1
    # whether the 3x3 convolutions take the steps (torchvision) or the first 1x1 of each stage (Keras)
    stride_on_3x3: bool = False
    folded: bool = False  # whether batch normalisation is folded into the convolutions

    @nn.compact
    def __call__(self, x: Float[Array, "N H W 3"], train: bool = False) -> Array:
        """Return the output of `last` for preprocessed images: maps [N, h, w, D] or, from pre_softmax on, [N, classes]."""
        conv = partial(ConvBlock, epsilon=EPSILON, use_bias=True, use_scale=True, folded=self.folded)
        x = conv(round(64 * self.width), (7, 7), 2, 3, name="conv1")(x, train)
        x = MaxPool(self.max_pool_padding, name="max_pool")(x)
        if self.last == "max_pool":
            return x
        for number, (stage, block) in enumerate(_blocks(type(self)), start=1):
            x = Residual(
                f"conv{stage}_block{block}",
                round(FEATURES[stage - 2] * self.width),
                stride=2 if block == 1 and stage > 2 else 1,
                project=block == 1,
                stride_on_3x3=self.stride_on_3x3,
                folded=self.folded,
                name=f"add_{number}",
            )(x, train)
            if self.last == f"add_{number}":
                return x
            x = nn.relu(x)
        return classify(self.last, x, self.classes)


class ResNet101(ResNet50):
    """ResNet101; see `ResNet50`."""

    stages = (3, 4, 23, 3)


class ResNet152(ResNet50):
    """ResNet152; see `ResNet50`."""

    stages = (3, 8, 36, 3)


def layer_names(network: type[ResNet50]) -> tuple[str, ...]:
    """The layers that are probed."""
    return ("max_pool", *(f"add_{i}" for i in range(1, sum(network.stages) + 1)), "pre_softmax", "softmax")


def _blocks(network: type[ResNet50]) -> list[tuple[int, int]]:
    """Keras's numbers of stage and block, from input to output."""
    return [
        (stage, block) for stage, count in enumerate(network.stages, start=2) for block in range(1, count + 1)
    ]


# Our last digit -> Keras before 2019, torch's convolution and normalisation. 0 is the shortcut.
_BRANCHES = {
    0: ("branch1", "downsample.0", "downsample.1"),
    1: ("branch2a", "conv1", "bn1"),
    2: ("branch2b", "conv2", "bn2"),
    3: ("branch2c", "conv3", "bn3"),
}
_DIGESTS = {  # with and without the head
    "resnet50": ("2cb95161c43110f7111970584f804107", "4d473c1dd8becc155b73f8504c6f6626"),
    "resnet101": ("f1aeb4b969a6efcfb50fad2f0c20cfc5", "88cf7a10940856eca736dc7b7e228a21"),
    "resnet152": ("100835be76be38e30d865e96f2aaae62", "ee4c566cf9a93f14d82f913c2dc6dd0c"),
}
_RESNET50_BEFORE_2019 = official_pair(
    "https://github.com/fchollet/deep-learning-models/releases/download/v0.2/resnet50_weights_tf_dim_ordering_tf_kernels",
    "a7b3fe01876f51b976af0dea6bc144eb",
    "a268eb855778b3df3c7506639542a6af",
    {"max_pool_padding": 0},
)


def sources(network: type[ResNet50]) -> Sources:
    """Names in Keras, in Keras before 2019, in Keras files without names, and in torch; the official files.

    Source: keras.applications (resnet) 3.15; resnet50 of keras-applications 1.0.0 for the names and files before 2019;
    torchvision.models (resnet).
    """
    keras = {"conv1": ("conv1_conv", "conv1_bn")}
    old = {"conv1": ("conv1", "bn_conv1")}
    torch = {"conv1": ("conv1", "bn1")}
    outputs = {"max_pool": "pool1_pool", "pre_softmax": "predictions"}
    for number, (stage, block) in enumerate(_blocks(network), start=1):
        outputs[f"add_{number}"] = f"conv{stage}_block{block}_add"
        # The order in which Keras lists them, by depth.
        for branch in (1, 2, 0, 3) if block == 1 else (1, 2, 3):
            name = f"conv{stage}_block{block}_{branch}"
            before_2019, conv, norm = _BRANCHES[branch]
            letters, module = f"{stage}{chr(96 + block)}_{before_2019}", f"layer{stage - 1}.{block - 1}"
            path = f"add_{number}/{name}"
            keras[path] = f"{name}_conv", f"{name}_bn"
            old[path] = f"res{letters}", f"bn{letters}"
            torch[path] = f"{module}.{conv}", f"{module}.{norm}"
    layouts = [
        *keras_layouts(blocks(keras, "predictions"), EPSILON),
        Layout("torchvision or timm", "torch", blocks(torch, "fc"), 1e-5, {"stride_on_3x3": True}, TRACKED),
    ]
    name = network.__name__.lower()
    official: tuple[Official, ...] = official_pair(
        f"{KERAS}/resnet/{name}_weights_tf_dim_ordering_tf_kernels", *_DIGESTS[name]
    )
    if network is ResNet50:
        # Its batch normalisations were left at Keras's default epsilon.
        layouts.append(Layout("Keras before 2019", "keras", blocks(old, "fc1000"), 1e-3))
        official += _RESNET50_BEFORE_2019
    return Sources(tuple(layouts), KerasModel(network.__name__, outputs), official)
