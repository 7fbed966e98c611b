# %% [markdown]
# # Features from a file: two layers compared
#
# No network is needed: arrays [images, features] from any foundation model, and one measure per image.

# %%
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pandas as pd

import scalecov_jax as sc

rng = np.random.default_rng(0)
patients = np.repeat(np.arange(60), 3)
age = rng.normal(60, 12, 60)[patients]
early = rng.normal(size=(180, 32)) + 0.03 * (age[:, None] - 60) * rng.normal(size=32)
late = rng.normal(size=(180, 32)) + 0.06 * (age[:, None] - 60) * rng.normal(size=32)
file = Path(mkdtemp(), "features.npz")
np.savez(file, early=early, late=late)

# %%
found = sc.probe(file, pd.Series(age, name="age"), groups=patients, permutations=199)
found

# %% [markdown]
# The difference of R² on the same images and splits, its 95 % interval over patients, and a two-sided p:

# %%
found.compare("late", "early")

# %% [markdown]
# What happens when the patients are not given: images of one patient lie on both sides of a split, and the intervals
# are too narrow.

# %%
naive = sc.probe(file, pd.Series(age, name="age"), permutations=199)
pd.concat({"by patient": found.table(), "by image": naive.table()})[["layer", "r2", "low", "high"]].round(2)
