"""Section 4.2 of the scale paper on the embedded network: does padding tell a network how wide a noise image is?

  python scripts/noise.py --config=configs/noise.py --workdir=runs/noise     # about 1.5 minutes on 2 cores

With ImageNet weights, after scripts/port_weights.py: --config.weights=runs/weights/inception_v3,runs/weights/resnet50
"""

from ml_collections import ConfigDict

from scalecov_jax.experiments.noise import Settings
from scalecov_jax.settings import flag_values


def get_config() -> ConfigDict:
    return ConfigDict(flag_values(Settings()))
