"""Classify the same labelled images at many sizes, and show between which sizes the network does not care.

Example:
  python scripts/resize.py --config=configs/resize.py --workdir=runs/resize

Writes resize.csv (one row per image, size and filter), curves.csv, plateaus.csv, filters.csv, grid.csv, networks.csv, images.csv,
summary.json, report.html, figures/ and classified/ to --workdir.
"""

import sys

import command
from absl import flags
from command import OVERWRITE, RESUME, WORKDIR
from ml_collections import config_flags

from scalecov_jax import run
from scalecov_jax.experiments import resize
from scalecov_jax.settings import describe

__doc__ += "\n" + describe(resize.Settings)
CONFIG = config_flags.DEFINE_config_file("config", None, "The settings, such as configs/resize.py.")
flags.adopt_module_key_flags(command)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Run the experiment."""
    settings, workdir = CONFIG.value.to_dict(), WORKDIR.value
    print(
        run.run("resize", settings, workdir, command=sys.argv, resume=RESUME.value, overwrite=OVERWRITE.value)
    )


if __name__ == "__main__":
    command.run(main)
