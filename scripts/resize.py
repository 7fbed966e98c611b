"""Classify the same labelled images at many sizes, and show between which sizes the network does not care.

Example:
  python scripts/resize.py --config=configs/resize.py --workdir=runs/resize
  python scripts/resize.py --config=configs/resize.py --config.weights=runs/weights/resnet50 --config.images=PHOTOGRAPHS \
    --config.sizes=75,96,128,160,192,224,225,256,288,300,320,384,448,500 --workdir=runs/resize_photographs

Writes resize.csv (one row an image, size and filter), curves.csv, plateaus.csv, filters.csv, grid.csv, summary.json,
report.html, figures/ and classified/ to --workdir.
"""

import sys

import command
from absl import flags
from command import OVERWRITE, RESUME, WORKDIR, run
from ml_collections import config_flags

from scalecov_jax.pipelines import resize

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The settings, such as configs/resize.py, which explains each of them."
)
flags.adopt_module_key_flags(command)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Classify and report."""
    settings, workdir = CONFIG.value.to_dict(), WORKDIR.value
    print(resize.run(settings, workdir, command=sys.argv, resume=RESUME.value, overwrite=OVERWRITE.value))


if __name__ == "__main__":
    run(main)
