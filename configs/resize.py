"""Section 4.1 of the scale paper on the embedded networks: is a network indifferent to the size of its images?

  python scripts/resize.py --config=configs/resize.py --workdir=runs/resize     # about 6 minutes on 2 cores

Photographs, as published:
  --config.weights=runs/weights/resnet50 --config.images=FOLDER \
  --config.sizes=75,96,128,160,192,224,225,256,288,300,320,384,448,500
  FOLDER holds index.csv (columns file and class_index) and the images beside it or in images/; or, as VOC, Annotations and
  JPEGImages, and then --config.class_indices=n02058221:146,n01608432:21,n04037443:751 --config.filled=0.8
"""

from ml_collections import ConfigDict

from scalecov_jax.experiments.resize import Settings
from scalecov_jax.settings import flag_values


def get_config() -> ConfigDict:
    return ConfigDict(flag_values(Settings()))
