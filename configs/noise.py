"""Does padding tell a network how wide a noise image is? Section 4.2 of the paper (scripts/noise.py).

With ImageNet weights, after scripts/port_weights.py:
  --config.weights=runs/weights/inception_v3,runs/weights/resnet50
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.title = "Can the width of white noise be read from a network?"
    config.weights = "checkpoints/inception_v3"  # checkpoints, separated by commas
    config.layers = ""  # separated by commas; all with a map when empty
    config.sizes = "75,100,125,150,175,200,225,250,275,300,325,350,375,400,425,450,475,500"  # pixels
    config.per_size = 9  # images of each width
    config.train = 5  # images a draw of the published setting
    config.test = 20
    config.splits = 25  # draws of the published setting, and splits of the two larger ones
    config.ranges = "150-300"  # further ranges of widths for the published setting, separated by commas
    config.scaling = "common"  # or each: every feature by its own sd, which lets features that are silent in training blow up
    config.random_weights = True  # also probe the network with random weights, on all sizes together
    config.seed = 0
    config.batch_size = 16
    config.dtype = "float32"  # or bfloat16, for the forward pass alone
    return config
