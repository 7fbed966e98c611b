"""Is the texture that ImageNet taught reused after fine-tuning? (scripts/texture.py)

Real weights: --config=configs/texture.py:real, after scripts/port_weights.py wrote runs/weights/inception_v3.
"""

from ml_collections import ConfigDict


def get_config(which: str = "embedded") -> ConfigDict:
    if which not in ("embedded", "real"):
        raise ValueError(f"There are no settings {which!r}; expected embedded or real.")
    config = ConfigDict()
    config.title = "Is the texture of pretrained features reused?"
    config.weights = "checkpoints/inception_v3"
    config.images = "tissue"  # or tfds:DIR with patch_camelyon, or a folder CLASS/PATIENT/IMAGE
    config.patients = 80  # of rendered tissue
    config.per_class = 4  # patches of each kind a patient
    config.size = 96  # pixels, of rendering and input
    config.limit = 0  # images, evenly spread over the list; all when 0
    config.held_out = 0.5  # share of the patients that fine-tuning does not see; all else is measured on them
    config.epochs = 8
    config.batch_size = 16
    config.learning_rate = 1e-3
    config.layers = ""  # as published when empty
    config.concepts = (
        "glcm_asm,glcm_energy,glcm_contrast,glcm_correlation,glcm_dissimilarity,glcm_homogeneity"
    )
    config.splits = 10
    config.sizes = "48,96,192"  # numbers of images for the artefact, besides all
    config.layer = "mixed7"  # of sensitivities and maps
    config.shown = 4
    config.seed = 2026
    if which == "real":
        config.weights = "runs/weights/inception_v3"
        config.patients = 60
        config.size = 128
        config.epochs = 12
        config.learning_rate = 1e-4
    return config
