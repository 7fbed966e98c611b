# %% [markdown]
# # Where a concept is seen
#
# A concept vector is a target like a class: Grad-CAM shows from where a layer reads object scale, and score
# propagation divides its projection exactly among the pixels and the biases of every layer.

# %%
import jax.numpy as jnp
import numpy as np

import scalecov_jax as sc
from scalecov_jax.explanation import score_propagation
from scalecov_jax.explanation.target import rcv_projection
from scalecov_jax.models.preprocessing import preprocess
from scalecov_jax.report import plots

network = sc.load("checkpoints/resnet50")
images = sc.images("scenes", image_class="ringed_star", count=80, seed=2)
found = sc.probe(network, images, "scale", layers=["add_7", "add_12"], size=96, permutations=0)
found

# %% [markdown]
# ## Grad-CAM of the concept

# %%
vector = found.rcv("add_7")
shown = images.take(range(4))
maps = sc.explain(network, shown, "add_7", target=vector, size=128)
read = vector.predict(found.features["add_7"][:4])
pictures = {
    "image": [(f"scale {value:.2f}", one.image) for value, one in zip(read, shown, strict=True)],
    "Grad-CAM": [("", one) for one in maps],
}
plots.image_grid(
    pictures, alt="Scenes, and where scale is read", name="", caption="", scale=(0, 1, "viridis")
)

# %% [markdown]
# ## Score propagation
#
# The parts add up to the projection on the concept vector (the reading up to its scale and intercept), whatever the
# network. On their own they are not an explanation: how far the maps find what they should is
# [measured](../score_propagation.md).

# %%
pixels = np.stack([one.image for one in shown])
inputs = preprocess(jnp.asarray(pixels), network.card.preprocessing)
target = rcv_projection(network, vector)
parts = score_propagation.propagate_scores(network.module, network.variables, inputs, [target])
parts.scores[0], score_propagation.relative_error(parts)[0]

# %%
largest = float(abs(parts.inputs).max())
plots.image_grid(
    {"image": [("", one) for one in pixels], "pixels": [("", np.asarray(one)) for one in parts.inputs[0]]},
    alt="Scenes, and the part of each pixel in the reading",
    name="",
    caption="",
    scale=(-largest, largest, "RdBu_r"),
)
