"""What a network looks at, which concepts push it, and what its parts respond to (scripts/explain.py).

Photographs: --config.weights=runs/weights/resnet50 --config.images=FOLDER [--config.image_class=car]
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.title = "What does the network look at?"
    config.architecture = ""  # what all weights must be; any when empty
    config.weights = "checkpoints/resnet50"  # several separated by commas
    config.random_weights = True  # explain each network with random weights too
    config.images = "scenes"  # or retina, or a folder of images; with boxes if it is in VOC layout
    config.trim = (
        False  # a folder's photographs of the fundus to the disc that the camera sees, with their masks
    )
    config.image_class = "striped_disc"  # of scenes and of folders with boxes
    config.scenes = 24
    config.limit = 0  # images, evenly spread over the list; all when 0
    config.layer = "add_16"
    # or logit:CLASS, probability:CLASS (index or name), logit:CLASS,CLASS (their largest),
    # severity (of classes that are grades: sum_k (k - mean k) logit_k),
    # rcv:CONCEPT@LAYER (the projection on an RCV of config.rcvs)
    config.target = "predicted"
    # for score_propagation, in place of one target: classes separated by commas, predicted and severity among them; or all
    # (of at most 10)
    config.classes = ""
    # how the constants of its layers are laid on the image: true (receptive fields, sigma a quarter of them, nothing lost),
    # published (sigma a half, what lies outside is lost), quoted (so, with the fields that the source quotes for dr_grader)
    config.prior = "true"
    config.deviations = 2.0  # above the mean of a score map, in standard deviations: pixels beyond are marked
    config.kept = 0  # images whose arrays scores.npz holds; all when 0
    # for score_propagation: whether its maps find what the masks of the images mark (retina, annotated:FOLDER, index.csv), beside
    # gradients, FullGrad and Grad-CAM at config.layer, which may then be several layers separated by commas
    config.localisation = False
    config.smoothing = "0"  # of the maps before that: sd of a Gaussian in pixels; several separated by commas
    config.signed = False  # keep what speaks against the target in the maps
    config.faithfulness = True  # insertion and deletion, and the pointing game where boxes are known
    # maps of the network as its layers become random from the output down: one more pass over all images for each layer
    config.randomisation = False
    config.tolerance = 0  # of the pointing game, in pixels of the image (15 as published)
    config.shown = 6  # images drawn
    # for sensitivity, the objective rcv and rcv targets: rcvs.npz of a run of scripts/probe.py with these weights
    config.rcvs = ""
    config.rcv_class = ""  # whose RCVs, where the file has several classes; those of image_class when empty
    config.vector = "filter"  # or pattern: what reads the concept, or how features change with it
    config.concepts = ""  # of that file, separated by commas; all when empty
    config.objective = "channel"  # for feature_visualization; or neuron, layer, or rcv (from -v to +v)
    config.channels = "0,1,2,3,4,5,6,7"
    config.recipe = "lucid"  # or imvip (three stages, 2048 steps)
    config.steps = 0  # of lucid, in place of 512
    config.size = 0  # pixels; the network's own when 0, for feature_visualization 128
    config.batch_size = 16
    config.seed = 2026
    return config
