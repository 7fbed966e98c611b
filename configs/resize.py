"""Is a network indifferent to the size of its images? Section 4.1 of the paper (scripts/resize.py).

Photographs, as published:
  --config.weights=runs/weights/resnet50 --config.images=FOLDER \
  --config.sizes=75,96,128,160,192,224,225,256,288,300,320,384,448,500
  FOLDER holds index.csv (columns file and class_index) and the images beside it or in images/; or, as VOC, Annotations and
  JPEGImages, and then --config.class_indices=n02058221:146,n01608432:21,n04037443:751 --config.filled=0.8
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.title = "Is the network indifferent to the size of its images?"
    config.weights = "checkpoints/resnet50,checkpoints/inception_v3"  # whole networks, separated by commas
    config.images = "scenes"  # or a folder, see above
    config.class_indices = ""  # class in the annotations : class of the network, for folders with boxes
    config.scenes = 20  # of each of the 16 classes when images=scenes
    config.scene_size = 256  # pixels; scenes are rendered once at this size, then resized
    config.sizes = (
        "75,96,112,128,129,144,160,192,224,256"  # pixels; the embedded networks were trained at 128
    )
    config.filters = "lanczos,bilinear,bicubic,nearest"
    config.square = "crop"  # the central square; or stretch, which distorts photographs
    config.filled = (
        0.6  # part of the image that the box of a filled image covers; few scenes have more, photographs do
    )
    config.limit = 0  # images, evenly spread over the list; all when 0
    config.seed = 2026  # of the scenes (not the training's) and of the bootstrap
    config.batch_size = 16
    config.dtype = "float32"  # or bfloat16, for the forward pass alone
    return config
