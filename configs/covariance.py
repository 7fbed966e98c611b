"""Is a network covariant to scale as an operation? Rendered objects that grow (scripts/covariance.py)."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.title = "Does a growing object move features along its regression concept vector?"
    config.weights = "checkpoints/inception_v3,checkpoints/resnet50"  # checkpoints, separated by commas
    config.classes = "striped_disc,ringed_star,checkered_triangle"  # of scenes, at least two
    config.scenes = 200  # independent scenes a class, to fit probes to
    config.objects = 12  # growing objects a class
    config.ratios = 8  # sizes at which each of them is seen, equally spaced in log
    config.smallest = 0.02  # of these, as a share of the image
    config.largest = 0.9
    config.size = (
        0  # pixels at which scenes are rendered and seen; each network's own when 0; 224 for ImageNet weights
    )
    config.layers = ""  # separated by commas; all when empty
    config.estimators = "ridge,ols"
    config.splits = 10  # random halves of the scenes of a class
    config.seed = 2026
    config.batch_size = 32
    config.dtype = "float32"  # or bfloat16, for the forward pass alone
    return config
