"""Train an embedded network on scenes; InceptionV3 unless --config.architecture says otherwise.

python scripts/pretrain.py --config=configs/pretrain.py --workdir=runs/pretrain/inception_v3     # about 1.5 hours on 2 busy cores
"""

from ml_collections import ConfigDict

from scalecov_jax.experiments.pretrain import Settings
from scalecov_jax.settings import flag_values


def get_config() -> ConfigDict:
    return ConfigDict(flag_values(Settings()))
