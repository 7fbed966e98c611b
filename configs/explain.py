"""What a network looks at, which concepts push it, and what its parts respond to (scripts/explain.py --help has all settings).

  python scripts/explain.py --method=grad_cam --config=configs/explain.py --workdir=runs/explain     # about 1 minute on 2 cores

Photographs: --config.weights=runs/weights/resnet50 --config.images=FOLDER [--config.image_class=car]
"""

from ml_collections import ConfigDict

from scalecov_jax.experiments.explain import Settings
from scalecov_jax.settings import flag_values


def get_config() -> ConfigDict:
    return ConfigDict(flag_values(Settings()))
