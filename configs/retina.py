"""Train the grader of diabetic retinopathy: scripts/train_grader.py --config=configs/retina.py."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.title = "A grader of diabetic retinopathy"
    config.images = (
        "retina"  # rendered; or a folder of photographs with one CSV (image, level), or tfds:DATA_DIR
    )
    config.train = 4000  # rendered eyes of each part; folders and tfds are read whole
    config.validation = 500
    config.test = 1000
    config.validation_share = 0.1  # of the patients of a folder; tfds has its own parts
    config.test_share = 0.1
    config.architecture = "dr_grader"
    config.size = 256  # pixels; the published network has 640
    config.width = 0.5  # multiplier of all filter counts; the published network has 1
    config.batch_size = 16
    config.steps = 1000
    config.learning_rate = 1e-3
    config.warmup = 50
    config.weight_decay = 0.0
    config.seed = 0
    config.log_every = 20  # steps
    config.save_every = 100  # steps
    return config
