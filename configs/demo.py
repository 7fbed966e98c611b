"""The demonstration: both embedded networks on held-out scenes. `make demo` runs it, and a test on rendered tissue after it.

python scripts/reproduce.py --config=configs/demo.py --workdir=runs/demo     # about 2.5 minutes on 2 cores
"""

from ml_collections import ConfigDict

from scalecov_jax.experiments.probe_settings import Settings
from scalecov_jax.settings import flag_values


def get_config() -> ConfigDict:
    # Of 447 scenes 312 are to train: least squares meets D ~ n_train at mixed8 (D = 320).
    return ConfigDict(flag_values(Settings(input_size=128, seed=2026, permutations=199)))
