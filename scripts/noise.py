"""Read the width of white noise from every layer of a network, with and without what padding touches.

Example:
  python scripts/noise.py --config=configs/noise.py --config.weights=runs/weights/inception_v3 --workdir=runs/noise

Writes noise.csv (one row per probe and split), predictions.csv, effects.csv, layers.csv, summary.json, report.html, figures/ and
features/ to --workdir.
"""

import sys

import command
from absl import flags
from command import OVERWRITE, RESUME, WORKDIR
from ml_collections import config_flags

from scalecov_jax import run
from scalecov_jax.experiments import noise
from scalecov_jax.settings import describe

__doc__ += "\n" + describe(noise.Settings)
CONFIG = config_flags.DEFINE_config_file("config", None, "The settings, such as configs/noise.py.")
flags.adopt_module_key_flags(command)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Run the experiment."""
    settings, workdir = CONFIG.value.to_dict(), WORKDIR.value
    print(
        run.run("noise", settings, workdir, command=sys.argv, resume=RESUME.value, overwrite=OVERWRITE.value)
    )


if __name__ == "__main__":
    command.run(main)
