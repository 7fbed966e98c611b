"""Train the grader of diabetic retinopathy on rendered retinas.

  python scripts/train_grader.py --config=configs/retina.py --workdir=runs/grader     # about 35 minutes on 2 busy cores

With photographs: --config.images=FOLDER (one CSV: image, level) or tfds:DATA_DIR, --config.size=640 --config.width=1
"""

from ml_collections import ConfigDict

from scalecov_jax.experiments.grade import Settings
from scalecov_jax.settings import flag_values


def get_config() -> ConfigDict:
    return ConfigDict(flag_values(Settings()))
