"""Train one of the embedded networks on scenes: scripts/pretrain.py --config=configs/pretrain.py."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.architecture = "inception_v3"
    config.width = 0.25  # multiplier of all filter counts
    config.size = 128  # pixels
    config.batch_size = 32
    config.steps = 12_000
    config.learning_rate = 2e-3
    config.warmup = 300
    config.weight_decay = 0.02
    config.seed = 0
    config.log_every = 50  # steps
    config.save_every = 250  # steps
    config.held_out = 8192  # scenes of the final test
    return config
