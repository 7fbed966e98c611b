"""Measure covariance to scale as an operation: what moves in a network's features when a rendered object grows.

Example:
  python scripts/covariance.py --config=configs/covariance.py --config.weights=runs/weights/resnet50 --config.size=224 \
    --workdir=runs/covariance

Writes change.csv, linearity.csv, angles.csv, transfer.csv, readings.csv, summary.json, report.html, figures/ and features/ to
--workdir.
"""

import sys

import command
from absl import flags
from command import OVERWRITE, RESUME, WORKDIR
from ml_collections import config_flags

from scalecov_jax import run
from scalecov_jax.experiments import covariance
from scalecov_jax.settings import describe

__doc__ += "\n" + describe(covariance.Settings)
CONFIG = config_flags.DEFINE_config_file("config", None, "The settings, such as configs/covariance.py.")
flags.adopt_module_key_flags(command)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Run the experiment."""
    settings, options = CONFIG.value.to_dict(), {"resume": RESUME.value, "overwrite": OVERWRITE.value}
    print(run.run("covariance", settings, WORKDIR.value, command=sys.argv, **options))


if __name__ == "__main__":
    command.run(main)
