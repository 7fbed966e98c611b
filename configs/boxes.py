"""Where does object scale live? Annotated photographs of one class or several (scripts/probe.py)."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.title = "Where does object scale live?"
    config.architecture = "resnet50"  # must be that of the weights
    config.weights = ""  # checkpoint made by scripts/port_weights.py, pretrain.py or prune.py
    config.images = ""  # folder in VOC layout, tfds:<data_dir>, annotated:<folder with masks>, or scenes
    config.image_class = "car"  # several are separated by commas
    config.concept = "scale"  # names of docs/measures.md, separated by commas; the first decides where to cut
    config.scenes = 447  # images a class when images=scenes
    config.layers = ""  # separated by commas; all when empty (with corrected_gap all at which it is defined)
    config.pooling = "gap"  # or max, or corrected_gap (the mean over the pixels that no padding reaches)
    config.input_size = 299  # pixels; the published run used 299 for both networks
    config.splitting = (
        "auto"  # random, or grouped where images share a group; or stratified, k_fold, grouped_k_fold, ...
    )
    config.groups = ""  # patients or slides (csv:PATH:COLUMN), kept together in splits, intervals and tests; empty: of the source
    config.splits = 25
    config.seed = 0
    config.n_train = ""  # numbers of training images to show where least squares dips, such as 64,128,256
    config.alpha_min = 0.1
    config.alpha_max = 1e6
    config.alphas = 15  # penalties, equally spaced in log
    config.probes = (
        ""  # beside ols and ridge: kernel_ridge, local_ridge, logistic (of measures that are 0 or 1)
    )
    config.permutations = 1000  # of the measures, for p values; 0 for none
    config.nuisances = (
        "mean_red,mean_green,mean_blue,box_centre_x,box_centre_y,file_size"  # measures that should not matter
    )
    config.pixels = True  # whether to compare with what a probe reads from the pixels alone
    config.route = (
        "auto"  # memory; or streamed, for many images in folds (docs/streaming.md); auto chooses and says why
    )
    config.flush = 500  # batches after which a streamed run saves what it has summed
    config.workers = 0  # processes that decode the images of a streamed run; 0 for threads
    config.batch_size = 32
    config.dtype = "float32"  # or bfloat16, for the forward pass alone
    config.cache = (
        ""  # folder where features of single images are kept for other runs, such as ~/.cache/scalecov_jax
    )
    config.cache_gb = 10.0  # what was not used for longest goes first
    return config
