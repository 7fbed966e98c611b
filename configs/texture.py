"""Is the texture that ImageNet taught reused after fine-tuning?

  python scripts/texture.py --config=configs/texture.py --workdir=runs/texture     # about 4.5 minutes on 2 cores

With ImageNet weights, after scripts/port_weights.py wrote runs/weights/inception_v3: --config=configs/texture.py:real
"""

from ml_collections import ConfigDict

from scalecov_jax.experiments.texture import Settings
from scalecov_jax.settings import flag_values

REAL = Settings(weights="runs/weights/inception_v3", patients=60, size=128, epochs=12, learning_rate=1e-4)


def get_config(which: str = "embedded") -> ConfigDict:
    settings = {"embedded": Settings(), "real": REAL}
    if which not in settings:
        raise ValueError(f"There are no settings {which!r}; expected embedded or real.")
    return ConfigDict(flag_values(settings[which]))
