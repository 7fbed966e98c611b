"""Fine-tuning on rendered tissue: whole, pruned and from scratch, both embedded networks (scripts/transfer.py)."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.title = "Does pruning help to read nucleus size? Rendered tissue"
    config.architecture = ""
    config.weights = "checkpoints/inception_v3,checkpoints/resnet50"
    config.layer = "auto"
    config.auto = "scale"
    config.scores = "runs/demo"  # what `make demo` selected
    config.inner_splits = 3

    config.data = "tissue"
    config.magnification = 0.0
    config.regions = 80
    config.region_size = 1024
    config.labels = "instances"
    config.size = 128
    config.magnifications = "5,8,10,15,20,30,40"
    config.stride = 1.0
    config.limit = 5

    config.trainable = "all"
    config.seeds = 10
    config.seed = 0
    config.held_out = 0.3
    config.fixed_split = False
    config.inputs = "weights"

    config.head_epochs = 100
    config.head_batch_size = 256
    config.head_learning_rate = 3e-3

    config.epochs = 5
    config.batch_size = 32
    config.learning_rate = 1e-3  # 40 steps an epoch are few: Adam 1e-4 on pixels would not get far
    config.targets = "standardised"
    config.batch_norm = "recomputed"
    config.dtype = "float32"
    return config
