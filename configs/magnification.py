"""Where do networks keep the magnification of tissue, and where the size of its nuclei? Needs weights and annotated images.

  python scripts/probe.py --config=configs/magnification.py --config.weights=runs/weights/resnet50,runs/weights/inception_v3 \
    --config.images=annotated:NUCLEI --workdir=runs/magnification     # a few minutes for 271 squares on 2 cores

Every image, of known microns per pixel (a column mpp of its index.csv), is brought to each mpp and cut into squares. Squares of
one image or patient stay together. networks.csv compares the networks, such as ViTs trained at different magnifications.
"""

from ml_collections import ConfigDict

from scalecov_jax.experiments.probe import Settings
from scalecov_jax.settings import flag_values


def get_config() -> ConfigDict:
    settings = Settings(
        title="Where is magnification read, and where the size of nuclei?",
        concept=("log2_mpp", "area_um2"),
        mpp=(0.25, 0.5, 1.0),
        patch=128,
        input_size=224,
        nuisances=("mean_red", "mean_green", "mean_blue"),
    )
    return ConfigDict(flag_values(settings) | {"weights": "", "images": ""})  # refused until they are given
