# %% [markdown]
# # The collapse of least squares
#
# Early layers seem to lose object scale when it is read by least squares. Here the dip is moved at will, by the number
# of training images alone: it belongs to the sample, not to the layer.

# %%
import numpy as np

import scalecov_jax as sc
from scalecov_jax.probes import sample_size

network = sc.load("checkpoints/inception_v3")
images = sc.images("scenes", image_class="striped_disc", count=200, seed=3)
layers = ["conv2d_5", "mixed0", "mixed4"]
features = sc.features(network, images, layers, size=96)
box = images.table
scale = ((box.x_max - box.x_min + 1) * (box.y_max - box.y_min + 1) / (box.width * box.height)).to_numpy()
{layer: values.shape for layer, values in features.values.items()}

# %% [markdown]
# Each layer is probed with 16 to 180 training images; the rest is held out.

# %%
table = sample_size.sweep(features.values, scale, [16, 24, 32, 48, 64, 96, 128, 160, 180])
medians = table.groupby(["layer", "n_train", "estimator"])["r2"].median().unstack("estimator")
medians.unstack("layer").round(2)

# %% [markdown]
# The dip of least squares lies where the number of training images meets the rank of the layer's features.

# %%
sample_size.dips(table)

# %%
curves = medians.clip(lower=-1).stack().rename("R²").reset_index()
curves["series"] = curves["layer"] + " " + curves["estimator"]
axes = curves.pivot(index="n_train", columns="series", values="R²").plot(logx=True, marker="o")
label = axes.set_ylabel("median held-out R², cut at −1")

# %% [markdown]
# The same happens with features that know nothing: on noise, least squares has its dip at D = n, and ridge stays at 0.

# %%
noise = {"noise": np.random.default_rng(0).normal(size=(200, 64))}
on_noise = sample_size.sweep(noise, scale, [32, 48, 64, 80, 96, 128])
on_noise.groupby(["n_train", "estimator"])["r2"].median().unstack("estimator").round(2)
