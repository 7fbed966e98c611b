"""Vision transformers (Dosovitskiy et al. 2021) as timm and Hugging Face have them, DINOv2 and DINOv3 among them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from scalecov_jax.models.layers import WHOLE, ConvBlock, LayerScale, Softmax, layer_norm, mean_patch

_normal = nn.initializers.truncated_normal(0.02)
_dense = partial(nn.Dense, kernel_init=_normal)


class Embedding(nn.Module):
    """Patches as tokens, behind the class token and the registers, plus their positions. Fields: see `ViT`."""

    features: int
    patch: int
    grid: int
    registers: int
    positioned: int
    rotary: bool

    @nn.compact
    def __call__(self, x: Float[Array, "N H W 3"]) -> Float[Array, "N T D"]:
        """Embed; positions of another grid are interpolated as timm does (bicubic, antialiased)."""
        patches = ConvBlock(
            self.features,
            (self.patch, self.patch),
            self.patch,
            "VALID",
            use_bias=True,
            activation=None,
            normalise=False,
            name="patches",
        )(x)
        n, height, width, d = patches.shape
        tokens = [self.param("class_token", _normal, (1, 1, d))]
        if self.registers:
            tokens.append(self.param("registers", _normal, (1, self.registers, d)))
        prefix = jnp.concatenate(tokens, 1).astype(x.dtype)
        prefix = jnp.broadcast_to(prefix, (n, *prefix.shape[1:]))
        embedded = jnp.concatenate([prefix, patches.reshape(n, height * width, d)], 1)
        if self.rotary:
            return embedded
        positions = self.param("positions", _normal, (1, self.positioned + self.grid**2, d))
        first, maps = positions[:, : self.positioned], positions[:, self.positioned :]
        if (height, width) != (self.grid, self.grid):
            maps = maps.reshape(1, self.grid, self.grid, d)
            maps = jax.image.resize(maps, (1, height, width, d), "cubic", antialias=True)
        without = jnp.zeros((1, prefix.shape[1] - self.positioned, d))
        positions = jnp.concatenate([first, without, maps.reshape(1, height * width, d)], 1)
        return embedded + positions.astype(x.dtype)


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v in each head, and a projection.

    Attributes:
        heads: Their number.
    """

    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "N T D"], angles: Float[np.ndarray, "P d"] | None = None) -> Array:
        """Attend; q and k of the last P tokens, the patches, are rotated by `angles` where these are given."""
        n, t, d = x.shape
        qkv = _dense(3 * d, name="qkv")(x).reshape(n, t, 3, self.heads, d // self.heads)
        q, k, v = (qkv[:, :, part] for part in range(3))
        if angles is not None:
            q, k = _rotate(q, angles), _rotate(k, angles)
        y = jax.nn.dot_product_attention(q, k, v)
        return _dense(d, name="proj")(y.reshape(n, t, d))


class Mlp(nn.Module):
    """fc2(gelu(fc1 x)); gated, fc2(silu(a) * b) with a and b the halves of fc1 x (SwiGLU).

    Attributes:
        hidden: Inputs of fc2.
        gated: Whether a gate multiplies them.
    """

    hidden: int
    gated: bool

    @nn.compact
    def __call__(self, x: Float[Array, "N T D"]) -> Float[Array, "N T D"]:
        """Apply both layers to each token."""
        y = _dense((1 + self.gated) * self.hidden, name="fc1")(x)
        if self.gated:
            gate, y = jnp.split(y, 2, -1)
            y = nn.silu(gate) * y
        else:
            y = nn.gelu(y, approximate=False)
        return _dense(x.shape[-1], name="fc2")(y)


class Block(nn.Module):
    """Attention and MLP, each of normalised tokens, scaled, and added to what came in.

    Attributes:
        number: Of the block, from 0.
        last: The layer that the network stops after.
        heads: See `ViT`, as the others.
    """

    number: int
    last: str
    heads: int
    hidden: int
    gated: bool
    layer_scale: bool
    epsilon: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "N T D"], angles: Float[np.ndarray, "P d"] | None
    ) -> Float[Array, "N T D"]:
        """Return the output of the block, or of the part inside it that the network stops after."""
        attention = Attention(self.heads, name=f"attention_{self.number}")
        mlp = Mlp(self.hidden, self.gated, name=f"mlp_{self.number}")
        for kind, step in (("attention", partial(attention, angles=angles)), ("mlp", mlp)):
            y = step(layer_norm(x.dtype, f"{kind}_norm", self.epsilon)(x))
            if self.last == f"{kind}_{self.number}":
                return y
            x = x + (LayerScale(1.0, name=f"{kind}_scale")(y) if self.layer_scale else y)
        return x


class Pooled(nn.Module):
    """What the classification head sees, as a module, so that it can be captured."""

    mean: bool
    prefix: int

    def __call__(self, x: Float[Array, "N T D"] | Float[Array, "N D"]) -> Float[Array, "N D"]:
        """The class token, or the mean of the patches; vectors pass unchanged."""
        if x.ndim == 2:
            return x
        return mean_patch(x, self.prefix) if self.mean else x[:, 0]


