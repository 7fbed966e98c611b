"""The demonstration: both embedded networks on held-out scenes (scripts/reproduce.py, make demo)."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.title = "Where does object scale live?"
    config.weights = "checkpoints/inception_v3,checkpoints/resnet50"
    config.images = "scenes"
    config.image_class = "striped_disc,ringed_star,checkered_triangle"
    config.concept = "scale"
    config.scenes = 447  # 312 of them to train: least squares meets D ~ n_train at mixed8 (D = 320)
    config.layers = ""
    config.pooling = "gap"  # or max, or corrected_gap (the mean over the pixels that no padding reaches)
    config.input_size = 128
    config.splitting = "auto"
    config.groups = ""
    config.splits = 25
    config.seed = 2026
    config.n_train = ""
    config.alpha_min = 0.1
    config.alpha_max = 1e6
    config.alphas = 15
    config.probes = ""
    config.permutations = 199
    config.nuisances = "mean_red,mean_green,mean_blue,box_centre_x,box_centre_y"
    config.pixels = True
    config.batch_size = 32
    config.dtype = "float32"
    return config
