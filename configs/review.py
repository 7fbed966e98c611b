"""What a reviewer would ask of a concept vector, on rendered scenes with the embedded ResNet50.

  python scripts/experiment.py --experiment=review --config=configs/review.py --workdir=runs/review

On photographs, after scripts/port_weights.py: --config.weights=runs/weights/resnet50 --config.images=../shared/data/voc_single
--config.image_class=car
"""

from ml_collections import ConfigDict

from scalecov_jax.experiments.review import Settings
from scalecov_jax.settings import flag_values


def get_config() -> ConfigDict:
    return ConfigDict(flag_values(Settings()))