class ViT(nn.Module):
    """A vision transformer, stopped after the layer `last`; dropout is left out, and training is as inference.

    Attributes:
        last: The layer whose output is returned; one of `every_layer`, or avg_pool, what the head sees.
        features: Channels of a token, D.
        depth: Number of blocks.
        heads: Of each attention.
        patch: Height and width of a patch in pixels.
        image_size: Height and width in pixels of the images whose patches have a position of their own; others are interpolated.
        hidden: Inputs of the second layer of each MLP.
        gated: Whether each MLP is a SwiGLU.
        registers: Tokens between the class token and the patches.
        positioned: How many of the tokens in front of the patches have a position: none, the class token, or all.
        rope: Base of rotary positions, which replace the learnt ones; none when 0.
        layer_scale: Whether a factor for each channel follows attention and MLP.
        pool: What the head sees: the class token (cls), or the mean of the patches (mean), or that mean before it is
            normalised (mean_before_norm).
        epsilon: Added to the variance by every normalisation.
        classes: Number of classes of the head.
    """

    last: str = "softmax"
    features: int = 192
    depth: int = 12
    heads: int = 3
    patch: int = 16
    image_size: int = 224
    hidden: int = 768
    gated: bool = False
    registers: int = 0
    positioned: int = 1
    rope: float = 0.0
    layer_scale: bool = False
    pool: str = "cls"
    epsilon: float = 1e-6
    classes: int = 1000

    @property
    def prefix_tokens(self) -> int:
        """Tokens in front of the patches: the class token and the registers."""
        return 1 + self.registers

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The layers that are probed."""
        return (*(f"block_{number}" for number in range(self.depth)), "norm", "pre_softmax", "softmax")

    @property
    def every_layer(self) -> tuple[str, ...]:
        """The same with those inside the blocks, in the order in which they are computed."""
        blocks = ((f"attention_{i}", f"mlp_{i}", f"block_{i}") for i in range(self.depth))
        return (*(name for block in blocks for name in block), *self.layer_names[self.depth :])

    @property
    def unseen(self) -> str:
        """What the output depends on and no variable shows."""
        return f" heads={self.heads} rope={self.rope} epsilon={self.epsilon} pool={self.pool}"

    def check_size(self, height: int, width: int) -> None:
        """Make sure that images can be divided into patches.

        Raises:
            ValueError: They cannot.
        """
        if not height or not width or height % self.patch or width % self.patch:
            sides = sorted({max(1, round(side / self.patch)) * self.patch for side in (height, width)})
            raise ValueError(
                f"Images of {height} x {width} pixels cannot be divided into patches of {self.patch} x {self.patch}; expected a "
                f"multiple of {self.patch}, such as {' and '.join(map(str, sides))}."
            )

    @nn.compact
    def __call__(self, x: Float[Array, "N H W 3"], train: bool = False) -> Array:
        """Return the output of `last` for preprocessed images: tokens [N, T, D] or, from the pooling on, [N, D]."""
        del train
        self.check_size(*x.shape[1:3])
        angles = self._angles(x.shape[1] // self.patch, x.shape[2] // self.patch) if self.rope else None
        grid = self.image_size // self.patch
        settings = self.features, self.patch, grid, self.registers, self.positioned, self.rope > 0
        x = Embedding(*settings, name="embedding")(x)
        block = self.heads, self.hidden, self.gated, self.layer_scale, self.epsilon
        for number in range(self.depth):
            x = Block(number, self.last, *block, name=f"block_{number}")(x, angles)
            if self.last in (f"attention_{number}", f"mlp_{number}", f"block_{number}"):
                return x
        if self.pool == "mean_before_norm":
            x = mean_patch(x, self.prefix_tokens)
        x = layer_norm(x.dtype, "norm", self.epsilon)(x)
        if self.last == "norm":
            return x
        x = Pooled(self.pool == "mean", self.prefix_tokens, name=WHOLE)(x)
        if self.last == WHOLE:
            return x
        x = _dense(self.classes, name="pre_softmax")(x)
        return x if self.last == "pre_softmax" else Softmax(name="softmax")(x)

    def _angles(self, height: int, width: int) -> Float[np.ndarray, "P d"]:
        """2 pi c / base^(4 j / d) of each patch, with d channels of a head and c its row and then its column, from -1 to 1.

        Source: Siméoni et al. 2025, DINOv3, section 3.2 (without its jitter of training).
        """
        d = self.features // self.heads
        rows, columns = (2 * (np.arange(side) + 0.5) / side - 1 for side in (height, width))
        places = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2, 1)
        frequencies = 2 * np.pi / self.rope ** (4 * np.arange(d // 4) / d)
        return np.tile((places * frequencies).reshape(height * width, d // 2), 2).astype(np.float32)


def _rotate(x: Float[Array, "N T H d"], angles: Float[np.ndarray, "P d"]) -> Float[Array, "N T H d"]:
    """(a, b) to (a cos - b sin, b cos + a sin) for the halves a and b of each patch; the tokens before them stay."""
    prefix, patches = jnp.split(x, [x.shape[1] - len(angles)], 1)
    a, b = jnp.split(patches, 2, -1)
    cos, sin = (jnp.asarray(f(angles), x.dtype)[None, :, None] for f in (np.cos, np.sin))
    return jnp.concatenate([prefix, patches * cos + jnp.concatenate([-b, a], -1) * sin], 1)
