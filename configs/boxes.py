"""Where does object scale live? Annotated photographs of one class or several; weights and images must be named.

  python scripts/probe.py --config=configs/boxes.py --config.architecture=resnet50 --config.weights=runs/weights/resnet50 \
    --config.images=../shared/data/voc_single --workdir=runs/resnet50_car     # one to two minutes on 2 cores
"""

from ml_collections import ConfigDict

from scalecov_jax.experiments.probe_settings import Settings
from scalecov_jax.settings import flag_values


def get_config() -> ConfigDict:
    settings = Settings(image_class=("car",), nuisances=(*Settings().nuisances, "file_size"))
    return ConfigDict({**flag_values(settings), "weights": "", "images": ""})
