"""Does pruning help? Mean nucleus area by the whole, the pruned and the untrained network (scripts/transfer.py)."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.title = "Does pruning help to read nucleus size?"
    config.architecture = ""  # checked against the weights when given
    config.weights = (
        ""  # checkpoints made by port_weights.py, pretrain.py or prune.py; several are separated by commas
    )
    config.layer = "auto"  # where to cut, or auto
    config.auto = "target"  # auto probes nucleus area on the training groups (target), or takes probe.py's choice (scale)
    config.scores = (
        ""  # for auto=scale: the --workdir of a run of probe.py or reproduce.py with these weights
    )
    config.inner_splits = 3  # of the training groups, for auto=target

    config.data = ""  # folder of annotated images, or tissue (rendered)
    config.magnification = 0.0  # of the images of a folder that does not state it
    config.regions = 60  # rendered images, one a patient, when data=tissue
    config.region_size = 1024  # pixels at 40X
    config.labels = "mask"  # as published, or instances
    config.size = 224  # height and width of the patches in pixels
    config.magnifications = "5,8,10,15,20,30,40"
    config.stride = 1.0  # distance of neighbouring patches as a share of their side
    config.limit = 0  # most patches of one magnification and image; 0 for all

    config.trainable = "head"  # features computed once and a head trained, or all (fine-tuning)
    config.seeds = 10  # each draws its own split by source image, head and order of patches
    config.seed = 0  # the first of them
    config.held_out = 0.3  # share of the source images
    config.fixed_split = False  # one split for all seeds, as published
    config.inputs = "weights"  # preprocessing of the weights, or raw (0 to 255, as published)

    config.head_epochs = 100
    config.head_batch_size = 32
    config.head_learning_rate = 3e-3

    config.epochs = 5  # of fine-tuning
    config.batch_size = 32
    config.learning_rate = 1e-4
    config.targets = "pixels"  # as published, or standardised: short trainings need it
    config.batch_norm = "running"  # as published, recomputed after training, or frozen
    config.dtype = "float32"  # of the forward pass when trainable=head
    return config
