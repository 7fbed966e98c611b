"""Is the end of ResNet50's third stage (add_13, where CLAM and TRIDENT stop) the right cut to read the size of nuclei?

The whole network is the one cut there; the pruned one is cut at an earlier layer, chosen inside each training part.

  python scripts/prune.py --weights=runs/weights/resnet50 --layer=add_13 --output=runs/weights/resnet50_add_13
  python scripts/transfer.py --config=configs/clam_cut.py --config.weights=runs/weights/resnet50_add_13 --config.data=NUCLEI \
    --workdir=runs/clam_cut     # a minute for 366 patches on 2 cores
"""

from ml_collections import ConfigDict

from scalecov_jax.experiments.transfer import Settings
from scalecov_jax.settings import flag_values


def get_config() -> ConfigDict:
    settings = Settings(title="Is add_13 the right cut for nucleus area?", stride=0.5, limit=16)
    return ConfigDict(flag_values(settings) | {"weights": "", "data": ""})  # refused until they are given
