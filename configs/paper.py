"""Every experiment of Graziani et al. 2021 with the published figures beside ours (scripts/reproduce.py).

After a colon the data: photographs (the shared photographs and ported weights; the default), imagenet (the paper's own classes
and the Janowczyk set) or scenes (the embedded networks on rendered images; nothing else is needed):

  --config=configs/paper.py    --config=configs/paper.py:imagenet    --config=configs/paper.py:scenes

Each section starts from its own file beside this one, so that `--config.probe.splits=10` and the like work as there.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict


def get_config(data: str = "photographs") -> ConfigDict:
    sources = {"photographs": photographs, "imagenet": imagenet, "scenes": scenes}
    if data not in sources:
        raise ValueError(f"configs/paper.py:{data} is not known; expected one of {', '.join(sources)}.")
    config = ConfigDict()
    config.title = "On the scale invariance of CNNs trained on ImageNet: published and ours"
    config.sections = "resize,noise,probe,covariance,transfer"  # 4.1, 4.2, 4.3, 3.4, 4.4
    config.weights = "runs/weights/inception_v3,runs/weights/resnet50"  # from scripts/port_weights.py
    config.seed = 0
    for section, file in {
        "resize": "resize",
        "noise": "noise",
        "probe": "boxes",
        "covariance": "covariance",
        "transfer": "nuclei",
    }.items():
        config[section] = _settings(file)
        config[section].weights = ""  # those above, unless named here
        del config[section].seed  # that above
    config.probe.architecture = ""
    config.probe.n_train = "48,64,96,128,192,224,256,288,320"
    sources[data](config)
    return config


# Pixels: from the training's 224 by its stride of 32, and 225 to show what a size beside that grid costs.
SIZES = "75,96,128,160,192,224,225,256,288,384,500"


def photographs(config: ConfigDict) -> None:
    config.resize.weights = "runs/weights/resnet50"  # InceptionV3's shared weights end before the classes
    config.resize.images = "../shared/data/imagenet_samples"
    config.resize.sizes = SIZES
    config.probe.images = "../shared/data/voc_single"
    config.probe.image_class = "car,cat,train"
    config.covariance.size = 224
    config.transfer.data = "../shared/data/nuclei"
    config.transfer.stride = 0.5
    config.transfer.limit = 16


def imagenet(config: ConfigDict) -> None:
    """ImageNet/{Annotations,JPEGImages} with boxes of the paper's classes; JANOWCZYK with X_original.tif and X_mask.png."""
    classes = {"n02058221": 146, "n01608432": 21, "n04037443": 751}  # albatross, kite, racing car
    config.resize.images = "ImageNet"
    config.resize.sizes = SIZES
    config.resize.filled = 0.8
    config.resize.class_indices = ",".join(f"{wnid}:{index}" for wnid, index in classes.items())
    config.probe.images = "ImageNet"
    config.probe.image_class = ",".join(classes)
    config.covariance.size = 224
    config.transfer.data = "JANOWCZYK"
    config.transfer.magnification = 40.0
    config.transfer.auto = "scale"  # cut where scale is best readable, as published
    config.transfer.fixed_split = True
    config.transfer.trainable = "all"
    config.transfer.inputs = "raw"


def scenes(config: ConfigDict) -> None:
    config.weights = "checkpoints/inception_v3,checkpoints/resnet50"
    config.resize.images = "scenes"
    config.probe.images = "scenes"
    config.probe.image_class = "striped_disc,ringed_star,checkered_triangle"
    config.probe.input_size = 128
    config.probe.nuisances = "mean_red,mean_green,mean_blue,box_centre_x,box_centre_y"  # scenes have no files
    config.transfer = _settings("tissue")
    config.transfer.trainable = "head"
    config.transfer.regions = 48
    config.transfer.weights = ""
    config.transfer.scores = ""  # those of the section on probing
    del config.transfer.seed


def _settings(name: str) -> ConfigDict:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"scalecov_configs_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()
