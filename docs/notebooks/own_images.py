# %% [markdown]
# # Own images and a table
#
# A folder of images and a CSV file, to the layer that reads a measure best, its concept vector and the cut
# network. The images are rendered here so that the page can be rebuilt anywhere; take your own folder instead.

# %%
from pathlib import Path
from tempfile import mkdtemp

import pandas as pd
from PIL import Image

import scalecov_jax as sc

folder = Path(mkdtemp())
rows = []
for number, scene in enumerate(sc.images("scenes", image_class="ringed_star", count=120, seed=1)):
    Image.fromarray(scene.image).save(folder / f"{number:03}.png")
    box = scene.box
    area = (box.x_max - box.x_min + 1) * (box.y_max - box.y_min + 1)
    rows.append((f"{number:03}.png", round(0.2 * area**0.5, 1), f"p{number // 2:02}"))
measures = pd.DataFrame(rows, columns=["image", "diameter", "patient"])
measures.head(3)

# %% [markdown]
# ## Read the images
#
# Lines of the table find their images by name. `groups` names the column of the patient: splits, intervals and
# tests keep the images of a patient together.

# %%
images = sc.images(folder, measures=measures, groups="patient")
images

# %% [markdown]
# ## Probe every layer
#
# `size` is that of the images in pixels as the network sees them. 199 permutations make 0.005 the smallest p value.

# %%
network = sc.load("checkpoints/resnet50")
found = sc.probe(network, images, "diameter", size=128, permutations=199)
found

# %%
found.plot()

# %% [markdown]
# The best layer of this sample, and the layers that another sample could have put first
# ([what this says](../concepts.md#what-an-interval-and-a-peak-set-say)):

# %%
found.best, found.peak_set

# %%
found.compare(found.best, "pre_softmax")

# %% [markdown]
# ## The concept vector and the cut network

# %%
vector = found.rcv()
predicted = vector.predict(found.features[found.best])
both = pd.DataFrame({"true": images.column("diameter"), "predicted": predicted})
axes = both.plot.scatter("true", "predicted")

# %%
cut = sc.cut(network, found.best)
cut

# %%
sc.features(cut, images, [found.best], size=128)
