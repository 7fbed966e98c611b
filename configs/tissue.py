"""Section 4.4 of the scale paper on rendered tissue: fine-tuning of both embedded networks, cut where `make demo` selected.

make demo; python scripts/transfer.py --config=configs/tissue.py --workdir=runs/tissue     # 1.5 hours on 2 cores
"""

from ml_collections import ConfigDict

from scalecov_jax.experiments.transfer import Settings
from scalecov_jax.settings import flag_values


def get_config() -> ConfigDict:
    settings = Settings(
        title="Does pruning help to read nucleus size? Rendered tissue",
        auto="scale",
        scores="runs/demo",
        regions=80,
        labels="instances",
        size=128,
        limit=5,
        trainable="all",
        head_batch_size=256,
        learning_rate=1e-3,  # 40 steps an epoch are few: Adam 1e-4 on pixels would not get far
        targets="standardised",
        batch_norm="recomputed",
    )
    return ConfigDict(flag_values(settings))
