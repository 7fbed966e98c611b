"""Section 4.4 of the scale paper on annotated images: does pruning help to read the size of nuclei? Needs weights and data.

  python scripts/transfer.py --config=configs/nuclei.py --config.weights=runs/weights/resnet50 --config.data=NUCLEI \
    --workdir=runs/nuclei     # a few minutes for 366 patches on 2 cores
"""

from ml_collections import ConfigDict

from scalecov_jax.experiments.transfer import Settings
from scalecov_jax.settings import flag_values


def get_config() -> ConfigDict:
    return ConfigDict(flag_values(Settings()) | {"weights": "", "data": ""})  # refused until they are given
