"""Is a network covariant to scale as an operation? Rendered objects that grow, seen by the embedded networks.

  python scripts/covariance.py --config=configs/covariance.py --workdir=runs/covariance     # about 4 minutes on 2 cores

With ImageNet weights, after scripts/port_weights.py: --config.weights=runs/weights/resnet50 --config.size=224
"""

from ml_collections import ConfigDict

from scalecov_jax.experiments.covariance import Settings
from scalecov_jax.settings import flag_values


def get_config() -> ConfigDict:
    return ConfigDict(flag_values(Settings()))
